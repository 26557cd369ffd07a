"""Transcripts that the language model and the encoder's heads write together: one text, or several (beam search)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from moss_audio.inference.generate import Draft, FinishReason, TokenEvent, check_finite, count_usage, room, stop_ids
from moss_audio.inference.guide import Guide, Place
from moss_audio.runtime.backend import AudioEmbeds, Backend

if TYPE_CHECKING:
    from moss_audio.processor import Inputs
    from moss_audio.tokenizer import Tokenizer

WRITTEN = 1.0
"""What a letter is worth, in nats: without it the text wins that leaves out what is hard to read."""

PROGRESS = 0.4
"""What a slot of the letters that is behind a text is worth, in nats: about what a letter still costs. Without this
future cost, texts that loop on cheap tokens outlive those that dare to go on."""

DEAF_WEIGHT = 0.4
"""What a nat of the language model counts that has heard nothing and knows only how people write: it finds "passering"
unlikely, which the letters and the model that was taught to trust them do not."""

LEAST_DEAF = -12.0
"""The least log-probability that it may give: a name that it has never read is no mistake."""

ORDINARY_DEAF = -5.0
"""What it gives a token on average, and at least to one that a bias speaks for."""

CANDIDATES = 16
"""Tokens that the language model may propose after each text; the heads' own next token comes on top."""

Bias = Callable[[Sequence[int]], Mapping[int, float]]
"""Given the tokens of a text, tokens to weigh after them and the least log-probability that each counts as."""


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A text under way: its tokens, their log-probabilities, where it is in what was heard, and its joint score.

    `favour` is what others than the language model and the heads have added to the score.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    place: Place
    score: float
    favour: float = 0.0


def beam_search(
    backend: Backend,
    tokenizer: Tokenizer,
    inputs: Inputs,
    audio: AudioEmbeds,
    guide: Guide,
    draft: Draft,
    n_beams: int,
    max_new_tokens: int,
    cancelled: Callable[[], bool],
    bias: Bias | None = None,
) -> Iterator[TokenEvent]:
    """Stream the best text of a window: a token is out as soon as all texts under way agree on it.

    The score of a text is the sum of its log-probabilities, less what the heads hold against it (`Guide.cost`), plus
    `WRITTEN` for every letter and `PROGRESS` for every slot behind it, plus `DEAF_WEIGHT` times the log-probabilities
    of the same text as an answer to nothing; ending costs what is left of the slots. Events are those of `generate`.
    """
    budget = min(max_new_tokens, room(backend, inputs))
    ends, text, shown = stop_ids(tokenizer), tokenizer.stream(), 0
    cache, logits = backend.prefill(inputs.input_ids, inputs.audio_mask, audio)
    answer = inputs.input_ids[answer_start(tokenizer, inputs) :]
    deaf_cache, deaf = backend.prefill(answer, np.zeros(len(answer), bool), None)
    small = small_letters(tokenizer)
    beams, rows = [Hypothesis((), (), guide.start(), 0.0)], logits
    finished: list[Hypothesis] = []
    reason: FinishReason = "length"
    for _ in range(budget):
        if cancelled():
            reason = "cancelled"
            break
        grown: list[tuple[Hypothesis, int]] = []
        proposed = [draft(list(beam.tokens))[:1] for beam in beams]
        for after, parent in _extend(beams, rows, guide, proposed, ends, bias, deaf, small):
            if after.tokens[-1] in ends:
                finished.append(after)
            else:
                grown.append((after, parent))
        grown = sorted(grown, key=lambda pair: -pair[0].score)[:n_beams]
        finished = sorted(finished, key=lambda done: -done.score)[:1]
        if finished and (not grown or finished[0].score >= grown[0][0].score):
            reason = "stop"
            break
        beams = [beam for beam, _ in grown]
        agreed = _common([*(beam.tokens for beam in beams), *(done.tokens for done in finished)])
        for token, logprob in zip(beams[0].tokens[shown:agreed], beams[0].logprobs[shown:agreed], strict=True):
            yield TokenEvent(text.push(token), token, logprob)
        shown = max(shown, agreed)
        last = [beam.tokens[-1] for beam in beams]
        parents = np.array([parent for _, parent in grown], np.int64)
        rows = backend.decode_beams(cache, np.array(last, np.int64), parents)
        deaf = backend.decode_beams(deaf_cache, np.array([small(token) for token in last], np.int64), parents)
    best = finished[0] if reason == "stop" else beams[0]
    rest = [
        TokenEvent("" if token in ends else text.push(token), token, logprob)
        for token, logprob in zip(best.tokens[shown:], best.logprobs[shown:], strict=True)
    ] or [TokenEvent("")]
    yield from rest[:-1]
    usage = count_usage(inputs, len(best.tokens))
    yield replace(rest[-1], text=rest[-1].text + text.finish(), finish_reason=reason, usage=usage)


def guided_search(
    backend: Backend,
    tokenizer: Tokenizer,
    inputs: Inputs,
    audio: AudioEmbeds,
    guide: Guide,
    draft: Draft,
    max_new_tokens: int,
    cancelled: Callable[[], bool],
    bias: Bias | None = None,
) -> Iterator[TokenEvent]:
    """Stream one text, every token of it the best by the score of `beam_search`.

    One pass of the network reads a whole draft, as in `generate`; where the best token is another, the rest is drafted
    anew. Events are those of `generate`.
    """
    budget, ends, text = min(max_new_tokens, room(backend, inputs)), stop_ids(tokenizer), tokenizer.stream()
    best, proposal = Hypothesis((), (), guide.start(), 0.0), draft([])[: max_new_tokens - 1]
    ids = np.concatenate([inputs.input_ids, np.array(proposal, np.int64)])
    audio_mask = np.concatenate([inputs.audio_mask, np.zeros(len(proposal), bool)])
    cache, rows = backend.prefill(ids, audio_mask, audio, 1 + len(proposal))
    while True:
        accepted = 0
        for row in rows:
            if cancelled():
                yield TokenEvent(text.finish(), None, None, "cancelled", count_usage(inputs, len(best.tokens)))
                return
            options = _extend([best], row[None], guide, [proposal[accepted : accepted + 1]], ends, bias)
            best = max((option for option, _ in options), key=lambda option: option.score)
            token, logprob, n_tokens = best.tokens[-1], best.logprobs[-1], len(best.tokens)
            piece = "" if token in ends else text.push(token)
            if token in ends or n_tokens == budget:
                reason: FinishReason = "stop" if token in ends else "length"
                yield TokenEvent(piece + text.finish(), token, logprob, reason, count_usage(inputs, n_tokens))
                return
            yield TokenEvent(piece, token, logprob)
            if accepted == len(proposal) or token != proposal[accepted]:
                break
            accepted += 1
        if accepted < len(proposal):
            backend.rewind(cache, cache.length - (len(proposal) - accepted))
        proposal = draft(list(best.tokens))[: budget - len(best.tokens) - 1]
        rows = backend.decode(cache, np.array([best.tokens[-1], *proposal], dtype=np.int64))


def _extend(
    beams: Sequence[Hypothesis],
    rows: np.ndarray,
    guide: Guide,
    proposed: Sequence[Sequence[int]],
    ends: frozenset[int],
    bias: Bias | None,
    deaf: np.ndarray | None = None,
    small: Callable[[int], int] = int,
) -> Iterator[tuple[Hypothesis, int]]:
    """The texts one token longer that are worth a thought, and which of `beams` each goes on.

    After every beam that is what its logits in `rows [beams, vocab]` and those of the network that hears nothing,
    `deaf`, of the same shape, find likely together, and what is `proposed`. The latter has a say in what is spelled, in
    `small` letters, and none in marks.
    """
    totals = _totals(rows)
    deaf_totals = None if deaf is None else _totals(deaf)
    joint = rows if deaf is None else rows + DEAF_WEIGHT * deaf
    likely = np.argpartition(joint, -CANDIDATES, axis=1)[:, -CANDIDATES:].tolist()
    wanted = [bias(beam.tokens) if bias else {} for beam in beams]
    said = [sum(beam.logprobs) for beam in beams]
    pairs = [
        (parent, token)
        for parent, tokens in enumerate(zip(likely, proposed, wanted, strict=True))
        for token in dict.fromkeys(token for some in tokens for token in some)
    ]
    places = guide.extend([(beams[parent].place, token) for parent, token in pairs])
    for (parent, token), place in zip(pairs, places, strict=True):
        beam, logprob = beams[parent], float(rows[parent, token] - totals[parent, 0])
        ended = token in ends
        worth = WRITTEN * place.written + PROGRESS * guide.behind(place, ended) - guide.cost(place, ended)
        least = wanted[parent].get(token)
        favour = beam.favour + (0.0 if least is None else max(0.0, least - logprob))
        if deaf is not None and deaf_totals is not None and place.written > beam.place.written:
            plain = float(deaf[parent, small(token)] - deaf_totals[parent, 0])
            favour += DEAF_WEIGHT * max(plain, LEAST_DEAF if least is None else ORDINARY_DEAF)
        score = said[parent] + logprob + favour + worth
        yield Hypothesis((*beam.tokens, token), (*beam.logprobs, logprob), place, score, favour), parent


def small_letters(tokenizer: Tokenizer) -> Callable[[int], int]:
    """The token that spells the same in small letters, or the token itself where none does.

    How people write is learned from texts without capitals and marks, of which the model that hears has its own idea.
    """

    @cache
    def small(token: int) -> int:
        text = "" if tokenizer.is_special(token) else tokenizer.token_bytes(token).decode("latin-1")
        ids = tokenizer.encode(text.lower()) if text.isascii() and text != text.lower() else []
        return ids[0] if len(ids) == 1 else token

    return small


def _totals(rows: np.ndarray) -> np.ndarray:
    """The logarithms `[n, 1]` of the sums of exponentials of logits `rows [n, vocab]`."""
    peaks: np.ndarray = rows.max(axis=1, keepdims=True)
    check_finite(float(peaks.sum()))
    return peaks + np.log(np.exp(rows - peaks).sum(axis=1, keepdims=True))


def answer_start(tokenizer: Tokenizer, inputs: Inputs) -> int:
    """Where the answer at the end of a prompt is opened, by the last `<|im_start|>`; 0 in a prompt without one."""
    opened = np.flatnonzero(inputs.input_ids == tokenizer.special("<|im_start|>"))
    return int(opened[-1]) if len(opened) else 0


def _common(texts: list[tuple[int, ...]]) -> int:
    """How many tokens all `texts` begin with."""
    shortest = min(map(len, texts))
    return next((i for i in range(shortest) if len({text[i] for text in texts}) > 1), shortest)
