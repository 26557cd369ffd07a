"""`speaker`, `emotion` and `converse`: who speaks, how, and what they want. Answers have a form that is enforced."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.inference.grammar import json_object, one_of, string
from moss_audio.prompts import CAPTION_FIELDS, CAPTION_SPEECH, CONVERSE, CONVERSE_FIELDS, EMOTION, EMOTIONS
from moss_audio.tasks.listener import Listener
from moss_audio.tasks.options import NoOptions
from moss_audio.tasks.result import Result, Rows

NOBODY = "Nobody speaks."
URGENCIES = ("low", "medium", "high")

_CAPTION = json_object({name: string(240 if name == "summary" else 60) for name in CAPTION_FIELDS})
_REQUEST = json_object(
    {name: one_of(URGENCIES) if name == "urgency" else string(120) for name in CONVERSE_FIELDS}
)


@dataclass(frozen=True)
class Speaker:
    """How a voice sounds, in the model's words; the fields are those of `prompts.CAPTION_FIELDS`."""

    gender: str
    age: str
    pitch: str
    speed: str
    volume: str
    clarity: str
    fluency: str
    accent: str
    texture: str
    emotion: str
    tone: str
    personality: str
    summary: str


@dataclass(frozen=True)
class SpeakerResult(Result):
    """The speaker of the loudest part, or None where nobody speaks."""

    speaker: Speaker | None

    def to_text(self) -> str:
        return _lines(asdict(self.speaker)) if self.speaker else NOBODY

    def rows(self) -> Rows:
        return ("field", "value"), list(asdict(self.speaker).items()) if self.speaker else []


@dataclass(frozen=True)
class Feeling:
    """The emotion of a stretch of speech and its probability among `prompts.EMOTIONS`."""

    start: float
    end: float
    emotion: str
    probability: float


@dataclass(frozen=True)
class EmotionResult(Result):
    """`emotion` holds most of the time, weighed by probability; None where nobody speaks."""

    emotion: str | None
    parts: tuple[Feeling, ...]

    def to_text(self) -> str:
        return self.emotion or NOBODY

    def rows(self) -> Rows:
        head = ("start", "end", "emotion", "probability")
        return head, [(part.start, part.end, part.emotion, part.probability) for part in self.parts]


@dataclass(frozen=True)
class Request:
    """What a caller wants; the fields are those of `prompts.CONVERSE_FIELDS`."""

    intent: str
    details: str
    mood: str
    background: str
    urgency: str


@dataclass(frozen=True)
class ConverseResult(Result):
    """The request in the loudest part of a call, or None where nobody speaks."""

    request: Request | None

    def to_text(self) -> str:
        return _lines(asdict(self.request)) if self.request else NOBODY

    def rows(self) -> Rows:
        return ("field", "value"), list(asdict(self.request).items()) if self.request else []


def speaker(listener: Listener, samples: np.ndarray, options: NoOptions) -> SpeakerResult:
    """Thirteen fields about the speaker."""
    fields = listener.fill(listener.excerpt(samples), CAPTION_SPEECH, _CAPTION, speech=True)
    return SpeakerResult(listener.cost(samples), Speaker(**fields) if fields else None)


def emotion(listener: Listener, samples: np.ndarray, options: NoOptions) -> EmotionResult:
    """The speaker's emotion, window by window."""
    parts: list[Feeling] = []
    totals: dict[str, float] = defaultdict(float)
    for start, part in listener.parts(samples):
        picked = listener.choose(part, EMOTION, tuple(f"{one.capitalize()}." for one in EMOTIONS), speech=True)
        if picked is not None:
            seconds, name = len(part) / SAMPLE_RATE, picked.text.strip(".").lower()
            parts.append(Feeling(round(start, 2), round(start + seconds, 2), name, round(picked.probability, 3)))
            totals[name] += seconds * picked.probability
    return EmotionResult(listener.cost(samples), max(totals, key=lambda name: totals[name], default=None), tuple(parts))


def converse(listener: Listener, samples: np.ndarray, options: NoOptions) -> ConverseResult:
    """What the caller wants, how they feel, what sounds behind them, and how urgent it is."""
    fields = listener.fill(listener.excerpt(samples), CONVERSE, _REQUEST, speech=True)
    return ConverseResult(listener.cost(samples), Request(**fields) if fields else None)


def _lines(fields: dict[str, str]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in fields.items())
