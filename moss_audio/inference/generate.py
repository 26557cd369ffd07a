"""The one loop that turns a prompt into a stream of text; a whole answer is the stream collected.

Knows tokens, drafts, stop rules and counts. Does not know what the prompt asks, nor how the network runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from moss_audio.audio import HOP_LENGTH, SAMPLE_RATE
from moss_audio.errors import BackendError, CheckpointError, PromptError
from moss_audio.inference.sampling import Sampler, SamplingParams
from moss_audio.runtime.backend import AudioEmbeds, Backend

if TYPE_CHECKING:
    from moss_audio.processor import Inputs
    from moss_audio.tokenizer import Tokenizer

STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""ChatML's end of turn, and the end of a document, with which base models stop."""

_THINKING = re.compile(r"\s*<think>(.*?)(?:</think>(.*)|$)", re.DOTALL)

FinishReason = Literal["stop", "length", "cancelled"]
Draft = Callable[[list[int]], list[int]]
"""Given the answer's tokens so far, a guess at the next ones, of any length."""
Allowed = Callable[[list[int]], np.ndarray | None]
"""Given the answer's tokens so far, which may come next, `[vocab]` bool, or None for all; `grammar_tokens` has one."""


@dataclass(frozen=True)
class Usage:
    """What an answer cost. `audio_tokens` are part of `prompt_tokens`; `audio_seconds` is what was heard."""

    prompt_tokens: int = 0
    audio_tokens: int = 0
    audio_seconds: float = 0.0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.audio_tokens + other.audio_tokens,
            round(self.audio_seconds + other.audio_seconds, 3),
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True)
class TokenEvent:
    """One token of an answer. `text` may be empty while a character or a stop string is still open.

    Only the last event carries `finish_reason` and `usage`; it need not have a token of its own.
    """

    text: str
    token_id: int | None = None
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


def collect(events: Iterable[TokenEvent]) -> tuple[str, FinishReason, Usage]:
    """The whole answer of a stream: its text, how it ended and what it cost."""
    parts, last = [], TokenEvent("")
    for last in events:
        parts.append(last.text)
    return "".join(parts), last.finish_reason or "cancelled", last.usage or Usage()


def generate(
    backend: Backend,
    tokenizer: Tokenizer,
    inputs: Inputs,
    params: SamplingParams,
    *,
    audio: AudioEmbeds | None = None,
    draft: Draft | None = None,
    allowed: Allowed | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[TokenEvent]:
    """Answer one prompt.

    `audio` saves encoding the clips again where the caller has done it. With greedy decoding `draft` proposes tokens
    that one pass of the network verifies together: the answer is the one without a draft, only sooner
    (arXiv 2211.17192, for temperature 0). `allowed` limits every token, and log-probabilities are then those among what
    it allows. `cancelled` is asked before every token.

    Raises `PromptError`, before any work, when the prompt leaves no room for an answer. A `max_new_tokens` beyond the
    room is cut to it, and the answer then ends with `length`.
    """
    budget = min(params.max_new_tokens, room(backend, inputs))
    return _events(backend, tokenizer, inputs, params, budget, audio, draft, allowed, cancelled or (lambda: False))


def _events(
    backend: Backend,
    tokenizer: Tokenizer,
    inputs: Inputs,
    params: SamplingParams,
    budget: int,
    audio: AudioEmbeds | None,
    draft: Draft | None,
    allowed: Allowed | None,
    cancelled: Callable[[], bool],
) -> Iterator[TokenEvent]:
    count, text = 0, _StopText(params.stop)
    decoded, ends = tokenizer.stream(), stop_ids(tokenizer)

    def last(held: str, reason: FinishReason, token: int | None = None, logprob: float | None = None) -> TokenEvent:
        return TokenEvent(held, token, logprob, reason, count_usage(inputs, count))

    if cancelled():
        yield last("", "cancelled")
        return
    if audio is None and inputs.mels:
        audio = backend.encode_audio(inputs.mels)
    for token, logprob in _tokens(backend, inputs, params, budget, audio, draft, allowed):
        count += 1
        if token in ends:
            yield last(text.push(decoded.finish()) + text.flush(), "stop", token, logprob)
            return
        piece = text.push(decoded.push(token))
        if not text.stopped and count == budget:
            piece += text.push(decoded.finish()) + text.flush()
        if text.stopped or count == budget:
            yield last(piece, "stop" if text.stopped else "length", token, logprob)
            return
        yield TokenEvent(piece, token, logprob)
        if cancelled():
            yield last(text.push(decoded.finish()) + text.flush(), "cancelled")
            return


def _tokens(
    backend: Backend,
    inputs: Inputs,
    params: SamplingParams,
    budget: int,
    audio: AudioEmbeds | None,
    draft: Draft | None,
    allowed: Allowed | None,
) -> Iterator[tuple[int, float]]:
    """The model's own tokens without end, with their log-probabilities; the caller decides when to stop."""
    sampler, emitted = Sampler(params), list[int]()
    draft = draft if params.temperature == 0 else None
    proposal = draft(emitted)[: budget - 1] if draft is not None else []
    ids = np.concatenate([inputs.input_ids, np.array(proposal, np.int64)])  # the first draft is read with the prompt
    mask_of_audio = np.concatenate([inputs.audio_mask, np.zeros(len(proposal), bool)])
    cache, rows = backend.prefill(ids, mask_of_audio, audio, 1 + len(proposal))
    while True:
        accepted = 0
        for row in rows:
            mask = allowed(emitted) if allowed is not None else None
            token, logprob = sampler.pick(row if mask is None else np.where(mask, row, -np.inf), emitted)
            check_finite(logprob)
            emitted.append(token)
            yield token, logprob
            if accepted == len(proposal) or token != proposal[accepted]:
                break
            accepted += 1
        if accepted < len(proposal):
            backend.rewind(cache, cache.length - (len(proposal) - accepted))
        if draft is not None:
            proposal = draft(emitted)[: budget - len(emitted) - 1]
        rows = backend.decode(cache, np.array([emitted[-1], *proposal], dtype=np.int64))


def score(
    backend: Backend, inputs: Inputs, answers: Sequence[Sequence[int]], audio: AudioEmbeds | None
) -> list[float]:
    """The log-probability that the answer to a prompt begins with the tokens of each of `answers`, none of them empty.

    Raises `PromptError` where the longest does not fit behind the prompt.
    """
    if max(map(len, answers)) > room(backend, inputs):
        raise PromptError("the answers to choose among do not fit into the context behind the prompt; shorten them")
    cache, first = backend.prefill(inputs.input_ids, inputs.audio_mask, audio)
    start, scores = cache.length, list[float]()
    for ids in answers:
        more = [backend.decode(cache, np.array(ids[:-1], np.int64))] if len(ids) > 1 else []
        backend.rewind(cache, start)
        logits = np.concatenate([first, *more]).astype(np.float64)
        own = logits[np.arange(len(ids)), list(ids)] - np.logaddexp.reduce(logits, axis=1)
        check_finite(float(own.sum()))
        scores.append(float(own.sum()))
    return scores


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Part an answer into reasoning and reply: `<think>why</think>what`. Cut off while thinking, it has no reply."""
    match = _THINKING.match(text)
    if match is None:
        return None, text.strip()
    return match[1].strip(), (match[2] or "").strip()


def room(backend: Backend, inputs: Inputs) -> int:
    """Tokens of answer that the context holds behind a prompt; raises `PromptError` where there are none."""
    limit, n_prompt = backend.config.decoder.max_positions, len(inputs.input_ids)
    if n_prompt >= limit:
        raise PromptError(
            f"the prompt has {n_prompt} tokens and the context holds {limit} with the answer; "
            "use shorter or fewer recordings"
        )
    return limit - n_prompt


def check_finite(value: float) -> None:
    """Raise `BackendError` where the network's numbers are none."""
    if not np.isfinite(value):
        raise BackendError("the network returned logits that are not numbers; try precision='float32'")


def count_usage(inputs: Inputs, completion_tokens: int) -> Usage:
    """What a prompt and so many tokens of answer cost."""
    seconds = sum(mel.shape[1] for mel in inputs.mels) * HOP_LENGTH / SAMPLE_RATE
    return Usage(len(inputs.input_ids), int(np.count_nonzero(inputs.audio_mask)), seconds, completion_tokens)


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an answer in this vocabulary."""
    ids = set()
    for name in STOP_TOKENS:
        with suppress(CheckpointError):  # a vocabulary may lack one of them
            ids.add(tokenizer.special(name))
    return frozenset(ids)


class _StopText:
    """Passes text on, except what is or may become a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop, self._held, self.stopped = stop, "", False

    def push(self, piece: str) -> str:
        """The text that is safe to show after `piece`; sets `stopped` at the first stop string and drops the rest."""
        if self.stopped or not piece:
            return ""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._held, self.stopped = "", True
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
