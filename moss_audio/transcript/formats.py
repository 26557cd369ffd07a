"""Segments to files: plain text, SubRip, WebVTT, tab-separated values, JSON, and LRC.

SubRip, WebVTT and LRC are read line by line, so text is written without what would end a cue or start another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from moss_audio.errors import PromptError
from moss_audio.transcript.segments import Segment

_CONTROL = dict.fromkeys([*range(9), *range(11, 32), 127])
"""Characters that no subtitle has: C0 controls but tab and line feed."""


def write(segments: Sequence[Segment], form: str, *, word_cues: bool = False) -> str:
    """The contents of a file of `form`, a key of `WRITERS`; with `word_cues`, VTT and LRC time every word.

    Raises `PromptError` for other forms.
    """
    if form not in WRITERS:
        raise PromptError(f"no format {form!r}; valid: {', '.join(WRITERS)}")
    if word_cues and form in ("vtt", "lrc"):
        return (to_vtt if form == "vtt" else to_lrc)(segments, word_cues=True)
    return WRITERS[form](segments)


def to_txt(segments: Sequence[Segment]) -> str:
    """One segment a line."""
    return "".join(f"{segment.text}\n" for segment in segments)


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered cues, a comma before the milliseconds."""
    cues = (
        f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{_cue_text(segment.text)}\n"
        for number, segment in enumerate(segments, 1)
    )
    return "\n".join(cues)


def to_vtt(segments: Sequence[Segment], *, word_cues: bool = False) -> str:
    """WebVTT (w3.org/TR/webvtt1): `&` and `<` escaped, `-->` cannot occur; with `word_cues`, `<time>` before words."""
    cues = (
        f"\n{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n"
        f"{_timed_vtt(segment) if word_cues and segment.words else _escaped(_cue_text(segment.text))}\n"
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


def to_lrc(segments: Sequence[Segment], *, word_cues: bool = False) -> str:
    """Lyrics: `[mm:ss.xx]text`, and an empty line at the end of a segment that is not followed at once.

    With `word_cues`, `<mm:ss.xx>` before every word, as in the enhanced form.
    """
    lines: list[str] = []
    for i, segment in enumerate(segments):
        timed = " ".join(f"<{_lyric_clock(w.start)}>{_line(w.text)}" for w in segment.words) if word_cues else ""
        lines.append(f"[{_lyric_clock(segment.start)}]{timed or _line(segment.text)}\n")
        if i + 1 == len(segments) or segments[i + 1].start - segment.end > 1.0:
            lines.append(f"[{_lyric_clock(segment.end)}]\n")
    return "".join(lines)


WRITERS: Mapping[str, Callable[[Sequence[Segment]], str]] = {
    "txt": to_txt,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
    "json": to_json,
    "lrc": to_lrc,
}
"""File format, which is also the file's suffix, to the function that writes it."""


def _cue_text(text: str) -> str:
    """Text of a cue: an empty line inside it would end the cue."""
    lines = (line.translate(_CONTROL).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _line(text: str) -> str:
    return " ".join(_cue_text(text).split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _timed_vtt(segment: Segment) -> str:
    """Words with their starts; the first is the cue's own. Line breaks of a shaped text stay where they are."""
    breaks, shown = set[int](), 0
    for line in segment.text.splitlines():
        shown += len(line.split())
        breaks.add(shown)
    parts = [_escaped(_line(segment.words[0].text))]
    now = segment.start
    for i, word in enumerate(segment.words[1:], 1):
        # A stamp must lie inside the cue and behind the one before it (section 4.2.2 of the standard).
        inside = _ms(now) < _ms(word.start) < _ms(segment.end)
        now = word.start if inside else now
        mark = f"<{_clock(word.start, '.')}>" if inside else ""
        parts.append(("\n" if i in breaks else " ") + mark + _escaped(_line(word.text)))
    return "".join(parts)


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _clock(seconds: float, mark: str) -> str:
    """`hh:mm:ss` with milliseconds behind `mark`."""
    hours, rest = divmod(_ms(seconds), 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"


def _lyric_clock(seconds: float) -> str:
    """`mm:ss.xx`; minutes go on beyond an hour."""
    minutes, rest = divmod(round(100 * seconds), 6_000)
    return f"{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"
