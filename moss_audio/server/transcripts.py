"""`/v1/audio/transcriptions` and `/v1/audio/translations`: OpenAI's routes and their five forms of a transcript."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from moss_audio.audio import SAMPLE_RATE
from moss_audio.inference.engine import Transcript
from moss_audio.inference.generate import FinishReason, Usage
from moss_audio.inference.longform import windows
from moss_audio.inference.sampling import SamplingParams
from moss_audio.prompts import TRANSCRIPT_BEAMS
from moss_audio.server.chat import finish
from moss_audio.server.refusals import Refusal
from moss_audio.server.schemas import (
    DurationUsage,
    Granularity,
    InputDetails,
    TokenUsage,
    TranscriptDelta,
    TranscriptDone,
    TranscriptFormat,
    Transcription,
    TranscriptProgress,
    TranscriptSegment,
    TranscriptSegmentDone,
    TranscriptWord,
    VerboseTranscription,
)
from moss_audio.server.service import Service, owner_of, service_of, until_gone
from moss_audio.server.streaming import DONE, EventStream, sse
from moss_audio.server.turns import Cancelled, Job
from moss_audio.transcript import WRITERS, Segment

if TYPE_CHECKING:
    from moss_audio.inference.engine import MossAudio

router = APIRouter()

ENGLISH = ("en", "english")


@dataclass(frozen=True)
class Part:
    """A window of a transcript, its times those of the recording; `seconds` have been read with it."""

    transcript: Transcript
    seconds: float


@dataclass(frozen=True)
class Wanted:
    """A transcription request, checked."""

    format: TranscriptFormat
    words: bool
    segments: bool
    language: str
    params: SamplingParams


@router.post(
    "/v1/audio/transcriptions",
    response_model=Transcription | VerboseTranscription,
    responses={200: {"content": {"text/plain": {}, "text/event-stream": {}}, "description": "as response_format says"}},
    summary="Write down what is said",
)
async def transcriptions(
    request: Request,
    file: Annotated[UploadFile, File(description="audio or video of any format that FFmpeg reads")],
    model: Annotated[str | None, Form(max_length=256)] = None,
    language: Annotated[str | None, Form(max_length=32, description="of the speech, such as en")] = None,
    prompt: Annotated[str | None, Form(max_length=2000, description="not used by this model")] = None,
    response_format: Annotated[TranscriptFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=5, allow_inf_nan=False)] = 0.0,
    granularities: Annotated[list[Granularity], Form(alias="timestamp_granularities[]", max_length=2)] = ["segment"],  # noqa: B006
    stream: Annotated[bool, Form()] = False,
) -> Response:
    service, owner = service_of(request), owner_of(request)
    service.check_model(model)
    spoken = check_language(service, language)
    params = SamplingParams(temperature=temperature, n_beams=TRANSCRIPT_BEAMS)
    wanted = Wanted(response_format, "word" in granularities, "segment" in granularities, spoken, params)
    data = await file.read()
    if not stream:
        transcript = await until_gone(request, transcribe(service, owner, data, params))
        return _rendered(transcript, wanted)
    samples = await until_gone(request, service.decoders.decode(owner, data))
    job = service.submit(owner, lambda cancelled: parts(service.model, samples, params, cancelled))
    return EventStream(_events(service, job, len(samples) / SAMPLE_RATE), job)


@router.post("/v1/audio/translations", response_model=Transcription, summary="Not supported by the models served here")
async def translations(request: Request, file: Annotated[UploadFile, File()]) -> Response:
    message = f"{service_of(request).name} does not translate speech; use /v1/audio/transcriptions"
    raise Refusal(400, "translation_unsupported", message)


async def transcribe(service: Service, owner: str, data: bytes, params: SamplingParams) -> Transcript:
    """The whole transcript of a file."""
    samples = await service.decoders.decode(owner, data)
    job = service.submit(owner, lambda cancelled: parts(service.model, samples, params, cancelled))
    began = time.monotonic()
    try:
        whole = joined([part async for part in job], len(samples) / SAMPLE_RATE)
    finally:
        job.cancel()
    service.count(whole.usage, time.monotonic() - began)
    return whole


def parts(model: MossAudio, samples: np.ndarray, params: SamplingParams, cancelled: Cancelled) -> Iterator[Part]:
    """The transcript window by window, as each is written."""
    for start, window in windows(samples):
        found = model.transcribe(window, params=params, cancelled=cancelled)
        segments = tuple(_shifted(segment, start) for segment in found.segments)
        yield Part(replace(found, segments=segments), start + len(window) / SAMPLE_RATE)
        if cancelled():
            return


def joined(found: Sequence[Part], duration: float) -> Transcript:
    """The whole of its windows."""
    order: tuple[FinishReason, ...] = ("cancelled", "length", "stop")
    reasons = {part.transcript.finish_reason for part in found} or {"cancelled"}
    return Transcript(
        text=" ".join(filter(None, (part.transcript.text for part in found))),
        segments=tuple(segment for part in found for segment in part.transcript.segments),
        language=next((part.transcript.language for part in found if part.transcript.language), None),
        duration=round(duration, 3),
        finish_reason=next(reason for reason in order if reason in reasons),
        usage=sum((part.transcript.usage for part in found), Usage()),
    )


def check_language(service: Service, language: str | None) -> str:
    """The language to report. A letter head spells English alone, so any other is refused there."""
    only_english = bool(service.model.backend.config.audio.letters)
    if language is not None and only_english and language.lower().split("-")[0] not in ENGLISH:
        message = f"language is {language!r}; {service.name} writes down English: en"
        raise Refusal(400, "unsupported_language", message, param="language")
    return "english" if only_english else language or "unknown"


def token_usage(usage: Usage) -> TokenUsage:
    """The cost of a transcript as OpenAI reports it."""
    return TokenUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputDetails(
            audio_tokens=usage.audio_tokens, text_tokens=usage.prompt_tokens - usage.audio_tokens
        ),
    )


def verbose(transcript: Transcript, language: str, *, words: bool, segments: bool) -> VerboseTranscription:
    """The transcript with its times."""
    return VerboseTranscription(
        language=language,
        duration=transcript.duration,
        text=transcript.text,
        segments=[
            TranscriptSegment(id=index, start=segment.start, end=segment.end, text=segment.text)
            for index, segment in enumerate(transcript.segments)
        ] if segments else None,
        words=[word for segment in transcript.segments for word in _words(segment)] if words else None,
        finish_reason=finish(transcript.finish_reason),
        usage=DurationUsage(seconds=transcript.duration),
    )  # fmt: skip


def _rendered(transcript: Transcript, wanted: Wanted) -> Response:
    finish(transcript.finish_reason)
    match wanted.format:
        case "text":
            return PlainTextResponse(f"{transcript.text}\n")
        case "srt" | "vtt":
            kind = "application/x-subrip" if wanted.format == "srt" else "text/vtt"
            return PlainTextResponse(WRITERS[wanted.format](transcript.segments), media_type=kind)
        case "verbose_json":
            whole: BaseModel = verbose(transcript, wanted.language, words=wanted.words, segments=wanted.segments)
        case "json":
            whole = Transcription(text=transcript.text, usage=token_usage(transcript.usage))
    return JSONResponse(whole.model_dump(exclude_none=True))


async def _events(service: Service, job: Job[Part], duration: float) -> AsyncIterator[bytes]:
    found, n_segments, began = list[Part](), 0, time.monotonic()
    async for part in job:
        text = part.transcript.text
        if text:
            gap = " " if any(earlier.transcript.text for earlier in found) else ""
            yield sse(TranscriptDelta(delta=gap + text))
        for segment in part.transcript.segments:
            n_segments += 1
            yield sse(
                TranscriptSegmentDone(
                    id=f"seg_{n_segments}", start=segment.start, end=segment.end, text=segment.text,
                    words=_words(segment),
                )
            )  # fmt: skip
        yield sse(TranscriptProgress(seconds=round(part.seconds, 3), duration=round(duration, 3)))
        found.append(part)
    whole = joined(found, duration)
    finish(whole.finish_reason)
    service.count(whole.usage, time.monotonic() - began)
    yield sse(TranscriptDone(text=whole.text, usage=token_usage(whole.usage)))
    yield DONE


def _words(segment: Segment) -> list[TranscriptWord]:
    return [TranscriptWord(word=word.text, start=word.start, end=word.end) for word in segment.words]


def _shifted(segment: Segment, start: float) -> Segment:
    """A segment of a window in the times of the whole."""
    words = tuple(
        replace(word, start=round(word.start + start, 3), end=round(word.end + start, 3)) for word in segment.words
    )
    return replace(segment, start=round(segment.start + start, 3), end=round(segment.end + start, 3), words=words)
