"""What *ground* hears: recordings, scenes of one event, and the parts of scenes that task `events` asks about.

Knows scenes and what is true of them; knows no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moss_audio.audio import SAMPLE_RATE, log_mel
from moss_audio.data.scene import Event, Pool, Scene
from moss_audio.inference.spans import Span, spans
from moss_audio.tasks.sounds import CHANGE, MARGIN, stretch
from moss_audio.training.naming import BESIDE, attributes
from moss_audio.training.scenes import World, half_of, label_of

BATCH, BATCHES = 12, 8
"""Sounds in a batch, and batches that are drawn together, so that sounds in one are of like length."""

LONGEST = 9.0
"""Seconds of a recording that are heard."""

LONGEST_PART = 6.0
"""Seconds of a stretch of a scene: what goes on for longer is heard in scenes of one event."""

THERE, MOST = 0.3, 0.5
"""An event is heard in a stretch of which it takes such a share; one of them takes at least the second."""

BOTH = 2
"""The half of what is of neither half alone."""


class Sound(NamedTuple):
    """A mel `[n_mels, F]` in which so much of `labels` is heard from `start` to `end` seconds, of half `half`."""

    mel: np.ndarray
    labels: Mapping[str, float]
    start: float
    end: float
    half: int = 0


def sound_of(scene: Scene, n_mels: int) -> Sound:
    """The first event of a scene; a scene without any is nothing from end to end."""
    mel = log_mel(scene.samples, n_mels)
    if not scene.events:
        return Sound(mel, {}, 0.0, scene.seconds)
    event = scene.events[0]
    labels = attributes(event.kind, event.label, event.truth)
    return Sound(mel, labels, event.start, event.end, half_of(event.truth))


def parts_of(scene: Scene, n_mels: int) -> list[Sound]:
    """The stretches of a scene as task `events` has them named: cut where the sound changes, silence around them.

    What takes most of a stretch is heard, and what else is there `BESIDE` it; stretches of nothing in particular are
    left out.
    """
    found = list[Sound]()
    for span in spans(scene.samples, None, CHANGE):
        seconds = span.end - span.start
        events = [event for event in scene.events if share_of(event, span) > THERE]
        events = sorted(events, key=lambda event: share_of(event, span))[::-1]
        if not events or share_of(events[0], span) < MOST or seconds > LONGEST_PART:
            continue
        labels = attributes(events[0].kind, events[0].label, events[0].truth)
        for event in events[1:]:
            labels = dict.fromkeys(attributes(event.kind, event.label, event.truth), BESIDE) | labels
        halves = {half_of(event.truth) for event in events}
        half = halves.pop() if len(halves) == 1 else BOTH
        found.append(Sound(log_mel(stretch(scene.samples, span), n_mels), labels, MARGIN, MARGIN + seconds, half))
    return found


def share_of(event: Event, span: Span) -> float:
    """The share of a stretch in which an event sounds."""
    return max(0.0, min(event.end, span.end) - max(event.start, span.start)) / (span.end - span.start)


class Scenes:
    """Batches of sounds in scenes: those of one event whole, those of several in parts."""

    def __init__(self, world: World, n_mels: int) -> None:
        self.world, self.n_mels = world, n_mels
        self._left: list[list[Sound]] = []

    def next(self, rng: np.random.Generator) -> list[Sound]:
        """One batch."""
        if not self._left:
            drawn: list[Sound] = []
            while len(drawn) < BATCH * BATCHES:
                kind, scene = self.world.draw(rng)
                drawn += parts_of(scene, self.n_mels) if kind == "scene" else [sound_of(scene, self.n_mels)]
            drawn = sorted(drawn[: BATCH * BATCHES], key=lambda sound: sound.mel.shape[1])
            self._left = [drawn[i * BATCH : (i + 1) * BATCH] for i in rng.permutation(BATCHES)]
        return self._left.pop()


def recordings(pools: Sequence[Pool], n_mels: int) -> Iterator[Sound]:
    """Every clip as it was recorded, the short ones first."""
    clips = [(own.store, own.kind, i) for own in pools for rows in own.by_label.values() for i in rows]
    for store, kind, i in sorted(clips, key=lambda clip: int(clip[0].lengths[clip[2]])):
        samples, truth = store[i][: int(LONGEST * SAMPLE_RATE)], store.rows[i]
        labels = attributes(kind, label_of(truth), truth)
        yield Sound(log_mel(samples, n_mels), labels, 0.0, len(samples) / SAMPLE_RATE, half_of(truth))
