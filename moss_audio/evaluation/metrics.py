"""Measures of transcripts. Knows no models: sequences in, counts out, so that results add up over clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ErrorRate:
    """Edits over reference words (or characters); add rates to pool clips."""

    errors: int = 0
    words: int = 0

    @classmethod
    def of(cls, reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorRate:
        """Levenshtein distance with unit costs."""
        row = np.arange(len(hypothesis) + 1)
        steps = np.arange(len(hypothesis) + 1)
        other = np.array(hypothesis, dtype=object)
        for i, word in enumerate(reference, 1):
            new = np.empty_like(row)
            new[0] = i
            new[1:] = np.minimum(row[:-1] + (other != word), row[1:] + 1)
            row = np.minimum.accumulate(new - steps) + steps
        return cls(int(row[-1]), len(reference))

    def __add__(self, other: ErrorRate) -> ErrorRate:
        return ErrorRate(self.errors + other.errors, self.words + other.words)

    @property
    def value(self) -> float:
        """Errors a reference word; 0 where there are neither."""
        return self.errors / max(1, self.words)
