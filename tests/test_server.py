"""The routes with a model that is made up: what clients get, and what they are refused."""

from __future__ import annotations

import base64
import json

import jsonschema
import pytest
from servers import KEY, KEYS, client, question, wav

from moss_audio.server.chat import Reasoning
from moss_audio.server.examples import FILE
from moss_audio.server.keys import ApiKeys, digest, new_key
from moss_audio.server.schemas import ChatChunk, ChatCompletion, ErrorReply, VerboseTranscription
from moss_audio.server.settings import Settings, SettingsError
from moss_audio.tasks import TASKS

CHAT, TRANSCRIBE = "/v1/chat/completions", "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def http():
    with client() as found:
        yield found


def file(data: bytes | None = None) -> dict[str, tuple[str, bytes]]:
    return {"file": ("a.wav", wav() if data is None else data)}


def events(response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def refused(response, status: int, code: str) -> str:
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
    return ErrorReply.model_validate(response.json()).error.message


def test_chat_answers_with_usage(http):
    reply = ChatCompletion.model_validate(http.post(CHAT, json=question()).json())
    assert reply.choices[0].message.content == "Hello there."
    assert reply.usage.audio_seconds == 2.0 and reply.usage.prompt_tokens_details.audio_tokens == 25
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_chat_streams_the_same_answer(http):
    asked = question(stream=True, stream_options={"include_usage": True})
    chunks = [ChatChunk.model_validate(event) for event in events(http.post(CHAT, json=asked))]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 13
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_takes_history_a_system_prompt_several_clips_and_data_urls(http):
    asked = question()
    url = "data:audio/wav;base64," + base64.b64encode(wav(1)).decode()
    asked["messages"] = [
        {"role": "developer", "content": "Be brief."},
        *asked["messages"],
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": url}}]},
    ]
    reply = http.post(CHAT, json=asked).json()
    assert reply["usage"]["audio_seconds"] == 3.0


def test_choices_stops_and_limits_of_tokens(http):
    reply = http.post(CHAT, json=question(n=2, stop=[" there"], temperature=0.0)).json()
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["Hello", "Hello"]
    reply = http.post(CHAT, json=question(max_tokens=3)).json()
    assert (reply["choices"][0]["message"]["content"], reply["choices"][0]["finish_reason"]) == ("Hel", "length")


def test_an_answer_keeps_to_its_schema(http):
    schema = {"type": "object", "properties": {"loud": {"type": "boolean"}, "kind": {"enum": ["dog", "cat"]}}}
    asked = question(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    content = http.post(CHAT, json=asked).json()["choices"][0]["message"]["content"]
    assert set(json.loads(content)) == {"loud", "kind"}
    asked["response_format"]["json_schema"]["schema"] = {"type": "object", "patternProperties": {}}
    assert "patternProperties" in refused(http.post(CHAT, json=asked), 400, "invalid_prompt")


def test_reasoning_is_a_field_of_its_own():
    with client("<think>why</think> Because.") as http:
        message = http.post(CHAT, json=question()).json()["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("Because.", "why")
        deltas = [e["choices"][0]["delta"] for e in events(http.post(CHAT, json=question(stream=True)))]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "why"
        assert "".join(delta.get("content", "") for delta in deltas) == "Because."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a < b</think>\n\nB", ("a < b", "B")),
        ("plain", ("", "plain")),
        ("<think>cut", ("cut", "")),
        ("<thin", ("", "<thin")),
    ],
)
def test_reasoning_in_any_pieces(text, expected):
    for size in (1, 2, 3, len(text)):
        split, deltas = Reasoning(), []
        for at in range(0, len(text), size):
            deltas += split.push(text[at : at + size], last=at + size >= len(text))
        thought = "".join(delta.reasoning_content or "" for delta in deltas)
        assert (thought, "".join(delta.content or "" for delta in deltas)) == expected


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("text", "Hello there.\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:02,000\nHello there.\n"),
        ("vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nHello there.\n"),
    ],
)
def test_transcripts_as_text(http, form, expected):
    response = http.post(TRANSCRIBE, files=file(), data={"response_format": form})
    assert response.text == expected and response.headers["content-type"].endswith("charset=utf-8")
    assert response.headers["x-finish-reason"] == "stop"


def test_transcripts_as_json(http):
    plain = http.post(TRANSCRIBE, files=file()).json()
    assert (plain["text"], plain["finish_reason"]) == ("Hello there.", "stop")
    data = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"], "prompt": "Maarten"}
    whole = VerboseTranscription.model_validate(http.post(TRANSCRIBE, files=file(), data=data).json())
    assert (whole.duration, whole.segments[0].end, whole.usage.seconds) == (2.0, 2.0, 2.0)


def test_transcripts_stream(http):
    found = events(http.post(TRANSCRIBE, files=file(), data={"stream": "true"}))
    assert [event["type"].rpartition(".")[2] for event in found] == ["delta", "segment", "progress", "done"]
    assert found[-1]["text"] == "Hello there." and found[-1]["usage"]["total_tokens"] > 0
    assert found[-1]["finish_reason"] == "stop"


def test_what_the_model_cannot_do_is_said(http):
    refused(http.post("/v1/audio/translations", files=file()), 400, "translation_unsupported")
    refused(http.post(CHAT, json=question(tools=[{"type": "function"}])), 400, "invalid_value")
    refused(http.post(CHAT, json=question(response_format={"type": "json_object"})), 400, "unsupported_response_format")


def test_models_are_listed(http):
    assert [card["id"] for card in http.get("/v1/models").json()["data"]] == ["mini"]
    assert http.get("/v1/models/mini").json()["object"] == "model"
    assert "valid: mini" in refused(http.get("/v1/models/gpt-9"), 404, "model_not_found")
    assert "valid: mini" in refused(http.post(CHAT, json=question(model="gpt-9")), 404, "model_not_found")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [(b"hello", 415, "unsupported_audio"), (wav()[:2000], 422, "damaged_audio"), (b"", 422, "damaged_audio"),
     (wav(1, rate=2000), 413, "audio_too_large")],
)  # fmt: skip
def test_recordings_that_cannot_be_used(http, data, status, code):
    refused(http.post(TRANSCRIBE, files=file(data)), status, code)
    refused(http.post(CHAT, json=question(clip=data)), status, code)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b'{"messages": ' + b"9" * 10_000 + b"}", b'{"messages": [], "temperature": NaN}',
     b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"\xff\xfe", b'"text"', b"null"],
)  # fmt: skip
def test_bodies_that_make_no_sense(http, body):
    response = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    ErrorReply.model_validate(response.json())


@pytest.mark.parametrize(
    "change",
    [{"n": 5}, {"max_tokens": 10**9}, {"stop": ["x"] * 5}, {"temperature": 6}, {"top_p": 0}, {"seed": -1},
     {"messages": []},
     {"messages": [{"role": "user", "content": "x" * 40_000}]}, {"messages": [{"role": "tool", "content": "x"}]},
     {"messages": [{"role": "user", "content": "hi"}] * 65}, {"stop": [""]},
     {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "*"}}]}]},
     {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "data:,x"}}]}]}],
    ids=str,
)  # fmt: skip
def test_values_out_of_range(http, change):
    response = http.post(CHAT, json=question("x", **change))
    assert response.status_code == 400, response.text
    ErrorReply.model_validate(response.json())


def test_every_answer_has_the_headers(http):
    for path in ("/health", "/nothing", "/v1/models"):
        headers = http.get(path, headers={"X-Request-ID": "abc-1"}).headers
        assert headers["x-request-id"] == "abc-1" and headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    assert http.get("/health", headers={"X-Request-ID": "a\tb"}).headers["x-request-id"] != "a\tb"


def test_the_page_and_the_document_are_served(http):
    page = http.get("/")
    assert page.status_code == 200 and "<script" in page.text
    assert http.get("/static/../app.py").status_code == 404
    paths = http.get("/openapi.json").json()["paths"]
    assert {CHAT, TRANSCRIBE, "/v1/batches", "/health"} <= set(paths)


def test_metrics_count(http):
    http.post(CHAT, json=question())
    http.post(CHAT, json={})
    text = http.get("/metrics").text
    for name in (
        "tokens_total{", "audio_seconds_total ", 'decoded_cache_total{found="true"}', "first_token_seconds_sum",
        "real_time_factor_sum", "queue_seconds_sum", 'refusals_total{code="invalid_value"}', "waiting 0.0",
    ):  # fmt: skip
        assert f"moss_audio_{name}" in text, name


def test_keys_are_asked_for_everywhere_but_at_the_door():
    with client(keys=KEYS) as http:
        for path in ("/", "/health", "/ready"):
            assert http.get(path).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
                response = http.get(path, headers=header)
                refused(response, 401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
        assert http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert KEY not in http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}x"}).text


def test_keys_are_kept_as_hashes(tmp_path):
    key, line = new_key("carol")
    assert key not in line and line.startswith("carol ")
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n\n{line}\n")
    keys = ApiKeys.read(Settings(keys_file=str(path)), "x" * 24)
    assert (keys.owner(key), keys.owner("x" * 24), keys.owner(key + "x")) == ("carol", "default", None)
    path.write_text("carol secret\n")
    with pytest.raises(SettingsError, match="line 1"):
        ApiKeys.read(Settings(keys_file=str(path)))
    with pytest.raises(SettingsError, match="24 or more"):
        ApiKeys.read(Settings(), "short")
    with pytest.raises(SettingsError, match="name"):
        new_key("a b")
    assert digest(key) not in key.encode()


def test_strangers_pages_and_names_are_refused_on_loopback():
    with client() as http:
        refused(http.get("/v1/models", headers={"Host": "evil.example"}), 403, "unknown_host")
        refused(http.get("/v1/models", headers={"Origin": "https://evil.example"}), 403, "unknown_origin")
        assert http.get("/v1/models", headers={"Origin": "http://localhost"}).status_code == 200
    with client(cors_origins=("https://app.example",)) as http:
        response = http.get("/v1/models", headers={"Origin": "https://app.example"})
        assert response.headers["access-control-allow-origin"] == "https://app.example"


def test_cross_origin_preflight_needs_no_key():
    with client(keys=KEYS, cors_origins=("https://app.example",)) as http:
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        assert http.options(CHAT, headers=asked).status_code == 200
        assert http.options(CHAT, headers=asked | {"Origin": "https://evil.example"}).status_code == 400
        response = http.post(CHAT, json={}, headers={"Origin": "https://app.example"})
        refused(response, 401, "invalid_api_key")
        assert response.headers["access-control-allow-origin"] == "https://app.example"


def test_settings_say_what_is_wrong():
    variables = {"MOSS_AUDIO_MAX_CLIPS": "3", "MOSS_AUDIO_REMOTE_HOSTS": "a.example, b.example"}
    read = Settings.read(variables, {"port": "1"})
    assert (read.max_clips, read.remote_hosts, read.port) == (3, ("a.example", "b.example"), 1)
    for name, value, match in (
        ("PORT", "x", "port is 'x'"), ("RUNNING", "0", "running is 0"), ("BODY_SECONDS", "nan", "body_seconds"),
        ("PORT", "70000", "65535"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=match):
            Settings.read({f"MOSS_AUDIO_{name}": value})
    with pytest.raises(SettingsError, match="no API keys"):
        Settings(host="0.0.0.0").check_exposed(False)


def test_every_task_has_a_route():
    with client("[0.4]dog barking[1.2]") as http:
        found = http.post("/v1/audio/events", files=file(), data={"gap": "0.2", "model": "mini"}).json()
        assert [(event["label"], event["start"]) for event in found["events"]] == [("dog barking", 0.4)]
        assert found["finish_reason"] == "stop" and found["usage"]["audio_seconds"] == 2.0
        table = http.post("/v1/audio/events", files=file(), data={"response_format": "table"})
        assert table.text.startswith("| ") and "dog barking" in table.text
        choices = {"question": "Which?", "choices": ["a dog", "a cat"]}
        assert http.post("/v1/audio/choose", files=file(), data=choices).status_code == 200
        paths = http.get("/openapi.json").json()["paths"]
        assert {f"/v1/audio/{name}" for name in TASKS} <= set(paths)


@pytest.mark.parametrize(
    ("task", "data", "code"),
    [("events", {"gap": "wide"}, "invalid_value"), ("events", {"gap": "nan"}, "invalid_prompt"),
     ("ask", {}, "invalid_prompt"),
     ("events", {"grep": "1"}, "invalid_prompt"), ("review", {"policy": "[" * 9999}, "invalid_value"),
     ("events", {"response_format": "xml"}, "invalid_value"), ("choose", {"choices": ["x"] * 33}, "limit_exceeded")],
)  # fmt: skip
def test_task_options_that_are_not_valid(http, task, data, code):
    refused(http.post(f"/v1/audio/{task}", files=file(), data=data), 400, code)


def test_a_task_needs_a_recording_and_not_too_long_a_one(http):
    refused(http.post("/v1/audio/describe", data={"model": "mini"}), 400, "invalid_value")
    refused(http.post("/v1/audio/describe", json={}), 400, "invalid_value")
    with client(max_task_seconds=1) as strict:
        refused(strict.post("/v1/audio/describe", files=file()), 413, "audio_too_large")


def test_every_route_has_an_example_that_works(http):
    document = http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method != "post" or path in ("/v1/audio/translations", "/v1/batches/{batch_id}/cancel"):
                continue
            ((kind, body),) = operation["requestBody"]["content"].items()
            shown = operation["responses"]["200"]["content"]["application/json"]
            jsonschema.validate(shown["example"], shown["schema"] | {"components": document["components"]})
            if path in ("/v1/files", "/v1/batches"):  # tested with batches: their lines and names are only these once
                continue
            if kind == "application/json":
                clip = json.dumps(base64.b64encode(wav()).decode())
                answer = http.post(path, json=json.loads(json.dumps(body["example"]).replace(json.dumps(FILE), clip)))
            else:
                answer = http.post(path, files=file(), data={k: v for k, v in body["example"].items() if k != "file"})
            assert answer.status_code == 200, (path, answer.text)
            assert set(answer.json()) == set(shown["example"]), path
    assert document["components"]["schemas"]["ErrorReply"]["example"]["error"]["code"]
