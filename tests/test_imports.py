"""Imports point one way, and a light import stays light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import moss_audio

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "moss_audio"

LAYERS = (
    {"errors", "config", "messages", "prompts", "shards", "weights"},
    {"audio", "signal", "tokenizer", "transcript", "video"},
    {"processor", "model"},
    {"checkpoint"},
    {"runtime"},
    {"inference"},
    {"tasks"},
    {"evaluation", "training", "data", "server"},
    {"cli"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

LATER = {("model", "checkpoint")}
"""The one import against the order, made inside a function: a network that loads itself from a folder."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports(path: Path) -> set[tuple[str, bool]]:
    """Parts of the package that a module imports, and whether at its top. Imports for types alone do not count."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative imports hide the layer"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "moss_audio" else [module]
        parts = [name.split(".")[1] for name in names if name.startswith("moss_audio.")]
        found |= {(part, id(node) not in inner) for part in parts}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in RANK, f"{own} has no place in LAYERS"
    for part, at_top in imports(path):
        if part.startswith("__") or part == own or part not in RANK:  # `from moss_audio import load`: the public names
            continue
        allowed = RANK[part] <= RANK[own] or (not at_top and (own, part) in LATER)
        assert allowed, f"{path.relative_to(PACKAGE)} imports moss_audio.{part}, which is built on it"


def loaded_by(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name.split(".")[0] for name in result.stdout.split()}


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import moss_audio; dir(moss_audio)") & {"torch", "openvino", "fastapi", "av", "numpy"}


def test_the_default_path_needs_neither_torch_nor_a_server():
    modules = loaded_by("import moss_audio; moss_audio.load")
    assert "av" in modules
    assert not modules & {"torch", "fastapi", "transformers"}


def test_the_model_is_loaded_without_a_word_to_anybody(tmp_path):
    """`import openvino` alone forks a process that calls Google Analytics."""
    code = (
        "import sys; seen = []; asked = ('os.fork', 'socket.', 'subprocess.', 'os.posix_spawn');"
        "sys.addaudithook(lambda event, _: event.startswith(asked) and seen.append(event));"
        "import moss_audio; moss_audio.load('mini').transcribe('examples/speech_woman.ogg');"
        "print(*seen); sys.exit(bool(seen))"
    )
    # Elsewhere than in CI, in a home where nobody has said yes or no.
    environ = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", ""), (done.stdout, done.stderr)
    assert not list(tmp_path.iterdir())


def test_public_names_are_there_and_documented():
    assert sorted(moss_audio.__all__) == moss_audio.__all__
    for name in moss_audio.__all__:
        assert getattr(moss_audio, name).__doc__, name
        assert name in dir(moss_audio)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = moss_audio.nonsense
