"""What the inference loop needs of a runtime, and nothing more: numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from moss_audio.config import ModelConfig
from moss_audio.errors import PromptError

N_PIECES = 8
"""Outputs of the piece head that are told of each step: what is likely beside them counts for nothing."""


@dataclass(frozen=True, eq=False)
class AudioEmbeds:
    """The clips of one prompt as the decoder hears them; S counts audio frames over all clips, in prompt order.

    `embeds [S, D]` replace the placeholders' embeddings, `deepstack [K, S, D]` are added to the outputs of the first K
    decoder layers. `letter_logprobs [E, L]` are the letter head's log-probabilities at 50 frames a second over all
    clips (E = Σ ceil(mel_frames / 2)), or None where the checkpoint has no letter head. `piece_ids [P, N_PIECES]` are
    the piece head's most likely outputs, best first, at 25 steps a second (P = Σ ceil(mel_frames / 4)), and
    `piece_logprobs` what it gives them; None without that head.
    """

    embeds: np.ndarray
    deepstack: np.ndarray
    letter_logprobs: np.ndarray | None = None
    piece_ids: np.ndarray | None = None
    piece_logprobs: np.ndarray | None = None


class Cache(Protocol):
    """The keys and values of one conversation. `length` counts its positions."""

    @property
    def length(self) -> int: ...


class Backend(Protocol):
    """A network that runs. One backend serves many conversations, each with a cache of its own."""

    config: ModelConfig

    def encode_audio(self, mels: Sequence[np.ndarray]) -> AudioEmbeds:
        """Encode the clips of one prompt, `mels[i] [n_mels, F_i]`."""
        ...

    def prefill(
        self, input_ids: np.ndarray, audio_mask: np.ndarray, audio: AudioEmbeds | None, n_logits: int = 1
    ) -> tuple[Cache, np.ndarray]:
        """Read a prompt, and the first draft of its answer if there is one: `input_ids [T]` with `audio_mask [T]`.

        Returns the cache and the last logits `[n_logits, vocab]` float32.
        """
        ...

    def decode(self, cache: Cache, input_ids: np.ndarray) -> np.ndarray:
        """Append `input_ids [n]` to the conversation and return their logits `[n, vocab]` float32."""
        ...

    def decode_beams(self, cache: Cache, input_ids: np.ndarray, parents: np.ndarray) -> np.ndarray:
        """Go on in n rows, `input_ids [n]`, row i behind row `parents[i]` of the call before; logits `[n, vocab]`."""
        ...

    def rewind(self, cache: Cache, length: int) -> None:
        """Forget every position from `length` on, so that a rejected draft leaves no trace."""
        ...


def check_mels(mels: Sequence[np.ndarray]) -> None:
    """Raise `PromptError` unless there is a clip and every clip has a frame."""
    if not mels or min(mel.shape[1] for mel in mels) == 0:
        raise PromptError("every clip needs at least one mel frame (10 ms of audio)")


def check_audio(audio_mask: np.ndarray, audio: AudioEmbeds | None) -> None:
    """Raise `PromptError` unless the prompt has a place for every audio frame."""
    places, frames = int(np.count_nonzero(audio_mask)), 0 if audio is None else len(audio.embeds)
    if places != frames:
        raise PromptError(f"the prompt has {places} audio placeholders for {frames} audio frames; encode its own clips")
