"""docs/tasks.md: all of it runs, and prints what has the form of what the page shows; what is said is said as shown."""

from __future__ import annotations

import functools
import json
import re
import runpy
from pathlib import Path

import pytest

import moss_audio
from moss_audio import tasks
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.evaluation.normalise import english

ROOT = Path(__file__).resolve().parent.parent
MAKE = runpy.run_path(str(ROOT / "docs" / "make_tasks.py"), run_name="make_tasks")
PAGE = MAKE["PAGE"].read_text("utf-8")
EXAMPLES = [(match["command"], match["output"]) for match in MAKE["EXAMPLE"].finditer(PAGE)]
SAID = ("transcribe", "summarize", "feedback")
"""Tasks whose answers are the words spoken, or measures of the signal: all but those are a small model's opinion."""


@pytest.fixture(scope="module")
def one_load():
    patch = pytest.MonkeyPatch()
    patch.setattr(moss_audio, "load", functools.cache(moss_audio.load), raising=False)
    yield
    patch.undo()


@functools.cache
def printed(command: str) -> str:
    return MAKE["execute"](command, "--max-new-tokens", "120")


def form(output: str) -> object:
    """What does not depend on the model's words: keys of an object, the head of a table, that there are lines."""
    if output.startswith("{"):
        return {key: sorted(value) if isinstance(value, dict) else None for key, value in json.loads(output).items()}
    if output.startswith("|"):
        return [cell.strip() for cell in output.splitlines()[0].split("|")]
    return output.endswith("\n")


@pytest.mark.parametrize(("command", "output"), EXAMPLES, ids=[command.split()[0] for command, _ in EXAMPLES])
def test_every_command_prints_what_has_the_form_shown(one_load, command, output):
    assert form(printed(command)) == form(output)


@pytest.mark.parametrize(("command", "output"), [example for example in EXAMPLES if example[0].split()[0] in SAID])
def test_what_is_said_and_measured_is_what_the_page_shows(one_load, command, output):
    """But for a word in five, which the rounding of another processor may change."""
    assert ErrorRate.of(english(output), english(printed(command))).value <= 0.2


def test_measures_of_music_are_those_of_the_page(one_load):
    for command, output in EXAMPLES:
        measures = [line for line in output.splitlines() if line.endswith("| signal |")]
        assert [line for line in printed(command).splitlines() if line.endswith("| signal |")] == measures
    assert re.search(r"\| key +\| C major +\| signal \|", PAGE)


def test_hotwords_change_the_transcript_for_the_better(one_load):
    without, hotword = (command for command, _ in EXAMPLES if "caller.ogg" in command and "transcribe" in command)
    assert "Villanueva" in printed(hotword) and "Villanueva" not in printed(without)


def test_the_python_on_the_page_runs(one_load, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(snippet, names)
    out = capsys.readouterr().out
    assert "| start | end" in out and all(event.label in out for event in names["result"].events)


def test_every_task_is_on_the_page():
    assert {command.split()[0] for command, _ in EXAMPLES} == set(tasks.TASKS)
    assert re.findall(r"^## (\w+)$", PAGE, re.MULTILINE) == list(tasks.TASKS)


def test_the_policy_shown_is_the_one_that_runs():
    (shown,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert (ROOT / "examples" / "policy.toml").read_text("utf-8").endswith(shown)


def test_making_the_page_keeps_its_prose():
    assert MAKE["render"](PAGE, lambda command: dict(EXAMPLES)[command]) == PAGE
