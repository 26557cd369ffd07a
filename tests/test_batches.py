"""Batches through the routes: whole jobs, bad files, cancelling, other people's, and servers that are killed."""

from __future__ import annotations

import base64
import json
import os
import signal
import sqlite3
import time

import pytest
from servers import KEY, KEYS, client, process, question, until, wav

from moss_audio.server.store import Store

CHAT = "/v1/chat/completions"


def line(name: str, body: dict | None = None, url: str = CHAT) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": question() if body is None else body})


def upload(http, text: str) -> str:
    response = http.post("/v1/files", files={"file": ("b.jsonl", text.encode())}, data={"purpose": "batch"})
    assert response.status_code == 200, response.text
    return response.json()["id"]


def start(http, text: str, endpoint: str = CHAT, **more) -> dict:
    response = http.post("/v1/batches", json={"input_file_id": upload(http, text), "endpoint": endpoint, **more})
    assert response.status_code == 200, response.text
    return response.json()


def ended(http, batch: dict, seconds: float = 20) -> dict:
    until(lambda: http.get(f"/v1/batches/{batch['id']}").json()["status"] != "in_progress", seconds)
    return http.get(f"/v1/batches/{batch['id']}").json()


def results(http, file_id: str) -> list[dict]:
    return [json.loads(text) for text in http.get(f"/v1/files/{file_id}/content").text.splitlines()]


@pytest.fixture
def http():
    with client() as found:
        yield found


def test_a_batch_from_upload_to_results(http):
    bad = line("bad", {"messages": []})
    batch = start(http, f"{line('a')}\n\n{bad}\n{line('b')}\n", metadata={"for": "tests"})
    assert batch["status"] == "in_progress" and batch["request_counts"]["total"] == 3
    batch = ended(http, batch)
    assert batch["status"] == "completed" and batch["metadata"] == {"for": "tests"}
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    done = results(http, batch["output_file_id"])
    assert [result["custom_id"] for result in done] == ["a", "b"]
    alone = http.post(CHAT, json=question()).json()
    assert done[0]["response"]["body"]["choices"] == alone["choices"]
    assert alone["choices"][0]["message"]["content"] == "Hello there."
    (failed,) = results(http, batch["error_file_id"])
    assert failed["response"]["status_code"] == 400 and "messages" in failed["response"]["body"]["error"]["message"]
    assert [found["id"] for found in http.get("/v1/batches").json()["data"]] == [batch["id"]]


def test_transcripts_and_tasks_in_batches(http):
    clip = base64.b64encode(wav()).decode()
    url = "/v1/audio/transcriptions"
    batch = start(http, line("a", {"file": clip, "response_format": "verbose_json"}, url), url)
    (result,) = results(http, ended(http, batch)["output_file_id"])
    assert result["response"]["body"]["duration"] == 2.0
    url = "/v1/audio/ask"
    batch = start(http, line("a", {"file": clip, "question": "?"}, url) + "\n" + line("b", {"file": clip}, url), url)
    batch = ended(http, batch)
    assert "Hello there." in json.dumps(results(http, batch["output_file_id"]))
    assert "question is missing" in json.dumps(results(http, batch["error_file_id"]))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "0 requests"),
        ("{", "line 1"),
        (f"{line('a')}\n{line('a')}", "line 2: custom_id"),
        (line("a", url="/v1/models"), "url"),
        ('{"custom_id": "\\ud800"}', "line 1"),
        ("\xff\n", "line 1"),
        ("\n".join(line(str(n)) for n in range(4)), "4 requests"),
    ],
)
def test_files_that_are_no_batch(text, match):
    with client(max_batch_lines=3) as http:
        name = upload(http, text)
        response = http.post("/v1/batches", json={"input_file_id": name, "endpoint": CHAT})
        assert response.status_code == 400 and match in response.json()["error"]["message"]


def test_cancelling_keeps_what_is_done():
    with client("x" * 40, delay=0.01) as http:
        batch = start(http, "\n".join(line(str(n)) for n in range(50)))
        until(lambda: http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"] >= 1)
        cancelled = http.post(f"/v1/batches/{batch['id']}/cancel").json()
        assert cancelled["status"] == "cancelled" and cancelled["cancelled_at"]
        n_done = http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"]
        assert 1 <= len(results(http, cancelled["output_file_id"])) <= n_done + 1 < 50
        assert http.post(f"/v1/batches/{batch['id']}/cancel").json()["status"] == "cancelled"


def test_files_and_batches_are_their_owners():
    alice, bob = ({"Authorization": f"Bearer {key}"} for key in (KEY, KEY + "b"))
    with client(keys=KEYS) as http:
        http.headers = alice
        batch = ended(http, start(http, line("a")))
        http.headers = bob
        for path in (
            f"/v1/batches/{batch['id']}", f"/v1/files/{batch['input_file_id']}",
            f"/v1/files/{batch['output_file_id']}/content", f"/v1/files/{batch['input_file_id']}/content",
        ):  # fmt: skip
            assert http.get(path).status_code == 404, path
        assert http.get("/v1/files").json()["data"] == [] == http.get("/v1/batches").json()["data"]
        http.headers = alice
        assert http.delete(f"/v1/files/{batch['input_file_id']}").json()["deleted"] is True
        assert http.get(f"/v1/files/{batch['input_file_id']}").status_code == 404


def test_the_store_is_limited_and_forgets():
    with client(max_store_bytes=200_000) as http:
        file = upload(http, f"{line('a', {'x': 'x' * 80_000})}")
        response = http.post("/v1/files", files={"file": ("b", b"x" * 120_000)}, data={"purpose": "batch"})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "store_full")
        batch = {"input_file_id": file, "endpoint": CHAT}
        assert http.post("/v1/batches", json=batch).status_code == 200  # its lines are a copy
        response = http.post("/v1/batches", json=batch)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "store_full")
        assert http.delete(f"/v1/files/{file}").status_code == 200
        upload(http, "x" * 30_000)
    with client(max_batch_bytes=1024) as http:
        response = http.post("/v1/files", files={"file": ("b", b"x" * 2000)}, data={"purpose": "batch"})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "file_too_large")
    with client(batch_seconds=0.1) as http:
        upload(http, "x")
        until(lambda: http.app.state.store.expire() or not http.get("/v1/files").json()["data"])


def test_an_owner_has_few_open_batches_and_none_for_ever():
    with client("x" * 40, delay=0.05, max_batches_per_key=2, batch_seconds=3.0) as http:
        batch = start(http, f"{line('a')}\n{line('b')}")
        start(http, line("a"))
        file = upload(http, line("a"))
        response = http.post("/v1/batches", json={"input_file_id": file, "endpoint": CHAT})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "too_many_batches")
        assert int(response.headers["Retry-After"]) > 0
        assert batch["expires_at"] - batch["created_at"] == 3 and batch["expired_at"] is None
        time.sleep(3.1)
        http.app.state.store.expire()
        batch = http.get(f"/v1/batches/{batch['id']}").json()
        assert batch["status"] == "expired" and batch["expired_at"] and batch["completed_at"] is None
        start(http, line("a"))


def test_stopping_is_not_a_requests_doing(tmp_path):
    store, batch = str(tmp_path / "store.db"), {}
    for stop in range(5):  # more often than a request may take the server with it
        with process(store, delay=0.2, text="x" * 60) as (http, running):
            batch = batch or start(http, line("a"))
            until(lambda http=http: "running 1.0" in http.get("/metrics").text, 20)
            running.terminate()
            assert running.wait(20) is not None, stop
    with process(store) as (http, _):
        assert ended(http, batch, 30)["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


def test_nothing_is_lost_when_the_server_is_killed(tmp_path):
    store = tmp_path / "store.db"
    with process(str(store), delay=0.01) as (http, running):
        batch = start(http, "\n".join(line(str(n)) for n in range(8)))
        until(lambda: http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"] >= 2)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    assert store.stat().st_mode & 0o077 == 0
    with process(str(store), delay=0) as (http, _):
        batch = ended(http, batch, 30)
        assert batch["request_counts"] == {"total": 8, "completed": 8, "failed": 0}
        assert [result["custom_id"] for result in results(http, batch["output_file_id"])] == [str(n) for n in range(8)]


def test_a_full_disk_delays_a_batch(monkeypatch):
    failures = 1
    keep = Store.finish_line

    def full(store, *result):
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise sqlite3.OperationalError("database or disk is full")
        keep(store, *result)

    monkeypatch.setattr(Store, "finish_line", full)
    with client() as http:
        batch = ended(http, start(http, line("a")))
        assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0} and failures == -1


def test_a_request_that_kills_the_server_is_given_up():
    with client() as http:
        store = http.app.state.store
        http.app.state.service.state = "stopping"  # the runner leaves off
        batch = start(http, line("deadly"))
        for _ in range(3):
            assert store.next_line() is not None  # and the server dies before it has a result
        found = store.next_line()
        assert found is not None and found.attempts == 3
        from moss_audio.server.batches import Runner

        http.portal.call(Runner(http.app.state.service, store)._answer, found)
        assert http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["failed"] == 1
