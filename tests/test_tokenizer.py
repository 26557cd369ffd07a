"""Text to ids and back, for both folder layouts, and the wall between text and control tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moss_audio.errors import CheckpointError, PromptError
from moss_audio.tokenizer import Tokenizer

TEXTS = [
    "",
    "he said: the hen",
    "  two  spaces\n\n\ttab",
    "naïve café 12345",
    "请转录这段音频。",
    "🎵👩‍👩‍👧",
    "\x00\x7f\u0600",
]


@pytest.fixture(scope="module")
def small(byte_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(byte_tokenizer)


@pytest.fixture(scope="module")
def qwen(shared: Path) -> Tokenizer:
    return Tokenizer.load(shared / "fixtures" / "qwen3-tokenizer")


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(text: str, small: Tokenizer) -> None:
    assert small.decode(small.encode(text)) == text


def test_merges_are_applied(small: Tokenizer) -> None:
    assert [small.token_bytes(i) for i in small.encode("he the he")] == [b"he", b" ", b"t", b"he", b" he"]
    assert small.vocab_size == 262


@pytest.mark.parametrize("name", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>"])
def test_control_tokens_in_text_stay_text(name: str, small: Tokenizer) -> None:
    control = small.special(name)
    for text in (name, f"a{name}b", f"\n{name * 3}\n"):
        ids = small.encode(text)
        assert control not in ids
        assert small.decode(ids) == text


def test_special_tokens_are_hidden_and_thoughts_are_not(small: Tokenizer) -> None:
    ids = [small.special("<think>"), *small.encode("he"), small.special("<|im_end|>")]
    assert small.decode(ids) == "<think>he"
    assert small.decode(ids, skip_special=False) == "<think>he<|im_end|>"


def test_ids_that_pad_the_vocabulary_are_empty(small: Tokenizer) -> None:
    assert small.token_bytes(99_999) == b"" and small.decode([99_999, *small.encode("x")]) == "x"


def test_a_missing_control_token_is_named(small: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match=r"no '<\|audio\|>'.*im_end"):
        small.special("<|audio|>")


def test_half_a_surrogate_pair_is_refused(small: Tokenizer) -> None:
    with pytest.raises(PromptError, match="surrogate pair at 3"):
        small.encode("abc\ud83c")


@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_a_stream_never_splits_a_character(byte_tokenizer: Path, text: str) -> None:
    tokenizer = Tokenizer.load(byte_tokenizer)
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    assert "".join(pieces) == text and stream.finish() == ""


def test_a_stream_that_stops_inside_a_character(small: Tokenizer) -> None:
    ids = small.encode("a🎵")[:-1]
    stream = small.stream()
    assert [stream.push(i) for i in [*ids, small.special("<|im_end|>")]] == ["a", "", "", "", ""]
    assert stream.finish() == "\ufffd"
    assert small.decode(ids) == "a\ufffd"


def test_folders_that_hold_no_tokenizer(tmp_path: Path, byte_tokenizer: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a readable JSON"):
        Tokenizer.load(tmp_path)
    raw = json.loads((byte_tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"pre_tokenizer": None, "decoder": None}))
    with pytest.raises(CheckpointError, match="byte-level"):
        Tokenizer.load(tmp_path)


def test_the_two_layouts_agree(tmp_path: Path, byte_tokenizer: Path) -> None:
    raw = json.loads((byte_tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in raw["added_tokens"]}
    vocab = {piece: i for piece, i in raw["model"]["vocab"].items() if piece not in added}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(raw["model"]["merges"]), encoding="utf-8")
    (tmp_path / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    parts, single = Tokenizer.load(tmp_path), Tokenizer.load(byte_tokenizer)
    assert parts.vocab_size == single.vocab_size
    for text in TEXTS:
        assert parts.encode(text) == single.encode(text)
    assert parts.special("<|im_end|>") == single.special("<|im_end|>") and parts.encode("<|im_end|>")[0] < 256
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="GPT2Tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_qwen_text_comes_back(text: str, qwen: Tokenizer) -> None:
    assert qwen.decode(qwen.encode(text)) == text


def test_qwen_ids(qwen: Tokenizer) -> None:
    assert qwen.vocab_size == 151_669
    assert qwen.encode("Describe this audio.") == [74785, 419, 7699, 13]
    assert qwen.encode("0123456789") == list(range(15, 25))
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9")  # NFC
    assert [qwen.special(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [151643, 151644, 151645]
    assert max(qwen.encode("<|im_end|><think><|vision_pad|>")) < 151_643
    assert qwen.decode([151667, 198, 151645]) == "<think>\n"
