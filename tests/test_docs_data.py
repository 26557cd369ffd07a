"""The commands of docs/data.md are ones that the modules take."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from moss_audio.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/data.md").read_text("utf-8")
LINES = [line for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.M) for line in block.splitlines()]
COMMANDS = [shlex.split(line)[2:] for line in LINES if line.startswith("python -m")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_are_read(command, monkeypatch):
    pytest.importorskip("torch")
    module = importlib.import_module(command[0])
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self):
        parse(self)
        raise SystemExit("read")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="^read$"):
        module.main()


def test_what_is_named_exists():
    assert len(COMMANDS) >= 5
    for name in re.findall(r"`((?:recipes|data|model|training)/[\w./]+)`", TEXT):
        assert (ROOT / name).exists() or (ROOT / "moss_audio" / name).exists(), name
    (line,) = (line for line in LINES if line.startswith("moss-audio"))
    build_parser().parse_args(shlex.split(line)[1:])
    for snippet in re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.M):
        compile(snippet, "docs/data.md", "exec")
