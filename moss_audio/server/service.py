"""What the routes share: the model, its queue, the decoders, the settings and the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from moss_audio.inference.generate import Usage
from moss_audio.server.decoding import Decoders
from moss_audio.server.fetching import Fetcher
from moss_audio.server.observing import Metrics
from moss_audio.server.refusals import CLIENT_GONE, Refusal
from moss_audio.server.settings import Settings
from moss_audio.server.turns import Cancelled, Job, Turns, Work

if TYPE_CHECKING:
    from moss_audio.inference.engine import MossAudio

T = TypeVar("T")


class Service:
    """One server's state, from start to stop."""

    def __init__(self, settings: Settings, model: MossAudio, name: str) -> None:
        self.settings, self.model, self.name = settings, model, name
        self.created, self.state = int(time.time()), "starting"
        self._stopped: asyncio.Future[None] | None = None
        self.metrics, self.fetcher = Metrics(), Fetcher(settings)
        self.decoders = Decoders(settings, lambda found: self.metrics.cache.labels(str(found).lower()).inc())
        self.turns = Turns(settings.running, settings.max_waiting, settings.max_waiting_per_key, self.metrics)
        self.metrics.waiting.set_function(lambda: self.turns.waiting)
        self.metrics.running.set_function(lambda: self.turns.running)

    async def start(self) -> None:
        """Make ready for the first request."""
        await self.decoders.start()
        self.state = "ok"

    def begin_to_stop(self) -> None:
        """Take no more work and refuse what waits; what runs has its grace."""
        if self._stopped is None:
            self.state = "stopping"
            self._stopped = asyncio.ensure_future(self.turns.close(self.settings.grace_seconds))

    async def stop(self) -> None:
        """Finish or hand back what runs."""
        self.begin_to_stop()
        if self._stopped is not None:
            await self._stopped
        await self.decoders.close()

    def check_model(self, asked: str | None) -> None:
        """Raise `Refusal` unless the server runs the model that was asked for."""
        known = (self.name, *self.settings.model_aliases)
        if asked is not None and asked not in known:
            message = f"the model {asked[:80]!r} is not here; valid: {', '.join(known)}"
            raise Refusal(404, "model_not_found", message, param="model")

    async def fetch(self, url: str) -> bytes:
        """A remote recording, where that is switched on."""
        if not self.settings.remote_hosts:
            message = "recordings are not fetched from other servers here; send the bytes as a data: URL"
            raise Refusal(403, "remote_audio_off", message, param="audio_url")
        return await self.fetcher.fetch(url)

    def submit(self, owner: str, work: Work[T]) -> Job[T]:
        """Queue work for the model, and time it."""
        return self.turns.submit(owner, lambda cancelled: self._timed(work, cancelled))

    def _timed(self, work: Work[T], cancelled: Cancelled) -> Iterator[T]:
        began, first = time.monotonic(), True
        for part in work(cancelled):
            if first:
                self.metrics.first.observe(time.monotonic() - began)
                first = False
            yield part

    def count(self, usage: Usage, seconds: float) -> None:
        """Add an answer to the metrics."""
        self.metrics.answered(usage.prompt_tokens, usage.completion_tokens, usage.audio_seconds, seconds)


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


def owner_of(request: Request) -> str:
    """Whose request it is: the name of the key, or the address without keys."""
    return str(request.scope["owner"])


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refusal(CLIENT_GONE, "client_gone", "the client hung up")
    finally:
        for each in (task, gone):
            each.cancel()
        with contextlib.suppress(BaseException):
            await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
