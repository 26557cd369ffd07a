"""From settings to a listening server, and from a signal to a clean end."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from moss_audio.server.app import create_app
from moss_audio.server.keys import ApiKeys
from moss_audio.server.observing import LOG, log_to_stderr
from moss_audio.server.realtime import MAX_MESSAGE_BYTES
from moss_audio.server.service import Service
from moss_audio.server.settings import Settings

if TYPE_CHECKING:
    from moss_audio.inference.engine import MossAudio


FAREWELL_SECONDS = 2
"""Left, after an answer had to be cancelled, for telling its client so."""


class _Server(uvicorn.Server):
    """Tells the service at the first signal, so that who waits hears at once instead of being cut off at the end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._service.begin_to_stop)
        super().handle_exit(sig, frame)


def run(settings: Settings, load: Callable[[], MossAudio], name: str, plain_key: str | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Settings and keys are checked before the model is loaded."""
    log_to_stderr()
    keys = ApiKeys.read(settings, plain_key)
    settings.check_exposed(bool(keys.digests))
    app = create_app(settings, load(), name=name, keys=keys)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # `observing` writes a line a request, without its query
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds) + FAREWELL_SECONDS,
        ws_max_size=MAX_MESSAGE_BYTES,
        lifespan="on",
    )
    LOG.info("serving", extra={"fields": {"model": name, "host": settings.host, "port": settings.port}})
    server = _Server(config, app.state.service)
    server.run()
    return 0 if server.started else 1
