"""The commands of the typed tasks: options in, one form of output out."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeBackend, FakeProcessor, scripted

import moss_audio
from moss_audio.cli import build_parser, main
from moss_audio.inference.engine import MossAudio
from moss_audio.tasks import TASKS

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SIREN = str(EXAMPLES / "siren.ogg")
MAN = str(EXAMPLES / "speech_man.ogg")


@pytest.fixture
def says(monkeypatch):
    def prepare(*answers: str) -> None:
        engine = MossAudio(FakeBackend(scripted(*answers)), FakeProcessor())  # type: ignore[arg-type]
        monkeypatch.setattr(moss_audio, "load", lambda name, **options: engine, raising=False)

    return prepare


def test_every_task_is_a_command_with_its_options():
    commands = build_parser()._subparsers._group_actions[0].choices
    assert set(TASKS) <= set(commands)
    for name, task in TASKS.items():
        if name not in ("transcribe", "ask"):
            flags = {flag for action in commands[name]._actions for flag in action.option_strings}
            assert {f"--{one.name}" for one in fields(task.options)} | {"--json", "--table", "--model"} <= flags


def test_text_table_and_json(says, capsys):
    answer = "[0.4]siren[1.2][1.4]siren[3.0]"
    says(*[answer] * 4)
    assert main(["events", SIREN]) == 0
    assert capsys.readouterr().out == "  0.40   3.00  siren\n"
    assert main(["events", SIREN, "--table", "--gap", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["| 0.40  | 1.20 | siren |", "| 1.40  | 3.00 | siren |"]
    assert main(["events", "--json", SIREN]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == SIREN and document["events"] == [{"label": "siren", "start": 0.4, "end": 3.0}]
    assert document["finish_reason"] == "stop" and document["duration"] == pytest.approx(4.0)


def test_a_plot_is_drawn(says, capsys, tmp_path):
    says("[0.4]siren[3.0]")
    assert main(["events", SIREN, "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_bad_file_does_not_stop_the_others(says, capsys, tmp_path):
    says("A siren.", "A siren.")
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    assert main(["describe", SIREN, str(tmp_path / "bad.wav"), "gone.wav", MAN]) == 1
    out, err = capsys.readouterr()
    assert out == "A siren.\nA siren.\n"
    assert "bad.wav" in err and "gone.wav: No such file" in err and "[4/4]" in err and "2 failed:" in err


def test_a_folder_has_a_file_for_each_and_is_gone_on_with(says, capsys, tmp_path):
    folder, results = tmp_path / "in", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    for place in (folder / "a.ogg", folder / "deep/b.ogg"):
        place.write_bytes(Path(SIREN).read_bytes())
    (folder / "bad.wav").write_bytes(b"nothing")
    says("A siren.", "Another.", "Anew.")
    assert main(["describe", str(folder), "--output", str(results)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "bad.wav" in err
    assert sorted(str(path.relative_to(results)) for path in results.rglob("*.json")) == [
        "a.describe.json", "deep/b.describe.json"
    ]  # fmt: skip
    (results / "a.describe.json").unlink()
    assert main(["describe", str(folder), "--output", str(results)]) == 1
    assert "1 of 3 recordings are done" in capsys.readouterr().err
    assert json.loads((results / "a.describe.json").read_text())["parts"][0]["text"] == "Anew."


def test_lists_and_policies(says, capsys, tmp_path):
    says("B")
    assert main(["choose", SIREN, "--question", "What?", "--choices", "a dog", "--choices", "a siren"]) == 0
    assert capsys.readouterr().out == "B. a siren\n"
    policy = tmp_path / "policy.md"
    policy.write_text('# Policy\n- loud: "help me"\n')
    says("Help me now.", "A man.")
    assert main(["review", SIREN, "--policy", str(policy), "--json"]) == 0
    (flag,) = json.loads(capsys.readouterr().out)["flags"]
    assert flag["label"] == "loud" and flag["source"] == "words"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["choose", SIREN, "--question", "a", "--choices", "b"], "valid: 2 to 4 texts"),
        (["choose", SIREN, "--choices", "b"], "--question"),
        (["events", SIREN, "--gap", "-1"], "gap is -1.0; valid: a number from 0"),
        (["events", SIREN, MAN, "--plot", "a.png"], "one recording at a time"),
        (["events", SIREN, "--json", "--table"], "not allowed with"),
        (["feedback", SIREN, "--subject", "dance"], "valid: auto, speech, music"),
        (["review", SIREN, "--policy", "gone.toml"], "gone.toml: No such file"),
        (["review", SIREN, "--policy", __file__], "line 1 of the policy"),
        (["music"], "FILE"),
    ],
)
def test_wrong_usage_is_status_2_before_a_model_is_loaded(monkeypatch, capsys, argv, message):
    monkeypatch.setattr(moss_audio, "load", None, raising=False)
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_samples_are_heard_as_they_are(says):
    says("A siren.")
    model = moss_audio.load("mini")
    assert TASKS["describe"](model, np.full(16_000, 0.1, np.float32)).text == "A siren."
