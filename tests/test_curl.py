"""The curl lines of the documents, run word for word against the embedded model on loopback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from servers import KEY, KEYS, app, live, question, until, wav

import moss_audio
from moss_audio.server.app import create_app

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")

DOCUMENTS = ("README.md", "docs/server.md")


@dataclass(frozen=True)
class Answer:
    """What curl got: the body as it stands, and what it was told of the status and the kind."""

    status: int
    kind: str
    text: str

    def json(self) -> Any:
        assert self.kind == "application/json"
        return json.loads(self.text)


def commands() -> list[str]:
    """Every shell command with curl in it, in the order of the documents; a quote that is open goes on."""
    found = []
    for name in DOCUMENTS:
        for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.DOTALL | re.MULTILINE):
            unfinished = ""
            for line in block.splitlines(keepends=True):
                unfinished += line
                if unfinished.count("'") % 2 == 0:
                    found.append(unfinished.strip())
                    unfinished = ""
            assert not unfinished
    return [command for command in found if "curl " in command]


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str, str], Answer]:
    """Runs a command in a folder with the recordings it names. localhost:8000 is the server at `url`."""
    shutil.copy(ROOT / "examples" / "speech_woman.ogg", tmp_path / "talk.mp4")  # its bytes say what it is
    shutil.copy(ROOT / "examples" / "siren.ogg", tmp_path / "street.wav")
    body = question(clip=wav(1.0), max_tokens=4)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "batch.jsonl").write_text(json.dumps(line))

    def run(command: str, url: str) -> Answer:
        (tmp_path / ".curlrc").write_text(
            f'silent\nshow-error\nconnect-to = "localhost:8000:{url.removeprefix("http://")}"\n'
            'write-out = "%{stderr}%{http_code} %{content_type}"\n'
        )
        environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "KEY": KEY}
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        status, _, kind = done.stderr.partition(" ")
        return Answer(int(status), kind, done.stdout)

    return run


def is_model_list(answer: Answer) -> None:
    assert [card["id"] for card in answer.json()["data"]] == ["mini"]


def is_srt(answer: Answer) -> None:
    assert answer.kind == "application/x-subrip; charset=utf-8"
    assert re.fullmatch(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n\w[^\n]*\n", answer.text), answer.text


def is_vtt(answer: Answer) -> None:
    assert answer.kind == "text/vtt; charset=utf-8"
    assert re.fullmatch(r"WEBVTT\n\n00:00:0\d\.\d{3} --> 00:00:0\d\.\d{3}\n\w[^\n]*\n", answer.text), answer.text


def has_words(answer: Answer) -> None:
    whole = answer.json()
    assert " ".join(word["word"] for word in whole["words"]) == whole["text"] != ""
    assert all(0 <= word["start"] <= word["end"] <= whole["duration"] for word in whole["words"])
    assert "segments" not in whole


def is_streamed_transcript(answer: Answer) -> None:
    assert answer.kind == "text/event-stream; charset=utf-8"
    *events, done, rest = answer.text.split("\n\n")
    kinds = [json.loads(event.removeprefix("data: "))["type"] for event in events]
    assert (kinds[0], kinds[-1]) == ("transcript.text.delta", "transcript.text.done")
    assert (done, rest) == ("data: [DONE]", "")


def is_table(answer: Answer) -> None:
    assert answer.kind.startswith("text/plain")
    assert re.match(r"(\| [^\n]+ \|\n)?\|[-|: ]+\|\n", answer.text) or answer.text == "no sound events\n", answer.text


def is_chat(answer: Answer) -> None:
    whole = answer.json()
    assert whole["object"] == "chat.completion" and whole["choices"][0]["message"]["content"]
    assert whole["usage"]["audio_seconds"] > 1


def is_file(answer: Answer) -> None:
    assert (answer.json()["object"], answer.json()["purpose"]) == ("file", "batch")


def is_batch(answer: Answer) -> None:
    assert answer.json()["object"] == "batch" and answer.json()["request_counts"]["total"] == 1


def is_result(answer: Answer) -> None:
    assert answer.kind == "application/jsonl"
    (line,) = map(json.loads, answer.text.splitlines())
    assert (line["custom_id"], line["response"]["status_code"]) == ("a", 200)


EXPECTED = (is_model_list, is_srt, is_vtt, has_words, is_streamed_transcript, is_table, is_chat,
            is_file, is_batch, is_batch, is_result, is_model_list)  # fmt: skip


def test_the_documents_curl_lines_do_what_they_say(shell):
    model = moss_audio.load("mini")
    with live(create_app(model=model, keys=KEYS)) as locked, live(create_app(model=model)) as url:
        known: dict[str, str] = {}
        for command, is_right in zip(commands(), EXPECTED, strict=True):
            needs_key = "$KEY" in command
            for placeholder, name in known.items():
                command = command.replace(placeholder, name)
            answer = shell(command, locked if needs_key else url)
            assert answer.status == 200, (command, answer)
            is_right(answer)
            if needs_key:
                assert shell(command.replace("$KEY", "wrong"), locked).status == 401
            if is_right in (is_file, is_batch):
                name = answer.json()["id"]
                known[f"{name.partition('-')[0]}-..."] = name
            if is_right is is_batch:
                until(lambda: shell(f"curl localhost:8000/v1/batches/{name}", url).json()["completed_at"], 60)  # noqa: B023


REFUSED = {
    "-F file=@nothing.txt": (415, "unsupported_audio"),
    "-F file=@cut.wav": (422, "damaged_audio"),
    "-F file=@talk.mp4 -F response_format=docx": (400, "invalid_value"),
    "-F file=@talk.mp4 -F model=gpt-9": (404, "model_not_found"),
    "-F model=mini": (400, "invalid_value"),
    "-F file=@large.wav": (413, "request_too_large"),
}


def test_refusals_reach_curl_in_one_shape(shell, tmp_path):
    (tmp_path / "nothing.txt").write_text("hello")
    (tmp_path / "cut.wav").write_bytes(wav()[:2000])
    (tmp_path / "large.wav").write_bytes(bytes(200_000))
    with live(app(max_body_bytes=150_000)) as url:
        for form, (status, code) in REFUSED.items():
            answer = shell(f"curl localhost:8000/v1/audio/transcriptions {form}", url)
            error = answer.json()["error"]
            assert (answer.status, error["code"]) == (status, code), answer
            assert set(error) == {"message", "type", "param", "code"} and error["message"]
