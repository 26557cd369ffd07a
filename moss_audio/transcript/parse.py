"""The released models' time-stamped text, `[0.00]Hello there.[1.52][1.90]How are you?[2.80]`, read with tolerance.

All text comes out again, in its order, and every segment has a length. What models get wrong is repaired so:

1. A stamp is seconds, `m:ss`, `h:mm:ss`, or has a unit (`1.5s`, `2 min`), with a point or a comma. One of its brackets
   may be missing where it has decimals or a colon; `[0.0-1.5]text` and `[0.0 --> 1.5]text` are pairs of stamps.
2. Times past the end are not believed. Of the others, the largest set that never goes back is believed; this outlives
   single wild stamps, which would push all that follows to the end if each were only raised to the latest so far.
3. A time that is not believed, or not there, lies between its neighbours in proportion to the text between them; text
   before the first stamp begins at 0 and text behind the last ends with the recording, or at speaking pace where its
   duration is not known.
4. A segment of less than 0.1 s is given 0.1 s (less where so many do not fit), at the cost of the pause around it, then
   of its neighbours.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from moss_audio.transcript.segments import Segment

MIN_SECONDS = 0.1
"""The shortest segment that leaves the parser; the shortest words last about as long."""

CHARACTERS_PER_SECOND = 15.0
"""Pace of speech, for text whose end is not known."""

_TIME = r"(?:\d+:){0,2}\d+(?:[.,]\d+)?\s*(?:seconds|secs?|minutes|mins?|s|m)?"
_SURE_TIME = r"(?:(?:\d+:){1,2}\d+(?:[.,]\d+)?|\d+[.,]\d+)\s*s?"
_STAMP = re.compile(
    rf"\[\s*(?P<first>{_TIME})\s*(?:-->|->|-|–|~|to)\s*(?P<last>{_TIME})\s*\]"
    rf"|\[\s*(?P<whole>{_TIME})\s*\]"
    rf"|\[\s*(?P<opened>{_SURE_TIME})(?![\w.,:\]])"
    rf"|(?<![\w.,:])(?P<closed>{_SURE_TIME})\s*\]",
    re.IGNORECASE,
)


def parse_timestamped(text: str, duration: float | None = None, *, overlaps: bool = False) -> tuple[Segment, ...]:
    """Read stamped text of a recording of `duration` seconds, by the rules above.

    With `overlaps`, a segment may begin before the one before it ends, as sounds do and sentences of one transcript
    do not: rule 2 then holds for the starts alone.
    """
    spans = _spans(text)
    if not spans:
        return ()
    starts = [start for start, _, _ in spans]
    ends = [end for _, end, _ in spans]
    texts = [words for _, _, words in spans]
    if overlaps:
        starts = _believed(starts, duration)
        ends = [end if _within(end, at or 0.0, duration) else None for at, end in zip(starts, ends, strict=True)]
    else:
        times = _believed([time for pair in zip(starts, ends, strict=True) for time in pair], duration)
        starts, ends = times[::2], times[1::2]
    filled = _filled(starts, ends, texts, duration)
    placed = with_length(filled, duration, overlaps)
    return tuple(Segment(start, end, words) for (start, end), words in zip(placed, texts, strict=True))


def _spans(text: str) -> list[tuple[float | None, float | None, str]]:
    """Every piece of text with the stamps before and behind it; a stamp between two texts belongs to both."""
    spans: list[tuple[float | None, float | None, str]] = []
    start, end, at = None, None, 0  # `end` is known in advance after a pair of stamps in one bracket
    for match in [*_STAMP.finditer(text), None]:
        words = " ".join(text[at : match.start() if match else len(text)].split())
        first = _seconds(match["first"]) if match and match["first"] else None
        here = first if first is not None else _seconds(match[match.lastgroup or 0]) if match else None
        if words:
            spans.append((start, here if end is None else end, words))
        if match:
            start, end, at = here, _seconds(match["last"]) if first is not None else None, match.end()
    return spans


def _seconds(stamp: str) -> float:
    digits = stamp.lower().replace(",", ".").rstrip(" abcdefghijklmnopqrstuvwxyz")
    total = 0.0
    for part in digits.split(":"):
        total = 60 * total + float(part)
    return 60 * total if "m" in stamp.lower() else total


def _within(time: float | None, low: float, duration: float | None) -> bool:
    return time is not None and low <= time and (duration is None or time <= duration + MIN_SECONDS)


def _believed(times: Sequence[float | None], duration: float | None) -> list[float | None]:
    """The longest run of `times` that never goes back and stays within the recording; the others become None."""
    tails: list[float] = []
    best: list[int] = []  # best[k]: where the run of k + 1 times with the lowest end ends
    before: dict[int, int | None] = {}
    for i, time in enumerate(times):
        if time is None or not _within(time, 0.0, duration):
            continue
        k = bisect_right(tails, time)
        before[i] = best[k - 1] if k else None
        tails[k:], best[k:] = [time, *tails[k + 1 :]], [i, *best[k + 1 :]]
    kept, at = set[int](), best[-1] if best else None
    while at is not None:
        kept.add(at)
        at = before[at]
    return [time if i in kept else None for i, time in enumerate(times)]


def _filled(
    starts: Sequence[float | None], ends: Sequence[float | None], texts: Sequence[str], duration: float | None
) -> list[tuple[float, float]]:
    """Give every unknown time its place between the known ones, in proportion to the text between them."""
    known: list[tuple[int, float]] = [(0, 0.0)]  # characters so far, time
    position, bounds = 0, list[tuple[int, int]]()
    for start, end, words in zip(starts, ends, texts, strict=True):
        bounds.append((position, position + len(words)))
        position += len(words)
        known += [(at, time) for at, time in zip(bounds[-1], (start, end), strict=True) if time is not None]
    latest = max(time for _, time in known)
    silent = max(at for at, _ in known) == position  # the last text has its end
    at_pace = known[-1][1] + (position - known[-1][0]) / CHARACTERS_PER_SECOND
    known.append((position, latest if silent else max(latest, at_pace if duration is None else duration)))

    def between(at: int) -> float:
        (low, begin), (high, finish) = next(
            ((a, b) for a, b in pairwise(known) if a[0] <= at <= b[0] and b[0] > a[0]), (known[-1], known[-1])
        )
        share = (at - low) / (high - low) if high > low else 0.0
        return begin + share * (max(begin, finish) - begin)

    return [
        (between(low) if start is None else start, between(high) if end is None else end)
        for (low, high), start, end in zip(bounds, starts, ends, strict=True)
    ]


def with_length(
    spans: Sequence[tuple[float, float]], duration: float | None, overlaps: bool, least: float = MIN_SECONDS
) -> list[tuple[float, float]]:
    """Spans within the recording, each `least` seconds long or more, and without `overlaps` none over the next."""
    if duration is not None:
        least = min(least, duration / (1 if overlaps else len(spans)))
    placed: list[tuple[float, float]] = []
    for start, end in spans:
        start = max(start, placed[-1][1]) if placed and not overlaps else start
        placed.append((start, max(end, start + least)))
    limit = duration
    for i in reversed(range(len(placed))):
        start, end = placed[i]
        if limit is not None:
            end = min(end, limit)
        start = min(start, end - least) if end - start < least else start
        placed[i] = (max(0.0, round(start, 6)), round(end, 6))
        limit = duration if overlaps else placed[i][0]
    return placed
