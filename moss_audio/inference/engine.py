"""A model one can talk to: recordings and questions in, typed results out. Every door leads here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import numpy as np

from moss_audio.audio import SAMPLE_RATE, Recording, load_audio, open_audio
from moss_audio.checkpoint import find_model
from moss_audio.errors import AudioError, PromptError
from moss_audio.inference import hotwords as hot
from moss_audio.inference.generate import FinishReason, TokenEvent, Usage, collect, generate
from moss_audio.inference.generate import split_reasoning as split_reasoning
from moss_audio.inference.longform import MINI_SECONDS, OVERLAP_SECONDS, TRAINED_SECONDS, windows
from moss_audio.inference.passages import Passage, compose
from moss_audio.inference.sampling import SamplingParams
from moss_audio.inference.transcription import Heard, Times, hear, is_search, listen, write
from moss_audio.inference.voice import Voice, silero
from moss_audio.processor import Processor
from moss_audio.prompts import TRANSCRIPT_BEAMS
from moss_audio.runtime.backend import Backend
from moss_audio.runtime.select import Kind, load_backend
from moss_audio.transcript import Segment

AudioSource = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray
"""A path, the bytes of a file, an open binary file, or `samples [n]` float32 mono at 16 kHz."""

TRANSCRIPT_PARAMS = SamplingParams(n_beams=TRANSCRIPT_BEAMS)
"""How a transcript is written where the caller does not say; greedy decoding is `SamplingParams()`."""


@dataclass(frozen=True)
class Transcript:
    """What was said. `text` is empty where nobody speaks; `duration` is that of the recording, as far as it was heard.

    `finish_reason` is `stop` only for a text that is whole; `notes` say where and why it is not, and what was repaired.
    """

    text: str
    segments: tuple[Segment, ...]
    language: str | None
    duration: float
    finish_reason: FinishReason
    usage: Usage
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, passages: Sequence[Passage], cancelled: bool = False) -> Transcript:
        """The whole of `passages`, which follow one another, or what there is of it where it was `cancelled`."""
        reasons = {passage.finish_reason for passage in passages}
        if cancelled or not passages:
            reasons.add("cancelled")
        return cls(
            text=" ".join(passage.text for passage in passages if passage.text),
            segments=tuple(segment for passage in passages for segment in passage.segments),
            language=None,
            duration=round(passages[-1].end, 3) if passages else 0.0,
            finish_reason=_worst(reasons),
            usage=sum((passage.usage for passage in passages), Usage()),
            notes=tuple(note for passage in passages for note in passage.notes),
        )


@dataclass(frozen=True)
class Progress:
    """How far a transcript is: its last `passage`, the `windows` and `seconds` of the recording that are done.

    `total` is the recording's duration in seconds where it is known, and `seconds_left` how long the rest will take.
    """

    passage: Passage
    windows: int
    seconds: float
    total: float | None
    seconds_left: float | None


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
    return MossAudio(network, Processor.load(folder, network.config.audio.n_mels), silero)


class MossAudio:
    """A loaded model. Holds weights only: calls share nothing, and each has a cache of its own.

    `voice` tells where somebody speaks. Without it, level and letter head alone keep silence silent, and long
    recordings are cut where they are quietest.
    """

    def __init__(self, backend: Backend, processor: Processor, voice: Voice | None = None) -> None:
        self.backend, self.processor, self.tokenizer, self.voice = backend, processor, processor.tokenizer, voice

    @property
    def window_seconds(self) -> float:
        """The longest clip that is heard at a time; longer recordings are cut."""
        return MINI_SECONDS if self.backend.config.audio.letters else TRAINED_SECONDS

    def transcribe(
        self,
        audio: AudioSource,
        *,
        params: SamplingParams | None = None,
        hotwords: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
        progress: Callable[[Progress], None] | None = None,
        done: Sequence[Passage] = (),
        words: bool = False,
    ) -> Transcript:
        """Write down what is said in a recording of any length, in sentences with times.

        `hotwords` are names and terms that may occur. With `words` the released models are asked for the time of each
        word, which takes them several times as long; the Mini knows it anyway. `progress` is told of every passage as
        it is finished; a caller who keeps them may later go on behind them, given as `done`.

        Raises `AudioError` when the recording cannot be used and `PromptError` for hotwords that cannot be.
        """
        found, began = [passage for passage in done if passage.finish_reason != "cancelled"], time.monotonic()
        n_done = len(found)
        with _open(audio) as recording:
            passages = self.passages(
                recording, params=params, hotwords=hotwords, cancelled=cancelled, done=found, words=words
            )
            for passage in passages:
                found.append(passage)
                if progress is not None:
                    progress(_progress(found, n_done, recording.seconds, time.monotonic() - began))
        return Transcript.of(found)

    def passages(
        self,
        audio: AudioSource | Recording,
        *,
        params: SamplingParams | None = None,
        hotwords: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
        done: Sequence[Passage] = (),
        words: bool = False,
    ) -> Iterator[Passage]:
        """The passages of `transcribe` as they are written, one for each window.

        `Transcript.of` makes the whole of them. Raises what `transcribe` raises.
        """
        params, cancelled = params or TRANSCRIPT_PARAMS, cancelled or _never
        timed: Times = "words" if words else "sentences"
        after = done[-1] if done else None
        heard_windows = self._windows(
            audio, cancelled, hotwords, params, timed=timed, after=after, overlap=OVERLAP_SECONDS
        )
        for heard in heard_windows:
            yield compose(self.backend, self.tokenizer, heard, params, cancelled)

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
        hotwords: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[TokenEvent]:
        """The events of `ask`, or without a question the text of `transcribe`, as they come, loops and all.

        Only the last has a `finish_reason` and `usage`. Raises what `ask` and `transcribe` raise.
        """
        if question is not None:
            return self._answer(audio, question, params, cancelled)
        sources = _sources(audio)
        if len(sources) != 1:
            raise PromptError(f"a transcript is of one recording, not of {len(sources)}; ask for each by itself")
        return self._transcript(sources[0], params or TRANSCRIPT_PARAMS, cancelled or _never, hotwords)

    def _answer(
        self,
        audio: AudioSource | Sequence[AudioSource],
        question: str,
        params: SamplingParams | None,
        cancelled: Callable[[], bool] | None,
    ) -> Iterator[TokenEvent]:
        prompt = listen(self.backend, self.processor, [_samples(source) for source in _sources(audio)], question)
        params = params or SamplingParams()
        return generate(
            self.backend, self.tokenizer, prompt.inputs, params, audio=prompt.audio, cancelled=cancelled
        )

    def _transcript(
        self, audio: AudioSource, params: SamplingParams, cancelled: Callable[[], bool], hotwords: Sequence[str]
    ) -> Iterator[TokenEvent]:
        usage, reasons, gap = Usage(), set[FinishReason](), ""
        for heard in self._windows(audio, cancelled, hotwords, params):
            at_start = True
            for event in write(self.backend, self.tokenizer, heard, params, cancelled):
                text = gap + event.text.lstrip() if at_start else event.text
                at_start = at_start and not text.strip()
                if event.finish_reason is not None and event.usage is not None:
                    usage += event.usage
                    reasons.add(event.finish_reason)
                yield replace(event, text="" if at_start else text, finish_reason=None, usage=None)
            gap = gap if at_start else " "
        yield TokenEvent("", finish_reason=_worst(reasons), usage=usage)

    def _windows(
        self,
        audio: AudioSource | Recording,
        cancelled: Callable[[], bool],
        hotwords: Sequence[str],
        params: SamplingParams,
        *,
        timed: Times | None = None,
        after: Passage | None = None,
        overlap: float = 0.0,
    ) -> Iterator[Heard]:
        """The windows of a recording behind the passage `after`, each encoded when its turn comes."""
        words = hot.check(hotwords)
        if words and self.backend.config.audio.letters and not is_search(params):
            raise PromptError("hotwords need the search; leave temperature 0, repetition_penalty 1 and stop empty")
        start, lead = (after.end, after.overlap) if after is not None else (0.0, 0.0)
        with _open(audio) as recording:
            for window in windows(recording.blocks, self.voice, start, self.window_seconds, overlap=overlap, lead=lead):
                if cancelled():  # an empty window says that more would have come
                    yield Heard(window.start, 0.0, None, ended="cancelled")
                    return
                yield hear(self.backend, self.processor, window, voice=self.voice, timed=timed, hotwords=words)


def _sources(audio: AudioSource | Sequence[AudioSource]) -> list[AudioSource]:
    """One recording or several."""
    return list(cast(Sequence[AudioSource], audio if isinstance(audio, list | tuple) else [audio]))


def _samples(source: AudioSource) -> np.ndarray:
    return source if isinstance(source, np.ndarray) else load_audio(source)


@contextmanager
def _open(audio: AudioSource | Recording) -> Iterator[Recording]:
    """A recording to read in blocks: decoded as it is read, or samples that are there already."""
    if isinstance(audio, Recording):
        yield audio
    elif isinstance(audio, np.ndarray):
        if audio.ndim != 1:
            raise AudioError(f"samples have shape {audio.shape}; one mono clip [n] is needed: average the channels")
        yield Recording(len(audio) / SAMPLE_RATE, iter([audio]))
    else:
        with open_audio(audio) as recording:
            yield recording


def _progress(found: Sequence[Passage], n_before: int, total: float | None, elapsed: float) -> Progress:
    """Time left at the pace of this run, which began behind `n_before` passages."""
    now, began = found[-1].end, found[n_before].start
    left = None if total is None else max(0.0, total - now) * elapsed / max(now - began, 1e-3)
    return Progress(found[-1], len(found), now, total, left)


def _worst(reasons: set[FinishReason]) -> FinishReason:
    """How a whole ended whose parts ended with `reasons`."""
    order: tuple[FinishReason, ...] = ("cancelled", "length", "stop")
    return next(reason for reason in order if reason in reasons)


def _never() -> bool:
    return False
