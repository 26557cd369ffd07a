"""Server-sent events: the answer as it is written, refusals in its middle, and an end to the work when nobody reads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from moss_audio.server.observing import LOG
from moss_audio.server.refusals import Refusal, refusal
from moss_audio.server.turns import Job

DONE = b"data: [DONE]\n\n"


def sse(value: BaseModel | dict[str, Any], **options: Any) -> bytes:
    """One event."""
    text = value.model_dump_json(**options) if isinstance(value, BaseModel) else json.dumps(value)
    return f"data: {text}\n\n".encode()


class EventStream(StreamingResponse):
    """Streams events of a job; whatever ends the stream, the job ends with it."""

    def __init__(self, events: AsyncIterator[bytes], job: Job[Any]) -> None:
        super().__init__(_guarded(events), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _guarded(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """An error in the middle becomes an event: the status has been sent by then."""
    try:
        async for event in events:
            yield event
    except Exception as error:
        answer = refusal(error)
        if answer.status_code >= 500 and not isinstance(error, Refusal):
            LOG.error("stream failed", exc_info=error)
        body = answer.to_dict()
        body["error"]["status"] = answer.status_code
        yield sse(body)
