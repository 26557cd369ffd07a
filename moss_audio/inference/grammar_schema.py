"""JSON Schema to a grammar: the part of it with which clients ask for answers in a form.

Read are `type` (one, or a list), `properties`, `required`, `additionalProperties`, `items`, `minItems`, `maxItems`,
`enum`, `const`, `maxLength`, `minimum`, `maximum`, `nullable`, `anyOf`, `oneOf`, and `$ref` into `$defs`. An answer
holds every property in the schema's order, required or not, and none besides. Notes such as `description` are skipped;
any other keyword is a `PromptError`, since it would not be enforced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from moss_audio.errors import PromptError
from moss_audio.inference.grammar import (
    DECIMALS,
    LARGEST,
    NO_LIMIT,
    Either,
    Number,
    State,
    array,
    closing,
    json_object,
    one_of,
    string,
)

MAX_DEPTH, MAX_VALUES, MAX_BYTES = 32, 1000, 10_000
"""How deep a schema may nest, how many values it may describe, and how long the shortest answer to it may be."""

NOTES = frozenset(
    "title description default examples example deprecated readOnly writeOnly strict $schema $id $comment $defs "
    "definitions".split()
)
"""Keywords that say nothing about the form of an answer."""

_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "string": ("maxLength",),
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
    "boolean": (),
    "null": (),
}
_ALWAYS = frozenset({"type", "enum", "const", "nullable", "anyOf", "oneOf", "$ref"})


def from_schema(schema: object) -> State:
    """The grammar of a JSON Schema. Raises `PromptError` with the place of what cannot be enforced."""
    return _Reader(schema).read(schema, "schema", 0)


class _Reader:
    """Reads one schema; counts its values, so that references cannot multiply without bound."""

    def __init__(self, root: object) -> None:
        self._root, self._values = root, 0

    def read(self, schema: object, where: str, depth: int) -> State:
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            raise PromptError(
                f"{where}: the schema nests over {MAX_DEPTH} deep, refers to itself, or describes over {MAX_VALUES} "
                "values; ask for less"
            )
        if not isinstance(schema, Mapping):
            raise PromptError(f"{where} is {schema!r}; valid: a JSON Schema object")
        if "$ref" in schema:
            return self.read(self._resolve(schema["$ref"], where), where, depth + 1)
        ways = self._ways(schema, where, depth)
        if schema.get("nullable") is True:
            ways.append(one_of([None]))
        state: State = (Either(tuple(ways)),) if len(ways) > 1 else ways[0]
        if len(closing(state)) > MAX_BYTES:
            raise PromptError(f"{where}: the shortest answer has over {MAX_BYTES} bytes; lower minItems")
        return state

    def _ways(self, schema: Mapping[str, Any], where: str, depth: int) -> list[State]:
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            if not isinstance(values, list) or not 0 < len(values) <= MAX_VALUES:
                raise PromptError(f"{where}.enum is {values!r}; valid: a list of 1 to {MAX_VALUES} values")
            self._check_keywords(schema, ("object", "array", "string", "integer", "number"), where)
            return [_enumerated(values, where)]
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                if not isinstance(schema[keyword], list) or not schema[keyword]:
                    raise PromptError(f"{where}.{keyword} is {schema[keyword]!r}; valid: a list of schemas")
                self._check_keywords(schema, (), where)
                return [self.read(one, f"{where}.{keyword}[{i}]", depth + 1) for i, one in enumerate(schema[keyword])]
        kinds = schema.get("type")
        names = tuple(name for name in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(name, str))
        if not names or not set(names) <= set(_KEYWORDS):
            raise PromptError(f"{where}.type is {kinds!r}; valid: {', '.join(_KEYWORDS)}, or a list of them")
        self._check_keywords(schema, names, where)
        return [self._value(name, schema, where, depth) for name in names]

    def _check_keywords(self, schema: Mapping[str, Any], kinds: tuple[str, ...], where: str) -> None:
        known = _ALWAYS | NOTES | {keyword for kind in kinds for keyword in _KEYWORDS[kind]}
        for keyword in schema:
            if keyword not in known:
                valid = ", ".join(sorted(known - NOTES))
                raise PromptError(f"{where}.{keyword} cannot be enforced while decoding; valid here: {valid}")

    def _value(self, kind: str, schema: Mapping[str, Any], where: str, depth: int) -> State:
        if kind == "object":
            return self._object(schema, where, depth)
        if kind == "array":
            if "items" not in schema:
                raise PromptError(f"{where}.items is missing; say what the array holds")
            most, least = _size(schema, "maxItems", NO_LIMIT, where), _size(schema, "minItems", 0, where)
            if least > min(most, MAX_VALUES):
                raise PromptError(f"{where}.minItems is {least}; valid: 0 to {min(most, MAX_VALUES)}")
            item = self.read(schema["items"], f"{where}.items", depth + 1)
            if least * len(closing(item)) > MAX_BYTES:
                raise PromptError(f"{where}: the shortest answer has over {MAX_BYTES} bytes; lower minItems")
            return array(item, most, least)
        if kind == "string":
            return string(_size(schema, "maxLength", NO_LIMIT, where))
        if kind in ("integer", "number"):
            return _number(schema, DECIMALS if kind == "number" else 0, where)
        return one_of([True, False] if kind == "boolean" else [None])

    def _object(self, schema: Mapping[str, Any], where: str, depth: int) -> State:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise PromptError(f"{where}: properties must be an object and required a list")
        if missing := [name for name in required if name not in properties]:
            raise PromptError(f"{where}.required names {missing[0]!r}, which properties does not describe")
        if not isinstance(schema.get("additionalProperties", False), bool):
            raise PromptError(f"{where}.additionalProperties describes keys of any name; valid: false")
        return json_object(
            {name: self.read(one, f"{where}.properties.{name}", depth + 1) for name, one in properties.items()}
        )

    def _resolve(self, reference: object, where: str) -> object:
        parts = reference.split("/") if isinstance(reference, str) else []
        found = self._root
        for part in parts[1:]:
            found = found.get(part) if isinstance(found, Mapping) else None
        if parts[:1] != ["#"] or found is None:
            raise PromptError(f"{where}.$ref is {reference!r}; valid: #/$defs/NAME of a definition in the schema")
        return found


def _enumerated(values: list[Any], where: str) -> State:
    try:
        size = len(json.dumps(values, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}.enum holds what JSON does not: {error}") from error
    if size > 10 * MAX_BYTES:
        raise PromptError(f"{where}.enum has {size} bytes; valid: up to {10 * MAX_BYTES}")
    return one_of(values)


def _size(schema: Mapping[str, Any], keyword: str, default: int, where: str) -> int:
    value = schema.get(keyword, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PromptError(f"{where}.{keyword} is {value!r}; valid: a whole number from 0")
    return min(value, NO_LIMIT)


def _number(schema: Mapping[str, Any], decimals: int, where: str) -> State:
    def bound(keyword: str, default: int, rounded: Callable[[Decimal], int]) -> int:
        value = schema.get(keyword, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise PromptError(f"{where}.{keyword} is {value!r}; valid: a number up to {LARGEST:.0e}")
        return rounded(Decimal(str(value)) * 10**decimals)  # 0.069 · 1000 is 69.00000000000001 in binary

    low, high = bound("minimum", -LARGEST, math.ceil), bound("maximum", LARGEST, math.floor)
    if low > high:
        raise PromptError(f"{where}: nothing lies between minimum and maximum; valid: minimum ≤ maximum")
    return (Number(low, high, decimals),)
