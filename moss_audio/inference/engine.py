"""A model one can talk to: recordings and questions in, typed results out. Every door leads here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import numpy as np

from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.checkpoint import find_model
from moss_audio.errors import PromptError
from moss_audio.inference.generate import FinishReason, TokenEvent, Usage, collect, generate
from moss_audio.inference.longform import windows
from moss_audio.inference.sampling import SamplingParams
from moss_audio.inference.transcription import Heard, hear, listen, locate, read, write
from moss_audio.processor import Processor
from moss_audio.prompts import TRANSCRIPT_BEAMS
from moss_audio.runtime.backend import Backend
from moss_audio.runtime.select import Kind, load_backend
from moss_audio.transcript import Segment

AudioSource = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray
"""A path, the bytes of a file, an open binary file, or `samples [n]` float32 mono at 16 kHz."""

TRANSCRIPT_PARAMS = SamplingParams(n_beams=TRANSCRIPT_BEAMS)
"""How a transcript is written where the caller does not say; greedy decoding is `SamplingParams()`."""

_THINKING = re.compile(r"\s*<think>(.*?)(?:</think>(.*)|$)", re.DOTALL)


@dataclass(frozen=True)
class Transcript:
    """What was said. `duration` is that of the recording in seconds; `text` is empty where nobody speaks."""

    text: str
    segments: tuple[Segment, ...]
    language: str | None
    duration: float
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True)
class Answer:
    """A reply. `reasoning` is what a thinking model wrote between `<think>` and `</think>` before it."""

    text: str
    reasoning: str | None
    finish_reason: FinishReason
    usage: Usage


def load(
    model: str | os.PathLike[str] = "mini",
    *,
    device: str = "auto",
    backend: Kind | None = None,
    precision: str = "auto",
) -> MossAudio:
    """Load a model: `mini` (embedded), a folder, or a hub id such as `OpenMOSS-Team/MOSS-Audio-4B-Instruct`.

    `device` is `auto`, `cpu`, `gpu` (OpenVINO) or `cuda` (PyTorch); `backend` is `openvino` or `torch`, by default the
    one that fits the device; `precision` is `auto`, or what `runtime.select.load_backend` takes. Raises
    `CheckpointError` for what is no model and `BackendError` for what cannot run here.
    """
    folder = find_model(os.fspath(model))
    network = load_backend(folder, backend, None if device == "auto" else device, precision)
    return MossAudio(network, Processor.load(folder, network.config.audio.n_mels))


class MossAudio:
    """A loaded model. Holds weights only: calls share nothing, and each has a cache of its own."""

    def __init__(self, backend: Backend, processor: Processor) -> None:
        self.backend, self.processor, self.tokenizer = backend, processor, processor.tokenizer

    def transcribe(
        self,
        audio: AudioSource,
        *,
        params: SamplingParams | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Transcript:
        """Write down what is said in a recording of any length, in sentences with times where the model knows them.

        Raises `AudioError` when the recording cannot be used.
        """
        (samples,) = _clips(audio)
        texts: list[str] = []
        segments: list[Segment] = []
        usage, reasons = Usage(), set[FinishReason]()
        for heard, events in self._windows(samples, params or TRANSCRIPT_PARAMS, cancelled or _never):
            text, reason, cost = read(self.tokenizer, events)
            texts.append(text)
            segments += locate(text, heard, self.backend.config.audio.letters)
            usage += cost
            reasons.add(reason)
        text = " ".join(filter(None, texts))
        return Transcript(text, tuple(segments), None, round(len(samples) / SAMPLE_RATE, 3), _worst(reasons), usage)

    def ask(
        self,
        audio: AudioSource | Sequence[AudioSource],
        question: str,
        *,
        params: SamplingParams | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        """Ask about one recording, or about several in one prompt, in their order.

        Raises `AudioError` for a recording that cannot be used and `PromptError` for a prompt that does not fit.
        """
        text, reason, usage = collect(self._answer(audio, question, params, cancelled))
        reasoning, text = split_reasoning(text)
        return Answer(text, reasoning, reason, usage)

    def stream(
        self,
        audio: AudioSource | Sequence[AudioSource],
        question: str | None = None,
        *,
        params: SamplingParams | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[TokenEvent]:
        """The events of `ask`, or without a question those of `transcribe`, as they come.

        Only the last has a `finish_reason` and `usage`. Raises what `ask` and `transcribe` raise.
        """
        if question is not None:
            return self._answer(audio, question, params, cancelled)
        clips = _clips(audio)
        if len(clips) != 1:
            raise PromptError(f"a transcript is of one recording, not of {len(clips)}; ask for each by itself")
        return self._transcript(clips[0], params or TRANSCRIPT_PARAMS, cancelled or _never)

    def _answer(
        self,
        audio: AudioSource | Sequence[AudioSource],
        question: str,
        params: SamplingParams | None,
        cancelled: Callable[[], bool] | None,
    ) -> Iterator[TokenEvent]:
        prompt = listen(self.backend, self.processor, _clips(audio), question)
        params = params or SamplingParams()
        return generate(
            self.backend, self.tokenizer, prompt.inputs, params, audio=prompt.audio, cancelled=cancelled
        )

    def _transcript(
        self, samples: np.ndarray, params: SamplingParams, cancelled: Callable[[], bool]
    ) -> Iterator[TokenEvent]:
        usage, reasons, gap = Usage(), set[FinishReason](), ""
        for _, events in self._windows(samples, params, cancelled):
            at_start = True
            for event in events:
                text = gap + event.text.lstrip() if at_start else event.text
                at_start = at_start and not text.strip()
                if event.finish_reason is not None and event.usage is not None:
                    usage += event.usage
                    reasons.add(event.finish_reason)
                yield replace(event, text="" if at_start else text, finish_reason=None, usage=None)
            gap = gap if at_start else " "
        yield TokenEvent("", finish_reason=_worst(reasons), usage=usage)

    def _windows(
        self, samples: np.ndarray, params: SamplingParams, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Heard, Iterator[TokenEvent]]]:
        """The windows of a recording, each encoded when its turn comes and written as its events are read."""
        for start, window in windows(samples):
            heard = hear(self.backend, self.processor, window, start)
            yield heard, write(self.backend, self.tokenizer, heard, params, cancelled)
            if cancelled():
                return


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Part an answer into reasoning and reply: `<think>why</think>what`. Cut off while thinking, it has no reply."""
    match = _THINKING.match(text)
    if match is None:
        return None, text.strip()
    return match[1].strip(), (match[2] or "").strip()


def _clips(audio: AudioSource | Sequence[AudioSource]) -> list[np.ndarray]:
    """One recording or several, decoded to samples."""
    sources = cast(Sequence[AudioSource], audio if isinstance(audio, list | tuple) else [audio])
    return [source if isinstance(source, np.ndarray) else load_audio(source) for source in sources]


def _worst(reasons: set[FinishReason]) -> FinishReason:
    """How a whole ended whose parts ended with `reasons`."""
    order: tuple[FinishReason, ...] = ("cancelled", "length", "stop")
    return next(reason for reason in order if reason in reasons)


def _never() -> bool:
    return False
