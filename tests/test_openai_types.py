"""What the server sends, held strictly against the types that OpenAI publishes.

OpenAI's client builds its objects without checking them, so its tests pass with fields missing. Here the raw JSON is
validated: a field that is required and missing, or of another type, fails, and a field that OpenAI does not have must
be one of the additions that docs/server.md names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from conftest import ROOT
from openai.types import Batch, FileDeleted, FileObject, Model
from openai.types.audio import Transcription, TranscriptionStreamEvent, TranscriptionVerbose
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.realtime import RealtimeServerEvent
from openai.types.shared import ErrorObject
from pydantic import BaseModel, TypeAdapter, ValidationError
from servers import KEYS, client, question, until, wav

from moss_audio.audio import load_audio

CHAT, TRANSCRIBE, BATCHES = "/v1/chat/completions", "/v1/audio/transcriptions", "/v1/batches"
THOUGHT = "<think>why</think> Because."


def additions(kind: Any, raw: str | bytes) -> set[str]:
    """Validate JSON as `kind`, strictly; the fields of it that OpenAI's type does not have."""
    return set(_unknown(TypeAdapter(kind).validate_json(raw, strict=True)))


def _unknown(value: Any, at: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _unknown(each, at)
    if isinstance(value, BaseModel):
        yield from (f"{at}{name}" for name in value.model_extra or {})
        for name, each in value:
            if name in type(value).model_fields:
                yield from _unknown(each, f"{at}{name}.")


@pytest.fixture(scope="module")
def http():
    with client(THOUGHT) as found:
        yield found


def file() -> dict[str, tuple[str, bytes]]:
    return {"file": ("a.wav", wav())}


def streamed(response: Any) -> list[str]:
    *lines, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert done == "[DONE]" and lines
    return lines


def test_what_is_not_openais_type_fails(http):
    """The proof that these tests can fail."""
    answer = http.post(CHAT, json=question()).json()
    for change in (
        {"created": None}, {"created": 1.5}, {"object": "completion"}, {"usage": {"total_tokens": 3}},
        {"choices": [answer["choices"][0] | {"finish_reason": "eos"}]}, {"id": 7},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            additions(ChatCompletion, json.dumps(answer | change))
    for name in ("id", "created", "model", "choices", "object"):
        with pytest.raises(ValidationError):
            additions(ChatCompletion, json.dumps({key: value for key, value in answer.items() if key != name}))
    assert additions(ChatCompletion, json.dumps(answer | {"more": 1})) >= {"more"}


def test_chat(http):
    response = http.post(CHAT, json=question(n=2))
    known = {"choices.message.reasoning_content", "usage.audio_seconds"}
    assert additions(ChatCompletion, response.content) == known
    for choice in response.json()["choices"]:  # required in the published schema, though its types have defaults
        assert {"finish_reason", "index", "logprobs", "message"} == set(choice)
        assert {"role", "content", "refusal"} <= set(choice["message"])


def test_streamed_chat(http):
    asked = question(n=2, stream=True, stream_options={"include_usage": True})
    chunks = streamed(http.post(CHAT, json=asked))
    found = set().union(*(additions(ChatCompletionChunk, chunk) for chunk in chunks))
    assert found == {"choices.delta.reasoning_content", "usage.audio_seconds"}
    for chunk in map(json.loads, chunks):
        assert all({"index", "delta", "finish_reason"} <= set(choice) for choice in chunk["choices"])


@pytest.mark.parametrize("granularities", [["word"], ["segment"], ["word", "segment"]])
def test_transcripts(http, granularities):
    assert additions(Transcription, http.post(TRANSCRIBE, files=file()).content) == {"finish_reason"}
    data = {"response_format": "verbose_json", "timestamp_granularities[]": granularities}
    response = http.post(TRANSCRIBE, files=file(), data=data)
    assert additions(TranscriptionVerbose, response.content) == {"finish_reason", "task"}
    assert {name for name in ("words", "segments") if name in response.json()} == {f"{g}s" for g in granularities}


def test_streamed_transcripts(http):
    events = streamed(http.post(TRANSCRIBE, files=file(), data={"stream": "true"}))
    openais = [event for event in events if json.loads(event)["type"] != "transcript.progress"]
    assert len(openais) == len(events) - 1
    found = set().union(*(additions(TranscriptionStreamEvent, event) for event in openais))
    assert found == {"words", "finish_reason"}


def test_models(http):
    listed = http.get("/v1/models").json()
    assert (listed["object"], set(listed)) == ("list", {"object", "data"})
    for card in (*listed["data"], http.get("/v1/models/mini").json()):
        assert additions(Model, json.dumps(card)) == set()


def test_files_and_batches(http):
    lines = [
        {"custom_id": name, "method": "POST", "url": CHAT, "body": question(max_tokens=tokens)}
        for name, tokens in (("right", 4), ("wrong", 10**9))
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    uploaded = http.post("/v1/files", files={"file": ("b.jsonl", content)}, data={"purpose": "batch"})
    assert additions(FileObject, uploaded.content) == set()
    name = uploaded.json()["id"]
    begun = http.post(BATCHES, json={"input_file_id": name, "endpoint": CHAT, "completion_window": "24h"})
    path = f"{BATCHES}/{begun.json()['id']}"
    until(lambda: http.get(path).json()["status"] == "completed", 30)
    ended, cancelled = http.get(path), http.post(f"{path}/cancel")
    for answer in (begun, ended, cancelled):
        assert additions(Batch, answer.content) == set()
    assert ended.json()["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    listed = http.get(BATCHES).json()
    assert {"object", "data", "first_id", "last_id", "has_more"} == set(listed)
    assert additions(list[Batch], json.dumps(listed["data"])) == set()
    assert additions(list[FileObject], json.dumps(http.get("/v1/files").json()["data"])) == set()
    for kind, of in (("output_file_id", ChatCompletion), ("error_file_id", None)):
        (line,) = map(json.loads, http.get(f"/v1/files/{ended.json()[kind]}/content").text.splitlines())
        assert {"id", "custom_id", "response", "error"} == set(line)
        assert {"status_code", "request_id", "body"} == set(line["response"])
        body = line["response"]["body"]
        assert additions(of or ErrorObject, json.dumps(body if of else body["error"])) <= {
            "choices.message.reasoning_content", "usage.audio_seconds"
        }  # fmt: skip
    assert additions(FileDeleted, http.delete(f"/v1/files/{name}").content) == set()


def test_refusals(http):
    refused = [
        http.post(CHAT, json=question(n=99)), http.post(CHAT, content=b"{"), http.get("/v1/models/gpt-9"),
        http.get("/v1/nothing"), http.put("/v1/models"), http.post(TRANSCRIBE, files={"file": ("a", b"text")}),
        http.post(TRANSCRIBE, files={"file": ("a.wav", wav()[:2000])}), http.get("/v1/models", headers={"Host": "x"}),
    ]  # fmt: skip
    with client(keys=KEYS, burst=2, requests_per_minute=1) as locked:
        refused += [locked.get("/v1/models") for _ in range(3)]
    assert {answer.status_code for answer in refused} == {400, 401, 403, 404, 405, 415, 422, 429}
    for answer in refused:
        assert set(answer.json()) == {"error"} and {"code", "message", "param", "type"} == set(answer.json()["error"])
        assert additions(ErrorObject, json.dumps(answer.json()["error"])) == set()


def test_live_events():
    samples = load_audio(ROOT / "examples" / "speech_woman.ogg").repeat(3)[::2]  # 24 kHz, OpenAI's only rate
    pcm = b"".join((part * 32767).astype("<i2").tobytes() for part in (samples, 0 * samples))
    form = {"type": "audio/pcm", "rate": 24_000}
    update = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"format": form}}}}
    sent = [update, pcm, {"type": "input_audio_buffer.clear"}, {}]
    with client() as http, http.websocket_connect("ws://localhost/v1/realtime") as socket:
        for message in sent:
            socket.send_bytes(message) if isinstance(message, bytes) else socket.send_json(message)
        events: dict[str, str] = {}
        while not ({"error", f"{TRANSCRIBED}.completed"} <= events.keys()):
            text = socket.receive_text()
            events[json.loads(text)["type"]] = text
    events.pop(f"{TRANSCRIBED}.partial", "")  # an addition, and sent only where the model has time for it
    assert len(events) >= 8
    found = {kind: additions(LIVE[kind], event) for kind, event in events.items()}
    settings = {"id", "object", "model", "sample_rates", "transcription", "partials", "narration", "events"}
    for kind in ("session.created", "session.updated"):
        assert found.pop(kind) == {f"session.{name}" for name in settings}
    assert {kind: names for kind, names in found.items() if names} == {f"{TRANSCRIBED}.completed": {"start", "end"}}


TRANSCRIBED = "conversation.item.input_audio_transcription"

LIVE = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(RealtimeServerEvent)[0])}
"""OpenAI's type of each event by its name."""


def test_the_additions_are_documented():
    document = (ROOT / "docs" / "server.md").read_text("utf-8")
    for name in ("usage.audio_seconds", "reasoning_content", "finish_reason", "transcript.progress", "words"):
        assert name in document
