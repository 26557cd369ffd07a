"""`/v1/chat/completions`: OpenAI's route, with recordings in the messages."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from moss_audio.inference.engine import split_reasoning
from moss_audio.inference.generate import FinishReason, TokenEvent, Usage
from moss_audio.server.conversation import answers
from moss_audio.server.intake import question
from moss_audio.server.refusals import busy
from moss_audio.server.schemas import (
    AssistantMessage,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChatUsage,
    Choice,
    ChunkChoice,
    Delta,
    Finish,
    PromptDetails,
)
from moss_audio.server.service import Service, owner_of, service_of, until_gone
from moss_audio.server.streaming import DONE, EventStream, sse
from moss_audio.server.turns import Job

router = APIRouter()

Events = Job[tuple[int, TokenEvent]]


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {}}, "description": "an answer, streamed where asked for"}},
    summary="Ask about recordings, in a conversation",
)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    service, owner = service_of(request), owner_of(request)
    if not body.stream:
        return JSONResponse(await until_gone(request, complete(service, owner, body)))
    job, first = await until_gone(request, _begin(service, owner, body))
    return EventStream(_chunks(service, body, job, first), job)


async def complete(service: Service, owner: str, body: ChatRequest) -> dict[str, Any]:
    """The whole answer, a `ChatCompletion`."""
    asked = await question(service, owner, body)
    job = service.submit(owner, lambda cancelled: answers(service.model, asked, cancelled))
    texts, ends, usage = [""] * asked.n, [_CANCELLED] * asked.n, Usage()
    try:
        async for index, event in job:
            texts[index] += event.text
            if event.finish_reason is not None:
                ends[index] = event.finish_reason
                usage = _sum(usage, event.usage)
    finally:
        job.cancel()
    service.count(usage, job.seconds)
    choices = [_choice(index, text, end) for index, (text, end) in enumerate(zip(texts, ends, strict=True))]
    whole = ChatCompletion(
        id=new_id("chatcmpl"), created=int(time.time()), model=service.name, choices=choices, usage=chat_usage(usage)
    )
    return _whole(whole)


def chat_usage(usage: Usage) -> ChatUsage:
    """The cost of an answer as OpenAI reports it."""
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(audio_tokens=usage.audio_tokens),
        audio_seconds=round(usage.audio_seconds, 3),
    )


def finish(reason: FinishReason) -> Finish:
    """How an answer ended. One that the server had to cancel, since it stops, is not passed off as whole."""
    if reason == "cancelled":
        raise busy("stopping", "the server stopped before the answer was whole; try again soon")
    return reason


def new_id(kind: str) -> str:
    """A name that nobody can guess."""
    return f"{kind}-{secrets.token_hex(12)}"


_CANCELLED: FinishReason = "cancelled"


def _sum(usage: Usage, more: Usage | None) -> Usage:
    """Several answers to one prompt: the prompt counts once."""
    if more is None or not usage.prompt_tokens:
        return more or usage
    return usage + Usage(completion_tokens=more.completion_tokens)


def _choice(index: int, text: str, reason: FinishReason) -> Choice:
    reasoning, reply = split_reasoning(text)
    message = AssistantMessage(content=reply, reasoning_content=reasoning)
    return Choice(index=index, message=message, finish_reason=finish(reason))


async def _begin(service: Service, owner: str, body: ChatRequest) -> tuple[Events, tuple[int, TokenEvent] | None]:
    """The job and its first event: what is refused until then still has a status of its own."""
    asked = await question(service, owner, body)
    job = service.submit(owner, lambda cancelled: answers(service.model, asked, cancelled))
    try:
        return job, await anext(job, None)
    except BaseException:
        job.cancel()
        raise


async def _chunks(
    service: Service, body: ChatRequest, job: Events, first: tuple[int, TokenEvent] | None
) -> AsyncIterator[bytes]:
    name, created, usage = new_id("chatcmpl"), int(time.time()), Usage()

    def chunk(choices: list[ChunkChoice], total: ChatUsage | None = None) -> bytes:
        value = ChatChunk(id=name, created=created, model=service.name, choices=choices, usage=total)
        return sse(_wire(value))

    streams = [Reasoning() for _ in range(body.n or 1)]
    for index in range(len(streams)):
        yield chunk([ChunkChoice(index=index, delta=Delta(role="assistant", content=""))])
    async for index, event in _chain(first, job):
        for delta in streams[index].push(event.text, last=event.finish_reason is not None):
            yield chunk([ChunkChoice(index=index, delta=delta)])
        if event.finish_reason is not None:
            usage = _sum(usage, event.usage)
            yield chunk([ChunkChoice(index=index, delta=Delta(), finish_reason=finish(event.finish_reason))])
    service.count(usage, job.seconds)
    if body.stream_options is not None and body.stream_options.include_usage:
        yield chunk([], chat_usage(usage))
    yield DONE


def _whole(answer: ChatCompletion) -> dict[str, Any]:
    """As OpenAI sends it: `refusal` and `logprobs` are always there; reasoning only where there was some."""
    value = answer.model_dump()
    for choice in value["choices"]:
        if choice["message"]["reasoning_content"] is None:
            del choice["message"]["reasoning_content"]
    return value


def _wire(chunk: ChatChunk) -> dict[str, Any]:
    """As OpenAI sends it: a delta has only what is new; `finish_reason` and `logprobs` are always there."""
    value = chunk.model_dump(exclude={"choices"} if chunk.choices else None)
    if chunk.usage is None:
        del value["usage"]
    if chunk.choices:
        value["choices"] = [
            choice.model_dump(exclude={"delta"}) | {"delta": choice.delta.model_dump(exclude_none=True)}
            for choice in chunk.choices
        ]
    return value


async def _chain(first: Any, job: Events) -> AsyncIterator[tuple[int, TokenEvent]]:
    if first is not None:
        yield first
    async for event in job:
        yield event


class Reasoning:
    """Parts a stream into reasoning and answer, as `split_reasoning` does with a whole text."""

    _OPEN, _CLOSE = "<think>", "</think>"

    def __init__(self) -> None:
        self._held, self._state = "", "start"

    def push(self, text: str, last: bool = False) -> list[Delta]:
        """What of `text` can be told apart by now; with `last` all that is left."""
        self._held += text
        deltas: list[Delta] = []
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(self._OPEN):
                self._held, self._state = begun.removeprefix(self._OPEN).lstrip(), "thinking"
            elif last or not self._OPEN.startswith(begun):
                self._held, self._state = begun, "answer"
        if self._state == "thinking":
            thought, closed, rest = self._held.partition(self._CLOSE)
            keep = 0 if closed or last else _begun(thought, self._CLOSE)
            deltas += [Delta(reasoning_content=thought[: len(thought) - keep])] if len(thought) > keep else []
            self._held = rest.lstrip() if closed else thought[len(thought) - keep :]
            self._state = "gap" if closed else "thinking"
        if self._state == "gap":
            self._held = self._held.lstrip()
            self._state = "answer" if self._held else "gap"
        if self._state == "answer" and self._held:
            deltas.append(Delta(content=self._held))
            self._held = ""
        return deltas


def _begun(text: str, mark: str) -> int:
    """Characters at the end of `text` that begin `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
