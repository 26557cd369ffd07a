"""A source of training examples: the conversations of a file, as they stand there (`data.conversations`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from moss_audio.audio import load_audio, log_mel
from moss_audio.data.conversations import Conversation, Place, places, read
from moss_audio.data.manifest import MelStore
from moss_audio.errors import PromptError
from moss_audio.training.examples import Chats, Example


class Conversations(Chats):
    """Lines drawn at random: `{"conversations": "FILE.jsonl", "weight": 0.5}` in a recipe; a folder of files does too.

    Where a conversation has a clip it is one, in the first message; clips are decoded each time they are drawn. The
    roles are user and assistant.
    """

    def __init__(self, recipe: Mapping[str, Any], data: Path, n_mels: int) -> None:
        self.weight, self.path, self.n_mels = float(recipe["weight"]), data / recipe["conversations"], n_mels
        self.places = places(self.path)
        if not len(self.places):
            raise PromptError(f"{self.path} holds no conversation")

    def draw(self, rng: np.random.Generator, noise: Sequence[MelStore], noise_rate: float) -> Example:
        """One of them, unchanged."""
        place = Place(*self.places[int(rng.integers(len(self.places)))].tolist())
        conversation, _ = next(read(self.path, place))
        at = f"{self.path}, file {place.file}, line {place.line + 1}"
        turns, clips = turns_of(conversation, at), conversation.clips()
        if not clips:
            return Example("", "", more=turns)
        return Example(*turns[0], mel=log_mel(load_audio(clips[0]), self.n_mels), more=turns[1:])


def turns_of(conversation: Conversation, at: str) -> list[tuple[str, str]]:
    """Questions and answers, where it is of the kind that `Example` holds."""
    parts = [(role, list(found)) for role, found in groupby(conversation.turns, key=lambda turn: turn.role)]
    heard = [i for i, (_, turns) in enumerate(parts) for turn in turns if turn.message_type == "audio"]
    if parts[0][0] == "system" or heard not in ([], [0]):
        raise PromptError(f"{at}: training reads conversations with at most one clip, in the first user message")
    texts = ["\n".join(turn.content for turn in turns if turn.message_type == "text") for _, turns in parts]
    return list(zip(texts[::2], texts[1::2], strict=True))
