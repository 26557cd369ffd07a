"""Whose turn it is: answers wait in one queue that is fair between clients, a few are decoded at a time.

Knows owners, work and cancelling. Does not know models: work is a generator, and whatever it yields is handed out. An
engine that decodes many answers in one batch can stand in its place: `submit`, and a `Job` to iterate and to cancel.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from moss_audio.server.refusals import Refusal, busy

T = TypeVar("T")

Cancelled = Callable[[], bool]
Work = Callable[[Cancelled], Iterator[T]]
"""A generator over the parts of an answer, given a question to ask between them: is it still wanted?"""


class Watcher(Protocol):
    """Who wants to know how long answers take."""

    def waited(self, seconds: float) -> None: ...


class Job(Generic[T]):
    """One answer: iterate it for its parts, cancel it when nobody reads on. Cancelling twice does no harm."""

    def __init__(self, turns: Turns, owner: str, work: Work[T]) -> None:
        self.owner = owner
        self._turns, self._work, self._gone = turns, work, threading.Event()
        self._parts: asyncio.Queue[tuple[T | None, Exception | None]] = asyncio.Queue()
        self._submitted, self._ended = time.monotonic(), False
        self.seconds = 0.0
        """Of work, up to the part that came last, without the wait for a turn."""

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if self._ended:
            raise StopAsyncIteration
        part, error = await self._parts.get()
        if error is not None:
            self._ended = True
            raise error
        if part is None:
            self._ended = True
            raise StopAsyncIteration
        return part

    def cancel(self) -> None:
        """Nobody reads on: a waiting job leaves the queue, a running one stops before its next token."""
        if not self._gone.is_set():
            self._gone.set()
            self._turns.drop(self)

    def end(self, error: Exception | None = None) -> None:
        """Hand out the end, or an error in its place."""
        self._parts.put_nowait((None, error))

    def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do the work, in a thread."""

        def put(part: T | None, error: Exception | None = None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
                loop.call_soon_threadsafe(self._parts.put_nowait, (part, error))

        began = time.monotonic()
        self._turns.watcher.waited(began - self._submitted)
        try:
            for part in self._work(self._gone.is_set):
                self.seconds = time.monotonic() - began
                put(part)
                if self._gone.is_set():
                    break
            put(None)
        except Exception as error:
            put(None, error)


class Turns:
    """The queue. Owners take turns, one answer each; `n_running` answers are decoded at a time, each in a thread."""

    def __init__(self, n_running: int, max_waiting: int, max_waiting_per_owner: int, watcher: Watcher) -> None:
        self.n_running, self.max_waiting, self.max_waiting_per_owner = n_running, max_waiting, max_waiting_per_owner
        self.watcher = watcher
        self._threads = ThreadPoolExecutor(n_running, thread_name_prefix="answer")
        self._queue: OrderedDict[str, deque[Job[Any]]] = OrderedDict()
        self._running: set[Job[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queue.values()))

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, owner: str, work: Work[T]) -> Job[T]:
        """Queue work. Raises `Refusal`: 503 where the queue is full or closed, 429 where this owner's share is."""
        if self._closed:
            raise busy("stopping", "the server is stopping; try again soon")
        if len(self._running) >= self.n_running:
            if self.waiting >= self.max_waiting:
                raise busy("queue_full", f"{self.waiting} answers wait already; try again soon")
            if len(self._queue.get(owner, ())) >= self.max_waiting_per_owner:
                message = f"{self.max_waiting_per_owner} of your requests wait already; let some of them end"
                raise Refusal(429, "too_many_waiting", message, retry_after=5)
        job = Job(self, owner, work)
        self._queue.setdefault(owner, deque()).append(job)
        self._next()
        return job

    def drop(self, job: Job[Any], error: Exception | None = None) -> None:
        """Take a job out of the queue; a running one ends by itself."""
        jobs = self._queue.get(job.owner)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._queue[job.owner]
            job.end(error)

    async def close(self, grace_seconds: float) -> None:
        """Take no more work, wait for what runs, then cancel it."""
        self._closed = True
        for job in [job for jobs in self._queue.values() for job in jobs]:
            self.drop(job, busy("stopping", "the server is stopping; try again soon"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        for job in list(self._running):
            job.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._running) < self.n_running and self._queue:
            owner, jobs = next(iter(self._queue.items()))
            job = jobs.popleft()
            if jobs:
                self._queue.move_to_end(owner)
            else:
                del self._queue[owner]
            self._running.add(job)
            self._idle.clear()
            done = loop.run_in_executor(self._threads, job.run, loop)
            done.add_done_callback(partial(self._over, job))

    def _over(self, job: Job[Any], _: object) -> None:
        self._running.discard(job)
        if not self._running:
            self._idle.set()
        if not self._closed:
            self._next()
