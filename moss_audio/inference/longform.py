"""Where to cut a recording that is longer than the model was trained on. Knows energy, not words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moss_audio.audio import SAMPLE_RATE

TRAINED_SECONDS = 30.0
"""The longest clip of training; anything up to it is read whole."""

WINDOW_SECONDS = 28.0
PAUSE_SECONDS = 0.3
"""A cut is the middle of the quietest stretch of this length: longer than a stop consonant's closure (~0.1 s)."""


def windows(samples: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Cut `samples [n]` at pauses: pairs of start in seconds and a view of at most 30 s, together the whole.

    Each cut is the quietest place in the last third of a 28 s window.
    """
    start, window = 0, int(WINDOW_SECONDS * SAMPLE_RATE)
    while len(samples) - start > TRAINED_SECONDS * SAMPLE_RATE:
        earliest = start + 2 * window // 3
        cut = earliest + quietest(samples[earliest : start + window])
        yield start / SAMPLE_RATE, samples[start:cut]
        start = cut
    yield start / SAMPLE_RATE, samples[start:]


def quietest(samples: np.ndarray) -> int:
    """Middle of the quietest `PAUSE_SECONDS` of `samples [n]`, by their energy, to 10 ms."""
    hop = SAMPLE_RATE // 100
    n_frames = len(samples) // hop
    energy = np.square(samples[: n_frames * hop].reshape(n_frames, hop), dtype=np.float64).sum(axis=1)
    width = min(n_frames, round(PAUSE_SECONDS * 100))
    total = np.concatenate([[0.0], np.cumsum(energy)])
    return (int(np.argmin(total[width:] - total[:-width])) + width // 2) * hop
