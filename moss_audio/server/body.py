"""Limits of request bodies, kept while they are read: bytes, pauses, and the memory of all of them together.

Plain ASGI, so that nothing is parsed, decoded or written before it is counted.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moss_audio.server.refusals import Refusal, busy
from moss_audio.server.settings import Settings


class BodyLimits:
    """Counts what clients send and raises `Refusal` into the reader when it is too much or comes too slowly."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self._check_announced(scope)
        reader = _Reader(self, receive)
        try:
            await self.app(scope, reader.receive, send)
        finally:
            self._buffered -= reader.n_bytes

    def take(self, n_bytes: int, total: int) -> None:
        """Count `n_bytes` more of a body that has `total` with them."""
        self._buffered += n_bytes
        if total > self.settings.max_body_bytes:
            raise self._too_large(str(total))
        if self._buffered > self.settings.max_buffered_bytes:
            raise busy("busy", "the server holds as many uploads as it can; try again soon")

    def _check_announced(self, scope: Scope) -> None:
        announced = dict(scope["headers"]).get(b"content-length", b"0").decode("latin-1")
        if not announced.isdecimal() or not announced.isascii():
            raise Refusal(400, "invalid_content_length", f"Content-Length is {announced[:40]!r}; valid: a whole number")
        if len(announced) > 18 or int(announced) > self.settings.max_body_bytes:
            raise self._too_large(announced[:40])

    def _too_large(self, size: str) -> Refusal:
        most = self.settings.max_body_bytes
        message = f"the request has {size} bytes or more; valid: up to {most}; cut or compress the recording"
        return Refusal(413, "request_too_large", message)


class _Reader:
    """One request's body."""

    def __init__(self, limits: BodyLimits, receive: Receive) -> None:
        self.limits, self._receive, self.n_bytes, self._complete = limits, receive, 0, False
        self._deadline = time.monotonic() + limits.settings.body_seconds

    async def receive(self) -> Message:
        if self._complete:  # from here on there is only the client's going to hear of
            return await self._receive()
        patience = min(self.limits.settings.body_idle_seconds, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(patience, 0.001))
        except TimeoutError:
            raise Refusal(408, "upload_too_slow", "the request's body did not arrive in time; send it again") from None
        size = len(message.get("body", b""))
        self.n_bytes += size
        self.limits.take(size, self.n_bytes)
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message
