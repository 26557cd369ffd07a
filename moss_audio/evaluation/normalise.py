"""Text as it is compared: what two people who heard the same words would agree on."""

from __future__ import annotations

import re
import unicodedata

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
SPOKEN = {"mr": "mister", "mrs": "missus", "dr": "doctor", "&": "and", "%": "percent"}


def number_words(value: int) -> str:
    """An integer below a million as it is read in English: 1984 → `one thousand nine hundred eighty four`."""
    if value < 20:
        return ONES[value]
    if value < 100:
        return TENS[value // 10] + (f" {ONES[value % 10]}" if value % 10 else "")
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if value >= size:
            rest = f" {number_words(value % size)}" if value % size else ""
            return f"{number_words(value // size)} {name}{rest}"
    raise AssertionError(value)


def english(text: str) -> list[str]:
    """Words in lower case, without accents and punctuation, numbers below a million and titles written out."""
    folded = unicodedata.normalize("NFKD", text.lower().replace("’", "'")).encode("ascii", "ignore").decode()
    folded = re.sub(r"(?<=\d),(?=\d{3})", "", folded)
    folded = re.sub(r"\d+", lambda m: f" {number_words(int(m[0]))} " if len(m[0]) < 7 else m[0], folded)
    return [SPOKEN.get(word, word) for word in re.sub(r"[^a-z0-9'&%]|(?<!\w)'|'(?!\w)", " ", folded).split()]
