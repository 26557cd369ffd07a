"""Segments made readable as subtitles: lines that fit a screen, cues that stay long enough to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from moss_audio.errors import PromptError
from moss_audio.transcript.segments import Segment, Word


@dataclass(frozen=True)
class SubtitleShape:
    """What a cue may be. The defaults are common broadcasters' rules: two lines of 42 characters, 17 a second.

    Raises `PromptError` naming the value and its range.
    """

    line_length: int = 42
    """Characters in a line, at most; a longer word is broken."""
    lines: int = 2
    """Lines in a cue, at most."""
    characters_per_second: float = 17.0
    """Reading speed: a cue stays up longer than it is spoken where the pause behind it allows it."""
    min_seconds: float = 1.0
    """The shortest cue, as far as the pause behind it allows it."""

    def __post_init__(self) -> None:
        ranges = {"line_length": (8, 200), "lines": (1, 8), "characters_per_second": (1, 200), "min_seconds": (0, 10)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise PromptError(f"subtitle {name} is {getattr(self, name)!r}; valid: {low} to {high}")


def shape(segments: Iterable[Segment], rules: SubtitleShape | None = None) -> tuple[Segment, ...]:
    """The same words in the same order as cues that keep `rules`; lines are parted by line breaks.

    Cues of a sentence are about equally long. Where words have no times, theirs follow their letters.
    """
    rules = rules or SubtitleShape()
    cues = [cue for segment in segments for cue in _cues(segment, rules)]
    return tuple(_lasting(cue, after, rules) for cue, after in pairwise([*cues, None]) if cue is not None)


def timed_words(segment: Segment) -> tuple[Word, ...]:
    """The words of a segment with times; shares of its length by their letters where they have none."""
    if segment.words:
        return segment.words
    texts = segment.text.split()
    letters = max(1, sum(map(len, texts)))
    words, done = list[Word](), 0
    for text in texts:
        begin, end = (segment.start + (segment.end - segment.start) * n / letters for n in (done, done + len(text)))
        words.append(Word(text, round(begin, 3), round(end, 3)))
        done += len(text)
    return tuple(words)


def _cues(segment: Segment, rules: SubtitleShape) -> list[Segment]:
    words = [piece for word in timed_words(segment) for piece in _pieces(word, rules.line_length)]
    if not words:
        return []
    cues = []
    lines = _balanced(words, rules)
    for at in range(0, len(lines), rules.lines):
        group = lines[at : at + rules.lines]
        said = tuple(word for line in group for word in line)
        text = "\n".join(" ".join(word.text for word in line) for line in group)
        cues.append(replace(segment, start=said[0].start, end=said[-1].end, text=text, words=said))
    known = bool(segment.words)
    cues[0], cues[-1] = replace(cues[0], start=segment.start), replace(cues[-1], end=segment.end)
    return cues if known else [replace(cue, words=()) for cue in cues]


def _pieces(word: Word, width: int) -> list[Word]:
    """A word, cut where it alone is longer than a line, as text without spaces is."""
    texts = [word.text[at : at + width] for at in range(0, len(word.text), width)]
    step = (word.end - word.start) / max(1, len(texts))
    return [
        Word(text, round(word.start + i * step, 3), round(word.start + (i + 1) * step, 3))
        for i, text in enumerate(texts)
    ]


def _balanced(words: Sequence[Word], rules: SubtitleShape) -> list[list[Word]]:
    """As few lines as can be, and of those the narrowest, which makes them about equally long."""
    widest = _wrapped(words, rules.line_length)
    narrower = (_wrapped(words, width) for width in range(max(len(word.text) for word in words), rules.line_length))
    return next((lines for lines in narrower if len(lines) == len(widest)), widest)


def _wrapped(words: Sequence[Word], width: int) -> list[list[Word]]:
    lines: list[list[Word]] = []
    room = -1
    for word in words:
        if len(word.text) + 1 > room:
            lines.append([])
            room = width + 1
        lines[-1].append(word)
        room -= len(word.text) + 1
    return lines


def _lasting(cue: Segment, after: Segment | None, rules: SubtitleShape) -> Segment:
    """`cue`, up for as long as it takes to read, but not into the next one."""
    wanted = max(rules.min_seconds, len(cue.text) / rules.characters_per_second)
    end = max(cue.end, cue.start + wanted)
    if after is not None:
        end = max(cue.end, min(end, after.start))
    return replace(cue, end=round(end, 3))
