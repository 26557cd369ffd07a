"""docs/tasks.md: every command on it runs, and prints what has the form of what the page shows."""

from __future__ import annotations

import functools
import json
import re
import runpy
from pathlib import Path

import pytest

import moss_audio
from moss_audio import tasks

ROOT = Path(__file__).resolve().parent.parent
MAKE = runpy.run_path(str(ROOT / "docs" / "make_tasks.py"), run_name="make_tasks")
PAGE = MAKE["PAGE"].read_text("utf-8")
EXAMPLES = [(match["command"], match["output"]) for match in MAKE["EXAMPLE"].finditer(PAGE)]


@pytest.fixture(scope="module")
def one_load():
    patch = pytest.MonkeyPatch()
    patch.setattr(moss_audio, "load", functools.cache(moss_audio.load), raising=False)
    yield
    patch.undo()


def form(output: str) -> object:
    """What does not depend on the model's words: keys of an object, the head of a table, that there are lines."""
    if output.startswith("{"):
        return {key: sorted(value) if isinstance(value, dict) else None for key, value in json.loads(output).items()}
    if output.startswith("|"):
        return [cell.strip() for cell in output.splitlines()[0].split("|")]
    return output.endswith("\n")


@pytest.mark.parametrize(("command", "output"), EXAMPLES, ids=[command.split()[0] for command, _ in EXAMPLES])
def test_every_command_prints_what_has_the_form_shown(one_load, command, output):
    assert form(MAKE["execute"](command, "--max-new-tokens", "120")) == form(output)


def test_every_task_is_on_the_page():
    assert {command.split()[0] for command, _ in EXAMPLES} == set(tasks.TASKS)
    assert re.findall(r"^## (\w+)$", PAGE, re.MULTILINE) == list(tasks.TASKS)


def test_the_policy_shown_is_the_one_that_runs():
    (shown,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert (ROOT / "examples" / "policy.toml").read_text("utf-8").endswith(shown)


def test_making_the_page_keeps_its_prose():
    assert MAKE["render"](PAGE, lambda command: dict(EXAMPLES)[command]) == PAGE
