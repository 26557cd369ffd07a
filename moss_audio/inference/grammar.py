"""What text an answer may be, byte by byte. Knows the forms of JSON values; does not know schemas or tokens.

A `State` is what is still to come: pieces in order, none left when the text is whole. Pieces are frozen values, so
states compare and hash, and what is computed for one can be kept. JSON is written as `json.dumps` writes it by default,
with one space after a comma or a colon; in strings, characters stand for themselves and escapes have two bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

NO_LIMIT = 1 << 14
"""Characters of a string, or items of an array, where nobody says how many: more than any answer has tokens."""

LARGEST = 10**15
"""The magnitude of numbers where nobody says a range: whole numbers up to here are exact in every JSON reader."""

DECIMALS = 6
"""Digits behind the point of a number that is not whole."""

_QUOTE, _ESCAPE, _ESCAPED = ord('"'), ord("\\"), frozenset(b'"\\/bfnrt')


_SECOND = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}
"""Second bytes of UTF-8 where not all of 80 to BF will do: others spell numbers too low or high, or surrogates."""


class Piece(Protocol):
    """A part of the text under way."""

    @property
    def done(self) -> bool:
        """Whether it may end here."""
        ...

    def after(self, byte: int) -> State | None:
        """What is left of it after `byte`, or None where `byte` is not part of it."""
        ...

    def closing(self) -> bytes:
        """A short way to its end."""
        ...

    def growth(self) -> int:
        """How many bytes longer the way to its end can get by going another way."""
        ...


State = tuple[Piece, ...]


def step(state: State, byte: int) -> State | None:
    """The state after `byte`, or None where it does not belong."""
    for index, piece in enumerate(state):
        rest = piece.after(byte)
        if rest is not None:
            return rest + state[index + 1 :]
        if not piece.done:
            return None
    return None


def advance(state: State, text: bytes) -> State | None:
    """The state after `text`, or None where it does not belong."""
    now: State | None = state
    for byte in text:
        now = step(now, byte) if now is not None else None
    return now


def is_whole(state: State) -> bool:
    """Whether the text may end here."""
    return all(piece.done for piece in state)


def closing(state: State) -> bytes:
    """A short text that ends `state`."""
    return b"".join(piece.closing() for piece in state)


def growth(state: State) -> int:
    """An upper bound of how much longer `closing` gets by any one token."""
    return sum(piece.growth() for piece in state)


@dataclass(frozen=True)
class Literal:
    """Text that is given; never empty."""

    text: bytes
    done: bool = False

    def after(self, byte: int) -> State | None:
        if self.text[0] != byte:
            return None
        return (Literal(self.text[1:]),) if len(self.text) > 1 else ()

    def closing(self) -> bytes:
        return self.text

    def growth(self) -> int:
        return 0


@dataclass(frozen=True)
class Options:
    """One text of several; an empty one means that it may end here."""

    texts: tuple[bytes, ...]

    @property
    def done(self) -> bool:
        return b"" in self.texts

    def after(self, byte: int) -> State | None:
        rest = tuple(text[1:] for text in self.texts if text[:1] == bytes([byte]))
        if not rest:
            return None
        return (Options(rest),) if any(rest) else ()

    def closing(self) -> bytes:
        return min(self.texts, key=len)

    def growth(self) -> int:
        return max(map(len, self.texts))


@dataclass(frozen=True)
class Text:
    """The rest of a string and its closing quote: at most `left` characters; `pending` begins a character or escape."""

    left: int = NO_LIMIT
    pending: bytes = b""
    done: bool = False

    def after(self, byte: int) -> State | None:
        if self.pending:
            return self._continue(byte)
        if byte == _QUOTE:
            return ()
        if self.left == 0 or byte < 0x20 or 0x80 <= byte < 0xC2 or byte > 0xF4:  # control, or begins no character
            return None
        return (Text(self.left - 1, bytes([byte]) if byte >= 0x80 or byte == _ESCAPE else b""),)

    def _continue(self, byte: int) -> State | None:
        if self.pending[0] == _ESCAPE:
            return (Text(self.left),) if byte in _ESCAPED else None
        low, high = _SECOND.get(self.pending[0], (0x80, 0xBF)) if len(self.pending) == 1 else (0x80, 0xBF)
        if not low <= byte <= high:
            return None
        character = self.pending + bytes([byte])
        return (Text(self.left, b"" if len(character) == _size(character[0]) else character),)

    def closing(self) -> bytes:
        if not self.pending:
            return b'"'
        if self.pending[0] == _ESCAPE:
            return b'n"'
        missing = _size(self.pending[0]) - len(self.pending)
        second = bytes(_SECOND.get(self.pending[0], (0x80, 0))[:1]) if len(self.pending) == 1 else b""
        return second + b"\x80" * (missing - len(second)) + b'"'

    def growth(self) -> int:
        return 3


def _size(lead: int) -> int:
    """Bytes of the character that begins with `lead`."""
    return 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


@dataclass(frozen=True)
class Number:
    """A number between `low` and `high`, both in units of the last of its `decimals`; `text` is written already."""

    low: int
    high: int
    decimals: int = 0
    text: str = ""

    @property
    def done(self) -> bool:
        whole, _, fraction = self.text.removeprefix("-").partition(".")
        if not whole or self.text.endswith("."):
            return False
        value = int(whole + fraction.ljust(self.decimals, "0"))
        return self.low <= (-value if self.text[0] == "-" else value) <= self.high

    def after(self, byte: int) -> State | None:
        longer = Number(self.low, self.high, self.decimals, self.text + chr(byte))
        return (longer,) if byte in b"-.0123456789" and longer._leads_somewhere() else None

    def _leads_somewhere(self) -> bool:
        """Whether some number in range begins with `text`."""
        negative, body = self.text[0] == "-", self.text.removeprefix("-")
        low, high = (max(0, -self.high), -self.low) if negative else (max(0, self.low), self.high)
        if not body:
            return low <= high
        if "-" in body or body[0] == "." or body.count(".") > 1 or (body[0] == "0" and body[1:2] not in ("", ".")):
            return False
        whole, point, fraction = body.partition(".")
        if point and (not self.decimals or len(fraction) > self.decimals):
            return False
        least, span = int(whole + fraction), 1
        least, span = least * 10 ** (self.decimals - len(fraction)), 10 ** (self.decimals - len(fraction))
        while least <= high:
            if least + span > low:
                return True
            if point or least == 0:  # no more digits before the point
                return False
            least, span = 10 * least, 10 * span
        return False

    def closing(self) -> bytes:
        number = self
        while not number.done:
            number = next(rest[0] for byte in b"0123456789.-" if (rest := number.after(byte)))  # type: ignore[assignment]
        return number.text[len(self.text) :].encode()

    def growth(self) -> int:
        return len(str(max(abs(self.low), abs(self.high)))) + 2


@dataclass(frozen=True)
class Either:
    """One of several ways on, told apart by the first byte in which they differ."""

    ways: tuple[State, ...]

    @property
    def done(self) -> bool:
        return any(map(is_whole, self.ways))

    def after(self, byte: int) -> State | None:
        rest = tuple(dict.fromkeys(after for way in self.ways if (after := step(way, byte)) is not None))
        if not rest:
            return None
        return (Either(rest),) if len(rest) > 1 else rest[0]

    def closing(self) -> bytes:
        return min(map(closing, self.ways), key=len)

    def growth(self) -> int:
        return max(len(closing(way)) + growth(way) for way in self.ways)


@dataclass(frozen=True)
class Items:
    """The rest of an array with its closing bracket: `least` to `left` items more."""

    item: State
    left: int = NO_LIMIT
    least: int = 0
    first: bool = True

    @property
    def done(self) -> bool:
        return False

    def after(self, byte: int) -> State | None:
        if byte == ord("]"):
            return () if self.least <= 0 else None
        if self.left == 0:
            return None
        begun = step(self.item, byte) if self.first else (Literal(b" "), *self.item) if byte == ord(",") else None
        return (*begun, Items(self.item, self.left - 1, self.least - 1, first=False)) if begun is not None else None

    def closing(self) -> bytes:
        return (b", " * (self.least > 0 and not self.first)) + b", ".join([closing(self.item)] * self.least) + b"]"

    def growth(self) -> int:
        return len(closing(self.item)) + 2 + growth(self.item)


def one_of(values: Iterable[object]) -> State:
    """One of several JSON values."""
    return (Options(tuple(map(_dumps, values))),)


def string(max_length: int = NO_LIMIT) -> State:
    """A string of at most `max_length` characters."""
    return (Literal(b'"'), Text(max_length))


def integer(low: int = -LARGEST, high: int = LARGEST) -> State:
    """A whole number from `low` to `high`."""
    return (Number(low, high),)


def array(item: State, max_items: int = NO_LIMIT, min_items: int = 0) -> State:
    """An array of `item`s."""
    return (Literal(b"["), Items(item, max_items, min_items))


def json_object(fields: Mapping[str, State]) -> State:
    """An object with exactly these keys, in this order."""
    state: list[Piece] = []
    for index, (key, value) in enumerate(fields.items()):
        state += [Literal((b", " if index else b"{") + _dumps(key) + b": "), *value]
    return (*state, Literal(b"}")) if fields else (Literal(b"{}"),)


def _dumps(value: object) -> bytes:
    """JSON as text; ASCII where the text has half a surrogate pair or characters that vocabularies lack bytes for."""
    text = json.dumps(value, ensure_ascii=False)
    rare = any("\ud800" <= character <= "\udfff" or character >= "\U00040000" for character in text)
    return (json.dumps(value) if rare else text).encode()
