"""What the letter head of the encoder knows: which letters were said, and when.

The head is a CTC classifier (Graves et al., 2006) at 50 frames a second; output 0 is the blank and output i is
`letters[i - 1]`. Its spelling is rough ("whour do i hea seeck") and its timing is good: it drafts for the language
model, times the words that the model wrote, and tells speech from silence. Knows nothing of the network.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moss_audio.transcript import SENTENCE_END, Word

if TYPE_CHECKING:
    from moss_audio.tokenizer import Tokenizer

SECONDS_PER_FRAME = 0.02
"""The head's frames are the encoder's before stacking: 50 a second."""


def greedy_words(logprobs: np.ndarray, letters: str) -> tuple[Word, ...]:
    """Collapse the best path of `logprobs [E, L]` to words with times: repeats merged, blanks dropped."""
    best = logprobs.argmax(axis=1)
    words: list[Word] = []
    is_open, previous = False, 0
    for frame, label in enumerate(best.tolist()):
        letter = letters[label - 1] if label else ""
        if letter == " ":
            is_open = False
        elif letter:
            start, end = frame * SECONDS_PER_FRAME, (frame + 1) * SECONDS_PER_FRAME
            if is_open:
                text = words[-1].text + (letter if label != previous else "")
                words[-1] = Word(text, words[-1].start, end)
            else:
                words.append(Word(letter, start, end))
            is_open = True
        previous = label
    return tuple(words)


class Spelling(NamedTuple):
    """What the heads make of some frames: the letter head's spelling, and the piece head's words if there is one."""

    letters: str
    words: str | None = None

    @property
    def quoted(self) -> str:
        """As a prompt quotes it: words are surer, letters tell of names and of words that were left out."""
        return f"{self.words} / {self.letters}" if self.words is not None and self.letters else self.best

    @property
    def best(self) -> str:
        """The surer of the two."""
        return self.letters if self.words is None else self.words


def spelling(
    letter_logprobs: np.ndarray, letters: str, piece_ids: np.ndarray | None = None, pieces: Sequence[str] = ()
) -> Spelling:
    """Read both heads. `piece_ids [P]` are outputs of the piece head, blank 0; output i spells `pieces[i - 1]`."""
    rough = " ".join(word.text for word in greedy_words(letter_logprobs, letters))
    if piece_ids is None:
        return Spelling(rough)
    changed = np.flatnonzero(np.diff(piece_ids, prepend=0))
    return Spelling(rough, " ".join("".join(pieces[i - 1] for i in piece_ids[changed] if i).split()))


MIN_CONFIDENCE = 0.66
"""Mean probability of the letters heard, below which they are noise: 0.77…0.93 on 32 spoken clips, at most 0.64 on the
5 of 61 environmental sounds that spelled two letters or more (`docs/log.md`)."""


def is_silent(logprobs: np.ndarray, letters: str, min_letters: int = 2) -> bool:
    """True when the head hears (almost) no letters in `logprobs [E, L]`, or is sure of none: nobody speaks."""
    if sum(len(word.text) for word in greedy_words(logprobs, letters)) < min_letters:
        return True
    sure = logprobs.max(axis=1)[logprobs.argmax(axis=1) > 0]
    return bool(np.exp(sure).mean() < MIN_CONFIDENCE)


def normalise(text: str, letters: str) -> str:
    """`text` as the head would spell it: lower case, accents removed, other characters dropped, single spaces."""
    folded = unicodedata.normalize("NFKD", text.lower().replace("\u2019", "'"))
    return " ".join("".join(c if c in letters else " " * c.isspace() for c in folded).split())


KEPT_ANSWERS = 16
"""Answers whose alignment a draft remembers: a search comes back to each of its texts."""


class LetterDraft:
    """Proposes the next tokens of a transcript from what the heads spelled; `generate` verifies them.

    The answer so far is aligned with the head's text by edit distance, one row of the table a character, so that the
    place survives misspellings, skipped words and added ones. At most `n_tokens` are proposed, twice as many after a
    proposal that was right to its end, up to four times. Where the text ends, so does the last sentence.
    """

    def __init__(self, spelled: str, letters: str, tokenizer: Tokenizer, n_tokens: int = 8) -> None:
        self.text = spelled
        self._letters, self._tokenizer, self._n_tokens = letters, tokenizer, n_tokens
        self._size, self._proposed, self._emitted = n_tokens, list[int](), 0
        self._codes = np.frombuffer(self.text.encode("utf-32-le"), dtype=np.uint32)
        self._columns = np.arange(len(self.text) + 1)
        self._rows = {"": self._columns}  # edits between an answer and text[:column], for the answers read last
        word_end = [True, *(letter != " " and after == " " for letter, after in pairwise(self.text + " "))]
        # An unfinished word costs more than an edit: most tokens end one. A stray letter still beats two edits.
        self._unfinished = np.where(word_end, 0.0, 1.5)

    def __call__(self, emitted: list[int]) -> list[int]:
        before = slice(self._emitted, self._emitted + len(self._proposed))
        right = bool(self._proposed) and emitted[before] == self._proposed
        self._size = min(2 * self._size, 4 * self._n_tokens) if right else self._n_tokens
        self._proposed, self._emitted = self._propose(emitted), len(emitted)
        return self._proposed

    def _propose(self, emitted: list[int]) -> list[int]:
        answer = self._tokenizer.decode(emitted)
        place = self._place(normalise(answer, self._letters))
        rest = self.text[place:]
        if place and not answer[-1].isalnum():  # the word is over, whatever the head has left of it
            rest = " " * (not answer[-1].isspace()) + rest.partition(" ")[2]
        rest += "." if rest.strip() else ""
        words = rest.split(" ")[: self._size]
        if SENTENCE_END.search(answer.rstrip()):
            first = next((i for i, word in enumerate(words) if word), 0)
            words[first] = words[first].capitalize()
        words = [word.capitalize() if word == "i" or word.startswith("i'") else word for word in words]
        return self._tokenizer.encode(" ".join(words))[: self._size] if any(words) else []

    def _place(self, answer: str) -> int:
        """Letters of the head's text that the normalised answer has used up."""
        read = max((known for known in self._rows if answer.startswith(known)), key=len)
        row = self._rows[read]
        for letter in answer[len(read) :]:
            replaced = row[:-1] + (self._codes != ord(letter))
            row = np.minimum(np.append(row[:1] + 1, replaced), row + 1)
            row = np.minimum.accumulate(row - self._columns) + self._columns
        self._rows[answer] = row
        if len(self._rows) > KEPT_ANSWERS:
            del self._rows[next(known for known in self._rows if known)]
        return int(np.argmin(row + self._unfinished))


def forced_alignment(logprobs: np.ndarray, text: str, letters: str) -> tuple[Word, ...]:
    """Times of the words of `text` in `logprobs [E, L]`: the best CTC path that spells it, by Viterbi search.

    Characters that the head does not know are skipped; a word without any letter ("1984") lies between its
    neighbours. Words are `text.split()`. Empty when there are more letters than frames to say them in.
    """
    words, labels, owner = _labels(text, letters)
    spans = best_path(logprobs, labels)
    if spans is None:
        return ()
    times: dict[int, tuple[float, float]] = {}
    for i in np.unique(owner[owner >= 0]).tolist():
        own = spans[owner == i]
        times[i] = (float(own[0, 0]) * SECONDS_PER_FRAME, float(own[-1, 1] + 1) * SECONDS_PER_FRAME)
    return _fill_gaps(words, times, len(logprobs) * SECONDS_PER_FRAME)


def evidence(logprobs: np.ndarray, text: str, phrase: str, letters: str) -> list[float]:
    """How sure the head is of `phrase` wherever it stands in `text`: the mean over its letters of the highest
    log-probability of each in the frames that are its own. Nothing where `text` does not fit in `logprobs [E, L]`.
    """
    words, labels, owner = _labels(text, letters)
    spans = best_path(logprobs, labels)
    if spans is None:
        return []
    sure = np.array([logprobs[a : b + 1, label].max() for (a, b), label in zip(spans, labels, strict=True)])
    spelt, wanted = [normalise(word, letters) for word in words], normalise(phrase, letters).split()
    places = (i for i in range(len(words) - len(wanted) + 1) if wanted and spelt[i : i + len(wanted)] == wanted)
    return [float(sure[(owner >= i) & (owner < i + len(wanted))].mean()) for i in places]


def _labels(text: str, letters: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The words of `text`, the head's outputs that spell it, and the word that each belongs to; -1 for spaces."""
    words = text.split()
    labels: list[int] = []
    owners: list[int] = []
    for i, word in enumerate(words):
        spelt = normalise(word, letters).replace(" ", "")
        space = [letters.index(" ") + 1] if spelt and labels and " " in letters else []
        labels += [*space, *(letters.index(c) + 1 for c in spelt)]
        owners += [*(-1 for _ in space), *(i for _ in spelt)]
    return words, np.array(labels, dtype=np.int64), np.array(owners, dtype=np.int64)


def best_path(logprobs: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """First and last frame `[n, 2]` of every label on the best path, or None where no path is long enough.

    States alternate blank and label, `2 n + 1` of them; a path stays, steps on, or skips the blank between two
    different labels.
    """
    n_frames, n_states = len(logprobs), 2 * len(labels) + 1
    if len(labels) + np.count_nonzero(labels[1:] == labels[:-1]) > n_frames:
        return None
    symbols = np.zeros(n_states, dtype=np.int64)
    symbols[1::2] = labels
    may_skip = np.zeros(n_states, dtype=bool)
    may_skip[3::2] = labels[1:] != labels[:-1]
    scores = np.full(n_states, -np.inf)
    scores[0] = 0.0  # as if a blank came before the first frame
    steps = np.zeros((n_frames, n_states), dtype=np.int8)
    for frame, emission in enumerate(logprobs[:, symbols].astype(np.float64)):
        one = np.append(-np.inf, scores[:-1])
        two = np.where(may_skip, np.append([-np.inf, -np.inf], scores[:-2])[:n_states], -np.inf)
        moves = np.stack([scores, one, two])
        steps[frame] = moves.argmax(axis=0)
        scores = moves.max(axis=0) + emission
    state = n_states - 1 if n_states < 2 or scores[-1] >= scores[-2] else n_states - 2
    path = np.empty(n_frames, dtype=np.int64)
    for frame in range(n_frames - 1, -1, -1):
        path[frame] = state
        state -= int(steps[frame, state])
    at = 2 * np.arange(len(labels)) + 1
    return np.stack([np.searchsorted(path, at, side="left"), np.searchsorted(path, at, side="right") - 1], axis=1)


def _fill_gaps(words: list[str], times: dict[int, tuple[float, float]], duration: float) -> tuple[Word, ...]:
    """Give every run of words without a time equal shares of the gap between its neighbours."""
    placed: list[Word] = []
    for i, word in enumerate(words):
        if i not in times:
            after = next((j for j in range(i, len(words)) if j in times), len(words))
            start = placed[-1].end if placed else 0.0
            end = times[after][0] if after in times else duration
            times[i] = (start, start + (max(end, start) - start) / (after - i))
        placed.append(Word(word, round(times[i][0], 3), round(times[i][1], 3)))
    return tuple(placed)
