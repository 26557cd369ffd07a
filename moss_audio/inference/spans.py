"""Where something sounds: stretches without a pause, and without the spectrum becoming another one.

Knows samples and a voice detector; no labels and no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moss_audio.audio import HOP_LENGTH, SAMPLE_RATE, log_mel
from moss_audio.inference.voice import CHUNK, Voice
from moss_audio.signal import HOP, QUIET_DB, energy_db

STEPS = SAMPLE_RATE // HOP
"""Steps of activity in a second."""

SILENT_DB = -60.0
PAUSE, SHORTEST = 0.3, 0.06
"""Seconds of quiet that part two events, and the least that is one."""

CHANGE_SECONDS, CHANGE = 1.0, 0.22
"""A new sound begins where the mean log-mel of a second differs by so much from that of the second before: 0.22 is 9 dB
in every band. The largest change has a median of 0.14 within single sounds, and of 0.25 where one follows another;
within speech, 0.16, it does not count."""


@dataclass(frozen=True)
class Span:
    """From `start` to `end` seconds."""

    start: float
    end: float


def activity(samples: np.ndarray, voice: Voice | None = None) -> np.ndarray:
    """Whether anything sounds in each 20 ms: over the noise of its half minute, or spoken."""
    return _active(samples, None if voice is None else spoken(samples, voice))


def _active(samples: np.ndarray, voiced: np.ndarray | None) -> np.ndarray:
    """`activity`, where it is known who speaks in each 20 ms."""
    levels = energy_db(samples)
    active: np.ndarray = np.zeros(len(levels), bool)
    size = 30 * STEPS
    for at in range(0, len(levels), size):
        block = levels[at : at + size]
        noise = np.quantile(block, 0.1) + 8
        floor = np.clip(noise, block.max() - QUIET_DB, block.max() - 24)
        active[at : at + size] = (block > floor) & (block > SILENT_DB)
    if voiced is not None:
        active |= voiced[: len(active)] & (levels > SILENT_DB)
    return active


def spoken(samples: np.ndarray, voice: Voice) -> np.ndarray:
    """Whether somebody speaks in each 20 ms."""
    chunks = np.fromiter(voice(samples), np.float64) >= 0.5
    steps = np.arange(-(-len(samples) // HOP)) * HOP // CHUNK
    return chunks[np.minimum(steps, len(chunks) - 1)] if len(chunks) else np.zeros(len(steps), bool)


def runs(active: np.ndarray, gap: float = PAUSE, least: float = SHORTEST) -> list[tuple[int, int]]:
    """Stretches of `active` as first step and step behind, over gaps of less than `gap` seconds."""
    at = np.flatnonzero(active)
    parts = np.split(at, np.flatnonzero(np.diff(at) > gap * STEPS) + 1) if len(at) else []
    return [(int(part[0]), int(part[-1]) + 1) for part in parts if np.count_nonzero(part) >= least * STEPS]


def changes(samples: np.ndarray, least: float = CHANGE) -> np.ndarray:
    """Seconds at which the spectrum becomes another: peaks of the change between neighbouring seconds over `least`."""
    width = round(CHANGE_SECONDS * 100)
    if len(samples) < 2 * width * HOP_LENGTH:
        return np.empty(0)
    mel = log_mel(samples, 80)
    total = np.concatenate([np.zeros((80, 1)), np.cumsum(mel, axis=1, dtype=np.float64)], axis=1)
    means = (total[:, width:] - total[:, :-width]) / width
    change = np.abs(means[:, width:] - means[:, :-width]).mean(axis=0)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(change, width // 2, mode="edge"), width // 2 * 2 + 1)
    peak = (change >= around.max(axis=1)) & (change > least)
    peak[[0, -1]] = False  # the real one may lie where no second is before or behind
    return (np.flatnonzero(peak) + width) / 100


def spans(samples: np.ndarray, voice: Voice | None = None, change: float = CHANGE) -> list[Span]:
    """The events of a recording in order; neighbours touch where one sound follows another without a pause."""
    voiced = None if voice is None else spoken(samples, voice)
    speech = [] if voiced is None else runs(voiced, gap=0.5)
    times = [round(time * STEPS) for time in changes(samples, change)]
    places = [place for place in times if not any(start + 10 < place < end - 10 for start, end in speech)]
    found = []
    for start, end in runs(_active(samples, voiced)):
        inner = [place for place in places if start + 15 < place < end - 15]
        for a, b in zip([start, *inner], [*inner, end], strict=True):
            found.append(Span(a / STEPS, b / STEPS))
    return found
