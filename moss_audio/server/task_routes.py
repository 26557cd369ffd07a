"""`/v1/audio/events` and a route for every other typed task: a recording and the task's options in, its result out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import ConfigDict, Field, RootModel
from starlette.datastructures import FormData, UploadFile

from moss_audio.audio import SAMPLE_RATE
from moss_audio.server.chat import finish
from moss_audio.server.intake import from_base64
from moss_audio.server.refusals import Refusal
from moss_audio.server.schemas import Body
from moss_audio.server.service import Service, owner_of, service_of, until_gone
from moss_audio.server.turns import Cancelled
from moss_audio.tasks import TASKS, Task
from moss_audio.tasks.options import read_options
from moss_audio.tasks.result import Result

router = APIRouter()

FORMATS = ("json", "text", "table")

MAX_ENTRIES = 32
"""Of an option that is a list or an object: each may be a question of its own."""

_OWN = {"file", "model", "response_format"}
"""Fields of the request itself; all others are options of the task."""


class TaskLine(Body):
    """A task as a line of a batch: the file in base64 or as a data: URL, and the task's options beside it."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    file: str
    model: str | None = Field(None, max_length=256)


class TaskReply(RootModel[dict[str, Any]]):
    """A result's own fields, then `duration`, `finish_reason` and `usage`."""


async def answer(service: Service, owner: str, task: Task[Any], data: bytes, options: Mapping[str, Any]) -> Result:
    """The result of one task; what is wrong with its options is said before the recording is decoded."""
    _check_size(service, options)
    read_options(task.options, options)
    samples = await service.decoders.decode(owner, data)
    seconds, most = len(samples) / SAMPLE_RATE, service.settings.max_task_seconds
    if seconds > most:
        raise Refusal(413, "audio_too_large", f"the recording has {seconds:.0f} s; valid for tasks: up to {most:g} s")

    def work(cancelled: Cancelled) -> Iterator[Result]:
        yield task(service.model, samples, cancelled=cancelled, **options)

    job = service.submit(owner, work)
    try:
        result = await anext(job)
    finally:
        job.cancel()
    finish(result.cost.finish_reason)
    service.count(result.cost.usage, job.seconds)
    return result


async def line(service: Service, owner: str, task: Task[Any], body: TaskLine) -> dict[str, Any]:
    """The answer to one line of a batch."""
    service.check_model(body.model)
    options = body.model_extra or {}
    data = from_base64(service.settings, body.file, "file")
    return (await answer(service, owner, task, data, options)).to_dict()


def read_form(task: Task[Any], form: FormData) -> dict[str, Any]:
    """The options in a form, each as its schema says. Raises `Refusal` for one that cannot be read."""
    properties = task.schema()["properties"]
    options: dict[str, Any] = {}
    for name in dict.fromkeys(form.keys()):
        if name in _OWN:
            continue
        texts = [text for text in form.getlist(name) if isinstance(text, str)]
        kinds = properties.get(name.removesuffix("[]"), {}).get("type", "string")
        options[name.removesuffix("[]")] = _parsed(name, texts, [kinds] if isinstance(kinds, str) else kinds)
    return options


def _parsed(name: str, texts: list[str], kinds: list[str]) -> Any:
    if "array" in kinds:
        return texts
    text = texts[-1] if texts else ""
    try:
        if "object" in kinds:
            return json.loads(text)
        if "integer" in kinds or "number" in kinds:
            return int(text) if "integer" in kinds else float(text)
    except (ValueError, RecursionError):
        message = f"{name} is {text[:80]!r}; valid: {' or '.join(kinds)}"
        raise Refusal(400, "invalid_value", message, param=name) from None
    return text


def _check_size(service: Service, options: Mapping[str, Any]) -> None:
    """Everything in the options that multiplies work or fills the context."""
    most = service.settings.max_text_chars
    for name, value in options.items():
        if isinstance(value, list | dict) and len(value) > MAX_ENTRIES:
            message = f"{name} has {len(value)} entries; valid: up to {MAX_ENTRIES}"
            raise Refusal(400, "limit_exceeded", message, param=name)
        if len(str(value)) > most:
            raise Refusal(400, "limit_exceeded", f"{name} is longer than {most} characters", param=name)


def _document(task: Task[Any]) -> dict[str, Any]:
    """The request's body for the OpenAPI document."""
    schema = dict(task.schema())
    own = {
        "file": {"type": "string", "format": "binary", "description": "audio or video"},
        "model": {"type": "string"},
        "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
    }
    body = schema | {"properties": own | schema["properties"], "required": ["file", *schema["required"]]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}


def _add(task: Task[Any]) -> None:
    @router.post(
        f"/v1/audio/{task.name}", summary=task.summary, name=task.name, openapi_extra=_document(task),
        responses={200: {"model": TaskReply, "content": {"text/plain": {}}}},
    )  # fmt: skip
    async def route(request: Request) -> Response:
        service = service_of(request)
        async with request.form(max_files=1, max_fields=64, max_part_size=service.settings.max_text_chars) as form:
            file, form_format = form.get("file"), form.get("response_format", "json")
            if not isinstance(file, UploadFile):
                raise Refusal(400, "invalid_value", "file: a recording is needed, as multipart/form-data", param="file")
            if form_format not in FORMATS:
                message = f"response_format is {str(form_format)[:80]!r}; valid: {', '.join(FORMATS)}"
                raise Refusal(400, "invalid_value", message, param="response_format")
            model = form.get("model")
            service.check_model(model if isinstance(model, str) else None)
            options, data = read_form(task, form), await file.read()
        result = await until_gone(request, answer(service, owner_of(request), task, data, options))
        if form_format == "json":
            return JSONResponse(result.to_dict())
        return PlainTextResponse((result.to_text() if form_format == "text" else result.to_table()) + "\n")


for _task in TASKS.values():
    _add(_task)
