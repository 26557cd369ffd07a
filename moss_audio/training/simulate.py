"""Letter posteriors for text that nobody spoke, so that a language model can learn to read them from text alone.

A bank keeps, for every letter in real speech, its stretch of the head's posteriors: from the frame where CTC's best
alignment puts the letter up to the next one. A sentence is spelled by joining stretches, preferring those that were
followed by the same letter. Errors are drawn from what the head itself confuses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def align(logprobs: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """First frame `[len(ids)]` of every label on CTC's best path through `logprobs [E, L]`; label 0 is the blank.

    Viterbi over the blank-interleaved labels (Graves et al. 2006, https://doi.org/10.1145/1143844.1143891).
    """
    states = np.zeros(2 * len(ids) + 1, np.int64)
    states[1::2] = ids
    skip = np.zeros(len(states), bool)
    skip[3::2] = states[3::2] != states[1:-2:2]
    emit = logprobs[:, states]
    score = np.full(len(states), -np.inf)
    score[:2] = emit[0, :2]
    back = np.zeros(emit.shape, np.int8)
    for t in range(1, len(emit)):
        step = np.concatenate([[-np.inf], score[:-1]])
        jump = np.where(skip, np.concatenate([[-np.inf] * 2, score[:-2]]), -np.inf)
        options = np.stack([score, step, jump])
        back[t] = options.argmax(0)
        score = options.max(0) + emit[t]
    state = len(states) - 1 if score[-1] > score[-2] else len(states) - 2
    first = np.zeros(len(ids), np.int64)
    for t in range(len(emit) - 1, -1, -1):
        if state % 2:
            first[state // 2] = t
        state -= int(back[t, state])
    return first


class LetterBank:
    """Stretches of real posteriors by letter, and its summed posteriors where they begin."""

    def __init__(self, n_letters: int) -> None:
        self.stretches: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
        self.by_letter: dict[int, list[np.ndarray]] = defaultdict(list)
        self.leads: list[np.ndarray] = []
        self.counts = np.full((n_letters, n_letters), 1e-6)

    def add(self, posteriors: np.ndarray, ids: Sequence[int], max_frames: int = 25) -> None:
        """Take in one utterance, `posteriors [E, L]` that spell `ids`."""
        first = align(np.log(posteriors + 1e-9), ids)
        ends = [*first[1:], min(len(posteriors), first[-1] + 4)]
        self.leads.append(posteriors[: min(first[0], max_frames)].astype(np.float16))
        for letter, after, start, end in zip(ids, [*ids[1:], 0], first, ends, strict=True):
            stretch = posteriors[start : min(end, start + max_frames)].astype(np.float16)
            self.stretches[letter, after].append(stretch)
            self.by_letter[letter].append(stretch)
            self.counts[letter] += posteriors[start]

    def spell(self, ids: Sequence[int], rng: np.random.Generator, error_rate: float) -> np.ndarray:
        """Posteriors `[E, L]` of a sentence; about `error_rate` of its letters are replaced, dropped or doubled."""
        spoken = []
        for letter in ids:
            draw = rng.random() / max(error_rate, 1e-9)
            if draw < 0.7:
                chances = self.counts[letter].copy() ** 0.5
                chances[[0, letter]] = 0
                spoken.append(int(rng.choice(len(chances), p=chances / chances.sum())))
            elif draw >= 1 or draw < 0.85:
                spoken.append(letter)
                if draw < 1:
                    spoken.append(int(rng.choice(ids)))
        pieces = [self.leads[rng.integers(len(self.leads))]]
        for letter, after in zip(spoken, [*spoken[1:], 0], strict=True):
            same = self.stretches.get((letter, after), ())
            pool = same if len(same) >= 3 else self.by_letter.get(letter)
            if pool:
                pieces.append(pool[rng.integers(len(pool))])
        return np.concatenate(pieces).astype(np.float32)
