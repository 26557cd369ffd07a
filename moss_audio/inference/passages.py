"""A window's transcript, checked: loops are written again or cut, what was cut is said, segments have a confidence.

A recording's transcript is its passages in order. Knows no files and no progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moss_audio.inference.generate import FinishReason, Usage
from moss_audio.inference.guide import Guide
from moss_audio.inference.letters import evidence
from moss_audio.inference.sampling import SamplingParams
from moss_audio.inference.transcription import Heard, is_search, locate, loop_length, read, write, written
from moss_audio.prompts import TRANSCRIPT_BEAMS
from moss_audio.runtime.backend import Backend
from moss_audio.transcript import Segment

if TYPE_CHECKING:
    from moss_audio.tokenizer import Tokenizer

RETRY_TEMPERATURES = (0.4, 0.8)
"""A loop is an answer that greedy decoding cannot leave; a little chance can."""

RETRY_PENALTY = 1.1

MIN_EVIDENCE = -2.1
"""Mean log-probability of a hotword's letters, below which it was not said: -1.9…-0.3 for 30 names that were, -4.4…-2.3
for 10 of 11 that were not (`docs/log.md`)."""

MAX_DOUBTS = 3
"""Times that a window is written again without the hotwords that the letters do not bear out."""

MAX_REPEATED_SEGMENTS = 5
"""Equal sentences in a row, each with its own times, that are still believed."""


@dataclass(frozen=True)
class Passage:
    """The transcript of a recording from `start` to `end`, in seconds.

    `notes` say what was done about it: a loop that was written again or cut, a text that reached its limit. Where no
    pause allowed the cut at its end, `overlap` seconds more were heard; the next passage hears as much before it.
    """

    start: float
    end: float
    text: str
    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    usage: Usage
    notes: tuple[str, ...] = ()
    overlap: float = 0.0


@dataclass(frozen=True)
class _Attempt:
    segments: tuple[Segment, ...]
    text: str
    loops: bool
    doubted: tuple[str, ...]
    finish_reason: FinishReason
    usage: Usage


def compose(
    backend: Backend, tokenizer: Tokenizer, heard: Heard, params: SamplingParams, cancelled: Callable[[], bool]
) -> Passage:
    """Write the passage of a window. Hotwords that were written and not heard are no hotwords of it.

    A text that turns in a loop is tried again with other sampling, else cut.
    """

    def done(attempt: _Attempt, usage: Usage, note: str = "") -> Passage:
        where = f"{_clock(heard.start)}–{_clock(heard.start + heard.duration)}"
        notes = (f"{where}: {note}",) if note else ()
        end = heard.start + heard.duration
        usage = replace(usage, audio_seconds=min(usage.audio_seconds, heard.duration))
        return Passage(
            heard.start, end, attempt.text, attempt.segments, attempt.finish_reason, usage, notes, heard.tail
        )

    first = _attempt(backend, tokenizer, heard, params, cancelled)
    usage = first.usage
    for _ in range(MAX_DOUBTS):
        if not first.doubted or cancelled():
            break
        heard = replace(heard, hotwords=tuple(word for word in heard.hotwords if word not in first.doubted))
        first = _attempt(backend, tokenizer, heard, params, cancelled)
        usage += replace(first.usage, audio_seconds=0.0)
    if not first.loops:
        at_limit = first.finish_reason == "length"
        return done(first, usage, f"the text is cut off after {usage.completion_tokens} tokens" if at_limit else "")
    for retry in _retries(params, bool(backend.config.audio.letters)):
        if cancelled():
            break
        again = _attempt(backend, tokenizer, heard, retry, cancelled)
        usage += replace(again.usage, audio_seconds=0.0)
        whole = not again.loops and again.finish_reason == "stop"
        if whole and _unheard(again.text, backend, tokenizer, heard) <= _unheard(first.text, backend, tokenizer, heard):
            way = f"temperature {retry.temperature}" if retry.temperature else f"{retry.n_beams} beams"
            return done(again, usage, f"the text repeated itself and was written again with {way}")
    return done(replace(first, finish_reason="length"), usage, "the text repeated itself; the repetitions are cut")


def _attempt(
    backend: Backend, tokenizer: Tokenizer, heard: Heard, params: SamplingParams, cancelled: Callable[[], bool]
) -> _Attempt:
    events = list(write(backend, tokenizer, heard, params, cancelled))
    text, reason, usage = read(tokenizer, events)
    segments = locate(text, heard, backend.config.audio.letters)
    once = _once(segments)
    loops = loop_length(written(tokenizer, events)) > 0 or len(once) < len(segments)
    tokens = [(event.token_id, event.logprob) for event in events]
    rated = _rated(once, [(i, p) for i, p in tokens if i is not None and p is not None], tokenizer)
    plain = " ".join(segment.text for segment in once)
    return _Attempt(rated, plain, loops, _doubted(text, heard, backend.config.audio.letters), reason, usage)


def _doubted(text: str, heard: Heard, letters: str) -> tuple[str, ...]:
    """Hotwords of a window that stand in its `text` and were not said, as far as the letters can tell."""
    logprobs = heard.prompt.audio.letter_logprobs if heard.prompt is not None else None
    if logprobs is None:
        return ()
    return tuple(
        word for word in heard.hotwords if min(evidence(logprobs, text, word, letters), default=0.0) < MIN_EVIDENCE
    )


def _retries(params: SamplingParams, has_letters: bool) -> Iterator[SamplingParams]:
    """Other ways to write a text that loops: the search first, where there is one and it is not what failed."""
    if has_letters and params.n_beams == 1 and is_search(params):
        yield replace(params, n_beams=TRANSCRIPT_BEAMS)
    for temperature in RETRY_TEMPERATURES:
        if temperature > params.temperature:
            yield replace(params, temperature=temperature, repetition_penalty=RETRY_PENALTY, seed=0, n_beams=1)


def _unheard(text: str, backend: Backend, tokenizer: Tokenizer, heard: Heard) -> float:
    """What the heads hold against `text`, in nats, so that chance does not replace a loop by an invention."""
    if heard.prompt is None or heard.prompt.audio.letter_logprobs is None:
        return 0.0
    guide = Guide(heard.prompt.audio, backend.config.audio.letters, heard.prompt.pieces, tokenizer)
    place = guide.start()
    for token in tokenizer.encode(text):
        (place,) = guide.extend([(place, token)])
    return guide.cost(place, ended=True)


def _once(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """`segments`, of which a run of equal texts that is too long to be meant is cut to its first."""
    kept: list[Segment] = []
    run: list[Segment] = []
    for segment in (*segments, None):
        if segment is not None and run and segment.text.casefold() == run[0].text.casefold():
            run.append(segment)
            continue
        kept += run[:1] if len(run) > MAX_REPEATED_SEGMENTS else run
        run = [segment] if segment is not None else []
    return tuple(kept)


def _rated(
    segments: Sequence[Segment], tokens: Sequence[tuple[int, float]], tokenizer: Tokenizer
) -> tuple[Segment, ...]:
    """`segments` with the confidence of the tokens that spell each; they are found by their bytes without spaces."""
    pieces = [b"" if tokenizer.is_special(token) else tokenizer.token_bytes(token) for token, _ in tokens]
    compact = [b"".join(piece.split()) for piece in pieces]
    owners = np.repeat(np.arange(len(tokens)), [len(piece) for piece in compact])
    said, at = b"".join(compact), 0
    rated: list[Segment] = []
    for segment in segments:
        wanted = "".join(segment.text.split()).encode()
        found = said.find(wanted, at)
        if found >= 0 and wanted:
            at = found + len(wanted)
            logprobs = [tokens[owner][1] for owner in np.unique(owners[found:at])]
            segment = replace(segment, confidence=round(float(np.exp(np.mean(logprobs))), 3))
        rated.append(segment)
    return tuple(rated)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{seconds % 60:04.1f}"
