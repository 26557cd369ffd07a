"""Scenes with exact truth: clips of sound, speech and music placed on a timeline, over a background, in a room.

`compose` lets sounds follow each other, `converse` lets people speak in turn.

Knows samples and labels; knows no questions (`wording` asks them) and no model. Everything random comes from the
generator that is passed in, so a seed gives the same scene again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.data.manifest import Row, append_rows, read_manifest
from moss_audio.signal import HOP, QUIET_DB, energy_db
from moss_audio.transcript import Word

LONGEST_WORD = 1.2
"""Seconds that a single spoken word may last."""


@dataclass(frozen=True)
class Event:
    """One sound from `start` to `end` seconds. `kind` is sound, speech or music; `truth` is its row of the manifest.

    `words` has the times of what is said, in seconds of the scene, where the manifest knows them.
    """

    label: str
    start: float
    end: float
    kind: str
    level_db: float
    truth: Mapping[str, Any]
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, eq=False)
class Scene:
    """`samples [n]` at 16 kHz, its events in order of start, and the label of what goes on behind them, if anything."""

    samples: np.ndarray
    events: tuple[Event, ...]
    background: str | None = None

    @property
    def seconds(self) -> float:
        """Length of the scene."""
        return len(self.samples) / SAMPLE_RATE


class SampleStore:
    """The samples of a manifest's rows (int16 on disk), decoded once into `cache` and then mapped."""

    def __init__(self, manifest: Path, cache: Path) -> None:
        self.rows = read_manifest(manifest)
        data, index = cache / f"{manifest.stem}.pcm", cache / f"{manifest.stem}.pcm.index"

        def pcm_of(row: Row) -> np.ndarray:
            samples = load_audio(manifest.parent / row["audio"]) if row.get("audio") else np.zeros(0)
            return (np.clip(samples, -1, 1) * 32767).astype("<i2")

        self.lengths = append_rows(self.rows, data, index, 2, pcm_of)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._pcm = np.memmap(data, np.int16, "r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> np.ndarray:
        return self._pcm[self._starts[i] : self._starts[i + 1]].astype(np.float32) / 32768


def active_span(samples: np.ndarray, longest: float, gap: float = 0.4) -> np.ndarray:
    """The first stretch of `samples` that sounds, up to a pause of more than `gap` seconds or `longest` seconds."""
    levels = energy_db(samples)
    if not len(levels):
        return samples
    loud = np.flatnonzero(levels > levels.max() - QUIET_DB)
    pauses = np.flatnonzero(np.diff(loud) > gap * 50)
    runs = np.split(loud, pauses + 1)
    run = max(runs, key=lambda run: 10 ** (levels[run] / 10).sum() if len(run) > 2 else -1.0)
    return samples[run[0] * HOP : min((run[-1] + 1) * HOP, run[0] * HOP + int(longest * SAMPLE_RATE))]


def sounding(clip: np.ndarray) -> tuple[float, float]:
    """First and last second at which a clip sounds."""
    levels = energy_db(clip)
    loud = np.flatnonzero(levels > levels.max() - QUIET_DB)
    return round(float(loud[0]) / 50, 2), round(float(loud[-1] + 1) / 50, 2)


def speaking(clip: np.ndarray) -> tuple[float, float]:
    """First and last second of speech in a clip of nothing else: 10 dB over its noise, for 60 of 100 ms."""
    levels = energy_db(clip)
    floor = np.clip(np.quantile(levels, 0.05) + 10, levels.max() - QUIET_DB, levels.max() - 24)
    loud = np.flatnonzero(np.convolve(levels > floor, np.ones(5), "same") >= 3)
    return (round(float(loud[0]) / 50, 2), round(float(loud[-1] + 1) / 50, 2)) if len(loud) else sounding(clip)


def words_of(row: Row, clip: np.ndarray) -> tuple[Word, ...]:
    """Times of a clip's words: the row's `words`, a list of `[text, start, end]`, or of its only word, if it is short.

    Where a single word seems to last longer than any does, noise was taken for it.
    """
    if "words" in row:
        return tuple(Word(str(text), float(start), float(end)) for text, start, end in row["words"])
    text, (start, end) = str(row.get("text", "")).split(), speaking(clip)
    return (Word(text[0], start, end),) if len(text) == 1 and end - start < LONGEST_WORD else ()


def spoken_event(row: Row, clip: np.ndarray, at: float, level_db: float) -> Event:
    """The whole of a spoken `clip` that begins at `at`: from its first word to its last, as far as one can tell."""
    words = words_of(row, clip)
    start, end = (words[0].start, words[-1].end) if words else speaking(clip)
    placed = tuple(Word(word.text, round(at + word.start, 2), round(at + word.end, 2)) for word in words)
    return Event("speech", round(at + start, 2), round(at + end, 2), "speech", round(level_db, 1), row, placed)


def voices_of(row: Row) -> frozenset[str]:
    """Who speaks in a clip: one name, or two of a synthetic voice `engine_a+b` that lies between two others."""
    engine, _, names = str(row.get("speaker", "")).partition("_")
    return frozenset(f"{engine}_{name}" for name in names.split("+")) if names else frozenset({engine} - {""})


def level(samples: np.ndarray) -> float:
    """Root mean square of `samples`, at least -80 dB."""
    return max(1e-4, float(np.sqrt(np.square(samples, dtype=np.float64).mean()))) if len(samples) else 1e-4


class Pool:
    """Clips to compose from, by label; `kind` says what they are."""

    def __init__(self, store: SampleStore, kind: str, indices: Sequence[int], labels: Sequence[str]) -> None:
        self.store, self.kind = store, kind
        self.by_label: dict[str, list[int]] = defaultdict(list)
        for i, label in zip(indices, labels, strict=True):
            self.by_label[label].append(i)
        self.labels = sorted(self.by_label)
        sizes = np.sqrt([len(self.by_label[label]) for label in self.labels])
        self._share = sizes / sizes.sum()

    def draw(
        self, rng: np.random.Generator, longest: float, whole: bool = False
    ) -> tuple[str, np.ndarray, Mapping[str, Any]]:
        """Label, sounding samples and row of one clip; rarer labels come more often than their clips would."""
        label = self.pick(rng)
        samples, row = self.take(label, rng)
        spoken = self.kind == "speech" or whole
        return label, samples if spoken else active_span(samples, longest), row

    def pick(self, rng: np.random.Generator) -> str:
        """One of the labels."""
        return self.labels[int(rng.choice(len(self.labels), p=self._share))]

    def take(self, label: str, rng: np.random.Generator) -> tuple[np.ndarray, Mapping[str, Any]]:
        """Whole samples and row of one of a label's clips."""
        i = self.by_label[label][int(rng.integers(len(self.by_label[label])))]
        return self.store[i], self.store.rows[i]


def compose(
    pools: Sequence[tuple[Pool, float]],
    rng: np.random.Generator,
    n_events: int,
    seconds: float,
    background: Pool | None = None,
) -> Scene:
    """Up to `n_events` clips, drawn from pools by weight, on `seconds` of timeline.

    Events follow each other with pauses; one in five begins while the one before still sounds. What does not fit is
    left out.
    """
    n = int(seconds * SAMPLE_RATE)
    track, events = np.zeros(n, np.float32), list[Event]()
    weights = np.array([weight for _, weight in pools])
    at = rng.uniform(0, max(0.1, 0.25 * seconds))
    for _ in range(n_events):
        pool = pools[int(rng.choice(len(pools), p=weights / weights.sum()))][0]
        label, clip, row = pool.draw(rng, longest=min(5.0, 0.7 * seconds))
        begin = int(at * SAMPLE_RATE)
        clip = clip[: n - begin] if pool.kind != "speech" and n - begin > SAMPLE_RATE // 2 else clip
        if len(clip) < SAMPLE_RATE // 10 or begin + len(clip) > n:
            continue
        level_db = float(rng.uniform(-32, -16))
        track[begin : begin + len(clip)] += clip * (10 ** (level_db / 20) / level(clip))
        end = at + len(clip) / SAMPLE_RATE
        if pool.kind == "speech":
            events.append(spoken_event(row, clip, at, level_db))
        else:
            events.append(Event(label, round(at, 2), round(end, 2), pool.kind, round(level_db, 1), row))
        overlaps = rng.random() < 0.2
        at = rng.uniform(at + 0.3, end) if overlaps and end - at > 0.6 else end + rng.exponential(0.6) + 0.15
    return _finish(track, events, background, rng)


def converse(
    pools: Sequence[tuple[Pool, float]],
    rng: np.random.Generator,
    n_speakers: int,
    n_turns: int,
    longest: float,
    background: Pool | None = None,
) -> Scene:
    """Up to `n_speakers` people who speak in `n_turns` turns, `longest` seconds at most.

    The labels of `pools` are speakers. Nobody follows themselves unless alone, and no clip comes twice; one turn in
    ten begins before the last is over. A turn that does not fit is left out, so the events say who spoke.
    """
    voices = _different_voices(pools, rng, n_speakers)
    levels = rng.uniform(-28, -18, len(voices))
    turns, events, at, who = list[tuple[int, np.ndarray]](), list[Event](), float(rng.uniform(0.1, 1.0)), -1
    for turn in range(n_turns):
        others = [i for i in range(len(voices)) if i != who] or [0]
        who = turn if turn < len(voices) else int(rng.choice(others))
        pool, speaker = voices[who]
        clip, row = pool.take(speaker, rng)
        level_db = float(levels[who] + rng.normal(0, 1.0))
        if at + len(clip) / SAMPLE_RATE > longest or any(event.truth is row for event in events):
            continue
        turns.append((int(at * SAMPLE_RATE), clip * (10 ** (level_db / 20) / level(clip))))
        events.append(spoken_event(row, clip, at, level_db))
        last = events[-1]
        interrupts = rng.random() < 0.1 and last.end - last.start > 1.5
        at = last.end - rng.uniform(0.2, 0.6) if interrupts else last.end + rng.exponential(0.4) + 0.1
    end = max((begin + len(clip) for begin, clip in turns), default=SAMPLE_RATE)
    track = np.zeros(min(int(longest * SAMPLE_RATE), end + int(rng.uniform(0, 0.8) * SAMPLE_RATE)), np.float32)
    for begin, clip in turns:
        track[begin : begin + len(clip)] += clip
    return _finish(track, events, background, rng)


def _different_voices(
    pools: Sequence[tuple[Pool, float]], rng: np.random.Generator, n: int
) -> list[tuple[Pool, str]]:
    """Up to `n` speakers of whom no two share a voice."""
    weights = np.array([weight for _, weight in pools])
    found, known = list[tuple[Pool, str]](), set[str]()
    for _ in range(4 * n):
        pool = pools[int(rng.choice(len(pools), p=weights / weights.sum()))][0]
        speaker = pool.pick(rng)
        voices = voices_of({"speaker": speaker})
        if not voices & known and len(found) < n:
            found.append((pool, speaker))
            known |= voices
    return found


def _finish(track: np.ndarray, events: Sequence[Event], background: Pool | None, rng: np.random.Generator) -> Scene:
    """Put what goes on behind, or faint noise, under `track [n]`, and the whole into a room."""
    n, behind = len(track), None
    if background is not None:
        behind, clip, _ = background.draw(rng, n / SAMPLE_RATE, whole=True)
        clip = np.tile(clip, -(-n // max(1, len(clip))))[:n]
        track += clip * (10 ** (rng.uniform(-48, -36) / 20) / level(clip))
    else:
        track += rng.normal(size=n).astype(np.float32) * 10 ** (rng.uniform(-75, -55) / 20)
    return replace(Scene(track, tuple(sorted(events, key=lambda event: event.start)), behind), samples=room(track, rng))


def room(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where it was recorded, by chance: mostly as it is, else with reverberation, through a telephone, or clipped."""
    choice = rng.random()
    if choice < 0.15:
        length = int(rng.uniform(0.1, 0.5) * SAMPLE_RATE)
        tail = rng.normal(size=length) * np.exp(-6.9 * np.arange(length) / length) * 0.1
        tail[0] = 1.0
        size = len(samples) + length
        samples = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[: len(samples)]
    elif choice < 0.2:
        spectrum, bins = np.fft.rfft(samples), np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
        samples = np.fft.irfft(spectrum * ((bins > 300) & (bins < 3400)), len(samples))
    elif choice < 0.23:
        top = 0.3 * np.abs(samples).max()
        samples = np.clip(samples, -top, top)
    peak = max(1e-4, float(np.abs(samples).max()))
    return (samples * min(1.0, 0.95 / peak)).astype(np.float32)
