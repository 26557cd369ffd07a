"""Text as the heads of the encoder write it, and back: letters, and pieces of words."""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from moss_audio.config import LETTERS
from moss_audio.processor import PIECES


def spell(text: str) -> str | None:
    """Lower-case letters, apostrophes, single spaces; None if digits or nothing is left."""
    if re.search(r"\d", text):
        return None
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower().replace("’", "'")).split()) or None


def letter_ids(spelled: str) -> list[int]:
    """Outputs of the letter head for a spelled text; 0, the blank, is not among them."""
    return [LETTERS.index(letter) + 1 for letter in spelled]


def greedy_text(logprobs: Tensor) -> str:
    """The best path of `logprobs [E, L]`, repeats and blanks collapsed."""
    best = logprobs.argmax(-1).unique_consecutive().tolist()
    return " ".join("".join(LETTERS[i - 1] for i in best if i).split())


class PieceSpeller:
    """Spelled text ↔ outputs of the piece head, cut as Whisper's tokenizer cuts it."""

    def __init__(self, folder: Path) -> None:
        """`folder` is a base with `pieces.txt` and `pieces.json` (`training.bases`)."""
        self.pieces = (folder / PIECES).read_text(encoding="utf-8").splitlines()
        self._index = {piece: i for i, piece in enumerate(self.pieces, 1)}
        self._tokenizer = Tokenizer.from_file(str(folder / "pieces.json"))

    def ids(self, spelled: str) -> list[int]:
        """Outputs of the head; 0, the blank, is not among them."""
        tokens = self._tokenizer.encode(f" {spelled}", add_special_tokens=False).ids
        texts = (self._tokenizer.decode([token], skip_special_tokens=False) for token in tokens)
        return [self._index[text] for text in texts if text in self._index]

    def text(self, logits: Tensor) -> str:
        """The best path of `logits [E, 1 + n_pieces]`, repeats and blanks collapsed."""
        best = logits.argmax(-1).unique_consecutive().tolist()
        return " ".join("".join(self.pieces[i - 1] for i in best if i).split())
