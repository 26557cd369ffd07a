"""How tasks put questions to a model: free ones, and ones whose answer has a form. Keeps count of what it costs.

Knows windows and grammars; does not know what is asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.inference.engine import MossAudio, Transcript, split_reasoning
from moss_audio.inference.generate import FinishReason, Usage, count_usage, generate, room, score
from moss_audio.inference.grammar import State
from moss_audio.inference.grammar_tokens import Constraint, vocabulary
from moss_audio.inference.letters import is_silent
from moss_audio.inference.longform import windows
from moss_audio.inference.sampling import SamplingParams
from moss_audio.inference.transcription import SILENCE_PEAK, Prompt, listen, loop_length
from moss_audio.inference.voice import is_spoken
from moss_audio.tasks.result import Cost

ANSWER_TOKENS = 384
"""The longest answer about one window: every field of a speech caption at its full length."""


@dataclass(frozen=True)
class Choice:
    """A text that the model chose, and its probability among all texts that were allowed."""

    text: str
    probability: float


class Listener:
    """One run of a task over one recording."""

    def __init__(self, model: MossAudio, params: SamplingParams, cancelled: Callable[[], bool]) -> None:
        self.model, self.cancelled = model, cancelled
        self._params = replace(params, stop=(), max_new_tokens=min(params.max_new_tokens, ANSWER_TOKENS))
        self._usage, self._reasons = Usage(), set[FinishReason]()

    def parts(self, samples: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Windows of a recording with their starts in seconds; those in which nothing sounds are left out."""
        for window in windows(samples, self.model.voice, seconds=self.model.window_seconds):
            if self.cancelled():
                self._reasons.add("cancelled")
                return
            if sounds(window.samples):
                yield window.start, window.samples

    def ask(self, samples: np.ndarray, question: str, *, speech: bool = False) -> str:
        """The model's own words, without reasoning; a loop at their end is cut and counts as `length`.

        Empty where the question is about `speech` and nobody speaks.
        """
        prompt = self._listen(samples, question, speech)
        return split_reasoning(self._write(prompt, None)[0])[1] if prompt else ""

    def say(self, samples: np.ndarray, question: str) -> Choice:
        """The model's own words as `ask` has them, with their probability."""
        text, probability = self._write(listen(self.model.backend, self.model.processor, [samples], question), None)
        return Choice(split_reasoning(text)[1], probability)

    def fill(self, samples: np.ndarray, question: str, grammar: State, *, speech: bool = False) -> Any:
        """The value of an answer in JSON of the given form.

        None where the caller stopped it, and where it is about `speech` and nobody speaks.
        """
        prompt = self._listen(samples, question, speech)
        if prompt is None:
            return None
        text, _ = self._write(prompt, grammar)
        return None if self.cancelled() else json.loads(text)

    def choose(
        self, samples: np.ndarray, question: str, texts: tuple[str, ...], *, speech: bool = False
    ) -> Choice | None:
        """One of `texts`, whichever the model finds likeliest as a whole; None in the cases of `fill`."""
        prompt = self._listen(samples, question, speech)
        if prompt is None or self.cancelled():
            return None
        answers = [self.model.tokenizer.encode(text) for text in texts]
        scores = score(self.model.backend, prompt.inputs, answers, prompt.audio)
        best = int(np.argmax(scores))
        self._usage += count_usage(prompt.inputs, len(answers[best]))
        self._reasons.add("stop")
        return Choice(texts[best], math.exp(scores[best] - float(np.logaddexp.reduce(scores))))

    def transcribe(
        self,
        samples: np.ndarray,
        params: SamplingParams | None = None,
        hotwords: tuple[str, ...] = (),
        words: bool = False,
    ) -> Transcript:
        """What is said, with times; those of `words` as in `MossAudio.transcribe`."""
        transcript = self.model.transcribe(
            samples, params=params, hotwords=hotwords, cancelled=self.cancelled, words=words
        )
        self._usage += transcript.usage
        self._reasons.add(transcript.finish_reason)
        return transcript

    def excerpt(self, samples: np.ndarray) -> np.ndarray:
        """The loudest part that the model can hear at once: for questions whose answer holds for a whole recording."""
        return loudest(samples, self.model.window_seconds)[1]

    def speaks(self, samples: np.ndarray) -> bool:
        """Whether anybody speaks, as far as the model can tell."""
        return any(self._listen(part, "", speech=True) is not None for _, part in self.parts(samples))

    def cost(self, samples: np.ndarray) -> Cost:
        """What the run has cost so far."""
        order: tuple[FinishReason, ...] = ("cancelled", "length")
        worst: FinishReason = next((reason for reason in order if reason in self._reasons), "stop")
        return Cost(round(len(samples) / SAMPLE_RATE, 3), worst, self._usage)

    def _listen(self, samples: np.ndarray, question: str, speech: bool) -> Prompt | None:
        """The question as the model reads it; None where it is about `speech` and nobody speaks."""
        backend, voice = self.model.backend, self.model.voice
        if speech and not (sounds(samples) and (voice is None or is_spoken(samples, voice))):
            return None
        prompt = listen(backend, self.model.processor, [samples], question)
        logprobs = prompt.audio.letter_logprobs
        silent = speech and logprobs is not None and is_silent(logprobs, backend.config.audio.letters)
        return None if silent else prompt

    def _write(self, prompt: Prompt, grammar: State | None) -> tuple[str, float]:
        """The text of an answer and its probability."""
        backend, tokenizer = self.model.backend, self.model.tokenizer
        form: Constraint | None = None
        if grammar is not None:
            budget = min(self._params.max_new_tokens, room(backend, prompt.inputs))
            form = Constraint(grammar, vocabulary(tokenizer, backend.config.decoder.vocab_size), budget)
        ids, logprobs, text = list[int](), 0.0, ""
        looping = False

        def stopped() -> bool:
            return looping or self.cancelled()

        for event in generate(
            backend,
            tokenizer,
            prompt.inputs,
            self._params,
            audio=prompt.audio,
            draft=form.draft if form else None,
            allowed=form,
            cancelled=stopped,
        ):
            text += event.text
            logprobs += event.logprob or 0.0
            if event.token_id is not None:
                ids.append(event.token_id)
                looping = grammar is None and loop_length(ids) > 0
            if event.usage is not None and event.finish_reason is not None:
                self._usage += event.usage
                self._reasons.add("length" if looping else event.finish_reason)
        excess = loop_length(ids) if grammar is None else 0
        return (tokenizer.decode(ids[:-excess]) if excess else text), math.exp(logprobs)


def sounds(samples: np.ndarray) -> bool:
    """Whether a clip holds anything above -60 dBFS."""
    return len(samples) > 0 and float(np.abs(samples).max()) >= SILENCE_PEAK


def loudest(samples: np.ndarray, seconds: float) -> tuple[float, np.ndarray]:
    """The loudest whole `seconds` of a recording, with their start."""
    length, step = int(seconds) * SAMPLE_RATE, SAMPLE_RATE
    if len(samples) <= length:
        return 0.0, samples
    energy = np.array([float(np.square(samples[i : i + step]).sum()) for i in range(0, len(samples), step)])
    total = np.convolve(energy, np.ones(int(seconds)), "valid")
    start = min(int(total.argmax()) * step, len(samples) - length)
    return start / SAMPLE_RATE, samples[start : start + length]
