"""What several test modules share. Nothing heavy is loaded before a test asks for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large public fixtures, from MOSS_AUDIO_SHARED or beside the repository; skips without it."""
    folder = Path(os.environ.get("MOSS_AUDIO_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; set MOSS_AUDIO_SHARED")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of every kind of clip, as `toys.write_world` writes them."""
    from toys import write_world

    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def moss_tiny() -> Path:
    """A random checkpoint in the released format."""
    return ROOT / "tests" / "data" / "moss-tiny"


@pytest.fixture(scope="session")
def golden(moss_tiny: Path) -> Any:
    """The reference's own numbers for `moss_tiny`: keys are `case/name`."""
    import numpy as np

    return np.load(moss_tiny / "golden.npz")


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.json of 256 bytes, two merges, the ChatML tokens, and `<think>`, not special."""
    import json

    from tokenizers.pre_tokenizers import ByteLevel

    pieces = [*sorted(ByteLevel.alphabet()), "he", "\u0120he"]
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    added = [
        {"id": 258 + index, "content": name, "special": name != "<think>", "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for index, name in enumerate(names)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {piece: index for index, piece in enumerate(pieces)} | {token["content"]: token["id"] for token in added}
    raw = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h e", "\u0120 he"]},
    }
    folder = tmp_path_factory.mktemp("byte_tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The browser comes last: Playwright leaves its event loop in the main thread, where `asyncio.run` then fails."""
    items.sort(key=lambda item: item.path.parent.name == "page")
