"""Byte-level BPE: text to ids and back.

Knows the two layouts of a tokenizer folder. Does not know prompts: it never matches a control token in text, so that
whatever a user types stays text; `processor` asks for control tokens by name.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from moss_audio.errors import CheckpointError, PromptError

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and Qwen3 cut text before merging (Qwen/Qwen2-7B, tokenizer.json): every digit is a token of its own."""


class Tokenizer:
    """A vocabulary in which text and control tokens never meet."""

    def __init__(self, bpe: tokenizers.Tokenizer, added: Mapping[str, int], special: Iterable[str], size: int) -> None:
        """`bpe` without added tokens; `added` ids by name, of which `special` are hidden; `size` of the vocabulary."""
        self._bpe = bpe
        self._added = dict(added)
        self._names = {token_id: name for name, token_id in added.items()}
        self._hidden = frozenset(added[name] for name in special)
        self.vocab_size = size

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read `tokenizer.json`, or else `vocab.json`, `merges.txt` and the added tokens beside them.

        Raises `CheckpointError` naming what is missing or not byte-level BPE.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            return _load_single(folder / "tokenizer.json")
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _load_qwen(folder)
        raise CheckpointError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt")

    def encode(self, text: str) -> list[int]:
        """The ids of plain text. Control tokens spelt in it become the pieces of their spelling."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(f"the text has half a surrogate pair at {error.start}; send valid Unicode") from error
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def special(self, name: str) -> int:
        """The id of a control token. Raises `CheckpointError` if the vocabulary lacks it."""
        if name not in self._added:
            raise CheckpointError(f"the tokenizer has no {name!r}; it has {sorted(self._added)}")
        return self._added[name]

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes, maybe half a character, of a token; none for ids with which models pad their vocabulary."""
        if token_id in self._names:
            return self._names[token_id].encode()
        piece = self._bpe.id_to_token(token_id)
        return bytes(_BYTE_OF[character] for character in piece) if piece else b""

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD. Special tokens are left out unless asked for."""
        kept = (i for i in map(int, ids) if not (skip_special and i in self._hidden))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")

    def stream(self) -> TokenStream:
        """A decoder for tokens that arrive one by one."""
        return TokenStream(self)

    def is_special(self, token_id: int) -> bool:
        """Whether `decode` leaves this token out."""
        return token_id in self._hidden


class TokenStream:
    """Text of one answer as it grows: the pieces joined are `Tokenizer.decode` of all ids, special tokens left out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is still in parts."""
        if self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left at the end: U+FFFD if the answer stopped inside a character."""
        return self._decoder.decode(b"", final=True)


def _load_single(path: Path) -> Tokenizer:
    raw = _read_json(path)
    kinds = json.dumps([raw.get("pre_tokenizer"), raw.get("decoder")])
    if raw.get("model", {}).get("type") != "BPE" or '"ByteLevel"' not in kinds:
        raise CheckpointError(f"{path} is not byte-level BPE, the only kind that is implemented")
    tokens, vocab = raw.get("added_tokens") or [], raw["model"]["vocab"]
    added = {token["content"]: token["id"] for token in tokens}
    size = max([*vocab.values(), *added.values()]) + 1
    raw["model"]["vocab"] = {piece: token_id for piece, token_id in vocab.items() if piece not in added}
    raw.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    try:
        bpe = tokenizers.Tokenizer.from_str(json.dumps(raw))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return Tokenizer(bpe, added, [token["content"] for token in tokens if token["special"]], size)


def _load_qwen(folder: Path) -> Tokenizer:
    config = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    kind = config.get("tokenizer_class", "Qwen2Tokenizer")
    if kind not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise CheckpointError(f"{folder} has a {kind} in parts; only Qwen2Tokenizer is, else provide tokenizer.json")
    try:
        bpe = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{folder}: vocab.json and merges.txt cannot be read: {error}") from error
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    details = {int(token_id): token for token_id, token in config.get("added_tokens_decoder", {}).items()}
    added = {token["content"]: token_id for token_id, token in details.items()}
    if (folder / "added_tokens.json").is_file():
        added |= _read_json(folder / "added_tokens.json")
    special = [name for name, i in added.items() if i not in details or details[i].get("special")]
    return Tokenizer(bpe, added, special, max([bpe.get_vocab_size() - 1, *added.values()]) + 1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return raw


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
