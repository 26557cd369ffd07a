"""`events`: what is heard and when, joined over windows.

The Mini knows what it hears and not when: it is asked for the name of each stretch that `inference.spans` finds. Other
models are asked for a timeline: `[0.4]dog barking[1.2][3.0]siren[5.5]`, or `prompts.NOTHING`. What they get wrong is
repaired so:

1. Stamps are repaired by the rules of `transcript.parse`, with overlaps: no event is without length or past the end.
2. A line such as `0.4 - 1.2: dog barking` or `dog barking (0.4-1.2 s)` counts as an event too.
3. Text without any stamp is names, parted by commas and "and", each of which sounds all the while.
4. A name is in lower case, without marks around it, and at most 60 characters long; one without letters is `sound`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.inference.spans import Span, spans
from moss_audio.prompts import EVENTS, NAME, NOTHING
from moss_audio.tasks.listener import Listener
from moss_audio.tasks.options import EventsOptions
from moss_audio.tasks.result import Result, Rows
from moss_audio.transcript import parse_timestamped

MAX_NAME = 60

CHANGE = 0.15
"""How much the spectrum changes where a new sound may begin (`inference.spans`): often, since names join what belongs
together."""

UNSURE, LIKELY = 0.5, 0.05
"""Probability of a name below which its neighbour's may be the right one, and that of one that is told at all."""

MARGIN = 0.4
"""Seconds of silence around a stretch that is named: of 19 that are shorter than a second, the Mini names 7 so, and 3
without."""

_SPAN = r"(\d+(?:\.\d+)?)\s*(?:s|sec|seconds)?\s*(?:-->|-|–|to)\s*(\d+(?:\.\d+)?)\s*(?:s|sec|seconds)?"
_SPAN_FIRST = re.compile(rf"^\W*{_SPAN}\s*[\])]?\s*[:,;-]?\s*([^\d\[\]]+)$", re.MULTILINE)
_SPAN_LAST = re.compile(rf"^\W*([^\d\[\]\n]+?)\s*[:,;]?\s*[(\[]?\s*(?:from\s+)?{_SPAN}\s*[)\]]?\.?$", re.MULTILINE)
_NOTHING = re.compile(
    r"^\W*(nothing( is)?( audible| heard)?|none|no (sounds?|events?)( events?)?|silence)\W*$", re.IGNORECASE
)


@dataclass(frozen=True)
class Event:
    """One sound, from `start` to `end` seconds."""

    label: str
    start: float
    end: float

    def shifted(self, seconds: float) -> Event:
        """The same event, `seconds` later."""
        return Event(self.label, round(self.start + seconds, 2), round(self.end + seconds, 2))


@dataclass(frozen=True)
class Named:
    """A stretch of a window, what the model calls it, and with what probability it says so."""

    span: Span
    label: str
    probability: float


@dataclass(frozen=True)
class EventsResult(Result):
    """Sounds in order of start; they may overlap."""

    events: tuple[Event, ...]

    def to_text(self) -> str:
        return "\n".join(f"{event.start:6.2f} {event.end:6.2f}  {event.label}" for event in self.events) or NOTHING

    def timeline(self) -> str:
        """The events in the form that models answer `prompts.EVENTS` in."""
        return "".join(f"[{event.start}]{event.label}[{event.end}]" for event in self.events) or NOTHING

    def rows(self) -> Rows:
        return ("start", "end", "event"), [(event.start, event.end, event.label) for event in self.events]


def find_events(listener: Listener, samples: np.ndarray, options: EventsOptions) -> EventsResult:
    """The timeline of a recording of any length."""
    found = [event for start, part in listener.parts(samples) for event in hear_events(listener, start, part)]
    return EventsResult(listener.cost(samples), join(found, options.gap))


def hear_events(listener: Listener, start: float, part: np.ndarray) -> tuple[Event, ...]:
    """The events of the window `part [n]` that begins at `start`, in seconds of the recording."""
    if not listener.model.backend.config.audio.letters:
        timeline = parse_events(listener.ask(part, EVENTS), len(part) / SAMPLE_RATE)
        return tuple(event.shifted(start) for event in timeline)
    told = [one for one in name_spans(listener, part) if one.probability >= LIKELY]
    return tuple(Event(one.label, one.span.start, one.span.end).shifted(start) for one in told)


def name_spans(listener: Listener, part: np.ndarray) -> list[Named]:
    """The stretches of the window `part [n]` with the model's names for them.

    Where one follows another without a pause and they have two names, of which the model is unsure of one and gives the
    other to both together, they are one.
    """
    found: list[Named] = []
    for span in spans(part, listener.model.voice, CHANGE):
        one = name(listener, part, span)
        if listener.cancelled():
            break
        last = found[-1] if found and found[-1].span.end == span.start else None
        if last and last.label != one.label:
            whole = Span(last.span.start, span.end)
            label = name(listener, part, whole).label
            sure = {last.label: one.probability, one.label: last.probability}.get(label, 1.0)
            if sure < UNSURE:
                found.pop()
                one = Named(whole, label, (last if label == last.label else one).probability)
        found.append(one)
    return found


def name(listener: Listener, part: np.ndarray, span: Span) -> Named:
    """What the model calls a stretch of `part [n]`."""
    said = listener.say(stretch(part, span), NAME)
    return Named(span, label_of(said.text), 0.0 if is_nothing(said.text) else said.probability)


def stretch(samples: np.ndarray, span: Span) -> np.ndarray:
    """The stretch of `samples [n]` as it is named: alone, with `MARGIN` of silence on either side."""
    quiet = np.zeros(int(MARGIN * SAMPLE_RATE), np.float32)
    clip = samples[int(span.start * SAMPLE_RATE) : int(span.end * SAMPLE_RATE)]
    return np.concatenate([quiet, clip, quiet])


def parse_events(text: str, duration: float) -> tuple[Event, ...]:
    """Read a model's timeline of a clip of `duration` seconds, by the rules above."""
    if is_nothing(text):
        return ()
    stamped = _SPAN_LAST.sub(r"[\2]\1[\3]", _SPAN_FIRST.sub(r"[\1]\3[\2]", text))
    if not re.search(r"\d\s*s?\s*\]|\[\s*\d", stamped):
        names = [name for name in re.split(r"[,;\n.]|\band\b", text) if name.strip()]
        return tuple(Event(label_of(name), 0.0, duration) for name in names)
    events = (
        Event(label_of(one.text), one.start, one.end) for one in parse_timestamped(stamped, duration, overlaps=True)
    )
    return tuple(sorted(events, key=lambda event: (event.start, event.end)))


def is_nothing(text: str) -> bool:
    """Whether a model says that it hears nothing."""
    return not text.strip() or bool(_NOTHING.match(text))


def label_of(text: str) -> str:
    """The name of a sound as it is shown."""
    label = " ".join(text.split()).strip(" .,;:-–[]()\"'*").lower()
    return label[:MAX_NAME].strip() if any(character.isalpha() for character in label) else "sound"


def join(events: Iterable[Event], gap: float) -> tuple[Event, ...]:
    """Events of one name that follow each other within `gap` seconds as one, wherever windows were cut."""
    joined: list[Event] = []
    last: dict[str, int] = {}
    for event in sorted(events, key=lambda event: (event.start, event.end)):
        at = last.get(event.label)
        if at is not None and event.start - joined[at].end <= gap:
            joined[at] = Event(event.label, joined[at].start, max(joined[at].end, event.end))
        else:
            last[event.label] = len(joined)
            joined.append(event)
    return tuple(joined)
