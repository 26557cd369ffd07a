"""Messages to model input, and inputs to a batch: the only renderer, for inference, training and evaluation alike.

Knows the ChatML layout, audio placeholders and time markers. Does not know the network, nor how long its context is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moss_audio.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE, audio_frames, log_mel
from moss_audio.config import FRAMES_PER_SECOND, Keys
from moss_audio.errors import CheckpointError, ConfigError, PromptError
from moss_audio.messages import AudioPart, MelPart, Message, TextPart
from moss_audio.tokenizer import Tokenizer

PIECES = "pieces.txt"
"""What the piece head spells, a line an output behind the blank; a space before a piece begins a word."""

SYSTEM_PROMPT = "You are a helpful assistant."
"""Rendered when a conversation has no system message."""

MARKER_FRAMES = 25
"""Audio frames (2 s) between time markers."""

_FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class ProcessorConfig:
    """What the front end of a checkpoint is: mel bands, time markers, and the ids around and in place of audio."""

    n_mels: int
    time_markers: bool
    audio_token_id: int
    audio_start_id: int
    audio_end_id: int

    @classmethod
    def load(cls, folder: Path | str) -> ProcessorConfig:
        """Read `processor_config.json`, or `preprocessor_config.json` as it used to be called.

        Raises `CheckpointError` if there is neither and `ConfigError` for a key or value that is not implemented.
        """
        path = next((path for name in _FILES if (path := Path(folder) / name).is_file()), None)
        if path is None:
            raise CheckpointError(f"{folder} has neither {_FILES[0]} nor {_FILES[1]}")
        try:
            keys = Keys(json.loads(path.read_text(encoding="utf-8")), path.name)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is not a readable JSON file: {error}") from error
        keys.take("processor_class", None)
        mel = Keys(keys.take("mel_config"), f"{path.name}.mel_config")
        mel.only("mel_sr", SAMPLE_RATE)
        mel.only("mel_n_fft", N_FFT)
        mel.only("mel_hop_length", HOP_LENGTH)
        mel.only("mel_dtype", "float32", required=False)
        mel.only("use_whisper_feature_extractor", True, required=False)
        config = cls(
            n_mels=mel.take("mel_dim"),
            time_markers=keys.take("enable_time_marker"),
            audio_token_id=keys.take("audio_token_id"),
            audio_start_id=keys.take("audio_start_id"),
            audio_end_id=keys.take("audio_end_id"),
        )
        mel.done()
        keys.done()
        return config


@dataclass(frozen=True, eq=False)
class Inputs:
    """One rendered conversation of T positions.

    `audio_mask [T]` marks the placeholders, one an audio frame, clips in order. `loss_mask [T]` marks what the
    assistant says: its text and the closing `<|im_end|>`. `mels[i] [n_mels, F_i]` are the clips.
    """

    input_ids: np.ndarray
    audio_mask: np.ndarray
    loss_mask: np.ndarray
    mels: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """B conversations, right-padded to `[B, T]`; `lengths [B]` are the true ones, `mels[b]` the clips of row b."""

    input_ids: np.ndarray
    audio_mask: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    mels: tuple[tuple[np.ndarray, ...], ...]


class Processor:
    """Renders conversations for one checkpoint. `pieces` are what its piece head spells, if it has one."""

    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig, n_mels: int) -> None:
        """Raises `CheckpointError` if the tokenizer or the encoder's `n_mels` does not fit the configuration."""
        if config.n_mels != n_mels:
            raise CheckpointError(f"the processor computes {config.n_mels} mel bands, the encoder reads {n_mels}")
        digits = [tokenizer.encode(digit) for digit in "0123456789"] if config.time_markers else []
        if any(len(ids) != 1 for ids in digits):
            raise CheckpointError("time markers need a tokenizer with one token a digit")
        self.tokenizer, self.config = tokenizer, config
        self.turn_start, self.turn_end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
        self.pieces: tuple[str, ...] = ()
        self._digit_ids = [ids[0] for ids in digits]

    @classmethod
    def load(cls, folder: Path | str, n_mels: int) -> Processor:
        """The processor of a checkpoint folder whose encoder reads `n_mels` bands."""
        processor = cls(Tokenizer.load(folder), ProcessorConfig.load(folder), n_mels)
        if (Path(folder) / PIECES).is_file():
            processor.pieces = tuple((Path(folder) / PIECES).read_text(encoding="utf-8").splitlines())
        return processor

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Inputs:
        """Render a conversation. With `add_generation_prompt` it ends where the assistant starts to speak.

        A message is rendered part by part, as given; only clips that open a message are set off from its text by a
        line break. Raises `PromptError` for roles out of order and `AudioError` for clips that are too short.
        """
        _check_order(messages, add_generation_prompt)
        draft = _Draft(self.tokenizer)
        if messages[0].role != "system":
            messages = [Message.of("system", SYSTEM_PROMPT), *messages]
        for message in messages:
            draft.token(self.turn_start)
            draft.text(f"{message.role}\n")
            spoken = message.role == "assistant"
            if spoken:
                draft.flush()  # an answer is generated after the prompt's own tokens, so it never merges with them
            self._render(message, draft, spoken)
            draft.flush(loss=spoken)
            draft.token(self.turn_end, loss=spoken)
            draft.text("\n")
        if add_generation_prompt:
            draft.token(self.turn_start)
            draft.text("assistant\n")
        return draft.finish()

    def _render(self, message: Message, draft: _Draft, spoken: bool) -> None:
        text_seen = False
        for index, part in enumerate(message.parts):
            if isinstance(part, TextPart):
                draft.text("\n" * (index > 0 and not text_seen) + part.text)
                text_seen = True
            else:
                self._clip(part, draft)

    def _clip(self, part: AudioPart | MelPart, draft: _Draft) -> None:
        mel = part.mel if isinstance(part, MelPart) else log_mel(part.samples, self.config.n_mels)
        if mel.ndim != 2 or mel.shape[0] != self.config.n_mels or mel.shape[1] == 0:
            raise PromptError(f"a mel has shape {mel.shape}; valid: ({self.config.n_mels}, 1 or more)")
        draft.token(self.config.audio_start_id)
        for frame in range(1, audio_frames(mel.shape[1]) + 1):
            draft.token(self.config.audio_token_id, audio=True)
            if self.config.time_markers and frame % MARKER_FRAMES == 0:
                for digit in str(int(frame / FRAMES_PER_SECOND)):
                    draft.token(self._digit_ids[int(digit)])
        draft.token(self.config.audio_end_id)
        draft.mels.append(mel)


def collate(inputs: Sequence[Inputs], pad_id: int, multiple: int = 1) -> Batch:
    """Right-pad conversations to the longest, up to a `multiple`; padding is `pad_id` and False."""
    lengths = np.array([len(row.input_ids) for row in inputs], dtype=np.int64)
    shape = (len(inputs), -(-int(lengths.max()) // multiple) * multiple)
    ids, audio, loss = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for index, row in enumerate(inputs):
        n = lengths[index]
        ids[index, :n], audio[index, :n], loss[index, :n] = row.input_ids, row.audio_mask, row.loss_mask
    return Batch(ids, audio, loss, lengths, tuple(row.mels for row in inputs))


class _Draft:
    """A prompt in the making. Text between two control tokens is tokenised as one run, as the reference does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.mels: list[np.ndarray] = []
        self._tokenizer = tokenizer
        self._run = ""
        self._ids: list[int] = []
        self._audio: list[bool] = []
        self._loss: list[bool] = []

    def text(self, text: str) -> None:
        self._run += text

    def token(self, token_id: int, *, audio: bool = False, loss: bool = False) -> None:
        self.flush()
        self._append([token_id], audio, loss)

    def flush(self, loss: bool = False) -> None:
        """Tokenise the text so far."""
        if self._run:
            self._append(self._tokenizer.encode(self._run), False, loss)
            self._run = ""

    def finish(self) -> Inputs:
        self.flush()
        ids, audio, loss = np.array(self._ids, np.int64), np.array(self._audio, bool), np.array(self._loss, bool)
        return Inputs(ids, audio, loss, tuple(self.mels))

    def _append(self, ids: list[int], audio: bool, loss: bool) -> None:
        self._ids += ids
        self._audio += [audio] * len(ids)
        self._loss += [loss] * len(ids)


def _check_order(messages: Sequence[Message], add_generation_prompt: bool) -> None:
    """A system message or none, then user and assistant in turn."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[index % 2] for index in range(len(turns))]
    if not turns or turns != expected:
        raise PromptError(f"the roles are {roles}; valid: at most one system first, then user and assistant in turn")
    if add_generation_prompt and turns[-1] != "user":
        raise PromptError("the last message is the assistant's; add a user message, or add_generation_prompt=False")
    for index, message in enumerate(messages):
        if message.role != "user" and not all(isinstance(part, TextPart) for part in message.parts):
            raise PromptError(f"message {index} ({message.role}) has audio; only user messages may")
        if message.role == "user" and not any(not isinstance(p, TextPart) or p.text for p in message.parts):
            raise PromptError(f"message {index} (user) is empty; give it text or audio")
