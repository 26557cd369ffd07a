"""`/v1/files` and `/v1/batches`: many requests in one file, answered when the model has time; OpenAI's shapes.

Every line goes the way of a single request. One is answered at a time, in the owner's turn, so that people who wait
for an answer go on getting theirs.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field, ValidationError

from moss_audio.server import chat, task_routes, transcripts
from moss_audio.server.chat import new_id
from moss_audio.server.observing import LOG
from moss_audio.server.refusals import Refusal, refusal
from moss_audio.server.schemas import Body, ChatRequest, Reply
from moss_audio.server.schemas import Request as Schema
from moss_audio.server.service import Service, owner_of, service_of
from moss_audio.server.store import Batch, Line, Store, StoredFile
from moss_audio.tasks import TASKS, Task

router = APIRouter()

OUTPUT, ERRORS = "output-", "errors-"
"""Results are read as files of these names, each followed by the batch's."""

MAX_ATTEMPTS = 3
"""Of a line during which the server died; it gets an error then, so that it cannot do so forever."""

POLL_SECONDS, EXPIRE_SECONDS = 1.0, 3600.0

Answer = Callable[[Service, str, Any], Awaitable[dict[str, Any]]]


def _task_line(task: Task[Any]) -> Answer:
    return lambda service, owner, body: task_routes.line(service, owner, task, body)


ENDPOINTS: Mapping[str, tuple[type[BaseModel], Answer]] = {
    "/v1/chat/completions": (ChatRequest, chat.complete),
    "/v1/audio/transcriptions": (transcripts.TranscriptionLine, transcripts.complete),
    **{f"/v1/audio/{task.name}": (task_routes.TaskLine, _task_line(task)) for task in TASKS.values()},
}
"""What a line may ask, with the schema of its body."""


class FileReply(Reply):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch"] = "batch"
    status: Literal["processed"] = "processed"


class FileList(Reply):
    object: Literal["list"] = "list"
    data: list[FileReply]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class Deleted(Reply):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Counts(Reply):
    total: int
    completed: int
    failed: int


class BatchReply(Reply):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str = "24h"
    status: Literal["in_progress", "completed", "cancelled", "expired"]
    created_at: int
    in_progress_at: int | None
    completed_at: int | None
    cancelled_at: int | None
    expires_at: int
    expired_at: int | None
    output_file_id: str | None
    error_file_id: str | None
    request_counts: Counts
    metadata: dict[str, str]


class BatchList(Reply):
    object: Literal["list"] = "list"
    data: list[BatchReply]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class BatchRequest(Body):
    input_file_id: str = Field(max_length=100)
    endpoint: str = Field(max_length=100)
    completion_window: str = Field("24h", max_length=16, description="ignored: see expires_at")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )


class BatchLine(Schema):
    custom_id: str = Field(min_length=1, max_length=200)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@router.post("/v1/files", summary="Upload the requests of a batch")
async def upload(
    request: Request, file: Annotated[UploadFile, File()], purpose: Annotated[Literal["batch"], Form()]
) -> FileReply:
    settings, content = service_of(request).settings, await file.read()
    if len(content) > settings.max_batch_bytes:
        raise Refusal(413, "file_too_large", f"the file has {len(content)} bytes; valid: {settings.max_batch_bytes}")
    name = (file.filename or "batch.jsonl").encode("utf-8", "replace").decode()[:200]
    return _file(await asyncio.to_thread(_store(request).add_file, new_id("file"), owner_of(request), name, content))


@router.get("/v1/files", summary="Your files")
async def files(request: Request) -> FileList:
    found = [_file(file) for file in _store(request).files(owner_of(request))]
    return FileList(data=found, first_id=found[0].id if found else None, last_id=found[-1].id if found else None)


@router.get("/v1/files/{file_id}", summary="One file")
async def one_file(request: Request, file_id: str) -> FileReply:
    return _file(_store(request).file(file_id, owner_of(request)))


@router.delete("/v1/files/{file_id}", summary="Delete a file; batches made of it go on")
async def delete_file(request: Request, file_id: str) -> Deleted:
    _store(request).delete_file(file_id, owner_of(request))
    return Deleted(id=file_id)


@router.get("/v1/files/{file_id}/content", summary="A file, or the results of a batch", response_class=Response)
async def content(request: Request, file_id: str) -> Response:
    store, owner = _store(request), owner_of(request)
    for prefix in (OUTPUT, ERRORS):
        if file_id.startswith(prefix):
            batch = file_id.removeprefix(prefix)
            store.batch(batch, owner)
            lines = (f"{line}\n" for line in store.results(batch, owner, failed=prefix == ERRORS))
            return StreamingResponse(lines, media_type="application/jsonl")
    return Response(await asyncio.to_thread(store.content, file_id, owner), media_type="application/jsonl")


@router.post("/v1/batches", summary="Answer the requests of a file")
async def create(request: Request, body: BatchRequest) -> BatchReply:
    store, owner, settings = _store(request), owner_of(request), service_of(request).settings
    if body.endpoint not in ENDPOINTS:
        message = f"endpoint is {body.endpoint!r}; valid: {', '.join(ENDPOINTS)}"
        raise Refusal(400, "invalid_endpoint", message, param="endpoint")
    data = await asyncio.to_thread(store.content, body.input_file_id, owner)
    lines = await asyncio.to_thread(parse, data, body.endpoint, settings.max_batch_lines)
    name = new_id("batch")
    job = (name, owner, body.endpoint, body.input_file_id, body.metadata or {}, lines)
    return _batch(await asyncio.to_thread(store.add_batch, *job))


@router.get("/v1/batches", summary="Your batches, the newest first")
async def batches(request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> BatchList:
    found = [_batch(batch) for batch in _store(request).batches(owner_of(request), limit)]
    return BatchList(data=found, first_id=found[0].id if found else None, last_id=found[-1].id if found else None)


@router.get("/v1/batches/{batch_id}", summary="How far a batch is")
async def one_batch(request: Request, batch_id: str) -> BatchReply:
    return _batch(_store(request).batch(batch_id, owner_of(request)))


@router.post("/v1/batches/{batch_id}/cancel", summary="Start no further request of a batch")
async def cancel(request: Request, batch_id: str) -> BatchReply:
    return _batch(_store(request).cancel(batch_id, owner_of(request)))


def parse(data: bytes, endpoint: str, max_lines: int) -> list[tuple[str, str]]:
    """The requests of a file, pairs of `custom_id` and body. Raises `Refusal` naming the line."""
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if not 0 < len(lines) <= max_lines:
        raise Refusal(400, "invalid_batch", f"the file has {len(lines)} requests; valid: 1 to {max_lines}")
    found: dict[str, str] = {}
    for number, text in lines:
        try:
            line = BatchLine.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))[:100]
            raise Refusal(400, "invalid_batch", f"line {number}: {where}: {first['msg']}"[:400]) from None
        if line.url != endpoint:
            raise Refusal(400, "invalid_batch", f"line {number}: url is {line.url[:80]!r}; valid: {endpoint}")
        if line.custom_id in found:
            raise Refusal(400, "invalid_batch", f"line {number}: custom_id {line.custom_id[:80]!r} was there before")
        found[line.custom_id] = json.dumps(line.body)
    return list(found.items())


class Runner:
    """Answers the lines of all batches, one after the other, from start to stop of the server."""

    def __init__(self, service: Service, store: Store) -> None:
        self._service, self._store = service, store

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        next_expiry = loop.time()
        while self._service.state != "stopping":
            answered = False
            try:
                if loop.time() >= next_expiry:
                    next_expiry = loop.time() + EXPIRE_SECONDS
                    await asyncio.to_thread(self._store.expire)
                line = await asyncio.to_thread(self._store.next_line)
                answered = line is not None and await self._answer(line)
            except sqlite3.Error as error:  # such as a full disk; what has no result is tried again
                LOG.error("store failed", exc_info=error)
            if not answered:
                await asyncio.sleep(POLL_SECONDS)

    async def _answer(self, line: Line) -> bool:
        """Answer a line and keep the result. False where the server has no time for it now."""
        if line.attempts >= MAX_ATTEMPTS:
            died = Refusal(500, "gave_up", f"the server died {MAX_ATTEMPTS} times while answering this request")
            await self._keep(line, 500, died.to_dict())
            return True
        task = asyncio.ensure_future(self._result(line))
        try:
            while not (await asyncio.wait({task}, timeout=POLL_SECONDS))[0]:
                if self._store.batch(line.batch, line.owner).status != "in_progress":
                    return True
            await self._keep(line, 200, task.result())
        except asyncio.CancelledError:  # the server stops, which is not the request's doing
            self._store.give_back(line)
            raise
        except sqlite3.Error:
            raise
        except Exception as error:
            answer = refusal(error)
            if isinstance(error, Refusal) and answer.status_code in (429, 503):
                await asyncio.to_thread(self._store.give_back, line)
                return False
            if answer.status_code == 500:
                LOG.error("batch line failed", exc_info=error)
            await self._keep(line, answer.status_code, answer.to_dict())
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return True

    async def _result(self, line: Line) -> dict[str, Any]:
        schema, answer = ENDPOINTS[line.endpoint]
        try:
            body = schema.model_validate(line.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))[:100]
            raise Refusal(400, "invalid_value", f"{where}: {first['msg']}"[:400]) from None
        return await answer(self._service, line.owner, body)

    async def _keep(self, line: Line, status: int, body: dict[str, Any]) -> None:
        response = {"status_code": status, "request_id": new_id("req"), "body": body}
        result = {"id": new_id("batch_req"), "custom_id": line.custom_id, "response": response, "error": None}
        await asyncio.to_thread(self._store.finish_line, line, status, json.dumps(result))


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _file(file: StoredFile) -> FileReply:
    return FileReply(id=file.id, bytes=file.n_bytes, created_at=file.created, filename=file.name)


def _batch(batch: Batch) -> BatchReply:
    ended = batch.ended
    return BatchReply(
        id=batch.id,
        endpoint=batch.endpoint,
        input_file_id=batch.file,
        status=batch.status,  # type: ignore[arg-type]
        created_at=batch.created,
        in_progress_at=batch.created,
        completed_at=ended if batch.status == "completed" else None,
        cancelled_at=ended if batch.status == "cancelled" else None,
        expires_at=batch.expires,
        expired_at=ended if batch.status == "expired" else None,
        output_file_id=OUTPUT + batch.id if batch.done > batch.failed else None,
        error_file_id=ERRORS + batch.id if batch.failed else None,
        request_counts=Counts(total=batch.total, completed=batch.done - batch.failed, failed=batch.failed),
        metadata=batch.metadata,
    )
