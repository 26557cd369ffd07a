"""What happens to work: turns, cancelling, limits while uploading, decoders that die, and live servers that stop."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import signal
import socket
import tempfile
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from servers import KEY, KEYS, app, client, live, process, question, until, wav
from starlette import formparsers

from moss_audio.audio import load_audio
from moss_audio.errors import AudioError, AudioLimitError, CorruptAudioError, UnsupportedAudioError
from moss_audio.server.decoding import Decoders
from moss_audio.server.fetching import Fetcher, is_public
from moss_audio.server.refusals import Refusal
from moss_audio.server.settings import Settings
from moss_audio.server.turns import Job, Turns

CHAT, TRANSCRIBE = "/v1/chat/completions", "/v1/audio/transcriptions"


class Silent:
    def waited(self, seconds: float) -> None: ...


def turns(n_running: int = 1, max_waiting: int = 10, each: int = 10) -> Turns:
    return Turns(n_running, max_waiting, each, Silent())


async def whole(job: Job[str]) -> list[str]:
    return [part async for part in job]


def test_owners_take_turns():
    async def check() -> None:
        queue, order = turns(), list[str]()
        hold = threading.Event()

        def held(cancelled) -> Iterator[str]:
            hold.wait(5)
            yield "held"

        def named(name: str):
            def work(cancelled) -> Iterator[str]:
                order.append(name)
                yield name

            return work

        first = queue.submit("zoe", held)
        await asyncio.sleep(0.05)
        jobs = [queue.submit(owner, named(f"{owner}{n}")) for owner in ("ann", "ben") for n in range(3)]
        assert (queue.running, queue.waiting) == (1, 6)
        hold.set()
        await asyncio.gather(whole(first), *map(whole, jobs))
        assert order == ["ann0", "ben0", "ann1", "ben1", "ann2", "ben2"]
        await queue.close(1)

    asyncio.run(check())


def test_a_full_queue_refuses_and_a_cancelled_job_makes_room():
    async def check() -> None:
        queue, hold, ran = turns(max_waiting=3, each=2), threading.Event(), list[str]()

        def work(cancelled) -> Iterator[str]:
            while not hold.is_set() and not cancelled():
                time.sleep(0.01)
            ran.append("x")
            yield "x"

        running = queue.submit("ann", work)
        await asyncio.sleep(0.05)
        waiting = [queue.submit("ann", work), queue.submit("ann", work)]
        with pytest.raises(Refusal) as refused:
            queue.submit("ann", work)
        assert (refused.value.status_code, refused.value.headers["Retry-After"]) == (429, "5")
        queue.submit("ben", work)
        with pytest.raises(Refusal) as refused:
            queue.submit("cat", work)
        assert refused.value.status_code == 503
        waiting[0].cancel()
        assert await whole(waiting[0]) == []
        queue.submit("cat", work).cancel()
        running.cancel()
        await asyncio.sleep(0.1)
        assert len(ran) == 1 and queue.running == 1
        await queue.close(0.1)
        with pytest.raises(Refusal):
            await whole(queue.submit("ann", work))

    asyncio.run(check())


def test_the_wait_for_a_turn_is_not_work():
    async def check() -> None:
        queue = turns()

        def work(cancelled) -> Iterator[str]:
            time.sleep(0.3)
            yield "x"

        began = time.monotonic()
        jobs = [queue.submit("ann", work) for _ in range(3)]
        await asyncio.gather(*map(whole, jobs))
        assert time.monotonic() - began >= 0.9
        assert all(0.3 <= job.seconds < 0.6 for job in jobs)
        await queue.close(1)

    asyncio.run(check())


def test_an_error_in_the_work_reaches_the_reader():
    async def check() -> None:
        queue = turns()

        def work(cancelled) -> Iterator[str]:
            yield "one"
            raise AudioError("no")

        job = queue.submit("ann", work)
        assert await anext(job) == "one"
        with pytest.raises(AudioError):
            await anext(job)
        assert await anext(job, None) is None
        await queue.close(1)

    asyncio.run(check())


def decoding(check, **settings) -> None:
    async def run() -> None:
        decoders = Decoders(Settings(**settings))
        try:
            await check(decoders)
        finally:
            await decoders.close()

    asyncio.run(run())


def test_a_worker_decodes_as_the_loader_does():
    async def check(decoders: Decoders) -> None:
        data = wav(3, rate=44_100)
        np.testing.assert_array_equal(await decoders.decode("ann", data), load_audio(data))
        assert await decoders.decode("ann", data) is await decoders.decode("ann", data)
        assert await decoders.decode("ben", data) is not await decoders.decode("ann", data)
        for bad, kind in ((b"hello", UnsupportedAudioError), (data[:500], CorruptAudioError), (b"", CorruptAudioError)):
            with pytest.raises(kind):
                await decoders.decode("ann", bad)
        with pytest.raises(AudioLimitError, match="longer than 4 s"):
            await decoders.decode("ann", wav(5))
        assert len(decoders.pids) == 1

    decoding(check, max_audio_seconds=4, decoders=1)


def test_a_worker_that_is_killed_is_replaced():
    async def check(decoders: Decoders) -> None:
        await decoders.start()
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGKILL)
        assert len(await decoders.decode("ann", wav())) == 32_000
        assert decoders.pids != [pid]

    decoding(check, decoders=1)


def test_a_recording_that_kills_every_worker_is_refused(monkeypatch):
    async def check(decoders: Decoders) -> None:
        spawn, spawned = decoders._spawn, list[int]()

        async def dying() -> Process:
            worker = await spawn()
            spawned.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
            return worker

        monkeypatch.setattr(decoders, "_spawn", dying)
        with pytest.raises(CorruptAudioError, match="crashed"):
            await decoders.decode("ann", wav())
        assert len(spawned) == 2
        monkeypatch.setattr(decoders, "_spawn", spawn)
        assert len(await decoders.decode("ann", wav())) == 32_000

    decoding(check, decoders=1)


def test_a_worker_has_limits_of_time_and_memory():
    async def slow(decoders: Decoders) -> None:
        await decoders.start()
        os.kill(decoders.pids[0], signal.SIGSTOP)
        with pytest.raises(AudioError, match="within 3 s"):
            await decoders.decode("ann", wav())
        assert len(await decoders.decode("ann", wav())) == 32_000

    async def large(decoders: Decoders) -> None:
        with pytest.raises(AudioLimitError, match="memory"):
            await decoders.decode("ann", wav(4000, rate=8000))
        assert len(await decoders.decode("ann", wav())) == 32_000

    decoding(slow, decoders=1, decode_seconds=3.0)
    decoding(large, decoders=1, decode_memory_bytes=600 << 20)


def test_audio_that_is_held_is_counted():
    async def check(decoders: Decoders) -> None:
        held = [await decoders.decode("ann", wav(2 + n)) for n in range(3)]
        assert decoders.held_seconds == 9
        with pytest.raises(Refusal):
            await decoders.decode("ann", wav(1))
        held.clear()
        assert decoders.held_seconds == 0
        await decoders.decode("ann", wav(1))

    decoding(check, max_held_seconds=8, decoded_cache_seconds=0)


def test_bodies_are_limited_while_they_are_read():
    with client(max_body_bytes=100_000) as http:
        def endless() -> Iterator[bytes]:
            while True:
                yield b"x" * 10_000

        for send in ({"content": b"x" * 200_000}, {"files": {"file": ("a", b"x" * 200_000)}}):
            response = http.post(TRANSCRIBE if "files" in send else CHAT, **send)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        served = app(max_body_bytes=100_000)
    with live(served) as url:
        host = url.removeprefix("http://")
        connection = http_client(host)
        connection.request("POST", CHAT, body=limited(endless(), 60), encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked", "Content-Type": "application/json"})  # fmt: skip
        assert connection.getresponse().status == 413
        connection.close()


def http_client(host: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(host, timeout=10)


def limited(blocks: Iterator[bytes], n: int) -> Iterator[bytes]:
    for _, block in zip(range(n), blocks, strict=False):
        yield block


def test_a_full_disk_is_said(monkeypatch):
    class Full(tempfile.SpooledTemporaryFile):
        def write(self, data) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Full)
    with client() as http:
        for route in (TRANSCRIBE, "/v1/audio/describe", "/v1/files"):
            response = http.post(route, files={"file": ("a", wav())}, data={"purpose": "batch"})
            assert (response.status_code, response.json()["error"]["code"]) == (503, "disk_full"), route
            assert response.headers["Retry-After"]


def test_a_half_sent_body_is_given_up():
    with live(app(body_idle_seconds=0.3)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                        b"Content-Length: 1000\r\n\r\n{")  # fmt: skip
            answer = b"".join(iter(lambda: raw.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408") and b"upload_too_slow" in answer


def test_the_rate_is_limited_for_each_key():
    with client(keys=KEYS, burst=3, requests_per_minute=1) as http:
        alice, bob = ({"Authorization": f"Bearer {key}"} for key in (KEY, KEY + "b"))
        assert [http.get("/v1/models", headers=alice).status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = http.get("/v1/models", headers=alice)
        assert 50 <= int(refused.headers["retry-after"]) <= 60
        assert http.get("/v1/models", headers=bob).status_code == 200
        assert [http.get("/v1/models").status_code for _ in range(4)] == [401, 401, 401, 429]
        assert http.get("/health").status_code == 200


def test_a_client_that_hangs_up_frees_its_place():
    served = app("x" * 10_000, delay=0.01, running=1)
    with live(served) as url:
        queue = served.state.service.turns
        for stream in (True, False):
            with httpx.Client(base_url=url, timeout=httpx.Timeout(10, read=2.0)) as http:
                try:
                    with http.stream("POST", CHAT, json=question(stream=stream, max_tokens=2000)) as response:
                        next(response.iter_lines())
                        assert queue.running == 1
                except httpx.ReadTimeout:
                    assert queue.running == 1
            until(lambda: queue.running == 0)


def test_a_client_that_waits_its_turn_and_hangs_up_leaves_the_queue():
    served = app("x" * 10_000, delay=0.01, running=1)
    with live(served) as url, httpx.Client(base_url=url, timeout=10) as http:
        queue = served.state.service.turns
        with http.stream("POST", CHAT, json=question(stream=True, max_tokens=2000)) as response:
            next(response.iter_lines())
            with httpx.Client(base_url=url, timeout=0.5) as other, pytest.raises(httpx.ReadTimeout):
                other.post(CHAT, json=question())
            until(lambda: queue.waiting == 0)
            assert queue.running == 1


def test_stopping_finishes_what_runs_and_refuses_the_rest():
    served = app("x" * 10, delay=0.05, running=1, grace_seconds=20)
    answers: dict[str, httpx.Response] = {}

    def ask(name: str, url: str) -> None:
        answers[name] = httpx.post(url + CHAT, json=question(), timeout=60)

    with live(served) as url:
        threads = [threading.Thread(target=ask, args=(name, url)) for name in ("first", "second")]
        for thread in threads:
            thread.start()
        until(lambda: served.state.service.turns.waiting == 1)
    for thread in threads:
        thread.join(60)
    assert sorted(answer.status_code for answer in answers.values()) in ([200, 200], [200, 503])


def test_sigterm_refuses_who_waits_and_tells_whose_answer_is_cut():
    answers: dict[str, tuple[int, float]] = {}

    def ask(name: str, http: httpx.Client) -> None:
        status = http.post(CHAT, json=question(max_tokens=2000)).status_code
        answers[name] = status, time.monotonic()

    with process(delay=0.01, text="x" * 10_000) as (http, running):
        threads = [threading.Thread(target=ask, args=(name, http)) for name in ("runs", "waits")]
        for thread in threads:
            thread.start()
            until(lambda: b"moss_audio_running 1.0" in http.get("/metrics").content)
        until(lambda: b"moss_audio_waiting 1.0" in http.get("/metrics").content)
        began = time.monotonic()
        running.terminate()
        for thread in threads:
            thread.join(30)
        assert running.wait(30) in (0, -signal.SIGTERM)  # uvicorn passes the signal on at its end
    (first, early), (second, late) = sorted(answers.values(), key=lambda answer: answer[1])
    assert (first, second) == (503, 503)
    assert early - began < late - began - 0.5


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("127.0.0.1", False), ("10.1.2.3", False), ("169.254.169.254", False), ("0.0.0.0", False),
     ("::1", False), ("fe80::1%eth0", False), ("fd00::1", False), ("::ffff:10.0.0.1", False), ("2002:7f00:1::", False),
     ("64:ff9b::a00:1", False), ("224.0.0.1", False), ("100.64.0.1", False), ("2606:2800:220:1::1", True)],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) is public


class Remote(httpx.AsyncBaseTransport):
    """Other people's servers: what was asked of which address."""

    def __init__(self, *responses: httpx.Response) -> None:
        self.responses, self.asked = list(responses), list[tuple[str, str, str]]()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"]))
        response = self.responses.pop(0)
        return httpx.Response(response.status_code, headers=response.headers, stream=httpx.ByteStream(response.content))


def fetched(url: str, *responses: httpx.Response, addresses=("93.184.216.34",), **settings) -> tuple[bytes, Remote]:
    async def resolve(host: str):
        return addresses

    remote = Remote(*responses)
    options = {"remote_hosts": ("a.example", "*.b.example")} | settings
    fetcher = Fetcher(Settings(**options), resolve, remote)
    return asyncio.run(fetcher.fetch(url)), remote


def test_a_remote_recording_comes_from_the_address_that_was_checked():
    redirect = httpx.Response(302, headers={"location": "https://x.b.example/y"})
    data, remote = fetched("https://a.example/x.wav", redirect, httpx.Response(200, content=b"audio"))
    assert data == b"audio"
    assert remote.asked == [("93.184.216.34", host, host) for host in ("a.example", "x.b.example")]


@pytest.mark.parametrize(
    "url",
    ["http://a.example/", "https://evil.example/", "https://a.example:8443/", "https://me@a.example/",
     "https://b.example/", "https://a.example.evil.example/", "file:///etc/passwd", "https://127.0.0.1/",
     "https://[::1]/", "https://", "x", "",
     "https://a.example\\@evil.example/", "https://evilb.example/"],
)  # fmt: skip
def test_remote_urls_that_are_refused(url):
    with pytest.raises(Refusal):
        fetched(url, httpx.Response(200, content=b"secret"))


def test_remote_answers_that_are_refused():
    private = {"addresses": ("93.184.216.34", "10.0.0.1")}
    for responses, options in (
        ([httpx.Response(200, content=b"x")], private),
        ([httpx.Response(302, headers={"location": "https://evil.example/"})], {}),
        ([httpx.Response(302, headers={"location": "http://a.example/"})], {}),
        ([httpx.Response(302, headers={"location": "/again"})] * 4, {}),
        ([httpx.Response(200, content=b"x" * 2000)], {"fetch_bytes": 1024}),
        ([httpx.Response(200, headers={"content-encoding": "br"})], {}),
        ([httpx.Response(404)], {}),
    ):
        with pytest.raises(Refusal):
            fetched("https://a.example/", *responses, **options)


def test_remote_recordings_are_off_unless_switched_on():
    content = [{"type": "audio_url", "audio_url": {"url": "https://a.example/x.wav"}}]
    with client() as http:
        response = http.post(CHAT, json={"messages": [{"role": "user", "content": content}]})
        assert (response.status_code, response.json()["error"]["code"]) == (403, "remote_audio_off")
    with client(remote_hosts=("b.example",)) as http:
        for url in ("/etc/passwd", "file:///etc/passwd", "https://a.example/x.wav"):
            content[0]["audio_url"]["url"] = url
            response = http.post(CHAT, json={"messages": [{"role": "user", "content": content}]})
            assert response.status_code in (403, 422), response.text


def test_logs_have_neither_keys_nor_contents(caplog):
    caplog.set_level("INFO", "moss_audio.server")
    with client("a secret answer", keys=KEYS) as http:
        http.post(CHAT, json=question("a secret question"), headers={"Authorization": f"Bearer {KEY}"})
        http.get("/v1/models?key=secret", headers={"Authorization": "Bearer secret"})
    lines = [json.dumps(record.__dict__.get("fields", record.getMessage())) for record in caplog.records]
    assert any('"owner": "alice"' in line for line in lines) and any("invalid_api_key" in line for line in lines)
    assert not any("secret" in line or KEY in line for line in lines)
