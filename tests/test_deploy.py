"""The files of `deploy/`, taken word for word by the programs they are for; only addresses and paths are the test's."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from conftest import ROOT
from servers import KEY, app, live, question, until, wav
from websockets.sync.client import connect

from moss_audio.server.settings import Settings

CHAT = "/v1/chat/completions"
needs_nginx = pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("openssl")), reason="needs nginx, openssl")


@dataclass(frozen=True)
class Proxy:
    """nginx on a port of its own, with a certificate that only the test believes."""

    port: int
    tls: ssl.SSLContext

    def http(self, **options) -> httpx.Client:
        return httpx.Client(base_url=f"https://localhost:{self.port}", verify=self.tls, timeout=60, **options)


def configured(folder: Path, backend: str, port: int) -> list[str]:
    """The command that starts nginx with deploy/nginx.conf, everything it writes in `folder`."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*made, *named, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    text = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
    for there, here in (
        ("/etc/letsencrypt/live/audio.example.org/fullchain.pem", str(certificate)),
        ("/etc/letsencrypt/live/audio.example.org/privkey.pem", str(key)),
        ("http://127.0.0.1:8000", backend), ("listen 443 ", f"listen 127.0.0.1:{port} "),
    ):  # fmt: skip
        assert text.count(there) == 1, there
        text = text.replace(there, here)
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    written = "".join(f"{name}_temp_path {folder / name};\n" for name in paths)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder / 'pid'}; error_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{written}{text}}}\n"
    )
    return ["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf")]


@contextmanager
def proxy(folder: Path, backend: str) -> Iterator[Proxy]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = configured(folder, backend, port)
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _listens(port))
        yield Proxy(port, ssl.create_default_context(cafile=folder / "cert.pem"))
    finally:
        running.terminate()
        running.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with live(app("Hello there.", 0.05, public_hosts=("localhost",))) as url:
        yield url


@pytest.fixture(scope="module")
def front(served: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("nginx"), served) as found:
        yield found


@needs_nginx
def test_nginx_passes_events_as_they_are_written(front):
    arrived = []
    with front.http() as http, http.stream("POST", CHAT, json=question(stream=True)) as answer:
        assert answer.status_code == 200 and answer.headers["strict-transport-security"]
        for _ in answer.iter_raw():
            arrived.append(time.monotonic())
    assert len(arrived) >= 10 and arrived[-1] - arrived[0] > 0.4  # of 13 tokens, 0.05 s each


@needs_nginx
def test_nginx_passes_live_sessions_and_their_origin(front):
    url, origin = f"wss://localhost:{front.port}/v1/realtime", f"https://localhost:{front.port}"
    with connect(url, ssl=front.tls, origin=origin, subprotocols=["realtime"]) as socket:
        assert json.loads(socket.recv(20))["type"] == "session.created"
        socket.send(b"\0" * 48_000)
        socket.send(json.dumps({"type": "input_audio_buffer.clear"}))
        assert json.loads(socket.recv(20))["type"] == "input_audio_buffer.cleared"
    with front.http() as http:
        assert http.get("/v1/models", headers={"Origin": origin}).status_code == 200
        assert http.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403


@needs_nginx
def test_nginx_says_who_asks_whatever_the_client_claims(front, caplog):
    caplog.set_level("INFO", "moss_audio.server")
    with front.http(headers={"X-Forwarded-For": "192.0.2.7"}) as http:
        assert http.get("/v1/models").status_code == 200

    def owners() -> list[str]:
        return [record.fields["owner"] for record in caplog.records if record.fields["path"] == "/v1/models"]

    until(owners)  # a request is logged when its answer is through
    assert owners() == ["127.0.0.1"]


@needs_nginx
def test_nginx_takes_large_bodies_and_refuses_too_large_ones_in_the_servers_shape(front):
    with front.http() as http:
        large = http.post(CHAT, json=question(clip=wav(300.0), max_tokens=1))  # 13 MB
        assert large.json()["choices"][0]["message"]["content"] == "H"
        refused = http.post("/v1/audio/transcriptions", files={"file": ("a.wav", bytes(65 << 20))})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}


@needs_nginx
def test_nginx_keeps_a_half_sent_body_to_itself(front, served):
    plain = socket.create_connection(("localhost", front.port))
    with front.tls.wrap_socket(plain, server_hostname="localhost") as slow:
        slow.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{" % CHAT.encode())
        time.sleep(0.5)
        metrics = httpx.get(f"{served}/metrics").text
    assert "moss_audio_active_requests 1.0" in metrics  # this one for the metrics itself


@needs_nginx
def test_nginx_says_that_the_server_is_away(tmp_path):
    with proxy(tmp_path, "http://127.0.0.1:9") as front, front.http() as http:
        answer = http.get("/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "away")
        assert answer.headers["retry-after"] == "5"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_the_unit_and_finds_it_locked_up(tmp_path):
    text = (ROOT / "deploy" / "moss-audio.service").read_text("utf-8")
    unit = tmp_path / "moss-audio.service"
    unit.write_text(text.replace("/opt/moss-audio/bin/moss-audio", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")  # a name that it does not know is a warning alone
    locked = ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit]
    assert subprocess.run(locked, capture_output=True).returncode == 0  # at most 2.0 of 10 is exposed


def compose() -> list[str]:
    """The command that reads compose files, where there is one."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    pytest.skip("needs docker compose")


def test_compose_takes_the_file_and_asks_for_a_key():
    command, environ = [*compose(), "-f", str(ROOT / "compose.yaml"), "config"], {"PATH": "/usr/bin:/bin"}
    taken = subprocess.run(command, env=environ | {"MOSS_AUDIO_API_KEY": KEY}, capture_output=True, text=True)
    assert taken.returncode == 0 and f"MOSS_AUDIO_API_KEY: {KEY}" in taken.stdout, taken.stderr
    refused = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert refused.returncode != 0 and "set an API key" in refused.stderr


def test_the_container_has_room_for_all_uploads_at_once():
    (megabytes,) = re.findall(r"/tmp:size=(\d+)m", (ROOT / "compose.yaml").read_text("utf-8"))
    assert int(megabytes) << 20 > Settings().max_buffered_bytes
