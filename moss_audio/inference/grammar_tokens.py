"""Which tokens may come next so that the answer has a grammar's form and ends within its budget.

Knows a vocabulary as bytes and keeps what it works out for a state. Inside a string nearly every token may come:
those are sorted once for each vocabulary, by the characters that they add and by what they write behind a closing
quote. Everywhere else the few tokens that fit are found by walking the sorted vocabulary.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from moss_audio.errors import PromptError
from moss_audio.inference.generate import stop_ids
from moss_audio.inference.grammar import NO_LIMIT, Literal, State, Text, advance, closing, growth, is_whole, step

if TYPE_CHECKING:
    from moss_audio.tokenizer import Tokenizer

LONGEST = 24
"""Bytes of the longest token that is tried in spelling the end of an answer."""

_STATES = 4096


class Vocabulary:
    """The tokens of a model as bytes. Control tokens are not text: only those that end an answer ever come."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        """`size` is that of the model's logits."""
        self.size = size
        ends = stop_ids(tokenizer)
        self.ends = sorted(end for end in ends if end < size)
        plain = (i for i in range(size) if i not in ends and not tokenizer.is_special(i))
        self.bytes_of = {i: text for i in plain if (text := tokenizer.token_bytes(i))}
        pairs = sorted((text, i) for i, text in self.bytes_of.items())
        self._texts, self._ids = [text for text, _ in pairs], np.array([i for _, i in pairs], dtype=np.int64)
        self._id_of = {text: i for text, i in reversed(pairs)}
        self._sort_strings()
        self._fitting = lru_cache(_STATES)(self._walk)
        self._closers = lru_cache(_STATES)(self._close)
        self._spelt = lru_cache(_STATES)(self._spell)

    def mask(self, state: State) -> np.ndarray:
        """The tokens that may come next, `[size]` bool."""
        mask: np.ndarray
        if string := open_string(state):
            ids, characters = self._closers(state[1:])
            mask = self._characters <= string.left
            mask[ids[characters <= string.left]] = True
            return mask
        mask = np.zeros(self.size, dtype=bool)
        mask[self._fitting(state)] = True
        if is_whole(state):
            mask[self.ends] = True
        return mask

    def mask_within(self, state: State, left: int) -> np.ndarray:
        """The tokens that may come next so that the answer can still end within `left` tokens, this one included."""
        mask = self.mask(state)
        if open_string(state):  # within the string the way to the end stays the same
            mask &= self._clean & (self.cost(state) < left)
            candidates, _ = self._closers(state[1:])
        else:
            candidates = self._fitting(state)
        for token in candidates.tolist():
            after = advance(state, self.bytes_of[token])
            mask[token] = after is not None and self.cost(after) < left
        return mask

    def cost(self, state: State) -> int:
        """The tokens of a short end of `state`, the end of the answer among them."""
        return self._spelt(closing(state)) + 1

    def spell(self, text: bytes) -> list[int]:
        """Tokens that spell `text`, each the longest that fits, as models mostly write."""
        ids: list[int] = []
        while text:
            longest = next((n for n in range(min(len(text), LONGEST), 0, -1) if text[:n] in self._id_of), 0)
            if not longest:
                break
            ids.append(self._id_of[text[:longest]])
            text = text[longest:]
        return ids

    def _sort_strings(self) -> None:
        """Characters that each token adds to a string it stays in, and the tokens that close one by what follows."""
        self._characters = np.full(self.size, NO_LIMIT + 1, dtype=np.int32)
        self._clean: np.ndarray = np.ones(self.size, dtype=bool)
        tails: dict[bytes, list[tuple[int, int]]] = {}
        for token, text in self.bytes_of.items():
            if text.isalnum():  # ASCII letters and digits, most of the vocabulary: no need to look closer
                self._characters[token] = len(text)
                continue
            state: State | None = (Text(),)
            used = 0
            for at, byte in enumerate(text):
                state = step(state, byte) if state is not None else None
                if state == ():
                    tails.setdefault(text[at + 1 :], []).append((token, used))
                    break
                used = NO_LIMIT - state[0].left if state and isinstance(state[0], Text) else used
            if state:
                self._characters[token], self._clean[token] = used, open_string(state) is not None
        self._tails = {tail: np.array(found, dtype=np.int64) for tail, found in tails.items()}

    def _close(self, rest: State) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that close a string with `rest` behind it, and the characters that each adds before its quote."""
        found = [pairs for tail, pairs in self._tails.items() if advance(rest, tail) is not None]
        pairs = np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)
        return pairs[:, 0], pairs[:, 1]

    def _walk(self, state: State) -> np.ndarray:
        """Tokens that fit `state`. A begun escape is ended by a single byte, not by all words that start with `n`."""
        found: list[int] = []
        escape = bool(state) and isinstance(state[0], Text) and state[0].pending == b"\\"

        def walk(state: State, low: int, high: int, depth: int) -> None:
            while depth and low < high and len(self._texts[low]) == depth:
                found.append(low)
                low += 1
            while low < high and not (escape and depth):
                head = self._texts[low][: depth + 1]
                above = bisect_right(self._texts, head, low, high, key=lambda text: text[: depth + 1])
                after = step(state, head[-1])
                if after is not None:
                    walk(after, low, above, depth + 1)
                low = above

        walk(state, 0, len(self._texts), 0)
        ids: np.ndarray = self._ids[found]
        return ids

    def _spell(self, text: bytes) -> int:
        """The fewest tokens that spell `text`."""
        fewest = [0]
        for end in range(1, len(text) + 1):
            starts = (start for start in range(max(0, end - LONGEST), end) if text[start:end] in self._id_of)
            fewest.append(1 + min((fewest[start] for start in starts), default=end))
        return fewest[-1]


def open_string(state: State) -> Text | None:
    """The string that `state` is inside of, between characters."""
    first = state[0] if state else None
    return first if isinstance(first, Text) and not first.pending else None


@lru_cache(maxsize=4)
def vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of a model, made once: half a second for 150,000 tokens."""
    return Vocabulary(tokenizer, size)


class Constraint:
    """`allowed` for one answer in `generate`: called with the tokens so far, it says which may come next."""

    def __init__(self, grammar: State, words: Vocabulary, budget: int) -> None:
        """`budget` is the tokens that the answer may have, its end included. Raises `PromptError` if it needs more."""
        needed = words.cost(grammar)
        if needed > budget:
            raise PromptError(f"there is room for {budget} tokens and the shortest answer of this form has {needed}")
        self._state, self._read = grammar, 0
        self._words, self._budget, self._slack = words, budget, growth(grammar) + LONGEST

    def __call__(self, emitted: list[int]) -> np.ndarray:
        """Which tokens may come after `emitted`, `[vocab]` bool; calls follow an answer as it grows."""
        state, left = self._after(emitted), self._budget - len(emitted)
        # Bytes are more than tokens: far from the end of the budget, that is all there is to check.
        if left <= len(closing(state)) + self._slack and left <= self._words.cost(state) + self._slack:
            return self._words.mask_within(state, left)
        return self._words.mask(state)

    def draft(self, emitted: list[int]) -> list[int]:
        """What must come after `emitted`, for `generate` to verify in one pass: keys and what stands around them."""
        forced = takewhile(lambda piece: isinstance(piece, Literal), self._after(emitted))
        return self._words.spell(closing(tuple(forced)))

    def _after(self, emitted: list[int]) -> State:
        for token in emitted[self._read :]:
            after = advance(self._state, self._words.bytes_of[token])
            assert after is not None, f"token {token} was not allowed"
            self._state = after
        self._read = len(emitted)
        return self._state
