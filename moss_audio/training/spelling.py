"""Text as the letter head writes it, and back."""

from __future__ import annotations

import re

from torch import Tensor

from moss_audio.config import LETTERS


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
