"""What can be asked of each task, as frozen dataclasses: the command line, the server and Python read the same fields.

Knows names, types, defaults and help; loads nothing heavy. A field is a string, a number, a list of strings, or an
object of strings, and says in its metadata what it is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_type_hints

from moss_audio.errors import PromptError
from moss_audio.prompts import TRANSCRIPT_BEAMS

T = TypeVar("T")


def option(text: str, default: Any = MISSING, items: tuple[int, int] = (0, 0)) -> Any:
    """A field with its help; without a default it is required. `items` is how few and how many texts a list has."""
    return field(default=default, metadata={"help": text, "items": items})


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose."""


@dataclass(frozen=True)
class TranscribeOptions:
    """How a transcript is written."""

    beams: int = option("texts weighed at a time; 1 is fastest", TRANSCRIPT_BEAMS)
    hotwords: tuple[str, ...] = option("names and terms that may occur", (), items=(0, 100))


@dataclass(frozen=True)
class AskOptions:
    """A free question."""

    question: str = option("what to ask")


@dataclass(frozen=True)
class ChooseOptions:
    """A question with two to four answers."""

    question: str = option("what to ask")
    choices: tuple[str, ...] = option("the answers to choose from, two to four", items=(2, 4))


@dataclass(frozen=True)
class EventsOptions:
    """How a timeline is joined."""

    gap: float = option("seconds of pause within one event; sounds of one name closer than this are one", 0.5)


@dataclass(frozen=True)
class NarrateOptions:
    """How often a narrator speaks."""

    window: float = option("seconds heard at a time, 1 to 30", 10.0)
    again: float = option("seconds of absence after which a sound is news again", 60.0)


@dataclass(frozen=True)
class ReviewOptions:
    """What to look for."""

    policy: Mapping[str, str] | None = option(
        "labels with what they mean; words in double quotes are searched in the transcript", None
    )
    keep: int = option("sentences to propose for keeping", 3)


@dataclass(frozen=True)
class FeedbackOptions:
    """What the learner was to say or to play."""

    text: str | None = option("what was to be said", None)
    bpm: float | None = option("the tempo that was to be played, in beats a minute", None)
    key: str | None = option("the key that was to be played, such as `D major`", None)
    pause: float = option("seconds of silence between words that count as a pause", 0.5)
    subject: Literal["auto", "speech", "music"] = option("what to listen to; auto goes by what is given", "auto")


def schema_of(options: type[Any]) -> dict[str, Any]:
    """The JSON Schema of an options class."""
    kinds = get_type_hints(options)
    properties: dict[str, Any] = {}
    for one in fields(options):
        properties[one.name] = {**_TYPES[kinds[one.name]], "description": one.metadata["help"]}
        if properties[one.name]["type"] == "array":
            properties[one.name] |= dict(zip(("minItems", "maxItems"), one.metadata["items"], strict=True))
        if one.default is not MISSING and one.default is not None:
            properties[one.name]["default"] = list(one.default) if isinstance(one.default, tuple) else one.default
    required = [one.name for one in fields(options) if one.default is MISSING]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def read_options(options: type[T], values: Mapping[str, Any]) -> T:
    """Options from plain values, such as those of a JSON body. Raises `PromptError` with the name of what is wrong."""
    schema = schema_of(options)
    properties = schema["properties"]
    if unknown := [name for name in values if name not in properties]:
        raise PromptError(f"no option {unknown[0]!r}; valid: {', '.join(properties) or 'none'}")
    if missing := [name for name in schema["required"] if name not in values]:
        raise PromptError(f"{missing[0]} is missing: {properties[missing[0]]['description']}")
    return options(**{name: _checked(name, value, properties[name]) for name, value in values.items()})


_TYPES: Mapping[Any, Mapping[str, Any]] = {
    str: {"type": "string"},
    str | None: {"type": ["string", "null"]},
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number", "minimum": 0},
    float | None: {"type": ["number", "null"], "minimum": 0},
    tuple[str, ...]: {"type": "array", "items": {"type": "string"}},
    Mapping[str, str] | None: {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
    Literal["auto", "speech", "music"]: {"type": "string", "enum": ["auto", "speech", "music"]},
}
"""Types of fields in JSON Schema."""


def _checked(name: str, value: Any, schema: Mapping[str, Any]) -> Any:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if isinstance(value, bool) or not any(_is(kind, value) for kind in kinds):
        raise PromptError(f"{name} is {value!r}; valid: {' or '.join(kinds)}")
    if "enum" in schema and value not in schema["enum"]:
        raise PromptError(f"{name} is {value!r}; valid: {', '.join(schema['enum'])}")
    if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
        raise PromptError(f"{name} is {value!r}; valid: a number from 0")
    if isinstance(value, list | tuple):
        least, most = schema["minItems"], schema["maxItems"]
        if not least <= len(value) <= most or not all(isinstance(one, str) and one.strip() for one in value):
            raise PromptError(f"{name} is {list(value)!r}; valid: {least} to {most} texts")
        return tuple(value)
    if isinstance(value, Mapping) and not all(isinstance(one, str) for pair in value.items() for one in pair):
        raise PromptError(f"{name} is {dict(value)!r}; valid: texts by name")
    return value


def _is(kind: str, value: Any) -> bool:
    classes: Mapping[str, tuple[type, ...]] = {
        "string": (str,), "integer": (int,), "number": (int, float), "null": (type(None),), "array": (list, tuple),
        "object": (Mapping,),
    }  # fmt: skip
    return isinstance(value, classes[kind])
