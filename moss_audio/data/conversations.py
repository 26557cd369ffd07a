"""Conversations with audio as JSON Lines, in the form that the fine-tuning code of released audio models reads.

A line is `{"conversation": [{"role": "user", "message_type": "audio", "content": "clips/1.wav"}, …]}`: parts in order,
`role` system, user or assistant, `message_type` text or audio; neighbours of one role are one message. A path counts
from the file's folder. Beside it a line may have `task_type`, which is passed over, and `truth`, an object of what is
known of the clip. Knows files and messages, no model.

Files are read line by line, so they may be of any size; a folder is read as its `*.jsonl` files by name.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from moss_audio.audio import load_audio
from moss_audio.errors import PromptError
from moss_audio.messages import Message, Role

KEYS = ("conversation", "truth", "task_type")
ROLES = ("system", "user", "assistant")
TYPES = ("text", "audio")


@dataclass(frozen=True)
class Turn:
    """One part of a conversation: text, or the path of a clip."""

    role: Role
    message_type: Literal["text", "audio"]
    content: str


@dataclass(frozen=True)
class Conversation:
    """Parts in order, and what is known of the clip. `folder` is what relative paths count from."""

    turns: tuple[Turn, ...]
    truth: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @classmethod
    def about(cls, audio: str, *asked: tuple[str, str], truth: Mapping[str, Any] | None = None) -> Conversation:
        """Questions and answers about one clip, which comes first."""
        turns = [Turn("user", "audio", audio)]
        for question, answer in asked:
            turns += [Turn("user", "text", question), Turn("assistant", "text", answer)]
        return cls(tuple(turns), truth or {})

    def clips(self) -> list[Path]:
        """The files that are heard, in order."""
        return [self.folder / turn.content for turn in self.turns if turn.message_type == "audio"]

    def messages(self) -> list[Message]:
        """The conversation as a processor renders it, clips decoded. Raises `AudioError` for one that cannot be."""
        return [
            Message.of(role, *(load_audio(self.folder / t.content) if t.message_type == "audio" else t.content
                               for t in turns))
            for role, turns in groupby(self.turns, key=lambda turn: turn.role)
        ]  # fmt: skip

    def line(self) -> str:
        """As it is written."""
        row: dict[str, Any] = {"conversation": [asdict(turn) for turn in self.turns]}
        return json.dumps(row | ({"truth": dict(self.truth)} if self.truth else {}), ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Place:
    """Where reading goes on: a file of the folder, a line of it counted from 0, and that line's first byte."""

    file: int = 0
    line: int = 0
    byte: int = 0


def read(
    path: Path, start: Place | None = None, shard: int = 0, n_shards: int = 1
) -> Iterator[tuple[Conversation, Place]]:
    """Conversations from `start` on, each with the place behind it; of every `n_shards` lines the one of `shard`.

    All shards together are the whole, whatever `start` each has. Raises `PromptError` for a line that is not of the
    form, with its file, number and key.
    """
    if not 0 <= shard < n_shards:
        raise PromptError(f"shard {shard} of {n_shards}; valid: 0 to {n_shards - 1}")
    files, start = files_of(path), start or Place()
    for number in range(start.file, len(files)):
        place = start if number == start.file else Place(number)
        with files[number].open("rb") as file:
            file.seek(place.byte)
            line, byte = place.line, place.byte
            for text in file:
                byte += len(text)
                if line % n_shards == shard and text.strip():
                    yield parse(text, files[number], line + 1), Place(number, line + 1, byte)
                line += 1


def files_of(path: Path) -> list[Path]:
    """The files that `path` stands for."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise PromptError(f"{path}: no conversations there; give a .jsonl file or a folder of them")
    return files


def places(path: Path) -> np.ndarray:
    """Where each line begins, `[n, 3]` in the order of `Place`, for drawing at random: 24 bytes a line."""
    found = array("q")
    for number, name in enumerate(files_of(path)):
        with name.open("rb") as file:
            byte = 0
            for line, text in enumerate(file):
                if text.strip():
                    found.extend((number, line, byte))
                byte += len(text)
    return np.array(found, np.int64).reshape(-1, 3)


def write(path: Path, conversations: Iterable[Conversation]) -> int:
    """Append to a file, flushed line by line; how many there were."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for conversation in conversations:
            file.write(conversation.line())
            file.flush()
            count += 1
    return count


def parse(text: bytes | str, file: Path, line: int) -> Conversation:
    """One line, checked; `file` and `line`, counted from 1, are named in errors."""
    at = f"{file}:{line}"
    try:
        row = json.loads(text)
    except ValueError as error:
        raise PromptError(f"{at}: not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("conversation"), list) or not row["conversation"]:
        raise PromptError(f"{at}: a line is an object with a list `conversation`")
    if strange := sorted(set(row) - set(KEYS)):
        raise PromptError(f"{at}: key {strange[0]!r}; valid: {', '.join(KEYS)}")
    if not isinstance(row.get("truth", {}), dict):
        raise PromptError(f"{at}: `truth` is not an object")
    turns = tuple(_turn(part, f"{at}: conversation[{i}]") for i, part in enumerate(row["conversation"]))
    _check_order(turns, at)
    return Conversation(turns, row.get("truth", {}), file.parent)


def _turn(part: Any, at: str) -> Turn:
    expected = ("role", "message_type", "content")
    if not isinstance(part, dict):
        raise PromptError(f"{at} is not an object")
    for key in sorted(set(part) ^ set(expected)):
        wrong = "unknown" if key in part else "missing"
        raise PromptError(f"{at}: key {key!r} is {wrong}; valid: {', '.join(expected)}")
    role, kind, content = part["role"], part["message_type"], part["content"]
    if role not in ROLES:
        raise PromptError(f"{at}: role {role!r}; valid: {', '.join(ROLES)}")
    if kind not in TYPES or (kind == "audio" and role != "user"):
        raise PromptError(f"{at}: message_type {kind!r} of {role}; valid: text, and audio of user")
    if not isinstance(content, str) or (not content and (role, kind) != ("assistant", "text")):
        raise PromptError(f"{at}: content {content!r}; valid: text, which only an answer may lack")
    return Turn(cast(Role, role), cast(Literal["text", "audio"], kind), content)


def _check_order(turns: Sequence[Turn], at: str) -> None:
    roles = [role for role, _ in groupby(turn.role for turn in turns)]
    talk = roles[1:] if roles[0] == "system" else roles
    if not talk or len(talk) % 2 or talk != ["user", "assistant"] * (len(talk) // 2):
        raise PromptError(f"{at}: the roles are {roles}; valid: at most one system, then user and assistant in turn")
