"""The log of a real server that is asked all sorts of things: a JSON object a line, and nothing that is secret."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import pytest
from conftest import ROOT
from servers import KEY, question, until, wav
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from moss_audio.server.observing import JsonLines

SECRET = "what-nobody-else-may-read"
HOSTILE = "\n\r\x00\x1b[31m\x85\u2028\ud800\"}{ \u202e'%s %d\\"

SERVER = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from servers import Saying, FakeProcessor
from moss_audio.inference.engine import MossAudio
from moss_audio.server.run import run
from moss_audio.server.settings import Settings

class Broken(Saying):
    def encode_audio(self, mels):
        if mels and max(mel.shape[1] for mel in mels) > 900:
            raise RuntimeError("a backend that breaks\\n{{}}\\x1b")
        return super().encode_audio(mels)

settings = Settings(port=int(sys.argv[1]), requests_per_minute=10**6, burst=10**6, max_body_bytes=2_000_000)
run(settings, lambda: MossAudio(Broken({SECRET!r}), FakeProcessor()), "mini", {KEY!r})
"""


@contextmanager
def logged(to: Path) -> Iterator[int]:
    """The port of a server process, whose standard error is in the file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with to.open("wb") as log:
        running = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stderr=log)
    try:
        until(lambda: b"Uvicorn running" in to.read_bytes(), 60)
        yield port
        running.send_signal(signal.SIGTERM)
        running.wait(30)
    finally:
        running.kill()


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


def test_the_log_is_json_lines_without_secrets(tmp_path):
    log = tmp_path / "log"
    with logged(log) as port:
        bearer = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=bearer, timeout=60) as http:
            assert SECRET in http.post("/v1/chat/completions", json=question(f"{SECRET}?")).text
            http.post("/v1/chat/completions", json=question(model=SECRET))
            http.post("/v1/chat/completions", content=json.dumps(question(HOSTILE, user=HOSTILE, model=HOSTILE)))
            file = {"file": (f"{SECRET}.wav", wav()[:2000])}
            http.post("/v1/audio/transcriptions", files=file, data={"prompt": SECRET, "language": SECRET})
            http.post("/v1/files", files=file, data={"purpose": "batch"})
            assert http.post("/v1/chat/completions", json=question(SECRET, clip=wav(12.0))).status_code == 500
            http.get("/v1/models", params={"key": KEY, "q": SECRET})
            http.get("/v1/models", headers={"Authorization": f"Bearer {SECRET}", "Cookie": SECRET, "Referer": SECRET})
            http.post("/v1/audio/transcriptions", content=bytes(3_000_000))
        for offered, taken in ((KEY, nullcontext()), (SECRET, pytest.raises(InvalidStatus))):
            url, protocol = f"ws://127.0.0.1:{port}/v1/realtime", f"openai-insecure-api-key.{offered}"
            with taken, connect(url, subprotocols=[protocol]) as live:
                live.recv(20)
        head = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\n".encode()
        for request in (
            b"GET /%0A%22%7D%00%1B%5B31m%FF%FE%0D HTTP/1.1\r\n" + head,
            b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n" + head,
            b"GET /v1/models HTTP/1.1\r\nX-Request-ID: \xff\xfe\"}\r\nOrigin: \xff\x1b[31m\r\n" + head,
            b"GET /v1/models HTTP/1.1\r\nHost: \xff\"\\\r\nAuthorization: Bearer \xff" + SECRET.encode() + b"\r\n",
            b"NONSENSE\x00\xff " + SECRET.encode() + b"\r\n",
        ):
            raw(port, request + b"Connection: close\r\n\r\n")
        until(lambda: log.read_bytes().count(b'"event": "request"') >= 15, 20)
    lines = log.read_bytes().split(b"\n")
    assert lines.pop() == b"" and len(lines) > 20
    for line in lines:
        entry = json.loads(line.decode("ascii"))  # ASCII alone: no character of theirs reaches a terminal
        assert {"time", "level", "event"} <= set(entry), entry
    text = log.read_text("ascii")
    assert "a backend that breaks" in text and '"owner": "default"' in text and "\x1b" not in text
    assert KEY not in text and SECRET not in text


def test_a_line_is_json_whatever_is_logged():
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        failed = sys.exc_info()
    fields = {"path": HOSTILE, "raw": b"\xff\n", "odd": object(), HOSTILE: 1, "when": time.gmtime()}
    for extra in ({"fields": fields}, {}):
        record = logging.makeLogRecord({"msg": HOSTILE.replace("%", "%%") + "%s", "args": (HOSTILE,)} | extra)
        record.exc_info = failed
        line = JsonLines().format(record)
        assert line.isascii() and line.isprintable()
        assert json.loads(line)["event"] == HOSTILE + HOSTILE
