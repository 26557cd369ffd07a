"""`narrate`: what is around, for people who cannot hear or see it. Short, only what is new, the most urgent first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.prompts import NARRATE, NOTHING
from moss_audio.tasks.listener import Listener, sounds
from moss_audio.tasks.options import NarrateOptions
from moss_audio.tasks.result import Result, Rows, clock
from moss_audio.tasks.sounds import label_of, parse_events

Urgency = Literal["alarm", "voice", "vehicle", "other"]

URGENT: tuple[tuple[Urgency, frozenset[str]], ...] = (
    ("alarm", frozenset(
        "alarm alarms siren sirens horn honk honking fire flames smoke glass shattering explosion blast scream "
        "screaming gun gunshot gunshots shot crash detector emergency".split()
    )),
    ("voice", frozenset(
        "speaking speech voice voices talking talk says saying shout shouting yell yelling call calling cry crying "
        "laugh laughing whispering man woman child children baby people crowd".split()
    )),
    ("vehicle", frozenset(
        "car cars truck bus train tram motorcycle motorbike scooter engine vehicle vehicles traffic bicycle helicopter "
        "aeroplane airplane plane boat tractor reversing".split()
    )),
)  # fmt: skip
"""Words that make a sound urgent, the most urgent kind first."""

_ORDER: tuple[Urgency, ...] = ("alarm", "voice", "vehicle", "other")
_ARTICLE = re.compile(r"^(an?|the|some|then|there is|there are)\s+")


@dataclass(frozen=True)
class Note:
    """Something new, heard between `start` and `end`."""

    start: float
    end: float
    text: str
    urgency: Urgency


@dataclass(frozen=True)
class NarrateResult(Result):
    """What a narrator says, in order of time, and of urgency within a window."""

    notes: tuple[Note, ...]

    def to_text(self) -> str:
        return "\n".join(f"{clock(note.start)} {note.text}" for note in self.notes) or NOTHING

    def rows(self) -> Rows:
        return ("start", "end", "what", "urgency"), [(n.start, n.end, n.text, n.urgency) for n in self.notes]


def narrate(listener: Listener, samples: np.ndarray, options: NarrateOptions) -> NarrateResult:
    """A recording narrated as if it were live."""
    step = int(min(max(options.window, 1.0), 30.0) * SAMPLE_RATE)
    narrator, notes = Narrator(options.again), list[Note]()
    for at in range(0, len(samples), step):
        part = samples[at : at + step]
        if listener.cancelled():
            break
        if sounds(part) and len(part) > SAMPLE_RATE // 10:
            notes += narrator.tell(listener.ask(part, NARRATE), at / SAMPLE_RATE, (at + len(part)) / SAMPLE_RATE)
    return NarrateResult(listener.cost(samples), tuple(notes))


class Narrator:
    """Remembers what was heard, so that only news is told. One for each listener of a live recording."""

    def __init__(self, again: float = 60.0) -> None:
        """A sound that was away for `again` seconds is news once more."""
        self._again = again
        self._heard: dict[frozenset[str], float] = {}

    def tell(self, answer: str, start: float, end: float) -> tuple[Note, ...]:
        """The news in a model's `answer` about the window from `start` to `end`, the most urgent first."""
        notes: list[Note] = []
        for event in parse_events(answer, end - start):
            text = _ARTICLE.sub("", label_of(event.label))
            words = frozenset(text.split())
            last = self._heard.get(words)
            self._heard[words] = end
            if last is None or start - last > self._again:
                notes.append(Note(round(start, 2), round(end, 2), text, urgency(text)))
        return tuple(sorted(notes, key=lambda note: _ORDER.index(note.urgency)))


def urgency(text: str) -> Urgency:
    """How urgent a sound is, by its name alone: the most urgent kind that a word of it belongs to."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return next((kind for kind, names in URGENT if words & names), "other")
