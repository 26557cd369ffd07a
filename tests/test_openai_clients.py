"""OpenAI's own clients against a running server: the Python package, and the Node package where it is installed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import openai
import pytest
from conftest import ROOT
from servers import KEY, KEYS, app, live, until, wav
from starlette.testclient import TestClient

import moss_audio
from moss_audio.server.app import create_app

SPEECH = ROOT / "examples" / "speech_woman.ogg"


@pytest.fixture(scope="module")
def url():
    with live(app("Hello there.", keys=KEYS)) as found:
        yield found


@pytest.fixture(scope="module")
def ai(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def heard(text: str = "What is said?") -> list:
    audio = {"data": base64.b64encode(wav()).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def test_chat(ai):
    answer = ai.chat.completions.create(model="mini", messages=heard(), max_completion_tokens=64, seed=1)
    assert answer.choices[0].message.content == "Hello there." and answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.audio_tokens == 25 and answer.usage.audio_seconds == 2.0


def test_streamed_chat(ai):
    stream = ai.chat.completions.create(
        model="mini", messages=heard(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello there."
    assert chunks[-1].usage.total_tokens > 0 and chunks[0].choices[0].delta.role == "assistant"


def test_transcripts(ai):
    create, asked = ai.audio.transcriptions.create, {"model": "mini", "file": ("a.wav", wav())}
    assert create(**asked).text == "Hello there."
    assert create(**asked, response_format="text") == "Hello there.\n"
    verbose = create(**asked, response_format="verbose_json", timestamp_granularities=["segment", "word"])
    assert verbose.duration == 2.0 and verbose.segments[0].text == "Hello there." and verbose.usage.seconds == 2.0
    events = list(create(**asked, stream=True))
    assert events[-1].type == "transcript.text.done" and events[-1].text == "Hello there."
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == "Hello there."


def test_refusals_are_openais_errors(ai, url):
    with pytest.raises(openai.NotFoundError) as missing:
        ai.models.retrieve("gpt-9")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        ai.audio.translations.create(model="mini", file=("a.wav", wav()))
    assert bad.value.code == "translation_unsupported"
    with pytest.raises(openai.UnprocessableEntityError):
        ai.audio.transcriptions.create(model="mini", file=("a.wav", wav()[:900]))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_batches(ai):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": heard()}}
    file = ai.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
    job = ai.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    until(lambda: ai.batches.retrieve(job.id).status == "completed", 30)
    result = json.loads(ai.files.content(ai.batches.retrieve(job.id).output_file_id).text)
    assert result["response"]["body"]["choices"][0]["message"]["content"] == "Hello there."


def test_node(url):
    modules = Path(os.environ.get("MOSS_AUDIO_NODE_MODULES", ROOT / "node_modules"))
    if not shutil.which("node") or not (modules / "openai").is_dir():
        pytest.skip(f"needs node and the package openai in {modules}; set MOSS_AUDIO_NODE_MODULES")
    script = ROOT / "tests" / "node" / "client.mjs"
    command = ["node", str(script), str(modules), f"{url}/v1", KEY, str(SPEECH)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "chat": "Hello there.", "streamed": "Hello there.", "text": "Hello there.", "segments": 1, "refused": 404
    }  # fmt: skip


def test_the_embedded_model_answers_on_every_route():
    with TestClient(create_app(model=moss_audio.load("mini")), base_url="http://localhost") as http:
        file = {"file": ("speech.ogg", SPEECH.read_bytes())}
        data = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
        transcript = http.post("/v1/audio/transcriptions", files=file, data=data).json()
        words = [word["word"] for word in transcript["words"]]
        assert transcript["language"] == "english" and " ".join(words) == transcript["text"] != ""
        refused = http.post("/v1/audio/transcriptions", files=file, data={"language": "fr"})
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "unsupported_language"
        audio = {"data": base64.b64encode(SPEECH.read_bytes()).decode()}
        talk = [{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}]
        talk += [{"role": "assistant", "content": "A walk."}, {"role": "user", "content": "Who walks?"}]
        answer = http.post("/v1/chat/completions", json={"messages": talk, "max_tokens": 8})
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 8
        assert http.post("/v1/chat/completions", json={"messages": talk[:2]}).status_code == 400
        for task in ("events", "emotion"):
            assert http.post(f"/v1/audio/{task}", files=file).status_code == 200
