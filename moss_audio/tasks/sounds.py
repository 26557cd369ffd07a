"""`events`: what is heard and when. Reads the model's timeline and joins it over windows.

A timeline is `[0.4]dog barking[1.2][3.0]siren[5.5]`, or `prompts.NOTHING`. What models get wrong is repaired so:

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
from moss_audio.prompts import EVENTS, NOTHING
from moss_audio.tasks.listener import Listener
from moss_audio.tasks.options import EventsOptions
from moss_audio.tasks.result import Result, Rows
from moss_audio.transcript import parse_timestamped

MAX_NAME = 60

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


@dataclass(frozen=True)
class EventsResult(Result):
    """Sounds in order of start; they may overlap."""

    events: tuple[Event, ...]

    def to_text(self) -> str:
        return "\n".join(f"{event.start:6.2f} {event.end:6.2f}  {event.label}" for event in self.events) or NOTHING

    def rows(self) -> Rows:
        return ("start", "end", "event"), [(event.start, event.end, event.label) for event in self.events]


def find_events(listener: Listener, samples: np.ndarray, options: EventsOptions) -> EventsResult:
    """The timeline of a recording of any length."""
    found = [event for start, part in listener.parts(samples) for event in hear_events(listener, start, part)]
    return EventsResult(listener.cost(samples), join(found, options.gap))


def hear_events(listener: Listener, start: float, part: np.ndarray) -> tuple[Event, ...]:
    """The events of the window `part [n]` that begins at `start`, in seconds of the recording."""
    return place_events(listener.ask(part, EVENTS), start, start + len(part) / SAMPLE_RATE)


def place_events(text: str, start: float, end: float) -> tuple[Event, ...]:
    """Read a model's timeline of the window from `start` to `end`, in seconds of the recording."""
    events = parse_events(text, end - start)
    return tuple(Event(event.label, round(event.start + start, 2), round(event.end + start, 2)) for event in events)


def parse_events(text: str, duration: float) -> tuple[Event, ...]:
    """Read a model's timeline of a clip of `duration` seconds, by the rules above."""
    if not text.strip() or _NOTHING.match(text.strip()):
        return ()
    stamped = _SPAN_LAST.sub(r"[\2]\1[\3]", _SPAN_FIRST.sub(r"[\1]\3[\2]", text))
    if not re.search(r"\d\s*s?\s*\]|\[\s*\d", stamped):
        names = [name for name in re.split(r"[,;\n.]|\band\b", text) if name.strip()]
        return tuple(Event(label_of(name), 0.0, duration) for name in names)
    events = (
        Event(label_of(one.text), one.start, one.end) for one in parse_timestamped(stamped, duration, overlaps=True)
    )
    return tuple(sorted(events, key=lambda event: (event.start, event.end)))


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
