"""`/v1/audio/transcriptions` and `/v1/audio/translations`: OpenAI's routes and their five forms of a transcript."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import Field

from moss_audio.audio import SAMPLE_RATE
from moss_audio.inference.engine import Transcript
from moss_audio.inference.generate import Usage
from moss_audio.inference.passages import Passage
from moss_audio.inference.sampling import SamplingParams
from moss_audio.prompts import TRANSCRIPT_BEAMS
from moss_audio.server.chat import finish
from moss_audio.server.intake import from_base64
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
from moss_audio.server.schemas import Request as Schema
from moss_audio.server.service import Service, owner_of, service_of, until_gone
from moss_audio.server.streaming import DONE, EventStream, sse
from moss_audio.server.turns import Job
from moss_audio.transcript import WRITERS, Segment

router = APIRouter()

OTHER_TYPES = ("text/plain", "text/event-stream", "text/vtt", "application/x-subrip")

ENGLISH = ("en", "english")


@dataclass(frozen=True)
class Wanted:
    """A transcription request, checked."""

    format: TranscriptFormat
    words: bool
    segments: bool
    language: str
    params: SamplingParams
    hotwords: tuple[str, ...] = ()


@router.post(
    "/v1/audio/transcriptions",
    response_model=Transcription | VerboseTranscription,
    responses={200: {"content": {kind: {} for kind in OTHER_TYPES}, "description": "as response_format says"}},
    summary="Write down what is said",
)
async def transcriptions(
    request: Request,
    file: Annotated[UploadFile, File(description="audio or video of any format that FFmpeg reads")],
    model: Annotated[str | None, Form(max_length=256)] = None,
    language: Annotated[str | None, Form(max_length=32, description="of the speech, such as en")] = None,
    prompt: Annotated[str | None, Form(max_length=2000, description="names and terms that may occur, A, B, C")] = None,
    response_format: Annotated[TranscriptFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=5, allow_inf_nan=False)] = 0.0,
    granularities: Annotated[list[Granularity], Form(alias="timestamp_granularities[]", max_length=2)] = ["segment"],  # noqa: B006
    stream: Annotated[bool, Form()] = False,
) -> Response:
    service, owner = service_of(request), owner_of(request)
    service.check_model(model)
    spoken = check_language(service, language)
    params = SamplingParams(temperature=temperature, n_beams=TRANSCRIPT_BEAMS)
    words, segments = "word" in granularities, "segment" in granularities
    wanted = Wanted(response_format, words, segments, spoken, params, hotwords(prompt))
    data = await file.read()
    if not stream:
        return _rendered(await until_gone(request, transcribe(service, owner, data, wanted)), wanted)
    samples = await until_gone(request, service.decoders.decode(owner, data))
    job = _submit(service, owner, samples, wanted)
    return EventStream(_events(service, job, len(samples) / SAMPLE_RATE), job)


class TranscriptionLine(Schema):
    """A transcription as a line of a batch: the file in base64 or as a data: URL, since JSON holds no bytes."""

    model: str | None = Field(None, max_length=256)
    file: str
    language: str | None = Field(None, max_length=32)
    prompt: str | None = Field(None, max_length=2000)
    response_format: Literal["json", "verbose_json"] = "json"
    temperature: float = Field(0.0, ge=0, le=5)
    timestamp_granularities: list[Granularity] = Field(["segment"], max_length=2)


async def complete(service: Service, owner: str, line: TranscriptionLine) -> dict[str, Any]:
    """The answer to one line of a batch."""
    service.check_model(line.model)
    language = check_language(service, line.language)
    data = from_base64(service.settings, line.file, "file")
    params = SamplingParams(temperature=line.temperature, n_beams=TRANSCRIPT_BEAMS)
    words, segments = "word" in line.timestamp_granularities, "segment" in line.timestamp_granularities
    wanted = Wanted(line.response_format, words, segments, language, params, hotwords(line.prompt))
    return _document(await transcribe(service, owner, data, wanted), wanted)


@router.post("/v1/audio/translations", response_model=Transcription, summary="Not supported by the models served here")
async def translations(request: Request, file: Annotated[UploadFile, File()]) -> Response:
    message = f"{service_of(request).name} does not translate speech; use /v1/audio/transcriptions"
    raise Refusal(400, "translation_unsupported", message)


async def transcribe(service: Service, owner: str, data: bytes, wanted: Wanted) -> Transcript:
    """The whole transcript of a file."""
    samples = await service.decoders.decode(owner, data)
    job = _submit(service, owner, samples, wanted)
    try:
        whole = Transcript.of([passage async for passage in job])
    finally:
        job.cancel()
    service.count(whole.usage, job.seconds)
    return whole


def _submit(service: Service, owner: str, samples: np.ndarray, wanted: Wanted) -> Job[Passage]:
    def work(cancelled: Callable[[], bool]) -> Iterator[Passage]:
        return service.model.passages(
            samples, params=wanted.params, hotwords=wanted.hotwords, cancelled=cancelled, words=wanted.words
        )

    return service.submit(owner, work)


def hotwords(prompt: str | None) -> tuple[str, ...]:
    """OpenAI's `prompt` as what it is mostly used for: names and terms that may occur, parted by commas or lines."""
    return tuple(filter(None, (" ".join(term.split()) for term in re.split(r"[,;\n]", prompt or ""))))


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
            TranscriptSegment(
                id=index, start=segment.start, end=segment.end, text=segment.text,
                avg_logprob=round(math.log(max(segment.confidence, 1e-6)), 4) if segment.confidence else 0.0,
            )
            for index, segment in enumerate(transcript.segments)
        ] if segments else None,
        words=[word for segment in transcript.segments for word in _words(segment)] if words else None,
        finish_reason=finish(transcript.finish_reason),
        usage=DurationUsage(seconds=transcript.duration),
    )  # fmt: skip


def _rendered(transcript: Transcript, wanted: Wanted) -> Response:
    ended = {"X-Finish-Reason": finish(transcript.finish_reason)}  # in JSON it has a field
    match wanted.format:
        case "text":
            return PlainTextResponse(f"{transcript.text}\n", headers=ended)
        case "srt" | "vtt":
            kind = "application/x-subrip; charset=utf-8" if wanted.format == "srt" else "text/vtt"
            return PlainTextResponse(WRITERS[wanted.format](transcript.segments), media_type=kind, headers=ended)
        case _:
            return JSONResponse(_document(transcript, wanted))


def _document(transcript: Transcript, wanted: Wanted) -> dict[str, Any]:
    if wanted.format == "verbose_json":
        times = verbose(transcript, wanted.language, words=wanted.words, segments=wanted.segments)
        return times.model_dump(exclude_none=True)
    reason = finish(transcript.finish_reason)
    return Transcription(text=transcript.text, usage=token_usage(transcript.usage), finish_reason=reason).model_dump()


async def _events(service: Service, job: Job[Passage], duration: float) -> AsyncIterator[bytes]:
    found, n_segments, gap = list[Passage](), 0, ""
    async for passage in job:
        if passage.text:
            yield sse(TranscriptDelta(delta=gap + passage.text))
            gap = " "
        for segment in passage.segments:
            n_segments += 1
            yield sse(_segment(f"seg_{n_segments}", segment))
        yield sse(TranscriptProgress(seconds=round(passage.end, 3), duration=round(duration, 3)))
        found.append(passage)
    whole = Transcript.of(found)
    reason = finish(whole.finish_reason)
    service.count(whole.usage, job.seconds)
    yield sse(TranscriptDone(text=whole.text, usage=token_usage(whole.usage), finish_reason=reason))
    yield DONE


def _segment(name: str, segment: Segment) -> TranscriptSegmentDone:
    return TranscriptSegmentDone(
        id=name, start=segment.start, end=segment.end, text=segment.text, words=_words(segment)
    )


def _words(segment: Segment) -> list[TranscriptWord]:
    return [TranscriptWord(word=word.text, start=word.start, end=word.end) for word in segment.words]
