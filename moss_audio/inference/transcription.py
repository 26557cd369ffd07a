"""One window of speech to text and timed segments. Knows the letter head's uses: spelling, drafts, times, silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moss_audio.audio import SAMPLE_RATE, log_mel
from moss_audio.inference.generate import FinishReason, TokenEvent, Usage, collect, generate
from moss_audio.inference.guide import LetterGuide
from moss_audio.inference.letters import LetterDraft, forced_alignment, greedy_words, is_silent
from moss_audio.inference.sampling import SamplingParams
from moss_audio.inference.search import beam_search
from moss_audio.messages import MelPart, Message
from moss_audio.prompts import SPELLED, TRANSCRIBE
from moss_audio.runtime.backend import AudioEmbeds, Backend
from moss_audio.transcript import Segment, Word, group_words

if TYPE_CHECKING:
    from moss_audio.processor import Inputs, Processor
    from moss_audio.tokenizer import Tokenizer

SILENCE_PEAK = 1e-3
"""A clip that stays below -60 dBFS holds nothing to transcribe; log-mel would blow its noise up to full scale."""

TOKENS_PER_SECOND = 12
"""Twice the word pieces of the fastest speech (6 words a second); a longer answer has lost the recording."""

SPARE_TOKENS = 32


@dataclass(frozen=True, eq=False)
class Heard:
    """A window after the encoder; `start` and `duration` in seconds. `prompt` is None where nobody speaks."""

    start: float
    duration: float
    prompt: Prompt | None


@dataclass(frozen=True, eq=False)
class Prompt:
    """Clips and question, encoded and rendered."""

    inputs: Inputs
    audio: AudioEmbeds


def listen(backend: Backend, processor: Processor, clips: Sequence[np.ndarray], question: str) -> Prompt:
    """Encode `clips[i] [n]` and render the question about them.

    Where the checkpoint has a letter head, its spelling is part of the question, as it was in training.
    """
    mels = [log_mel(samples, backend.config.audio.n_mels) for samples in clips]
    audio = backend.encode_audio(mels)
    if audio.letter_logprobs is not None:
        words = greedy_words(audio.letter_logprobs, backend.config.audio.letters)
        question = SPELLED.format(question=question, letters=" ".join(word.text for word in words))
    return Prompt(processor.encode([Message.of("user", *map(MelPart, mels), question)]), audio)


def hear(backend: Backend, processor: Processor, samples: np.ndarray, start: float) -> Heard:
    """Encode the window `samples [n]` that begins at `start`, to be transcribed."""
    duration = len(samples) / SAMPLE_RATE
    if not len(samples) or float(np.abs(samples).max()) < SILENCE_PEAK:
        return Heard(start, duration, None)
    prompt = listen(backend, processor, [samples], TRANSCRIBE)
    logprobs, letters = prompt.audio.letter_logprobs, backend.config.audio.letters
    silent = logprobs is not None and is_silent(logprobs, letters)
    return Heard(start, duration, None if silent else prompt)


def write(
    backend: Backend, tokenizer: Tokenizer, heard: Heard, params: SamplingParams, cancelled: Callable[[], bool]
) -> Iterator[TokenEvent]:
    """Stream the text of a window. An answer that turns in a loop, or outgrows the recording, ends with `length`."""
    if heard.prompt is None:
        yield TokenEvent("", finish_reason="stop", usage=Usage(audio_seconds=heard.duration))
        return
    logprobs, letters = heard.prompt.audio.letter_logprobs, backend.config.audio.letters
    draft = LetterDraft(logprobs, letters, tokenizer) if logprobs is not None else None
    most = SPARE_TOKENS + int(TOKENS_PER_SECOND * heard.duration)
    params = replace(params, max_new_tokens=min(params.max_new_tokens, most))
    searches = params.n_beams > 1 and params.temperature == 0 and not params.stop and params.repetition_penalty == 1.0
    if logprobs is not None and draft is not None and searches:
        inputs, audio = heard.prompt.inputs, heard.prompt.audio
        guide, n_beams, n_tokens = LetterGuide(logprobs, letters, tokenizer), params.n_beams, params.max_new_tokens
        yield from beam_search(backend, tokenizer, inputs, audio, guide, draft, n_beams, n_tokens, cancelled)
        return
    ids: list[int] = []
    for event in generate(
        backend,
        tokenizer,
        heard.prompt.inputs,
        params,
        audio=heard.prompt.audio,
        draft=draft,
        cancelled=lambda: cancelled() or loop_length(ids) > 0,
    ):
        if event.token_id is not None:
            ids.append(event.token_id)
        if event.finish_reason == "cancelled" and loop_length(ids):
            event = replace(event, finish_reason="length")
        yield event


def read(tokenizer: Tokenizer, events: Iterable[TokenEvent]) -> tuple[str, FinishReason, Usage]:
    """A window's events collected, without the repetitions of a loop that ended it."""
    events = list(events)
    text, reason, usage = collect(events)
    ids = [event.token_id for event in events if event.token_id is not None]
    excess = loop_length(ids)
    return (tokenizer.decode(ids[:-excess]) if excess else text).strip(), reason, usage


def loop_length(ids: Sequence[int], max_period: int = 24) -> int:
    """Tokens at the end of `ids` that only repeat those before them, or 0 while that may still be speech.

    A loop is the same run of up to `max_period` tokens at least five times over, and at least 12 repeated tokens:
    people do say "no" six times.
    """
    for period in range(1, max_period + 1):
        matches = (ids[-1 - i] == ids[-1 - i - period] for i in range(len(ids) - period))
        length = next((i for i, same in enumerate(matches) if not same), max(0, len(ids) - period))
        if length >= max(12, 4 * period):
            return length
    return 0


def locate(text: str, heard: Heard, letters: str) -> tuple[Segment, ...]:
    """Sentences of a window's `text` with absolute times; one segment over the window where no head tells them."""
    start = heard.start
    if not text:
        return ()
    words: tuple[Word, ...] = ()
    if heard.prompt is not None and heard.prompt.audio.letter_logprobs is not None:
        words = forced_alignment(heard.prompt.audio.letter_logprobs, text, letters)
    if not words:
        return (Segment(round(start, 3), round(start + heard.duration, 3), text),)
    return group_words(Word(w.text, round(start + w.start, 3), round(start + w.end, 3)) for w in words)
