"""A recording of any length → segments that a model can hear, cut where events end and never inside one.

An event is what `inference.spans` finds. Knows no labels and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.inference.longform import TRAINED_SECONDS, cut
from moss_audio.inference.spans import Span, spans
from moss_audio.inference.voice import Voice

LONG_PAUSE = 2.0
"""Seconds of quiet that end a segment; shorter ones belong to it."""

MARGIN = 0.5
"""Seconds of quiet that a segment keeps around its events."""


@dataclass(frozen=True)
class Cut:
    """A segment of a recording and the events in it; not `whole` where an event longer than a segment was cut."""

    start: float
    end: float
    events: tuple[Span, ...]
    whole: bool = True


def segments(samples: np.ndarray, voice: Voice | None = None, longest: float = 20.0) -> Iterator[Cut]:
    """Segments of at most `longest` seconds, as many events in each as fit; silence between them is left out.

    An event that is longer makes a segment by itself, of up to 30 s; of one that is longer still, each part does.
    """
    length = len(samples) / SAMPLE_RATE
    group: list[Span] = []
    found = spans(samples, voice)
    for i, event in enumerate([*found, None]):
        full = event is None or (group and event.end - group[0].start > longest)
        if group and (full or (event is not None and event.start - group[-1].end > LONG_PAUSE)):
            before = found[i - len(group) - 1].end if i > len(group) else 0.0
            yield from _cuts(samples, group, _margins(group, before, event.start if event else length), voice)
            group = []
        if event is not None:
            group.append(event)


def _margins(group: Sequence[Span], before: float, after: float) -> Span:
    """A group with quiet around it, up to half of the way to its neighbours."""
    start, end = group[0].start, group[-1].end
    return Span(start - min(MARGIN, (start - before) / 2), end + min(MARGIN, (after - end) / 2))


def _cuts(samples: np.ndarray, group: Sequence[Span], around: Span, voice: Voice | None) -> Iterator[Cut]:
    """One segment, or the parts of an event that no segment holds."""
    if around.end - around.start <= TRAINED_SECONDS:
        yield Cut(round(around.start, 2), round(around.end, 2), tuple(group))
        return
    window, at, end = int(TRAINED_SECONDS * SAMPLE_RATE), int(around.start * SAMPLE_RATE), around.end
    while at < end * SAMPLE_RATE:
        part = samples[at : at + window]
        n = cut(part, voice) if len(part) == window else len(part)
        start, stop = at / SAMPLE_RATE, min(end, (at + n) / SAMPLE_RATE)
        inside = (Span(max(start, event.start), min(stop, event.end)) for event in group)
        yield Cut(round(start, 2), round(stop, 2), tuple(span for span in inside if span.end > span.start), whole=False)
        at += n
