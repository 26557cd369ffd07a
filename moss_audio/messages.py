"""What a user says, as data. Knows nothing of tokens: `processor` renders it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class TextPart:
    """Plain text. Whatever it spells, it never becomes a control token."""

    text: str


@dataclass(frozen=True, eq=False)
class AudioPart:
    """One clip: `samples [n]` float32 mono at 16 kHz, as `audio.load_audio` returns it."""

    samples: np.ndarray


@dataclass(frozen=True, eq=False)
class MelPart:
    """One clip as `mel [n_mels, F]`, as `audio.log_mel` returns it, for callers that keep features instead of samples.

    Where only the prompt is wanted, `np.broadcast_to(np.float32(0), (n_mels, F))` is a mel without memory.
    """

    mel: np.ndarray


Part = TextPart | AudioPart | MelPart


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, *parts: Part | str | np.ndarray) -> Message:
        """A message from parts, where a bare string is text and a bare array is audio."""
        return cls(role, tuple(_as_part(part) for part in parts))


def _as_part(part: Part | str | np.ndarray) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    return AudioPart(part) if isinstance(part, np.ndarray) else part
