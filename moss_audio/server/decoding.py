"""Recordings to samples in other processes: a few workers with limits of memory and time, replaced when they die.

Knows processes and pipes. How a file is decoded is `audio`; what the worker may do is `decode_worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
import weakref
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.errors import AudioError, CorruptAudioError
from moss_audio.server import decode_worker
from moss_audio.server.refusals import busy
from moss_audio.server.settings import Settings

_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "VIRTUAL_ENV", "SYSTEMROOT")
"""All that a worker is told: no keys."""

_BLOCK = 1 << 20

MAX_PACKET_BYTES = 6 * 1275 + 10
"""Of 120 ms of Opus: six frames of at most 1275 bytes and their lengths (RFC 6716, 3.2 and 3.4)."""


class _DecoderCrashError(CorruptAudioError):
    """A worker died while it decoded a recording."""


class Decoders:
    """The workers. `decode` takes any number of calls; each waits for an idle worker."""

    def __init__(self, settings: Settings, hit: Callable[[bool], None] = lambda found: None) -> None:
        self.settings, self._hit = settings, hit
        self._handed_out: list[weakref.ref[np.ndarray]] = []
        self._idle: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        self._alive: set[Process] = set()
        self._cache: OrderedDict[tuple[str, bytes], np.ndarray] = OrderedDict()
        self._cached_seconds = 0.0
        for _ in range(settings.decoders):
            self._idle.put_nowait(None)

    @property
    def pids(self) -> list[int]:
        """The workers that run."""
        return [worker.pid for worker in self._alive if worker.returncode is None]

    async def start(self) -> None:
        """Start one worker, so that the first request need not wait for it."""
        worker = await self._idle.get()
        self._idle.put_nowait(worker or await self._spawn())

    async def decode(self, owner: str, data: bytes) -> np.ndarray:
        """The samples `[n]` of a file. The same file from the same owner is decoded once for a while.

        Raises `AudioError`, also where two workers crashed or one took longer than it may, and `Refusal` where the
        server holds too much audio already.
        """
        name = owner, hashlib.sha256(data).digest()
        cached = self._cache.get(name)
        self._hit(cached is not None)
        if cached is not None:
            self._cache.move_to_end(name)
            return cached
        if self.held_seconds > self.settings.max_held_seconds:
            raise busy("busy", "the server holds as much audio as it can; try again soon")
        try:
            samples = await self._by_a_worker(data)
        except _DecoderCrashError:  # of something else than this recording, perhaps
            samples = await self._by_a_worker(data)
        self._handed_out.append(weakref.ref(samples))
        self._keep(name, samples)
        return samples

    async def _by_a_worker(self, data: bytes) -> np.ndarray:
        """The samples of a file, decoded by the next idle worker."""
        worker = await self._idle.get()
        try:
            if worker is None or worker.returncode is not None:
                worker = await self._spawn()
            return await self._exchange(worker, data, max_seconds=self.settings.max_audio_seconds)
        finally:
            self._idle.put_nowait(worker if worker is not None and worker.returncode is None else None)

    async def _exchange(self, worker: Process, data: bytes, **job: float) -> np.ndarray:
        """What a worker makes of `data`; one that dies or is stopped is not used again."""
        try:
            return await asyncio.wait_for(self._ask(worker, data, job), self.settings.decode_seconds)
        except AudioError:
            raise
        except TimeoutError:
            await self._kill(worker)
            seconds = self.settings.decode_seconds
            raise AudioError(f"the recording was not decoded within {seconds:g} s; send a shorter one") from None
        except (OSError, EOFError, ValueError, KeyError) as error:
            await self._kill(worker)
            raise _DecoderCrashError("the recording crashed its decoder; convert it, such as with ffmpeg") from error
        except BaseException:
            await self._kill(worker)  # cancelled in the middle of an exchange
            raise

    @property
    def held_seconds(self) -> float:
        """Duration of all decoded recordings that something still refers to."""
        alive = [(ref, samples) for ref in self._handed_out if (samples := ref()) is not None]
        self._handed_out = [ref for ref, _ in alive]
        return sum(len(samples) for _, samples in alive) / SAMPLE_RATE

    async def close(self) -> None:
        """End all workers."""
        for worker in list(self._alive):
            await self._kill(worker)

    async def _ask(self, worker: Process, data: bytes, job: Mapping[str, float]) -> np.ndarray:
        assert worker.stdin is not None and worker.stdout is not None
        about = {"n_bytes": len(data), "cpu_seconds": self.settings.decode_seconds, **job}
        worker.stdin.write(json.dumps(about).encode() + b"\n")
        for start in range(0, len(data), _BLOCK):
            worker.stdin.write(data[start : start + _BLOCK])
            await worker.stdin.drain()
        line = await worker.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the worker ended")
        reply = json.loads(line)
        if "error" in reply:
            raise decode_worker.ERRORS.get(reply["error"], AudioError)(str(reply["message"]))
        n_samples = int(reply["n_samples"])
        if not 0 <= n_samples <= (self.settings.max_audio_seconds + 1) * SAMPLE_RATE:
            raise ValueError(f"the worker announces {n_samples} samples")
        samples: np.ndarray = np.empty(n_samples, np.float32)
        view, at = samples.data.cast("B"), 0
        while at < len(view):
            block = await worker.stdout.read(min(_BLOCK, len(view) - at))
            if not block:
                raise EOFError("the worker ended")
            view[at : at + len(block)] = block
            at += len(block)
        samples.flags.writeable = False
        return samples

    def _keep(self, name: tuple[str, bytes], samples: np.ndarray) -> None:
        seconds = len(samples) / SAMPLE_RATE
        if name in self._cache or seconds > self.settings.decoded_cache_seconds:
            return
        self._cache[name] = samples
        self._cached_seconds += seconds
        while self._cached_seconds > self.settings.decoded_cache_seconds:
            _, oldest = self._cache.popitem(last=False)
            self._cached_seconds -= len(oldest) / SAMPLE_RATE

    async def _spawn(self) -> Process:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        command = (sys.executable, "-m", decode_worker.__name__, str(self.settings.decode_memory_bytes))
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each would reserve memory it never uses
        try:
            worker = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, env=environment | threads, limit=_BLOCK
            )
        except OSError:
            raise busy("busy", "the server can start no decoder now; try again soon") from None
        self._alive.add(worker)
        return worker

    async def _kill(self, worker: Process | None) -> None:
        if worker is None:
            return
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()
        self._alive.discard(worker)


class OpusStream:
    """A live stream of Opus packets, in a worker of its own, since a packet needs those before it."""

    def __init__(self, decoders: Decoders) -> None:
        self._decoders = decoders
        self._worker: Process | None = None

    async def push(self, packet: bytes) -> np.ndarray:
        """The samples `[n]` of the next packet. Raises `AudioError`; after a crash the next packet begins anew."""
        if len(packet) > MAX_PACKET_BYTES:
            raise CorruptAudioError(f"a packet has {len(packet)} bytes; valid in Opus: up to {MAX_PACKET_BYTES}")
        if self._worker is None or self._worker.returncode is not None:
            self._worker = await self._decoders._spawn()
        return await self._decoders._exchange(self._worker, packet, packet=True)

    async def close(self) -> None:
        """End the worker."""
        await self._decoders._kill(self._worker)
