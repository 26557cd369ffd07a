"""A server for tests: a model that says one sentence, recordings made on the spot, and a live uvicorn on loopback."""

from __future__ import annotations

import base64
import io
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import uvicorn
from fakes import END, VOCAB, FakeBackend, FakeCache, FakeProcessor
from starlette.testclient import TestClient

from moss_audio.inference.engine import MossAudio
from moss_audio.server.app import create_app
from moss_audio.server.keys import ApiKeys, digest
from moss_audio.server.run import run
from moss_audio.server.settings import Settings

KEY = "moss-a-key-that-is-only-for-tests"
KEYS = ApiKeys((("alice", digest(KEY)), ("bob", digest(KEY + "b"))))


class Saying(FakeBackend):
    """Says `text` to every prompt, from any number of threads, `delay` seconds a token."""

    def __init__(self, text: str, delay: float = 0.0) -> None:
        super().__init__(lambda emitted: np.zeros(VOCAB))
        self.says, self.delay, self.prompts = [*text.encode(), END], delay, 0

    def prefill(
        self, input_ids: np.ndarray, audio_mask: np.ndarray, audio: Any, n_logits: int = 1
    ) -> tuple[FakeCache, np.ndarray]:
        self.prompts += 1
        drafted = input_ids.tolist()[len(input_ids) - n_logits + 1 :]
        return FakeCache(drafted), np.stack([self._next(n) for n in range(n_logits)])

    def decode(self, cache: FakeCache, input_ids: np.ndarray) -> np.ndarray:
        time.sleep(self.delay)
        before = len(cache.ids)
        cache.ids += input_ids.tolist()
        return np.stack([self._next(before + n + 1) for n in range(len(input_ids))])

    def _next(self, n: int) -> np.ndarray:
        logits = np.zeros(VOCAB, np.float32)
        logits[self.says[min(n, len(self.says) - 1)]] = 10.0
        return logits


def model(text: str = "Hello there.", delay: float = 0.0) -> MossAudio:
    return MossAudio(Saying(text, delay), FakeProcessor())  # type: ignore[arg-type]


def app(text: str = "Hello there.", delay: float = 0.0, keys: ApiKeys | None = None, **settings: Any) -> Any:
    patient = {"requests_per_minute": 1_000_000, "burst": 1_000_000}  # tests poll
    return create_app(Settings(**patient | settings), model(text, delay), keys=keys)


@contextmanager
def client(text: str = "Hello there.", delay: float = 0.0, **options: Any) -> Iterator[TestClient]:
    served = app(text, delay, **options)
    with TestClient(served, base_url="http://localhost", raise_server_exceptions=False) as test_client:
        yield test_client


@contextmanager
def live(served: Any) -> Iterator[str]:
    """`http://127.0.0.1:PORT` of a running server."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config = uvicorn.Config(served, log_config=None, access_log=False, timeout_graceful_shutdown=30)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started, 20)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(40)


def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def wav(seconds: float = 2.0, rate: int = 16_000) -> bytes:
    """A WAV file of noise."""
    samples = np.random.default_rng(0).normal(0, 3000, int(seconds * rate)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, len(samples), "NONE", ""))
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def question(text: str = "What is said?", clip: bytes | None = None, **more: Any) -> dict[str, Any]:
    """A chat request about a recording."""
    data = base64.b64encode(wav() if clip is None else clip).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return {"messages": [{"role": "user", "content": [audio, {"type": "text", "text": text}]}], **more}


@contextmanager
def process(store: str = "", delay: float = 0.0, text: str = "Hello there.") -> Iterator[tuple[httpx.Client, Any]]:
    """A server in a process of its own, which the test may kill."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, str(port), store, str(delay), text]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        try:
            until(lambda: _ready(http), 60)
            yield http, running
        finally:
            running.kill()
            running.wait()


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    port, store, delay, text = sys.argv[1:]
    patient = {"requests_per_minute": 1_000_000, "burst": 1_000_000, "running": 1, "grace_seconds": 1.0}
    run(Settings(port=int(port), store=store, **patient), lambda: model(text, float(delay)), "mini")
