"""Training examples: what is heard, what is asked, what is answered; sources of them; batches by length.

A source is a manifest with a task, or a list of sentences that are only spelled. Everything random is drawn anew each
time an example is seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moss_audio.audio import log_mel
from moss_audio.data.manifest import MelStore, Row, held_out, read_manifest
from moss_audio.data.punctuate import sentence
from moss_audio.inference.letters import Spelling
from moss_audio.model.encoder import Encoder
from moss_audio.prompts import TRANSCRIBE
from moss_audio.training.augment import augment, mask
from moss_audio.training.scenes import World, ask
from moss_audio.training.simulate import LetterBank, garble
from moss_audio.training.spelling import greedy_text, letter_ids, spell
from moss_audio.training.splice import WordPool

TRANSCRIBE_WORDINGS = (TRANSCRIBE,) * 6 + (
    "What is said?",
    "What does the speaker say?",
    "Write down what you hear.",
    "Please transcribe this recording.",
)
SOUND_WORDINGS = ("What sound is this?", "What do you hear?", "Which sound is in the recording?", "Name the sound.")
GENDER_WORDINGS = ("Is the speaker a man or a woman?", "Who speaks, a man or a woman?")
Task = Callable[[Row, np.random.Generator], tuple[str, str] | None]


@dataclass
class Example:
    """Question and answer about a clip's `mel [n_mels, F]`, or about a spelling where nobody spoke; `more` turns.

    A `plain` one is its answer alone, text outside any conversation; an `unasked` one is an answer to nothing.
    """

    question: str
    answer: str
    mel: np.ndarray | None = None
    spelled: str = ""
    more: Sequence[tuple[str, str]] = ()
    plain: bool = False
    unasked: bool = False

    @property
    def size(self) -> int:
        """Mel frames, or as many as would cost the language model the same: 8 a token, and 3 letters in one."""
        heard = self.mel.shape[1] if self.mel is not None else 8 * len(self.spelled) // 3
        heard += 2 * len(self.answer) if self.plain or self.unasked else 0
        return heard + 2 * sum(len(question) + len(answer) for question, answer in self.more)


def transcribe(row: Row, rng: np.random.Generator) -> tuple[str, str] | None:
    """The words as text: a sentence where the transcript has case or punctuation or gets them by rule."""
    text = row.get("text") or row.get("pseudo_text")
    if not text or not spell(text):
        return None
    words = text.lower().split() if text.isupper() else text.split()
    return str(rng.choice(TRANSCRIBE_WORDINGS)), sentence(words)


def no_words(row: Row, rng: np.random.Generator) -> tuple[str, str] | None:
    """A transcript of what is not speech: nothing."""
    spoken = re.search(r"speech|voice|crowd|laugh|baby|choir|sing|talk", f"{row['label']} {row['category']}".lower())
    return None if spoken else (str(rng.choice(TRANSCRIBE_WORDINGS)), "")


def name_sound(row: Row, rng: np.random.Generator) -> tuple[str, str] | None:
    """The clip's label as a short answer."""
    return str(rng.choice(SOUND_WORDINGS)), f"{row['label'][:1].upper()}{row['label'][1:]}."


def name_gender(row: Row, rng: np.random.Generator) -> tuple[str, str] | None:
    """A man or a woman."""
    answer = {"male": "A man.", "female": "A woman."}.get(row.get("gender", ""))
    return (str(rng.choice(GENDER_WORDINGS)), answer) if answer else None


TASKS: Mapping[str, Task] = {
    "transcribe": transcribe, "no_words": no_words, "sound": name_sound, "gender": name_gender,
}  # fmt: skip


class Source:
    """Clips of one manifest under one task.

    `folds` keeps only those folds, `held_out` leaves out a fifth, `splice` is the share of clips that get a third of
    their words from others; it takes the `encoder` to find them. `augment` widens what changes in a clip.
    """

    def __init__(
        self, recipe: Mapping[str, Any], data: Path, cache: Path, n_mels: int, encoder: Encoder | None = None
    ) -> None:
        self.splice_rate, self.change = float(recipe.get("splice", 0)), float(recipe.get("augment", 1))
        self.store = MelStore(data / recipe["manifest"], cache, n_mels)
        self.task, self.weight = TASKS[recipe["task"]], float(recipe["weight"])
        folds, apart = recipe.get("folds"), recipe.get("held_out", False)
        rng = np.random.default_rng(0)
        self.usable = [
            i
            for i, row in enumerate(self.store.rows)
            if self.store.frames[i] <= 2000
            and (folds is None or row["fold"] in folds)
            and not (apart and held_out(row))
            and self.task(row, rng) is not None
        ]
        self.words = WordPool(self.store, encoder) if self.splice_rate and encoder is not None else None

    def draw(self, rng: np.random.Generator, noise: Sequence[MelStore], noise_rate: float) -> Example:
        """One augmented clip. Music and effects keep their pitch and tempo when they are what is asked for."""
        i = self.usable[rng.integers(len(self.usable))]
        row, spoken = self.store.rows[i], self.store[i].astype(np.float32)
        if self.words is not None and rng.random() < self.splice_rate:
            spliced = self.words.splice(i, rng, rate=0.35)
            if spliced is not None:
                spoken, row = spliced[0], {**row, "text": spliced[1]}
        asked = self.task(row, rng)
        assert asked is not None
        mel, other = torch.from_numpy(spoken), None
        if noise and self.task in (transcribe, name_gender) and rng.random() < noise_rate:
            store = noise[int(rng.integers(len(noise)))]
            other = torch.from_numpy(store[int(rng.integers(len(store)))].astype(np.float32))
        return Example(*asked, mel=augment(mel, rng, other, self.change).numpy())


class Sentences:
    """Sentences that are only spelled: by a `LetterBank`, and where there is a piece head, as `garble` has it err.

    With `unasked` they are not even that, but answers to nothing.
    """

    def __init__(
        self, recipe: Mapping[str, Any], data: Path, forbidden: set[str], bank: LetterBank, pieces: bool = False
    ) -> None:
        lines = (data / recipe["texts"]).read_text(encoding="utf-8").splitlines()
        self.weight, self.bank, self.unasked = float(recipe["weight"]), bank, bool(recipe.get("unasked", False))
        self.error_rate = 0.0 if self.unasked else float(recipe["error_rate"])
        self.lines = [line for line in lines if (words := (spell(line) or "").split()) and 2 < len(words) < 60
                      and not any(" ".join(words[i : i + 4]) in forbidden for i in range(len(words) - 3))]  # fmt: skip
        self.words = sorted({word for line in self.lines for word in (spell(line) or "").split()}) if pieces else []

    def draw(self, rng: np.random.Generator, noise: Sequence[MelStore], noise_rate: float) -> Example:
        """One sentence, at most 26 words of it, spelled with errors."""
        line = self.lines[rng.integers(len(self.lines))]
        words = line.lower().split() if line.isupper() else line.split()
        length = int(rng.integers(8, 27))
        start = int(rng.integers(0, max(1, len(words) - length + 1)))
        answer = sentence(words[start : start + length])
        if self.unasked:
            return Example("", answer, unasked=True)
        ids = self.bank.misspell(letter_ids(spell(answer) or ""), rng, float(rng.uniform(0, self.error_rate)))
        letters = greedy_text(torch.from_numpy(self.bank.spell(ids, rng)))
        words = garble(spell(answer) or "", rng, float(rng.uniform(0, 2 * self.error_rate)), self.words)
        spelled = Spelling(letters, words if self.words else None)
        return Example(str(rng.choice(TRANSCRIBE_WORDINGS)), answer, spelled=spelled.quoted)


class Texts:
    """Plain sentences, which keep the language model what it was. The last `APART` lines are never drawn."""

    APART = 500

    def __init__(self, recipe: Mapping[str, Any], data: Path) -> None:
        lines = (data / recipe["plain"]).read_text(encoding="utf-8").splitlines()
        self.weight, self.lines = float(recipe["weight"]), [line for line in lines[: -self.APART] if len(line) > 20]

    def draw(self, rng: np.random.Generator, noise: Sequence[MelStore], noise_rate: float) -> Example:
        """One of them."""
        return Example("", self.lines[int(rng.integers(len(self.lines)))], plain=True)


class Scenes:
    """Composed scenes with questions about each, as turns of one conversation; `turns`: shares of one, two, … of them.

    A first answer has to be heard; a later one can be guessed from it, and reading it costs as much.
    """

    def __init__(self, world: World, weight: float, n_mels: int, turns: Sequence[float] = (1, 1, 1)) -> None:
        self.world, self.weight, self.n_mels = world, weight, n_mels
        self.turns = np.array(turns, float) / sum(turns)

    def draw(self, rng: np.random.Generator, noise: Sequence[MelStore], noise_rate: float) -> Example:
        """One scene."""
        turns: list[tuple[str, str]] = []
        while not turns:
            kind, scene = self.world.draw(rng)
            n = 1 + int(rng.choice(len(self.turns), p=self.turns))
            turns = ask(kind, scene, self.world.labels, rng, n)
        mel = log_mel(scene.samples, self.n_mels)
        if rng.random() < 0.5:
            mel = mask(torch.from_numpy(mel), rng, band=8, rate=0.03).numpy()
        return Example(*turns[0], mel=mel, more=turns[1:])


class Chats:
    """Conversations without audio (`question`, `answer` a row), which keep the language model what it was."""

    def __init__(self, recipe: Mapping[str, Any], data: Path) -> None:
        self.weight, self.rows = float(recipe["weight"]), read_manifest(data / recipe["chats"])

    def draw(self, rng: np.random.Generator, noise: Sequence[MelStore], noise_rate: float) -> Example:
        """One of them; a bare question without the letters of a clip."""
        row = self.rows[int(rng.integers(len(self.rows)))]
        return Example(row["question"], row["answer"], more=[(row["question"], row["answer"])])


class Feed:
    """Endless batches of at most `max_size` when padded (`Example.size`): like sizes together, sources by weight."""

    def __init__(
        self,
        sources: Sequence[Source | Sentences | Texts | Scenes | Chats],
        max_size: int,
        noise: Sequence[MelStore],
        noise_rate: float,
    ) -> None:
        self.sources, self.max_size, self.noise, self.noise_rate = sources, max_size, noise, noise_rate
        weights = np.array([source.weight for source in sources])
        self._share = weights / weights.sum()
        self._pool: list[list[Example]] = []

    def next(self, rng: np.random.Generator) -> list[Example]:
        """A batch; draws 256 examples at a time."""
        if not self._pool:
            picks = rng.choice(len(self.sources), 256, p=self._share)
            drawn = [self.sources[s].draw(rng, self.noise, self.noise_rate) for s in picks]
            drawn.sort(key=lambda example: example.size)
            for example in drawn:
                if not self._pool or example.size * (len(self._pool[-1]) + 1) > self.max_size:
                    self._pool.append([])
                self._pool[-1].append(example)
            rng.shuffle(self._pool)  # type: ignore[arg-type]
        return self._pool.pop()
