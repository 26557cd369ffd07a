"""Keeps a transcript to what was heard: what the letters say of every token that the language model would write.

Joint decoding of a language model with CTC (Watanabe et al. 2017, https://doi.org/10.1109/JSTSP.2017.2763455), on slots
instead of frames: neighbouring frames with the same best letter are one slot, frames that are surely blank are none. A
letter takes a slot, is said without one, or passes over one; the cheapest way through is an edit distance with the
head's own probabilities as costs, one row of the table a letter, for all candidate tokens at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moss_audio.tokenizer import Tokenizer

FLOOR = -6.0
"""The least log-probability of a letter in a slot: the head is surer of itself than it is right."""

INSERTION = 4.0
"""Cost in nats of a letter that has no slot, about what the head makes of a letter that it misses."""

UNSPOKEN = " .,;:?!-\"'"
"""Characters that may be written without having been heard. All others that the head cannot spell cost an insertion."""

BLANK_ENOUGH = 0.9
"""Frames with more blank than this are no slot."""


@dataclass(frozen=True, eq=False)
class Place:
    """How far a text has come: the cheapest way `costs [slots + 1]` to each slot; `started` once a letter was said."""

    costs: np.ndarray
    started: bool = False


class LetterGuide:
    """The cost, in nats, of writing tokens against what the letter head heard in one window."""

    def __init__(self, logprobs: np.ndarray, letters: str, tokenizer: Tokenizer) -> None:
        """`logprobs [E, L]`, blank first; `letters` are its outputs from 1 on."""
        slots = np.maximum(_slots(logprobs), FLOOR)
        foreign = np.full((len(slots), 1), np.inf)
        self._take = np.ascontiguousarray(np.concatenate([-slots, foreign], axis=1).T)
        self._pass = np.concatenate([[0.0], np.cumsum(-slots[:, 0])])
        self._letters, self._tokenizer = letters, tokenizer
        self._spell = cache(self._token_letters)

    def start(self) -> Place:
        """Nothing written yet."""
        return Place(self._pass)

    def extend(self, steps: Sequence[tuple[Place, int]]) -> list[Place]:
        """The places after each step, a token written at a place; all of them in one go."""
        spelled = [self._spell(token, place.started) for place, token in steps]
        costs = np.stack([place.costs for place, _ in steps])
        for at in range(max(map(len, spelled), default=0)):
            rows = np.array([i for i, ids in enumerate(spelled) if len(ids) > at])
            letter = np.array([spelled[i][at] for i in rows])
            new = costs[rows] + INSERTION
            np.minimum(new[:, 1:], costs[rows, :-1] + self._take[letter], out=new[:, 1:])
            costs[rows] = np.minimum.accumulate(new - self._pass, axis=1) + self._pass
        starts = (place.started or bool(ids) for (place, _), ids in zip(steps, spelled, strict=True))
        return [Place(row, started) for row, started in zip(costs, starts, strict=True)]

    def _token_letters(self, token: int, started: bool) -> tuple[int, ...]:
        """The head's outputs that spell a token, -1 for what it cannot; the space before the first word is not said."""
        if self._tokenizer.is_special(token):
            return ()
        text = self._tokenizer.token_bytes(token).decode("latin-1").lower()
        spoken = [c for c in (text if started else text.lstrip()) if c in self._letters or c not in UNSPOKEN]
        return tuple(self._letters.index(c) + 1 if c in self._letters else -1 for c in spoken)


def _slots(logprobs: np.ndarray) -> np.ndarray:
    """Log-probabilities `[slots, L]`: the mean probabilities of runs of frames with the same best output."""
    heard = np.flatnonzero(logprobs[:, 0] < np.log(BLANK_ENOUGH))
    if not len(heard):
        return np.zeros((0, logprobs.shape[1]))
    best = logprobs[heard].argmax(axis=1)
    first = np.flatnonzero(np.concatenate([[True], (np.diff(best) != 0) | (np.diff(heard) != 1)]))
    sums = np.add.reduceat(np.exp(logprobs[heard].astype(np.float64)), first, axis=0)
    counts = np.diff(np.append(first, len(heard)))
    return np.log(np.maximum(sums / counts[:, None], 1e-9))
