from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import moss_audio
from moss_audio.cli import main
from moss_audio.errors import BackendError, CorruptAudioError
from moss_audio.inference.engine import Answer, Transcript
from moss_audio.inference.generate import TokenEvent, Usage
from moss_audio.transcript import Segment, Word

ROOT = Path(__file__).resolve().parent.parent


class FakeModel:
    """Says what its inputs are called; `bad.wav` is damaged and `gone.wav` is not there."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def _name(self, audio) -> str:
        name = audio if isinstance(audio, str) else audio.read().decode()
        if name == "bad.wav":
            raise CorruptAudioError("it is cut off\nin the middle")
        if name == "gone.wav":
            raise FileNotFoundError(2, "No such file or directory", name)
        if name == "interrupt.wav":
            raise KeyboardInterrupt
        return name

    def transcribe(self, audio, *, params, hotwords, progress, done, words):
        text = f"This is {self._name(audio)}."
        self.calls.append((audio, params))
        segment = Segment(0.5, 1.25, text, (Word("This", 0.5, 0.75),))
        return Transcript(text, (segment,), None, 2.0, "stop", Usage(10, 5, 2.0, 3))

    def ask(self, audio, question, *, params):
        names = [self._name(one) for one in audio]
        self.calls.append((names, question, params))
        reason = "length" if "long.wav" in names else "stop"
        return Answer(f"{question} {' '.join(names)}", None, reason, Usage(10, 5, 2.0, 3))

    def stream(self, audio, question, *, params, hotwords):
        for word in f"Stream of {self._name(audio[0])}".split():
            yield TokenEvent(word + ",")
        reason = "length" if audio[0] == "long.wav" else "stop"
        yield TokenEvent("", finish_reason=reason, usage=Usage())


@pytest.fixture
def fake(monkeypatch) -> FakeModel:
    model = FakeModel()

    def load(name, **options):
        model.calls.append((name, options))
        return model

    monkeypatch.setattr(moss_audio, "load", load, raising=False)
    return model


def test_transcribe_prints_the_text_and_nothing_else(fake, capsys):
    assert main(["transcribe", "a.wav"]) == 0
    assert capsys.readouterr() == ("This is a.wav.\n", "")
    assert fake.calls[0] == ("mini", {"device": "auto", "backend": None})


@pytest.mark.parametrize("command", [["ask", "long.wav", "What?"], ["transcribe", "--stream", "long.wav"]])
def test_text_that_is_cut_off_is_not_passed_off_as_whole(fake, capsys, command):
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out and err.startswith("moss-audio: long.wav: the text is cut off")


def test_json_is_one_object_a_line(fake, capsys):
    assert main(["transcribe", "--json", "a.wav", "ü.wav"]) == 0
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert first == {
        "file": "a.wav",
        "text": "This is a.wav.",
        "segments": [{"start": 0.5, "end": 1.25, "text": "This is a.wav."}],
        "duration": 2.0,
        "finish_reason": "stop",
        "notes": [],
        "usage": {"prompt_tokens": 10, "audio_tokens": 5, "audio_seconds": 2.0, "completion_tokens": 3},
    }
    assert second["file"] == "ü.wav"
    assert err == "[1/2] a.wav\n[2/2] ü.wav\n"


def test_a_bad_file_does_not_stop_the_others(fake, capsys):
    assert main(["transcribe", "bad.wav", "gone.wav", "c.wav"]) == 1
    out, err = capsys.readouterr()
    assert out == "This is c.wav.\n"
    assert "moss-audio: bad.wav: it is cut off in the middle\n" in err
    assert err.endswith(
        "moss-audio: 2 failed:\n"
        "moss-audio: bad.wav: it is cut off in the middle\nmoss-audio: gone.wav: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("form", "expected"),
    [("srt", "1\n00:00:00,500 -->"), ("vtt", "WEBVTT\n"), ("tsv", "start\tend\ttext\n500\t"), ("json", '{\n  "text"'),
     ("lrc", "[00:00.50]This")],
)
def test_formats(fake, capsys, form, expected):
    assert main(["transcribe", "a.wav", "--format", form]) == 0
    assert capsys.readouterr().out.startswith(expected)


def test_stream_and_options_reach_the_model(fake, capsys):
    options = ["--model", "folder", "--backend", "torch", "--device", "cuda", "--temperature", "0.7"]
    assert main(["transcribe", "--stream", *options, "--max-new-tokens", "9", "a.wav"]) == 0
    assert capsys.readouterr().out == "Stream,of,a.wav,\n"
    assert fake.calls == [("folder", {"device": "cuda", "backend": "torch"})]
    assert main(["transcribe", *options, "--max-new-tokens", "9", "a.wav"]) == 0
    assert (fake.calls[-1][1].temperature, fake.calls[-1][1].max_new_tokens) == (0.7, 9)


def test_dash_reads_standard_input(fake, capsys, monkeypatch):
    class Stdin:
        buffer = type("Buffer", (), {"read": staticmethod(lambda: b"stdin.wav")})

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert main(["transcribe", "-", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["file"], line["text"]) == ("-", "This is stdin.wav.")


def test_ask_takes_the_last_argument_as_the_question(fake, capsys):
    assert main(["ask", "a.wav", "b.wav", "--json", "Which is louder?"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["text"] == "Which is louder? a.wav b.wav" and line["file"] == ["a.wav", "b.wav"]
    assert main(["ask", "a.wav", "What?"]) == 0
    assert capsys.readouterr().out == "What? a.wav\n"
    assert main(["ask", "a.wav", "--stream", "What?"]) == 0
    assert capsys.readouterr().out == "Stream,of,a.wav,\n"
    assert main(["ask", "gone.wav", "What?"]) == 1
    assert capsys.readouterr().err == "moss-audio: gone.wav: No such file or directory\n"
    assert main(["ask", "bad.wav", "What?"]) == 1
    assert capsys.readouterr().err == "moss-audio: it is cut off in the middle\n"


@pytest.mark.parametrize(
    "argv",
    [
        [], ["transcribe"], ["listen", "a.wav"], ["transcribe", "a.wav", "--frobnicate"], ["models", "more"],
        ["transcribe", "a.wav", "--json", "--stream"], ["transcribe", "a.wav", "--temperature", "-1"],
        ["transcribe", "a.wav", "--max-new-tokens", "0"], ["transcribe", "a.wav", "--backend", "abacus"],
        ["transcribe", "a.wav", "b.wav", "--format", "srt"], ["transcribe", "a.wav", "--format", "srt,doc"],
        ["transcribe", "a.wav", "--format", "srt,vtt"], ["transcribe", "a.wav", "--resume"],
        ["transcribe", "a.wav", "--burn"], ["transcribe", "a.wav", "--output", "x", "--json"],
        ["transcribe", "x/a.wav", "y/a.wav", "--output", "x"], ["transcribe", "a.wav", "--line-length", "1"],
        ["ask", "a.wav"], ["ask", "a.wav", __file__],
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2_before_a_model_is_loaded(fake, capsys, argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert fake.calls == []
    assert capsys.readouterr().err.splitlines()[-1].startswith("moss-audio")


def test_a_model_that_cannot_be_loaded_is_one_line(monkeypatch, capsys):
    def load(name, **options):
        raise BackendError("no such device")

    monkeypatch.setattr(moss_audio, "load", load, raising=False)
    assert main(["transcribe", "a.wav"]) == 1
    assert capsys.readouterr() == ("", "moss-audio: no such device\n")


def test_ctrl_c_is_130(fake, capsys):
    assert main(["transcribe", "interrupt.wav"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_version_and_models(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"moss-audio {moss_audio.__version__}\n"
    assert main(["models"]) == 0
    assert "OpenMOSS-Team/MOSS-Audio-8B-Thinking" in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_error():
    code = "import sys; from moss_audio.cli import run; sys.argv = ['moss-audio', 'models']; input(); run()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin and process.stdout and process.stderr
    with process.stdin, process.stderr:
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_help_loads_no_network():
    code = "import sys; from moss_audio.cli import build_parser; build_parser().format_help(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "openvino", "av", "tokenizers", "numpy"} & set(modules.split())


def test_the_page_of_help_is_current():
    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))
    # Python versions break the same help at other places.
    assert page["PAGE"].read_text("utf-8").split() == page["render"]().split(), "run python docs/make_cli.py"


