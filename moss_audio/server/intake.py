"""From what a client sent to what the model is asked: limits first, then base64, then recordings to samples."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moss_audio.inference.grammar import State
from moss_audio.inference.grammar_schema import from_schema
from moss_audio.inference.sampling import SamplingParams
from moss_audio.messages import AudioPart, Message, Part, TextPart
from moss_audio.server.conversation import Question
from moss_audio.server.refusals import Refusal
from moss_audio.server.schemas import (
    AudioUrlContent,
    ChatMessage,
    ChatRequest,
    InputAudioContent,
    ResponseFormat,
    TextContent,
)
from moss_audio.server.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from moss_audio.server.service import Service

MAX_STOPS, MAX_STOP_CHARS = 4, 200

_DATA_URL = re.compile(r"data:[\w.+-]{0,64}/?[\w.+-]{0,64}(;[\w.+-]{1,32}=[\w.+,\" -]{0,64})*;base64,", re.IGNORECASE)


async def question(service: Service, owner: str, request: ChatRequest) -> Question:
    """What a chat request asks. Raises `Refusal` and the package's errors."""
    settings = service.settings
    service.check_model(request.model)
    _check_counts(settings, request)
    params, form = sampling(settings, request), _form(request.response_format)
    messages = [await _message(service, owner, message) for message in request.messages]
    return Question(tuple(messages), params, request.n or 1, form)


def sampling(settings: Settings, request: ChatRequest) -> SamplingParams:
    """How to choose words; a number of tokens over the server's limit is a `Refusal`."""
    n_tokens = request.max_completion_tokens or request.max_tokens or settings.default_tokens
    _at_most("max_completion_tokens", n_tokens, settings.max_tokens)
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    _at_most("stop", len(stops), MAX_STOPS)
    for stop in stops:
        _at_most("stop", len(stop), MAX_STOP_CHARS, " characters")
    return SamplingParams(
        temperature=request.temperature or 0.0,
        top_k=request.top_k or 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        seed=request.seed,
        max_new_tokens=n_tokens,
        stop=tuple(stops),
    )


def from_base64(settings: Settings, text: str, param: str) -> bytes:
    """The bytes of a file in base64 or a data: URL; its length is checked before it is decoded."""
    if text[:5].lower() == "data:":
        match = _DATA_URL.match(text[:512])
        if match is None:
            raise Refusal(400, "invalid_data_url", f"{param} is no data:...;base64, URL", param=param)
        text = text[match.end() :]
    if len(text) > 4 * settings.max_body_bytes // 3 + 4:
        raise Refusal(413, "request_too_large", f"{param} has over {settings.max_body_bytes} bytes", param=param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "invalid_base64", f"{param} is not base64", param=param) from None


def _check_counts(settings: Settings, request: ChatRequest) -> None:
    """Everything that multiplies work, before any of it."""
    _at_most("messages", len(request.messages), settings.max_messages)
    _at_most("n", request.n or 1, settings.max_choices)
    contents = [content for message in request.messages for content in _contents(message)]
    texts = [content.text for content in contents if isinstance(content, TextContent)]
    _at_most("messages", sum(map(len, texts)), settings.max_text_chars, " characters")
    _at_most("messages", len(contents) - len(texts), settings.max_clips, " recordings")
    _at_most("messages", len(texts), 4 * settings.max_messages, " texts")
    for message in request.messages:
        if message.role != "user" and any(not isinstance(content, TextContent) for content in _contents(message)):
            raise Refusal(400, "invalid_prompt", f"a {message.role} message has a recording; valid: user messages")


def _contents(message: ChatMessage) -> Sequence[TextContent | InputAudioContent | AudioUrlContent]:
    if isinstance(message.content, str):
        return [TextContent(type="text", text=message.content)]
    return message.content


async def _message(service: Service, owner: str, message: ChatMessage) -> Message:
    parts: list[Part] = []
    for content in _contents(message):
        if isinstance(content, TextContent):
            parts.append(TextPart(content.text))
        else:
            parts.append(AudioPart(await _samples(service, owner, content)))
    return Message("system" if message.role == "developer" else message.role, tuple(parts))


async def _samples(service: Service, owner: str, content: InputAudioContent | AudioUrlContent) -> np.ndarray:
    if isinstance(content, InputAudioContent):
        data = from_base64(service.settings, content.input_audio.data, "input_audio.data")
    elif content.audio_url.url[:5].lower() == "data:":
        data = from_base64(service.settings, content.audio_url.url, "audio_url.url")
    else:
        data = await service.fetch(content.audio_url.url)
    return await service.decoders.decode(owner, data)


def _form(wanted: ResponseFormat | None) -> State | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None:
        message = "response_format json_object is not supported; use json_schema, which is enforced"
        raise Refusal(400, "unsupported_response_format", message, param="response_format")
    return from_schema(wanted.json_schema.schema_)


def _at_most(name: str, value: int, most: int, unit: str = "") -> None:
    if value > most:
        raise Refusal(400, "limit_exceeded", f"{name} is {value}{unit}; valid: up to {most}{unit}", param=name)
