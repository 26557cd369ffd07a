"""What the documents say is true of the code."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest

import moss_audio
from moss_audio.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_python_snippets_compile_and_use_public_names():
    assert blocks("python")
    for snippet in blocks("python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "moss_audio":
                assert node.attr in moss_audio.__all__
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "model":
                assert hasattr(moss_audio.MossAudio, node.attr)


def test_commands_parse():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [part for line in lines for part in line.split(" && ") if part.startswith("moss-audio")]
    assert len(commands) >= 4
    for command in commands:
        words = re.findall(r'"[^"]*"|\S+', command.split(">")[0])[1:]
        _, rest = build_parser().parse_known_args([word.strip('"') for word in words])
        assert not [word for word in rest if word.startswith("-")]


def test_the_test_command_is_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    (command,) = (block for block in blocks("sh") if "pytest" in block)
    for step in ("-e '.[test]'", "ruff check .", "mypy", "pytest"):
        assert step in command and step in ci


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)|\b(examples/\w+\.\w+)", README))))
def test_files_that_are_named_exist(link):
    assert (ROOT / (link[0] or link[1])).exists()


def test_the_default_install_has_no_pytorch():
    names = {re.split(r"[<>=~\[]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert "openvino" in names
    assert not names & {"torch", "transformers", "fastapi", "uvicorn"}
    assert set(PROJECT["optional-dependencies"]) >= {"train", "gpu", "server", "test"}


def test_the_public_names_are_these():
    assert moss_audio.__all__ == [
        "Answer", "AudioPart", "Message", "MossAudio", "MossAudioError", "SamplingParams", "Segment", "TextPart",
        "Transcript", "Word", "load", "load_audio",
    ]  # fmt: skip


def test_the_version_has_a_changelog_entry():
    assert f"## [{moss_audio.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def recipe_commands() -> list[str]:
    """The commands of the recipes, each in one line."""
    text = (ROOT / "recipes/README.md").read_text("utf-8").replace("\\\n", " ")
    return [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
            for line in block.splitlines() if line.startswith("python ")]  # fmt: skip


@pytest.mark.parametrize("command", recipe_commands())
def test_commands_of_the_recipes_can_be_parsed(command, monkeypatch):
    """The parser of each takes what is written: no option that is gone, no argument too many or too few."""
    pytest.importorskip("torch")
    _, *words = shlex.split(command)
    if words[0] == "-m":
        module = importlib.import_module(words.pop(1))
        words.pop(0)
        main = module.main
    else:
        pytest.importorskip("ctranslate2")  # what the benchmarks compare with
        main = runpy.run_path(str(ROOT / words.pop(0)))["main"]
    parsed = []

    def parse(parser, args=None, namespace=None):
        parsed.append(argparse.ArgumentParser.parse_known_args(parser, words))
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(KeyboardInterrupt):
        main()
    assert [rest for _, rest in parsed] == [[]]
    assert all((ROOT / word).exists() for word in words if word.startswith("recipes/"))
