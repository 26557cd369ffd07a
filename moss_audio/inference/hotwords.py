"""Names and terms that a user expects: in the prompt, or as a lower price in the search. Knows no audio.

A language model finds rare names improbable and writes a common word that sounds alike. The search therefore counts
a token that begins a hotword as no less probable than `BEGIN`, and one that goes on with it as no less than `GO_ON`;
the letters still have their say, so a name that was not said costs what its letters cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moss_audio.errors import PromptError

if TYPE_CHECKING:
    from moss_audio.tokenizer import Tokenizer

BEGIN = -3.0
"""The least log-probability of a token that begins a hotword: that of a likely word among others."""

GO_ON = -0.5
"""The least log-probability of a token that continues one."""

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
    """Given the tokens of a text, the tokens that begin or continue a hotword and the least that each counts."""

    def __init__(self, hotwords: Sequence[str], tokenizer: Tokenizer) -> None:
        self._next: dict[tuple[int, ...], dict[int, float]] = {}
        self._first: dict[int, float] = {}
        for word in hotwords:
            self._first[tokenizer.encode(word)[0]] = BEGIN
            for tokens in (tokenizer.encode(word), tokenizer.encode(f" {word}")):
                for at in range(1, len(tokens)):
                    self._next.setdefault(tuple(tokens[:at]), {})[tokens[at]] = GO_ON
        self._begin = {tokenizer.encode(f" {word}")[0]: BEGIN for word in hotwords}
        self._longest = max(map(len, self._next), default=0)

    def __call__(self, tokens: Sequence[int]) -> Mapping[int, float]:
        if not tokens:
            return self._first
        floors = dict(self._begin)
        for n in range(1, min(self._longest, len(tokens)) + 1):
            floors |= self._next.get(tuple(tokens[-n:]), {})
        return floors
