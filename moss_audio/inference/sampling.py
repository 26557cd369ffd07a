"""From logits to one token id, in numpy. Knows nothing of text, caches or stop rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moss_audio.errors import PromptError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to end.

    `temperature` 0 is greedy and ignores `top_k`, `top_p` and `seed`; `top_k` 0 and `top_p` 1 keep every token.
    `repetition_penalty` above 1 makes tokens that the answer already holds less likely. `stop` strings end the answer
    and are not part of it.

    `n_beams` above 1 searches that many texts at a time in a transcript, where the checkpoint has a letter head,
    `temperature` is 0, and there is neither a penalty nor a stop string.

    Raises `PromptError` naming the value and its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    n_beams: int = 1

    def __post_init__(self) -> None:
        check = _check
        check("temperature", self.temperature, 0.0 <= self.temperature <= 5.0, "0 (greedy) to 5")
        check("top_k", self.top_k, self.top_k == int(self.top_k) >= 0, "0 (off) or a positive whole number")
        check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and up to 1 (off)")
        penalty = self.repetition_penalty
        check("repetition_penalty", penalty, 0.1 <= penalty <= 10.0, "0.1 to 10; 1 is off")
        check("seed", self.seed, self.seed is None or self.seed >= 0, "None or a whole number from 0")
        check("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "a whole number from 1")
        check("n_beams", self.n_beams, 1 <= self.n_beams <= 32, "1 (greedy) to 32")
        strings = isinstance(self.stop, tuple) and all(isinstance(stop, str) and stop for stop in self.stop)
        check("stop", self.stop, strings, "a tuple of strings, none of them empty")


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise PromptError(f"{name} is {value!r}; valid: {expected}")


class Sampler:
    """Chooses token after token for one answer; holds the random generator of that answer."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = np.random.default_rng(params.seed)

    def pick(self, logits: np.ndarray, emitted: Sequence[int]) -> tuple[int, float]:
        """Choose from `logits [vocab]` after the answer's tokens `emitted`.

        Returns the token and its log-probability under the model's own distribution, before penalty, temperature and
        truncation.
        """
        scores = np.asarray(logits, dtype=np.float32)
        if self.params.repetition_penalty != 1.0 and emitted:
            scores = _penalise(scores, emitted, self.params.repetition_penalty)
        token = int(np.argmax(scores)) if self.params.temperature == 0 else self._draw(scores)
        peak = float(logits.max())
        logsumexp = peak + math.log(float(np.exp(np.asarray(logits, dtype=np.float32) - peak).sum()))
        return token, float(logits[token]) - logsumexp

    def _draw(self, scores: np.ndarray) -> int:
        """Top-k first, then nucleus (arXiv 1904.09751) over what is left, both after temperature."""
        top_k = min(self.params.top_k or scores.size, scores.size)
        order = np.argpartition(-scores, top_k - 1)[:top_k]
        order = order[np.lexsort((order, -scores[order]))]
        below = scores[order].astype(np.float64) - scores[order[0]]
        with np.errstate(over="ignore"):  # a temperature of next to nothing leaves only the best
            probs = np.exp(below / self.params.temperature)
        probs /= probs.sum()
        kept = int(np.searchsorted(np.cumsum(probs), self.params.top_p)) + 1 if self.params.top_p < 1.0 else len(probs)
        probs = probs[:kept] / probs[:kept].sum()
        return int(order[self._random.choice(len(probs), p=probs)])


def _penalise(scores: np.ndarray, emitted: Sequence[int], penalty: float) -> np.ndarray:
    """Divide positive scores of seen tokens by `penalty` and multiply negative ones (arXiv 1909.05858, section 4.1)."""
    seen = np.unique(np.asarray(emitted, dtype=np.int64))
    scores = scores.copy()
    scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    return scores
