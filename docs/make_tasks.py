"""Write the outputs in docs/tasks.md: `python docs/make_tasks.py` runs every command there with the embedded model.

A command is a `sh` block of one line; the block behind it is its output. Prose is written by hand.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import moss_audio
from moss_audio.cli import main

PAGE = Path(__file__).with_name("tasks.md")
EXAMPLE = re.compile(
    r"^```sh\nmoss-audio (?P<command>[^\n]+)\n```\n\n```\n(?P<output>.*?)^```\n", re.DOTALL | re.MULTILINE
)


def execute(command: str, *more: str) -> str:
    """What a command prints, run from the root of the project, with `more` arguments behind its own."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.chdir(PAGE.parent.parent):
        status = main([*shlex.split(command), *more])
    if status:
        raise SystemExit(f"moss-audio {command} ended with {status}")
    return printed.getvalue()


def render(page: str, run: Callable[[str], str]) -> str:
    """The page with the outputs that `run` gives."""
    return EXAMPLE.sub(lambda m: f"```sh\nmoss-audio {m['command']}\n```\n\n```\n{run(m['command'])}```\n", page)


if __name__ == "__main__":
    moss_audio.load = functools.cache(moss_audio.load)
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), execute), encoding="utf-8")
