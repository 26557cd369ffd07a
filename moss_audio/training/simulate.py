"""Letter posteriors for text that nobody spoke, so that a language model can learn to read them from text alone.

A bank keeps, for every letter in real speech, its stretch of the head's posteriors: from the frame where CTC's best
alignment puts the letter up to the next one. A sentence is spelled by joining stretches, preferring those that were
followed by the same letter. Errors are drawn from what the head itself confuses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from moss_audio.inference.letters import best_path


class LetterBank:
    """Stretches of real posteriors by letter, and its summed posteriors where they begin."""

    def __init__(self, n_letters: int) -> None:
        self.stretches: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
        self.by_letter: dict[int, list[np.ndarray]] = defaultdict(list)
        self.leads: list[np.ndarray] = []
        self.counts = np.full((n_letters, n_letters), 1e-6)

    def add(self, posteriors: np.ndarray, ids: Sequence[int], max_frames: int = 25) -> None:
        """Take in one utterance, `posteriors [E, L]` that spell `ids`; none if they are too few for that."""
        spans = best_path(np.log(posteriors + 1e-9), np.array(ids))
        if spans is None:
            return
        first = spans[:, 0]
        ends = [*first[1:], min(len(posteriors), first[-1] + 4)]
        self.leads.append(posteriors[: min(first[0], max_frames)].astype(np.float16))
        for letter, after, start, end in zip(ids, [*ids[1:], 0], first, ends, strict=True):
            stretch = posteriors[start : min(end, start + max_frames)].astype(np.float16)
            self.stretches[letter, after].append(stretch)
            self.by_letter[letter].append(stretch)
            self.counts[letter] += posteriors[start]

    def misspell(self, ids: Sequence[int], rng: np.random.Generator, error_rate: float) -> list[int]:
        """`ids` with about `error_rate` of them replaced by what they are taken for, dropped or doubled."""
        out: list[int] = []
        for letter in ids:
            draw = rng.random() / max(error_rate, 1e-9)
            if draw < 0.7:
                chances = self.counts[letter].copy() ** 0.5
                chances[[0, letter]] = 0
                out.append(int(rng.choice(len(chances), p=chances / chances.sum())))
            elif draw >= 1 or draw < 0.85:
                out.append(letter)
                if draw < 1:
                    out.append(letter)
        return out

    def spell(self, ids: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """Posteriors `[E, L]` as if `ids` had been said: stretches that the same letter followed, if there are."""
        pieces = [self.leads[rng.integers(len(self.leads))]]
        for letter, after in zip(ids, [*ids[1:], 0], strict=True):
            same = self.stretches.get((letter, after), ())
            pool = same if len(same) >= 3 else self.by_letter.get(letter)
            if pool:
                pieces.append(pool[rng.integers(len(pool))])
        return np.concatenate(pieces).astype(np.float32)


def garble(text: str, rng: np.random.Generator, rate: float, words: Sequence[str] = ()) -> str:
    """`text` with about `rate` of its words wrong as a piece head gets them wrong.

    They are left out, cut short, doubled at the end (two ways to cut a word, one behind the other: "furyury"), or
    exchanged for a neighbour in the sorted `words`, if there are any.
    """
    out = []
    for word in text.split():
        kind = rng.random() / rate if rate else 1.0
        if kind < 0.3:
            continue
        if kind < 0.5:
            word = word[: -(-2 * len(word) // 3)]
        elif kind < 0.7:
            word += word[-3:]
        elif kind < 1 and words:
            word = words[min(len(words) - 1, max(0, bisect_left(words, word) + int(rng.integers(-4, 5))))]
        out.append(word)
    return " ".join(out)
