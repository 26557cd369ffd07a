"""Names and terms that a user expects: in the prompt, or as a lower price in the search. Knows no audio.

A language model finds rare names improbable and writes a common word that sounds alike, and names are spelt unlike
they sound, which the letters hold against them. So in the search a token that begins a hotword counts as no less
probable than `BEGIN`, and going on with it is worth `PER_LETTER`; a name that was not said still costs more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moss_audio.errors import PromptError

if TYPE_CHECKING:
    from moss_audio.tokenizer import Tokenizer

BEGIN = -2.0
"""The least log-probability that a token counts as which begins a hotword: that of a likely word among others."""

PER_LETTER = 1.2
"""Nats for every letter of a hotword, once its second token is written (or its only one): about what both heads take
off for one that is spelt unlike its sound."""

MAX_HOTWORDS = 200
"""Each is one more token to weigh at every step; a long list also makes wrong matches likely."""

PROMPT = "{question} These names and terms may occur: {words}."
"""How models without a letter head are told."""


def check(hotwords: Sequence[str]) -> tuple[str, ...]:
    """`hotwords` with single spaces, each once. Raises `PromptError` for empty ones and for too many."""
    if isinstance(hotwords, str):
        raise PromptError(f"hotwords is the string {hotwords!r}; valid: a list of strings")
    words = tuple(dict.fromkeys(" ".join(word.split()) for word in hotwords))
    if "" in words or len(words) > MAX_HOTWORDS:
        raise PromptError(f"{len(words)} hotwords with an empty one or over {MAX_HOTWORDS}; give fewer, none empty")
    return words


def with_hotwords(question: str, hotwords: Sequence[str]) -> str:
    """The question with the hotwords, if any."""
    return PROMPT.format(question=question, words=", ".join(hotwords)) if hotwords else question


class HotwordBias:
    """Given the tokens of a text, the tokens that begin or continue a hotword, and the least that each counts as."""

    def __init__(self, hotwords: Sequence[str], tokenizer: Tokenizer) -> None:
        self._first: dict[int, float] = {}
        self._begin: dict[int, float] = {}
        self._next: dict[tuple[int, ...], dict[int, float]] = {}
        for word in hotwords:
            for text, begins in ((word, self._first), (f" {word}", self._begin)):
                tokens = tokenizer.encode(text)
                begins.setdefault(tokens[0], BEGIN)
                if len(tokens) == 1:
                    begins[tokens[0]] = PER_LETTER * len(word)
                for at in range(1, len(tokens)):
                    written = tokenizer.decode(tokens[at : at + 1] if at > 1 else tokens[:2]).strip()
                    self._next.setdefault(tuple(tokens[:at]), {})[tokens[at]] = PER_LETTER * len(written)
        self._longest = max(map(len, self._next), default=0)

    def __call__(self, tokens: Sequence[int]) -> Mapping[int, float]:
        if not tokens:
            return self._first
        floors = dict(self._begin)
        for n in range(1, min(self._longest, len(tokens)) + 1):
            floors |= self._next.get(tuple(tokens[-n:]), {})
        return floors
