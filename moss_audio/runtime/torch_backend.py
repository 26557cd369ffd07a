"""`Backend` on PyTorch: the network that is trained, on a GPU or as the reference on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from moss_audio.errors import BackendError
from moss_audio.model.audio_lm import AudioLM, EncodedAudio
from moss_audio.model.decoder import KVCache
from moss_audio.runtime.backend import N_PIECES, AudioEmbeds, Cache, check_audio, check_mels

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

FIRST_CAPACITY = 256
"""Positions that a new cache holds beyond its prompt; a full cache doubles."""


class TorchBackend:
    """A model on one device."""

    def __init__(self, model: AudioLM) -> None:
        self.model, self.config = model, model.config
        weight = model.language_model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype

    @classmethod
    def load(cls, folder: Path | str, precision: str = "auto", device: str = "cpu") -> TorchBackend:
        """Read a checkpoint; `auto` is float32 on a CPU and bfloat16 elsewhere.

        Raises `CheckpointError` and `BackendError`.
        """
        if precision not in PRECISIONS:
            raise BackendError(f"precision is {precision!r}; valid with PyTorch: {', '.join(PRECISIONS)}")
        device = device.lower()
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise BackendError(f"PyTorch cannot use the device {device!r}; valid: cpu, cuda, cuda:N, mps") from error
        if precision == "auto":
            precision = "float32" if device == "cpu" else "bfloat16"
        return cls(AudioLM.load(folder, getattr(torch, precision), device))

    @torch.inference_mode()
    def encode_audio(self, mels: Sequence[np.ndarray]) -> AudioEmbeds:
        """Encode the clips of one prompt, `mels[i] [n_mels, F_i]`."""
        check_mels(mels)
        audio = self.model.encode_audio([[torch.tensor(mel) for mel in mels]])
        letters = None if audio.letter_logprobs is None else _numpy(audio.letter_logprobs)
        ids, logprobs = None, None
        if audio.piece_logits is not None:
            best = audio.piece_logits.float().log_softmax(-1).topk(min(N_PIECES, audio.piece_logits.shape[-1]))
            ids, logprobs = best.indices.cpu().numpy(), _numpy(best.values)
        return AudioEmbeds(_numpy(audio.embeds), _numpy(audio.deepstack), letters, ids, logprobs)

    @torch.inference_mode()
    def prefill(
        self, input_ids: np.ndarray, audio_mask: np.ndarray, audio: AudioEmbeds | None, n_logits: int = 1
    ) -> tuple[KVCache, np.ndarray]:
        """Read `input_ids [T]` with `audio_mask [T]`. Returns the cache and the last logits `[n_logits, vocab]`."""
        check_audio(audio_mask, audio)
        heard = None
        if audio is not None:
            heard = EncodedAudio(self._tensor(audio.embeds), self._tensor(audio.deepstack), None)
        cache = self.model.new_cache(1, len(input_ids) + FIRST_CAPACITY)
        mask = torch.tensor(audio_mask, device=self.device)[None]
        logits = self.model.decode(self._ids(input_ids), mask, heard, cache, n_logits=n_logits)
        return cache, _numpy(logits[0])

    @torch.inference_mode()
    def decode(self, cache: Cache, input_ids: np.ndarray) -> np.ndarray:
        """Append `input_ids [n]` to the conversation and return their logits `[n, vocab]` float32."""
        own = _own(cache)
        if own.length + len(input_ids) > own.capacity:
            _enlarge(own, 2 * (own.length + len(input_ids)))
        return _numpy(self.model.decode(self._ids(input_ids), cache=own)[0])

    @torch.inference_mode()
    def decode_beams(self, cache: Cache, input_ids: np.ndarray, parents: np.ndarray) -> np.ndarray:
        """Go on in n rows, `input_ids [n]`, row i behind row `parents[i]` of the call before; logits `[n, vocab]`."""
        own, rows = _own(cache), torch.tensor(parents, device=self.device)
        if own.length == own.capacity:
            _enlarge(own, 2 * own.length)
        own.lengths = own.lengths[rows]
        for layer in own.keys:
            own.keys[layer], own.values[layer] = own.keys[layer][rows], own.values[layer][rows]
        return _numpy(self.model.decode(self._ids(input_ids).T, cache=own)[:, 0])

    def rewind(self, cache: Cache, length: int) -> None:
        """Forget every position from `length` on, so that a rejected draft leaves no trace."""
        _own(cache).truncate(length)

    def _ids(self, input_ids: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(input_ids, np.int64), device=self.device)[None]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array).to(device=self.device, dtype=self.dtype)


def _enlarge(cache: KVCache, capacity: int) -> None:
    """Move a cache into larger tensors."""
    for store in (cache.keys, cache.values):
        for layer, old in store.items():
            store[layer] = old.new_zeros((*old.shape[:2], capacity, old.shape[3]))
            store[layer][:, :, : old.shape[2]] = old
    cache.capacity = capacity


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _own(cache: Cache) -> KVCache:
    if not isinstance(cache, KVCache):
        raise TypeError(f"a cache of another backend: {type(cache).__name__}")
    return cache
