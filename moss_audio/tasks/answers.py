"""`describe`, `summarize`, `ask`, `choose` and `transcribe`: the model's own words, with the times they are about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.inference.sampling import SamplingParams
from moss_audio.prompts import CHOOSE, DESCRIBE, NOTHING, SUMMARIZE
from moss_audio.tasks.listener import Listener
from moss_audio.tasks.options import AskOptions, ChooseOptions, NoOptions, TranscribeOptions
from moss_audio.tasks.result import Result, Rows, clock
from moss_audio.transcript import Segment


@dataclass(frozen=True)
class TextResult(Result):
    """Text in parts, one for each window of a long recording."""

    parts: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """The parts as one text."""
        return " ".join(part.text for part in self.parts)

    def to_text(self) -> str:
        if len(self.parts) < 2:
            return self.text
        return "\n".join(f"{clock(part.start)} {part.text}" for part in self.parts)

    def rows(self) -> Rows:
        return ("start", "end", "text"), [(part.start, part.end, part.text) for part in self.parts]


@dataclass(frozen=True)
class TranscribeResult(Result):
    """What is said, in sentences with times where the model knows them."""

    text: str
    segments: tuple[Segment, ...]
    notes: tuple[str, ...] = ()
    """Where and why the text is not whole, and what was repaired."""

    def to_text(self) -> str:
        return self.text

    def rows(self) -> Rows:
        return ("start", "end", "text"), [(one.start, one.end, one.text) for one in self.segments]


@dataclass(frozen=True)
class ChooseResult(Result):
    """`letter` stands for `answer`, None if cancelled; `probability` is that among the letters allowed."""

    letter: str | None
    answer: str | None
    probability: float

    def to_text(self) -> str:
        return f"{self.letter}. {self.answer}" if self.letter else ""

    def rows(self) -> Rows:
        return ("letter", "answer", "probability"), [(self.letter, self.answer, self.probability)]


def transcribe(listener: Listener, samples: np.ndarray, options: TranscribeOptions) -> TranscribeResult:
    """What is said, of a recording of any length."""
    params = replace(SamplingParams(), n_beams=options.beams)
    transcript = listener.transcribe(samples, params, options.hotwords)
    return TranscribeResult(listener.cost(samples), transcript.text, transcript.segments, transcript.notes)


def describe(listener: Listener, samples: np.ndarray, options: NoOptions) -> TextResult:
    """What is going on, window by window."""
    result = _window_by_window(listener, samples, DESCRIBE)
    silent = Segment(0.0, max(0.01, result.cost.duration), NOTHING)
    return result if result.parts else replace(result, parts=(silent,))


def summarize(listener: Listener, samples: np.ndarray, options: NoOptions) -> TextResult:
    """What is said in short, a sentence for each window in which anybody speaks."""
    return _window_by_window(listener, samples, SUMMARIZE, speech=True)


def ask(listener: Listener, samples: np.ndarray, options: AskOptions) -> TextResult:
    """The answer to a free question, about each window by itself."""
    return _window_by_window(listener, samples, options.question)


def choose(listener: Listener, samples: np.ndarray, options: ChooseOptions) -> ChooseResult:
    """One of up to four answers to a question about the loudest part; nothing else can come.

    Released models choose a letter, as they were evaluated. The Mini says the answer itself, whichever of them it finds
    likeliest: it knows some sounds, and no letters for them (`docs/log.md`).
    """
    letters = tuple("ABCD"[: len(options.choices)])
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, options.choices, strict=True))
    texts, question = letters, CHOOSE.format(question=options.question, options=lines)
    said = tuple(f"{choice[:1].upper()}{choice[1:].rstrip('.')}." for choice in options.choices)
    if listener.model.backend.config.audio.letters and len(set(said)) == len(said):
        texts, question = said, options.question
    picked = listener.choose(listener.excerpt(samples), question, texts)
    if picked is None:
        return ChooseResult(listener.cost(samples), None, None, 0.0)
    place = texts.index(picked.text)
    return ChooseResult(
        listener.cost(samples), letters[place], options.choices[place], round(picked.probability, 3)
    )


def _window_by_window(listener: Listener, samples: np.ndarray, question: str, speech: bool = False) -> TextResult:
    parts: list[Segment] = []
    for start, part in listener.parts(samples):
        text = listener.ask(part, question, speech=speech)
        if text:
            parts.append(Segment(round(start, 2), round(start + len(part) / SAMPLE_RATE, 2), text))
    return TextResult(listener.cost(samples), tuple(parts))
