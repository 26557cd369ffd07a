"""Where to cut a recording that is longer than the model was trained on. Knows voices and energy, not words.

Windows do not overlap, so nothing is doubled; they are cut where nobody speaks, so nothing is lost. Neither does the
text of one window condition the next: a mistake or a loop would be handed on, and the Mini was not trained for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.inference.voice import CHUNK, Voice

TRAINED_SECONDS = 30.0
"""What released checkpoints hear at a time; anything up to it is read whole."""

MINI_SECONDS = 16.0
"""The same for a model whose encoder spells: nearly all clips of the Mini's training are shorter."""

MARGIN_SECONDS = 2.0
"""A window that is cut is shorter than what could be read whole by so much, so that no tiny rest is left."""

PAUSE_SECONDS = 0.3
"""A cut is the middle of the quietest stretch of this length: longer than a stop consonant's closure (~0.1 s)."""

_HOP = SAMPLE_RATE // 100
_WARM_UP = SAMPLE_RATE
"""The detector decides by what it has heard before: it begins a second early."""


class Window(NamedTuple):
    """`samples [n]` of a recording from `start` on, in seconds."""

    start: float
    samples: np.ndarray

    @property
    def end(self) -> float:
        return self.start + len(self.samples) / SAMPLE_RATE


def windows(
    audio: np.ndarray | Iterable[np.ndarray],
    voice: Voice | None = None,
    start: float = 0.0,
    seconds: float = TRAINED_SECONDS,
) -> Iterator[Window]:
    """Cut `samples [n]` or blocks of them at pauses, from `start` on: windows of at most `seconds`, together all of it.

    Holds no more than a window and a block.
    """
    longest, window = int(seconds * SAMPLE_RATE), int((seconds - MARGIN_SECONDS) * SAMPLE_RATE)
    at = skipped = round(start * SAMPLE_RATE)
    held: list[np.ndarray] = []
    n_held = 0
    for block in _small(audio):
        block, skipped = block[skipped:], max(0, skipped - len(block))
        held.append(block)
        n_held += len(block)
        while n_held > longest:
            samples = np.concatenate(held)
            n_cut = cut(samples[:window], voice)
            yield Window(at / SAMPLE_RATE, samples[:n_cut])
            held, n_held, at = [samples[n_cut:]], n_held - n_cut, at + n_cut
    if n_held or at == 0:
        yield Window(at / SAMPLE_RATE, np.concatenate(held) if held else np.empty(0, dtype=np.float32))


def _small(audio: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same samples in blocks of at most a second, so that little is copied."""
    for block in [audio] if isinstance(audio, np.ndarray) else audio:
        yield from (block[at : at + SAMPLE_RATE] for at in range(0, len(block), SAMPLE_RATE))


def cut(samples: np.ndarray, voice: Voice | None = None) -> int:
    """The place to cut `samples [n]`: the quietest pause of the last third, or of the third before it.

    Without a detector, or where nobody ever pauses, the quietest place of the last third.
    """
    third = len(samples) // 3
    for earliest in (2 * third, third) if voice is not None else ():
        begin = max(0, earliest - _WARM_UP)
        chunks = np.fromiter(voice(samples[begin : earliest + third]), dtype=np.float64)  # type: ignore[misc]
        speech = np.repeat(chunks >= 0.5, CHUNK)[earliest - begin :]
        place = quietest(samples[earliest : earliest + third], speech)
        if place is not None:
            return earliest + place
    return 2 * third + (quietest(samples[2 * third :]) or 0)


def quietest(samples: np.ndarray, speech: np.ndarray | None = None) -> int | None:
    """Middle of the quietest `PAUSE_SECONDS` of `samples [n]`, by their energy, to 10 ms.

    Stretches with any of `speech [n]` do not count; None where no other is left.
    """
    n_frames = len(samples) // _HOP
    width = min(n_frames, round(PAUSE_SECONDS * 100))
    energy = _sums(np.square(samples[: n_frames * _HOP], dtype=np.float64).reshape(n_frames, _HOP).sum(axis=1), width)
    if speech is not None:
        spoken = _sums(speech[: n_frames * _HOP].reshape(n_frames, _HOP).sum(axis=1), width)
        energy[spoken > 0] = np.inf
    return (int(np.argmin(energy)) + width // 2) * _HOP if np.isfinite(energy).any() else None


def _sums(values: np.ndarray, width: int) -> np.ndarray:
    """Sums of every `width` neighbours."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(total[width:] - total[:-width])
