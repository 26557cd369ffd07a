"""Words and segments as data, and sentences made of words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

SENTENCE_END = re.compile(r"[.?!。？！][\"'”’)\]]*$")
"""A word that ends a sentence, closing quotes and brackets included."""


@dataclass(frozen=True)
class Word:
    """One word as written, with its punctuation."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech, usually a sentence. `words` is empty where their times are not known.

    `confidence` is the model's own, the geometric mean of the probabilities of the segment's tokens: 1 is sure. It
    ranks the segments of one model; it is not the chance that the text is right.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    speaker: str | None = None
    language: str | None = None
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object of what is known: `start`, `end`, `text`, then the other fields where they are set."""
        return {
            key: value
            for key, value in asdict(self).items()
            if key in ("start", "end", "text") or value not in (None, ())
        }


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
