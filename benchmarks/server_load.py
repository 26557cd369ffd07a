"""Clients of all kinds against a server of the Mini on loopback: latencies, statuses and memory.

    python benchmarks/server_load.py --clients 32 --seconds 120

A third of the clients transcribe, others ask with streaming, find events, read slowly, stop in the middle of an upload
or of an answer. Half of them have one key, the others share two. Decoders are killed all along. At the end the server
itself is killed, still under load, in the middle of a batch, and started again.

Exit status 1 for any 5xx but 503, where memory grew by over 5 % from the middle of the run to its end, where who asks
less waits longer (95th percentile), or where the batch has not exactly one answer for every request.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CLIPS = ("speech_woman.ogg", "speech_man.ogg", "siren.ogg", "arpeggio.ogg", "silence.flac")

OWNERS = ("greedy", "greedy", "alice", "bob")
"""Whose keys the clients have, eight clients in turn: each owner's do the same things."""

BATCH_LINES = 12
"""Requests of the batch that the server's end interrupts."""

BEFORE_CRASH, AFTER_CRASH = 30.0, 20.0
"""Seconds of load from the start of the batch to the server's end, and from there on."""

Kind = Callable[["Load", httpx.AsyncClient], Awaitable[int]]


class Server:
    """`moss-audio serve` on loopback, with its batches in the file `store`."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.store, self.keys = folder / "batches.db", folder / "keys"
        lines = (f"{owner} {hashlib.sha256(owner.encode()).hexdigest()}\n" for owner in dict.fromkeys(OWNERS))
        self.keys.write_text("".join(lines), encoding="ascii")
        self.start()

    def start(self) -> None:
        limits = ["--requests-per-minute", "100000", "--burst", "100000"]
        place = ["--port", str(self.port), "--store", str(self.store), "--keys-file", str(self.keys)]
        command = [sys.executable, "-m", "moss_audio.cli", "serve", *place, *limits]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """What `kill -9` and the kernel's out-of-memory killer do."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


class Load:
    """One run: what was asked and what came back."""

    def __init__(self, server: Server) -> None:
        self.server, self.url = server, server.url
        self.latencies: dict[str, list[float]] = defaultdict(list)
        self.owners: dict[str, list[float]] = defaultdict(list)
        self.statuses: dict[str, Counter[int]] = defaultdict(Counter)
        self.memory_mb: list[float] = []
        self.killed = 0
        self.files = [(EXAMPLES / name).read_bytes() for name in CLIPS]

    def clip(self) -> bytes:
        return random.choice(self.files)

    def question(self) -> dict[str, object]:
        audio = {"data": base64.b64encode(self.clip()).decode(), "format": "ogg"}
        content = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": "Describe this audio."}]
        return {"messages": [{"role": "user", "content": content}], "stream": True, "max_tokens": 24}

    def http(self, owner: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=120, headers={"Authorization": f"Bearer {owner}"})

    async def client(self, kind: Kind, owner: str, calm: float, until: float) -> None:
        """One client, asking again and again."""
        async with self.http(owner) as http:
            while time.monotonic() < until:
                began, name = time.monotonic(), kind.__name__
                try:
                    status = await kind(self, http)
                except (httpx.TransportError, OSError):
                    status = 0  # the client's own doing, or the server's: counted, and told apart by its kind
                self.statuses[name][status] += 1
                if status == 200:
                    self.latencies[name].append(time.monotonic() - began)
                    if time.monotonic() < calm:
                        self.owners[owner].append(time.monotonic() - began)
                await asyncio.sleep(random.uniform(0, 0.2) if status in (0, 200) else 1.0)

    async def watch(self, calm: float, until: float) -> None:
        """Memory of the server itself twice a second while it is `calm`, and now and then a dead decoder."""
        while time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the server is dead itself
                if time.monotonic() < calm:
                    self.memory_mb.append(resident_mb(self.server.pid))
                if random.random() < 0.05 and (children := children_of(self.server.pid)):
                    os.kill(random.choice(children), signal.SIGKILL)
                    self.killed += 1
            await asyncio.sleep(0.5)

    async def crash(self, begin: float) -> bool:
        """Start a batch at `begin`, kill the server in its middle, start it again; whether every answer is there."""
        await asyncio.sleep(begin - time.monotonic())
        async with self.http("alice") as http:
            lines = b"\n".join(self.batch_line(number) for number in range(BATCH_LINES))
            files, purpose = {"file": ("batch.jsonl", lines)}, {"purpose": "batch"}
            file_id = (await http.post("/v1/files", files=files, data=purpose)).raise_for_status().json()["id"]
            request = {"input_file_id": file_id, "endpoint": "/v1/audio/transcriptions", "completion_window": "24h"}
            path = f"/v1/batches/{(await http.post('/v1/batches', json=request)).raise_for_status().json()['id']}"
            await asyncio.sleep(begin + BEFORE_CRASH - time.monotonic())
            done = (await http.get(path)).raise_for_status().json()["request_counts"]["completed"]
            self.server.kill()
            self.server.start()
            await asyncio.to_thread(wait, self.url)
            while (batch := (await http.get(path)).raise_for_status().json())["status"] not in ("completed", "failed"):
                await asyncio.sleep(1)
            content = (await http.get(f"/v1/files/{batch['output_file_id']}/content")).raise_for_status().text
        answers = [json.loads(line) for line in content.splitlines()]
        print(f"batch: {done} of {BATCH_LINES} answers when the server was killed, {len(answers)} in the end")
        return [answer["custom_id"] for answer in answers] == [str(number) for number in range(BATCH_LINES)] and all(
            answer["response"]["status_code"] == 200 for answer in answers
        )

    def batch_line(self, number: int) -> bytes:
        body = {"file": base64.b64encode(self.files[number % len(self.files)]).decode()}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/audio/transcriptions", "body": body}
        return json.dumps(line).encode()


async def transcribe(load: Load, http: httpx.AsyncClient) -> int:
    return (await http.post("/v1/audio/transcriptions", files={"file": ("a.ogg", load.clip())})).status_code


async def ask(load: Load, http: httpx.AsyncClient) -> int:
    return (await http.post("/v1/chat/completions", json=load.question())).status_code


async def find_events(load: Load, http: httpx.AsyncClient) -> int:
    return (await http.post("/v1/audio/events", files={"file": ("a.ogg", load.clip())})).status_code


async def read_slowly(load: Load, http: httpx.AsyncClient) -> int:
    async with http.stream("POST", "/v1/chat/completions", json=load.question()) as response:
        async for _ in response.aiter_raw(64):
            await asyncio.sleep(0.05)
        return response.status_code


async def leave_early(load: Load, http: httpx.AsyncClient) -> int:
    async with http.stream("POST", "/v1/chat/completions", json=load.question()) as response:
        await asyncio.sleep(random.uniform(0, 0.5))
        return response.status_code


async def send_half(load: Load, http: httpx.AsyncClient) -> int:
    host, _, port = load.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
    writer.write(f"{head}Authorization: {http.headers['Authorization']}\r\n\r\n{'x' * 999}".encode())
    await writer.drain()
    await asyncio.sleep(random.uniform(0, 2))
    writer.close()
    return 0


KINDS: tuple[Kind, ...] = (transcribe, ask, find_events, transcribe, read_slowly, leave_early, transcribe, send_half)


def resident_mb(pid: int) -> float:
    fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text(encoding="ascii").split()]


async def run(load: Load, n_clients: int, seconds: float) -> bool:
    """The whole run; whether nothing of the batch was lost."""
    calm = time.monotonic() + seconds
    until = calm + BEFORE_CRASH + AFTER_CRASH
    who = [(KINDS[n % len(KINDS)], OWNERS[n // len(KINDS) % len(OWNERS)]) for n in range(n_clients)]
    clients = [load.client(kind, owner, calm, until) for kind, owner in who]
    whole, *_ = await asyncio.gather(load.crash(calm), load.watch(calm, until), *clients)
    return whole


def report(load: Load) -> bool:
    """Print what happened; whether it is as it should be."""
    for name, counts in sorted(load.statuses.items()):
        ends = " ".join(f"{status or 'left'}:{n}" for status, n in sorted(counts.items()))
        print(f"{name:<14} {spread(load.latencies[name])}  {ends}")
    for owner, times in load.owners.items():
        print(f"{owner:<14} {spread(times)}  {len(times)} answers")
    modest = [percentile(times) for owner, times in load.owners.items() if owner != OWNERS[0]]
    fair = not modest or max(modest) <= percentile(load.owners[OWNERS[0]])
    print(f"{load.killed} decoders killed")
    half, growth = len(load.memory_mb) // 2, 0.0
    if half:
        middle, end = (statistics.mean(part[-max(1, half // 2) :]) for part in (load.memory_mb[:half], load.memory_mb))
        growth = end / middle - 1
        print(f"memory {load.memory_mb[0]:.0f} MB at first, {middle:.0f} MB in the middle, {end:.0f} MB at the end")
    failed = [status for counts in load.statuses.values() for status in counts if status >= 500 and status != 503]
    return not failed and growth <= 0.05 and fair


def spread(times: list[float]) -> str:
    found = times or [0.0]
    return f"median {statistics.median(found):6.2f} s  p95 {percentile(found):6.2f} s  max {max(found):6.2f} s"


def percentile(times: list[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(0.95 * len(times)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            wait(server.url)
            load = Load(server)
            whole = asyncio.run(run(load, args.clients, args.seconds))
            return int(not (report(load) and whole))
        finally:
            server.stop()


def wait(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the server did not start within 120 s")


if __name__ == "__main__":
    sys.exit(main())
