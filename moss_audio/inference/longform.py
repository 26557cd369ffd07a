"""Where to cut a recording that is longer than the model was trained on. Knows voices and energy, not words.

Windows are cut where nobody speaks, so that nothing is lost or doubled. Where nobody ever pauses, both neighbours hear
what is around the cut, if their words can be told apart by times.
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

OVERLAP_SECONDS = 0.5
"""What a window hears beyond a cut that no pause allowed: about two words."""

_HOP = SAMPLE_RATE // 100
_WARM_UP = SAMPLE_RATE
"""The detector decides by what it has heard before: it begins a second early."""


class Window(NamedTuple):
    """A recording from `start` to `end`, in seconds; `samples [n]` begin `lead` before it and end `tail` behind it."""

    start: float
    samples: np.ndarray
    lead: float = 0.0
    tail: float = 0.0

    @property
    def duration(self) -> float:
        return len(self.samples) / SAMPLE_RATE - self.lead - self.tail

    @property
    def end(self) -> float:
        return self.start + self.duration


def windows(
    audio: np.ndarray | Iterable[np.ndarray],
    voice: Voice | None = None,
    start: float = 0.0,
    seconds: float = TRAINED_SECONDS,
    *,
    overlap: float = 0.0,
    lead: float = 0.0,
) -> Iterator[Window]:
    """Cut `samples [n]` or blocks of them at pauses, from `start` on: windows of at most `seconds`, together all of it.

    Where `voice` finds no pause, neighbours share `overlap` seconds on either side of the cut; the first window has the
    `lead` of one that ended so. Holds no more than a window and a block.
    """
    longest, window, shared = (int(length * SAMPLE_RATE) for length in (seconds, seconds - MARGIN_SECONDS, overlap))
    at, n_lead = round(start * SAMPLE_RATE), round(lead * SAMPLE_RATE)
    skipped = at - n_lead
    held: list[np.ndarray] = []
    n_held = 0

    def piece(samples: np.ndarray, n_tail: int) -> Window:
        return Window(at / SAMPLE_RATE, samples, n_lead / SAMPLE_RATE, n_tail / SAMPLE_RATE)

    for block in _small(audio):
        block, skipped = block[skipped:], max(0, skipped - len(block))
        held.append(block)
        n_held += len(block)
        while n_held > longest:
            samples = np.concatenate(held)
            own = samples[n_lead : n_lead + window]
            place = pause(own, voice) if voice is not None else None
            n_tail = shared if voice is not None and place is None else 0
            n_cut = quietest_late(own) if place is None else place
            yield piece(samples[: n_lead + n_cut + n_tail], n_tail)
            rest = samples[n_lead + n_cut - n_tail :]
            held, n_held, at, n_lead = [rest], len(rest), at + n_cut, n_tail
    if n_held or at == 0:
        yield piece(np.concatenate(held) if held else np.empty(0, dtype=np.float32), 0)


def _small(audio: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same samples in blocks of at most a second, so that little is copied."""
    for block in [audio] if isinstance(audio, np.ndarray) else audio:
        yield from (block[at : at + SAMPLE_RATE] for at in range(0, len(block), SAMPLE_RATE))


def cut(samples: np.ndarray, voice: Voice | None = None) -> int:
    """The place to cut `samples [n]`: a pause, or without a detector, or where nobody pauses, where it is quiet."""
    place = pause(samples, voice) if voice is not None else None
    return quietest_late(samples) if place is None else place


def pause(samples: np.ndarray, voice: Voice) -> int | None:
    """The quietest pause of the last third of `samples [n]`, or of the third before it; None where nobody pauses."""
    third = len(samples) // 3
    for earliest in (2 * third, third):
        begin = max(0, earliest - _WARM_UP)
        chunks = np.fromiter(voice(samples[begin : earliest + third]), dtype=np.float64)
        speech = np.repeat(chunks >= 0.5, CHUNK)[earliest - begin :]
        place = quietest(samples[earliest : earliest + third], speech)
        if place is not None:
            return earliest + place
    return None


def quietest_late(samples: np.ndarray) -> int:
    """The quietest place of the last third of `samples [n]`."""
    earliest = 2 * (len(samples) // 3)
    return earliest + (quietest(samples[earliest:]) or 0)


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
