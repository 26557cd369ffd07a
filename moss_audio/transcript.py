"""Time-stamped text: words, segments, the released model's bracket form, and the five file formats.

Knows nothing of models; times are seconds from the start of the recording.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SENTENCE_END = re.compile(r"[.?!。？！][\"'”’)\]]*$")
"""A word that ends a sentence, closing quotes and brackets included."""

_STAMP = re.compile(r"\[\s*(?:(\d+):)?(?:(\d+):)?(\d+(?:\.\d+)?)\s*s?\s*\]")


@dataclass(frozen=True)
class Word:
    """One word as written, with its punctuation."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech, usually a sentence. `words` is empty where their times are not known."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    speaker: str | None = None
    language: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object of what is known: `start`, `end`, `text`, then `words`, `speaker`, `language` where set."""
        return {key: value for key, value in asdict(self).items() if key in ("start", "end", "text") or value}


def group_words(words: Iterable[Word], pause: float = 0.6) -> tuple[Segment, ...]:
    """Sentences: cut after a word that ends one, and wherever nothing is said for more than `pause` seconds."""
    sentences: list[list[Word]] = []
    for word in words:
        previous = sentences[-1][-1] if sentences else None
        if previous is None or SENTENCE_END.search(previous.text) or word.start - previous.end > pause:
            sentences.append([])
        sentences[-1].append(word)
    return tuple(
        Segment(sentence[0].start, sentence[-1].end, " ".join(word.text for word in sentence), tuple(sentence))
        for sentence in sentences
    )


def parse_timestamped(text: str, duration: float | None = None) -> tuple[Segment, ...]:
    """Read `[0.00]Hello there.[1.52][1.90]How are you?[2.80]`, the released model's timestamped form.

    Tolerant of what models get wrong: `[mm:ss.ss]` and `[1.5s]`, one stamp between two sentences, text before the
    first stamp (from 0) or after the last one (up to `duration`, or without length), and stamps that run backwards,
    which are raised to the latest time so far.
    """
    segments: list[Segment] = []
    now, at, pending = 0.0, 0, ""
    for match in [*_STAMP.finditer(text), None]:
        pending = text[at : match.start() if match else len(text)].strip()
        if match:
            hours_or_minutes, minutes, seconds = match.groups()
            time = float(seconds) + 60 * float(minutes if minutes is not None else hours_or_minutes or 0)
            time += 3600 * float(hours_or_minutes) if minutes is not None else 0.0
            at = match.end()
        else:
            time = now if duration is None else duration
        time = max(time, now)
        if pending:
            segments.append(Segment(now, time, pending))
        now = time
    return tuple(segments)


def to_txt(segments: Sequence[Segment]) -> str:
    """One segment a line."""
    return "".join(f"{segment.text}\n" for segment in segments)


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered cues, a comma before the milliseconds."""
    cues = (
        f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{_cue_text(segment)}\n"
        for number, segment in enumerate(segments, 1)
    )
    return "\n".join(cues)


def to_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (w3.org/TR/webvtt1): `&` and `<` escaped, `-->` cannot occur."""
    escape = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    cues = (
        f"\n{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{_cue_text(segment).translate(escape)}\n"
        for segment in segments
    )
    return "WEBVTT\n" + "".join(cues)


def to_tsv(segments: Sequence[Segment]) -> str:
    """Tab-separated `start`, `end` in milliseconds, `text`."""
    rows = (f"{round(1000 * s.start)}\t{round(1000 * s.end)}\t{' '.join(s.text.split())}\n" for s in segments)
    return "start\tend\ttext\n" + "".join(rows)


def to_json(segments: Sequence[Segment]) -> str:
    """A JSON object with `text` and `segments`."""
    text = " ".join(segment.text for segment in segments)
    document = {"text": text, "segments": [segment.to_dict() for segment in segments]}
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


WRITERS: Mapping[str, Callable[[Sequence[Segment]], str]] = {
    "txt": to_txt,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
    "json": to_json,
}
"""File format to the function that writes it."""


def _cue_text(segment: Segment) -> str:
    """Text of a cue: an empty line inside it would end the cue."""
    return "\n".join(line for line in segment.text.splitlines() if line.strip())


def _clock(seconds: float, mark: str) -> str:
    """`hh:mm:ss` with milliseconds behind `mark`."""
    total_ms = round(1000 * seconds)
    hours, rest = divmod(total_ms, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
