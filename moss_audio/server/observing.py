"""What is seen from outside: metrics, a log line a request, and the headers of every answer. Never contents or keys."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moss_audio.server.refusals import CLIENT_GONE, Refusal, refusal

LOG = logging.getLogger("moss_audio.server")

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; font-src 'self'; worker-src 'self' blob:; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-store",
}
"""On every answer, unless it says otherwise."""

_REQUEST_ID = re.compile(r"[\w.-]{1,64}")

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """The numbers of `/metrics`, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        name = "moss_audio_"
        self.requests = Counter(f"{name}requests", "Requests answered", ("route", "status"), registry=registry)
        self.refusals = Counter(f"{name}refusals", "Requests refused, by reason", ("code",), registry=registry)
        self.seconds = Histogram(
            f"{name}request_seconds", "Duration of requests", ("route",), registry=registry, buckets=_SECONDS
        )
        self.queued = Histogram(f"{name}queue_seconds", "Wait for a turn", registry=registry, buckets=_SECONDS)
        self.first = Histogram(
            f"{name}first_token_seconds", "Turn to first token", registry=registry, buckets=_SECONDS
        )
        self.rate = Histogram(
            f"{name}tokens_per_second", "Of one answer", registry=registry, buckets=(1, 2, 5, 10, 20, 50, 100, 500)
        )
        self.rtf = Histogram(
            f"{name}real_time_factor", "Seconds of work a second of audio", registry=registry,
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
        )  # fmt: skip
        self.tokens = Counter(f"{name}tokens", "Tokens of prompts and answers", ("kind",), registry=registry)
        self.audio = Counter(f"{name}audio_seconds", "Audio heard, again for each answer", registry=registry)
        self.cache = Counter(f"{name}decoded_cache", "Recordings found decoded", ("found",), registry=registry)
        self.active = Gauge(f"{name}active_requests", "Requests being answered", registry=registry)
        self.waiting = Gauge(f"{name}waiting", "Answers waiting for a turn", registry=registry)
        self.running = Gauge(f"{name}running", "Answers being decoded", registry=registry)
        self.live = Gauge(f"{name}live_sessions", "Live sessions", registry=registry)

    def waited(self, seconds: float) -> None:
        """An answer got its turn."""
        self.queued.observe(seconds)

    def answered(self, prompt_tokens: int, completion_tokens: int, audio_seconds: float, seconds: float) -> None:
        """An answer ended."""
        self.tokens.labels("prompt").inc(prompt_tokens)
        self.tokens.labels("completion").inc(completion_tokens)
        self.audio.inc(audio_seconds)
        if seconds > 0 and completion_tokens:
            self.rate.observe(completion_tokens / seconds)
        if audio_seconds > 0:
            self.rtf.observe(seconds / audio_seconds)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


class Observer:
    """The outermost layer: answers refusals, counts and logs every request, adds the headers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        seen = _Seen(scope, send)
        self.metrics.active.inc()
        try:
            await self.app(scope, receive, seen.send)
        except Exception as error:
            await self._refuse(error, seen, receive)
        finally:
            self.metrics.active.dec()
            self._log(scope, seen)

    async def _refuse(self, error: Exception, seen: _Seen, receive: Receive) -> None:
        answer = refusal(error)
        if answer.status_code >= 500 and not isinstance(error, Refusal):
            LOG.error("failed", exc_info=error, extra={"fields": {"request_id": seen.request_id}})
        seen.code = answer.code
        if seen.started:  # what has begun cannot be taken back; the connection closes
            if seen.scope["type"] == "websocket":
                await seen.send({"type": "websocket.close", "code": 1011, "reason": answer.message[:120]})
            return
        if seen.scope["type"] == "websocket" and "websocket.http.response" not in seen.scope.get("extensions", {}):
            seen.status = answer.status_code
            await seen.send({"type": "websocket.close", "code": 1008, "reason": answer.message[:120]})
            return
        response = JSONResponse(answer.to_dict(), answer.status_code, dict(answer.headers or {}))
        await response(seen.scope, receive, seen.send)

    def _log(self, scope: Scope, seen: _Seen) -> None:
        route = getattr(scope.get("route"), "path", "none")
        seconds = time.monotonic() - seen.since
        code = seen.code or scope.get("refused")
        self.metrics.requests.labels(route, str(seen.status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if code:
            self.metrics.refusals.labels(code).inc()
        fields = {
            "request_id": seen.request_id,
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"][:200],
            "status": seen.status,
            "ms": round(1000 * seconds),
            "owner": scope.get("owner"),
            "refused": code,
        }
        LOG.info("request", extra={"fields": {name: value for name, value in fields.items() if value is not None}})


class _Seen:
    """One request on its way: its id, and what has been answered."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send, self.since = scope, send, time.monotonic()
        self.started, self.status, self.code = False, CLIENT_GONE, ""
        offered = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        self.request_id = offered if _REQUEST_ID.fullmatch(offered) else secrets.token_hex(8)

    async def send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.started, self.status = True, message["status"]
            self._add_headers(message)
        elif message["type"] == "websocket.accept":
            self.started, self.status = True, 101
        await self._send(message)

    def _add_headers(self, message: MutableMapping[str, Any]) -> None:
        present = {name.lower() for name, _ in message.get("headers", ())}
        wanted: Mapping[str, str] = HEADERS | {"X-Request-ID": self.request_id}
        added = [(n.lower().encode(), v.encode()) for n, v in wanted.items() if n.lower().encode() not in present]
        message["headers"] = [*message.get("headers", ()), *added]


class JsonLines(logging.Formatter):
    """A log record as one JSON object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        } | getattr(record, "fields", {})
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def log_to_stderr() -> None:
    """Log the server, uvicorn, and the warnings of everything else as JSON lines."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonLines())
    logging.getLogger().handlers = [output]
    logging.captureWarnings(True)
    for name in ("moss_audio.server", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.INFO)
