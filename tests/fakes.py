"""Stand-ins for a network and a vocabulary: small, exact, and with the interfaces of the real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from moss_audio.config import LETTERS, AudioConfig, DecoderConfig, ModelConfig
from moss_audio.errors import CheckpointError
from moss_audio.messages import MelPart, Message
from moss_audio.processor import Inputs
from moss_audio.runtime.backend import AudioEmbeds
from moss_audio.tokenizer import TokenStream

VOCAB = 260
SPECIAL = {"<|im_end|>": 256, "<|endoftext|>": 257, "<|im_start|>": 258}
END = SPECIAL["<|im_end|>"]
PLACEHOLDER = 255


class ByteTokenizer:
    """One token a byte, and the control tokens."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def special(self, name: str) -> int:
        if name not in SPECIAL:
            raise CheckpointError(name)
        return SPECIAL[name]

    def is_special(self, token_id: int) -> bool:
        return token_id >= 256

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def stream(self) -> TokenStream:
        return TokenStream(self)  # type: ignore[arg-type]


@dataclass
class FakeCache:
    ids: list[int] = field(default_factory=list)
    deaf: bool = False

    @property
    def length(self) -> int:
        return len(self.ids)


class FakeBackend:
    """A network whose next logits are `score(ids since the prompt)`; counts its passes.

    The answer depends on the cache alone, so a wrong rewind or position changes it. What has placeholders and no
    recording behind them is the conversation of `search` that hears nothing: it goes as the one before it.
    """

    def __init__(
        self,
        score: Callable[[list[int]], np.ndarray],
        max_positions: int = 4096,
        letter_logprobs: Callable[[Sequence[np.ndarray]], np.ndarray] | None = None,
    ) -> None:
        self.score, self.letter_logprobs = score, letter_logprobs
        decoder = DecoderConfig("llama", VOCAB, 8, 8, 1, 1, 1, 8, 1e4, max_positions)
        letters = LETTERS if letter_logprobs else ""
        self.config = ModelConfig(AudioConfig(8, 1, 1, 8, 80, taps=(0,), output_dim=8, letters=letters), decoder, 8)
        self.n_prompt, self.passes, self.encoded = 0, 0, 0

    def encode_audio(self, mels: Sequence[np.ndarray]) -> AudioEmbeds:
        self.encoded += 1
        n_frames = sum(-(-mel.shape[1] // 8) for mel in mels)
        letters = self.letter_logprobs(mels) if self.letter_logprobs else None
        return AudioEmbeds(np.zeros((n_frames, 8)), np.zeros((1, n_frames, 8)), letters)

    def prefill(
        self, input_ids: np.ndarray, audio_mask: np.ndarray, audio: AudioEmbeds | None, n_logits: int = 1
    ) -> tuple[FakeCache, np.ndarray]:
        assert (audio is not None) == bool(audio_mask.any())
        ids = input_ids.tolist()
        if audio is None and PLACEHOLDER in ids:
            return FakeCache(ids, deaf=True), self.first[None]
        self.n_prompt = len(ids) - n_logits + 1
        ends = range(self.n_prompt, len(ids) + 1)
        rows = np.stack([self.score(ids[self.n_prompt : end]) for end in ends])
        self.first = rows[0]
        return FakeCache(ids), rows

    def decode(self, cache: FakeCache, input_ids: np.ndarray) -> np.ndarray:
        self.passes += 1
        rows = []
        for token in input_ids.tolist():
            cache.ids.append(token)
            rows.append(self.score(cache.ids[self.n_prompt :]))
        assert cache.length <= self.config.decoder.max_positions
        return np.stack(rows)

    def decode_beams(self, cache: FakeCache, input_ids: np.ndarray, parents: np.ndarray) -> np.ndarray:
        self.passes += not cache.deaf
        rows = getattr(cache, "rows", [[]])
        cache.rows = [[*rows[parent], token] for parent, token in zip(parents, input_ids.tolist(), strict=True)]
        return np.stack([self.score(row) for row in cache.rows])

    def rewind(self, cache: FakeCache, length: int) -> None:
        assert 0 <= length <= cache.length
        del cache.ids[length:]


def small(ids: Sequence[int]) -> list[int]:
    """`ids` with bytes that are capitals as small letters."""
    return [token + 32 if ord("A") <= token <= ord("Z") else token for token in ids]


def scripted(*answers: str | Sequence[int]) -> Callable[[list[int]], np.ndarray]:
    """Scores of a model that says `answers`, one a prompt, and then ends its turn."""
    scripts = [[*(answer.encode() if isinstance(answer, str) else answer), END] for answer in answers]
    turn = iter(range(len(scripts)))
    current: list[int] = []

    def score(emitted: list[int]) -> np.ndarray:
        if not emitted:
            current[:] = scripts[next(turn)]
        logits = np.zeros(VOCAB, dtype=np.float32)
        logits[END] = -10.0  # it ends nowhere but at the end
        # Off the script, after a wrong draft, anything may come; here it is always "?".
        # Capitals are no difference, since a model that hears nothing reads small letters.
        on_script = small(emitted) == small(current[: len(emitted)]) and len(emitted) < len(current)
        logits[current[len(emitted)] if on_script else ord("?")] = 12.0
        return logits

    return score


def hashed(emitted: list[int]) -> np.ndarray:
    """Scores that depend on the whole history and on nothing else."""
    digest = hashlib.blake2b(np.array(emitted, dtype=np.int64).tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).normal(size=VOCAB).astype(np.float32) * 3


def uniform(emitted: list[int]) -> np.ndarray:
    return np.zeros(VOCAB, dtype=np.float32)


class FakeProcessor:
    """Renders a conversation as its text in bytes, with one placeholder an audio frame."""

    tokenizer, pieces = ByteTokenizer(), ()

    def encode(self, messages: Sequence[Message]) -> Inputs:
        ids: list[int] = []
        mels: list[np.ndarray] = []
        for part in (part for message in messages for part in message.parts):
            if isinstance(part, MelPart):
                mels.append(part.mel)
                ids += [-1] * -(-mels[-1].shape[1] // 8)
            else:
                ids += part.text.encode()
        mask = np.array(ids) == -1
        return Inputs(np.where(mask, PLACEHOLDER, ids), mask, np.zeros(len(ids), dtype=bool), tuple(mels))


def prompt(text: str = "hello", n_audio: int = 0) -> Inputs:
    ids = np.array([*[PLACEHOLDER] * n_audio, *text.encode()], dtype=np.int64)
    mask = np.arange(len(ids)) < n_audio
    mels = (np.zeros((80, 8 * n_audio), dtype=np.float32),) if n_audio else ()
    return Inputs(ids, mask, np.zeros(len(ids), dtype=bool), mels)


def letter_head(text: str, letters: str = LETTERS, frames_per_letter: int = 4, lead: int = 10) -> np.ndarray:
    """Log-probabilities `[E, L]` of a head that is sure of `text`: each letter two frames long, blanks between."""
    path = [0] * lead
    for letter in text:
        label = letters.index(letter) + 1
        path += [label] * 2 + [0] * (frames_per_letter - 2)
    path += [0] * lead
    logprobs = np.full((len(path), len(letters) + 1), np.log(0.02 / len(letters)), dtype=np.float32)
    logprobs[np.arange(len(path)), path] = np.log(0.98)
    return logprobs
