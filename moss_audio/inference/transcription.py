"""One window of speech to text and timed segments. Knows the letter head's uses: spelling, drafts, times, silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from moss_audio.audio import log_mel
from moss_audio.inference.generate import FinishReason, TokenEvent, Usage, collect, generate, split_reasoning
from moss_audio.inference.guide import Guide
from moss_audio.inference.hotwords import HotwordBias, with_hotwords
from moss_audio.inference.letters import LetterDraft, Spelling, forced_alignment, is_silent, spelling
from moss_audio.inference.longform import Window
from moss_audio.inference.sampling import SamplingParams
from moss_audio.inference.search import beam_search, guided_search
from moss_audio.inference.voice import Voice, is_spoken
from moss_audio.messages import MelPart, Message
from moss_audio.prompts import SPELLED, TRANSCRIBE, TRANSCRIBE_TIMED, TRANSCRIBE_WORDS, TRANSCRIPT_BEAMS
from moss_audio.runtime.backend import AudioEmbeds, Backend
from moss_audio.transcript import Segment, Word, group_words, parse_timestamped
from moss_audio.transcript.parse import with_length

if TYPE_CHECKING:
    from moss_audio.processor import Inputs, Processor
    from moss_audio.tokenizer import Tokenizer

SILENCE_PEAK = 1e-3
"""A clip that stays below -60 dBFS holds nothing to transcribe; log-mel would blow its noise up to full scale."""

TOKENS_PER_SECOND = 12
"""Twice the word pieces of the fastest speech (6 words a second); a longer answer has lost the recording."""

SPARE_TOKENS = 32

MIN_WORD_SECONDS = 0.02
"""The shortest word: a frame of the encoder."""

Times = Literal["sentences", "words"]
"""What a model without a letter head is asked to put time stamps around."""

TIMED: Mapping[Times | None, tuple[str, int]] = {
    None: (TRANSCRIBE, 1), "sentences": (TRANSCRIBE_TIMED, 2), "words": (TRANSCRIBE_WORDS, 8)
}  # fmt: skip
"""The instruction for each, and how many times the tokens of the plain text its answer may have."""


@dataclass(frozen=True, eq=False)
class Heard:
    """A window after the encoder; `start` and `duration` in seconds, without the `lead` and `tail` of its neighbours.

    `prompt` is None where there is nothing to write, and `ended` says why: nobody speaks, or the caller has enough.
    The answer to a `timed` prompt has time stamps in its text, around each sentence or each word.
    """

    start: float
    duration: float
    prompt: Prompt | None
    lead: float = 0.0
    tail: float = 0.0
    timed: Times | None = None
    hotwords: tuple[str, ...] = ()
    ended: FinishReason = "stop"


@dataclass(frozen=True, eq=False)
class Prompt:
    """Clips and question, encoded and rendered; `spelled` is what the encoder's heads made of the clips, and `pieces`
    what the second of them can spell."""

    inputs: Inputs
    audio: AudioEmbeds
    spelled: Spelling | None = None
    pieces: tuple[str, ...] = ()


def listen(backend: Backend, processor: Processor, clips: Sequence[np.ndarray], question: str) -> Prompt:
    """Encode `clips[i] [n]` and render the question about them.

    Where the checkpoint has a letter head, its spelling is part of the question, as it was in training.
    """
    mels = [log_mel(samples, backend.config.audio.n_mels) for samples in clips]
    audio, spelled = backend.encode_audio(mels), None
    if audio.letter_logprobs is not None:
        best = None if audio.piece_ids is None else audio.piece_ids[:, 0]
        spelled = spelling(audio.letter_logprobs, backend.config.audio.letters, best, processor.pieces)
        question = SPELLED.format(question=question, letters=spelled.quoted)
    inputs = processor.encode([Message.of("user", *map(MelPart, mels), question)])
    return Prompt(inputs, audio, spelled, processor.pieces)


def hear(
    backend: Backend,
    processor: Processor,
    window: Window,
    *,
    voice: Voice | None = None,
    timed: Times | None = None,
    hotwords: tuple[str, ...] = (),
) -> Heard:
    """Encode a window, to be transcribed.

    Three gates keep a model from inventing words where nobody speaks: the level, `voice`, and the letter head. Without
    a letter head, times are asked of the model itself if `timed`, and `hotwords` stand in the prompt.
    """
    samples = window.samples
    quiet = not len(samples) or float(np.abs(samples).max()) < SILENCE_PEAK
    if quiet or (voice is not None and not is_spoken(samples, voice)):
        return Heard(window.start, window.duration, None, tail=window.tail)
    letters = backend.config.audio.letters
    if letters:
        timed = None
    elif timed is not None and (window.lead or window.tail):
        timed = "words"  # so that each can be left to the window that it belongs to
    question, _ = TIMED[timed]
    prompt = listen(backend, processor, [samples], question if letters else with_hotwords(question, hotwords))
    logprobs = prompt.audio.letter_logprobs
    silent = logprobs is not None and is_silent(logprobs, letters)
    heard = None if silent else prompt
    return Heard(window.start, window.duration, heard, window.lead, window.tail, timed, hotwords)


def write(
    backend: Backend, tokenizer: Tokenizer, heard: Heard, params: SamplingParams, cancelled: Callable[[], bool]
) -> Iterator[TokenEvent]:
    """Stream the text of a window. An answer that turns in a loop, or outgrows the recording, ends with `length`."""
    if heard.prompt is None:
        yield TokenEvent("", finish_reason=heard.ended, usage=Usage(audio_seconds=heard.duration))
        return
    inputs, audio = heard.prompt.inputs, heard.prompt.audio
    logprobs, letters = audio.letter_logprobs, backend.config.audio.letters
    spelled = heard.prompt.spelled
    draft = LetterDraft(spelled.best, letters, tokenizer) if spelled is not None else None
    _, longer = TIMED[heard.timed]
    seconds = heard.lead + heard.duration + heard.tail
    most = SPARE_TOKENS + int(TOKENS_PER_SECOND * longer * seconds)
    limit = params.max_new_tokens * (longer if heard.timed == "words" else 1)
    params = replace(params, max_new_tokens=min(limit, most))
    n_beams = max(params.n_beams, TRANSCRIPT_BEAMS) if heard.hotwords else params.n_beams
    if logprobs is not None and draft is not None and is_search(params):
        guide = Guide(audio, letters, heard.prompt.pieces, tokenizer)
        bias = HotwordBias(heard.hotwords, tokenizer)
        shared = (backend, tokenizer, inputs, audio, guide, draft)
        if n_beams > 1:
            yield from beam_search(*shared, n_beams, params.max_new_tokens, cancelled, bias)
        else:
            yield from guided_search(*shared, params.max_new_tokens, cancelled, bias)
        return
    ids: list[int] = []
    for event in generate(
        backend,
        tokenizer,
        inputs,
        params,
        audio=audio,
        draft=draft,
        cancelled=lambda: cancelled() or loop_length(ids) > 0,
    ):
        if event.token_id is not None:
            ids.append(event.token_id)
        if event.finish_reason == "cancelled" and loop_length(ids):
            event = replace(event, finish_reason="length")
        yield event


def is_search(params: SamplingParams) -> bool:
    """Whether `params` leave room for a beam search: it does not sample, penalise or look for stop strings."""
    return params.temperature == 0 and not params.stop and params.repetition_penalty == 1.0


def read(tokenizer: Tokenizer, events: Iterable[TokenEvent]) -> tuple[str, FinishReason, Usage]:
    """A window's events collected, without reasoning and without the repetitions of a loop that ended it."""
    events = list(events)
    text, reason, usage = collect(events)
    ids = written(tokenizer, events)
    excess = loop_length(ids)
    _, reply = split_reasoning(tokenizer.decode(ids[:-excess]) if excess else text)
    return reply, reason, usage


def written(tokenizer: Tokenizer, events: Iterable[TokenEvent]) -> list[int]:
    """The tokens of a text, without those that end it."""
    ids = (event.token_id for event in events)
    return [token for token in ids if token is not None and not tokenizer.is_special(token)]


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


def _own(words: Sequence[Word], heard: Heard) -> tuple[Word, ...]:
    """Those of `words` whose middle is in the window itself, with times from its start on."""
    shifted = [(word.text, word.start - heard.lead, word.end - heard.lead) for word in words]
    first, last = 0.0 if heard.lead else -math.inf, heard.duration if heard.tail else math.inf
    return tuple(Word(text, max(0.0, a), max(0.0, b)) for text, a, b in shifted if first <= (a + b) / 2 < last)


def locate(text: str, heard: Heard, letters: str) -> tuple[Segment, ...]:
    """Sentences of a window's `text` with absolute times: those of the letter head, or of the stamps in the text.

    Where there are neither, one segment over the window. What has its place in a neighbour is left to it.
    """
    found: Sequence[Word] = ()
    if text and heard.prompt is not None and heard.prompt.audio.letter_logprobs is not None:
        found = forced_alignment(heard.prompt.audio.letter_logprobs, text, letters)
    elif heard.timed == "words":
        pieces = parse_timestamped(text, heard.lead + heard.duration + heard.tail)
        found = [Word(piece.text, piece.start, piece.end) for piece in pieces]
    words = _own(found, heard)
    stamped: tuple[Segment, ...] = ()
    if found and not words:
        return ()
    if any(" " in word.text for word in found):  # the model stamped sentences after all
        stamped = tuple(Segment(word.start, word.end, word.text) for word in words)
        words = ()
    if words:
        placed = with_length([(word.start, word.end) for word in words], heard.duration, False, MIN_WORD_SECONDS)
        words = tuple(Word(word.text, *span) for word, span in zip(words, placed, strict=True))
    segments = group_words(words) or stamped or parse_timestamped(text, heard.duration)
    if not segments:
        return ()
    spans = with_length([(segment.start, segment.end) for segment in segments], heard.duration, overlaps=False)

    def absolute(time: float) -> float:
        return round(heard.start + time, 3)

    return tuple(
        replace(
            segment,
            start=absolute(start),
            end=absolute(end),
            words=tuple(Word(word.text, absolute(word.start), absolute(word.end)) for word in segment.words),
        )
        for segment, (start, end) in zip(segments, spans, strict=True)
    )
