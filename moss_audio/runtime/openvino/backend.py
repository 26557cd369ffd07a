"""`Backend` on OpenVINO: compiled graphs, one infer request for every conversation. Knows no PyTorch."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from moss_audio.checkpoint import Checkpoint, open_checkpoint
from moss_audio.errors import BackendError
from moss_audio.runtime.backend import AudioEmbeds, Cache, check_audio, check_mels
from moss_audio.runtime.openvino.decoder import build_decoder, rotary
from moss_audio.runtime.openvino.encoder import batches, build_encoder, rounded, true_rows
from moss_audio.runtime.openvino.nodes import Weights
from moss_audio.weights import Scheme

PRECISIONS = ("auto", "float32", "int8", "int4")
ACTIVATIONS = ("auto", "float32", "bfloat16")

PREFILL_TOKENS = 512
"""Prompt tokens read at once: bounds the activations and the mask of a prompt of tens of minutes."""

FIRST_ROW = np.zeros(1, np.int64)
"""What a conversation of one row goes on from."""

IDLE_REQUESTS = 4
"""Released conversations whose buffers are kept for the next ones."""


class OpenVINOCache:
    """One conversation: its infer request and which of the request's slots still count.

    OpenVINO's cache only grows. A rejected draft stays in its slots and is masked out, which costs a few bytes of
    attention; copying the cache to cut it costs more than a step.
    """

    def __init__(self, request: ov.InferRequest) -> None:
        self.request = request
        self.length = 0
        self.slots = 0
        self._mask = np.zeros(256, np.float32)

    def grow(self, n: int) -> np.ndarray:
        """Take `n` more slots; returns the mask `[1, 1, n, slots]` of their tokens: 0 where seen, -inf elsewhere."""
        start, self.slots, self.length = self.slots, self.slots + n, self.length + n
        if self.slots > len(self._mask):
            self._mask = np.concatenate([self._mask, np.zeros(self.slots, np.float32)])
        if n == 1:
            return self._mask[None, None, None, : self.slots]
        mask = np.tile(self._mask[: self.slots], (n, 1))
        mask[:, start:] = np.triu(np.full((n, n), -np.inf, np.float32), 1)
        return mask[None, None]

    def rewind(self, length: int) -> None:
        """Mask every position from `length` on."""
        counted = np.flatnonzero(self._mask[: self.slots] == 0)
        self._mask[counted[length:]] = -np.inf
        self.length = length


class OpenVINOBackend:
    """A model compiled for one device."""

    def __init__(self, weights: Weights, encoder: ov.CompiledModel, decoder: ov.CompiledModel) -> None:
        self.config, self.encoder, self.decoder = weights.config, encoder, decoder
        # Constants point into these numpy arrays, and OpenVINO keeps no reference to those of packed int4.
        self._arrays = weights.arrays
        self._encoders: list[ov.InferRequest] = []
        self._decoders: list[ov.InferRequest] = []
        self._rotary = rotary(np.arange(0), self.config.decoder)
        n_layers, width = 1 + len(self.config.audio.taps), self.config.decoder.hidden_size
        self._no_audio = np.zeros((n_layers, 1, 1, width), np.float32), np.ones((1, 1, 1), np.float32)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        precision: str = "auto",
        device: str = "CPU",
        threads: int | None = None,
        activations: str = "auto",
        cache_dir: Path | str | None = None,
    ) -> OpenVINOBackend:
        """Build and compile both graphs.

        `precision` is that of the weights: `auto` takes them as stored, float ones as int8. `float32` is exact, its
        cache too; the others cache keys and values in 8 bits. `activations` `auto` is bfloat16 for the encoder where
        weights are quantised and the processor has units for it (a third faster), and float32 for the decoder, whose
        single tokens bfloat16 slows down. `cache_dir` keeps compiled models.

        Raises `CheckpointError` and `BackendError`.
        """
        if precision not in PRECISIONS:
            raise BackendError(f"precision is {precision!r}; valid: {', '.join(PRECISIONS)}")
        if activations not in ACTIVATIONS:
            raise BackendError(f"activations is {activations!r}; valid: {', '.join(ACTIVATIONS)}")
        if device.split(".")[0] not in _core().available_devices:
            raise BackendError(f"no device {device!r}; OpenVINO sees here: {', '.join(_core().available_devices)}")
        checkpoint = open_checkpoint(folder)
        weights = Weights(checkpoint, _scheme(precision, checkpoint))
        native = "BF16" in _core().get_property(device, "OPTIMIZATION_CAPABILITIES")
        heard = "bfloat16" if activations == "auto" and precision != "float32" and native else activations
        with ThreadPoolExecutor(2) as pool:
            futures = [
                pool.submit(
                    _core().compile_model, build(weights), device,
                    _properties(precision, device, threads, kind, cache_dir),
                )
                for build, kind in ((build_encoder, heard), (build_decoder, activations))
            ]  # fmt: skip
        encoder, decoder = (future.result() for future in futures)
        return cls(weights, encoder, decoder)

    def encode_audio(self, mels: Sequence[np.ndarray]) -> AudioEmbeds:
        """Encode the clips of one prompt, `mels[i] [n_mels, F_i]`."""
        check_mels(mels)
        request = _borrow(self._encoders, self.encoder)
        outputs = [
            true_rows(batch, request.infer(rounded(batch), share_inputs=True))
            for batch in batches(self.config.audio, mels)
        ]
        self._encoders.append(request)
        hidden = np.concatenate([output["hidden"] for output in outputs], axis=1)
        heads = (
            np.concatenate([output[name] for output in outputs]) if name in outputs[0] else None
            for name in ("letters", "pieces", "piece_logprobs")
        )
        return AudioEmbeds(hidden[0], hidden[1:], *heads)

    def prefill(
        self, input_ids: np.ndarray, audio_mask: np.ndarray, audio: AudioEmbeds | None, n_logits: int = 1
    ) -> tuple[OpenVINOCache, np.ndarray]:
        """Read `input_ids [T]` with `audio_mask [T]`. Returns the cache and the last logits `[n_logits, vocab]`."""
        check_audio(audio_mask, audio)
        cache, logits, heard, start = self._new_cache(), np.empty(0), 0, 0
        while start < len(input_ids):
            left = len(input_ids) - start
            span = slice(start, start := start + (left if left < PREFILL_TOKENS + n_logits else PREFILL_TOKENS))
            frames = slice(heard, heard := heard + int(np.count_nonzero(audio_mask[span])))
            placed = self._place(audio, frames, audio_mask[span])
            logits = self._run(cache, input_ids[None, span], n_logits, placed, FIRST_ROW)
        return cache, logits[0]

    def decode(self, cache: Cache, input_ids: np.ndarray) -> np.ndarray:
        """Append `input_ids [n]` to the conversation and return their logits `[n, vocab]` float32."""
        return self._run(_own(cache), input_ids[None], len(input_ids), self._no_audio, FIRST_ROW)[0]

    def decode_beams(self, cache: Cache, input_ids: np.ndarray, parents: np.ndarray) -> np.ndarray:
        """Go on in n rows, `input_ids [n]`, row i behind row `parents[i]` of the call before; logits `[n, vocab]`."""
        return self._run(_own(cache), input_ids[:, None], 1, self._no_audio, parents)[:, 0]

    def rewind(self, cache: Cache, length: int) -> None:
        """Forget every position from `length` on, so that a rejected draft leaves no trace."""
        _own(cache).rewind(length)

    def _new_cache(self) -> OpenVINOCache:
        request = _borrow(self._decoders, self.decoder)
        request.reset_state()
        cache = OpenVINOCache(request)
        weakref.finalize(cache, _give_back, self._decoders, request).atexit = False
        return cache

    def _place(
        self, audio: AudioEmbeds | None, frames: slice, audio_mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Audio frames at their positions: `[1 + K, 1, T, D]`, zero at text, and `[1, T, 1]`, one at text."""
        if audio is None or frames.start == frames.stop:
            return self._no_audio
        n_layers, _, _, width = self._no_audio[0].shape
        placed = np.zeros((n_layers, 1, len(audio_mask), width), np.float32)
        placed[0, 0, audio_mask] = audio.embeds[frames]
        placed[1:, 0, audio_mask] = audio.deepstack[:, frames]
        return placed, (~audio_mask)[None, :, None].astype(np.float32)

    def _positions(self, start: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines `[1, n, 1, head_dim]` of positions from `start` on; a table too short doubles."""
        if start + n > len(self._rotary[0]):
            self._rotary = rotary(np.arange(2 * (start + n)), self.config.decoder)
        cos, sin = (table[None, start : start + n, None] for table in self._rotary)
        return cos, sin

    def _run(
        self,
        cache: OpenVINOCache,
        input_ids: np.ndarray,
        n_logits: int,
        audio: tuple[np.ndarray, np.ndarray],
        parents: np.ndarray,
    ) -> np.ndarray:
        """Append `input_ids [B, T]` behind the rows `parents [B]`; returns the last logits `[B, n_logits, vocab]`."""
        n_rows, n = input_ids.shape
        cos, sin = self._positions(cache.length, n)
        inputs = {
            "input_ids": np.asarray(input_ids, np.int64),
            "audio": audio[0],
            "is_text": audio[1],
            "cos": np.repeat(cos, n_rows, axis=0),
            "sin": np.repeat(sin, n_rows, axis=0),
            "mask": np.repeat(cache.grow(n), n_rows, axis=0),
            "beam_idx": np.asarray(parents, np.int32),
            "n_logits": np.array([n_logits]),
        }
        return np.array(cache.request.infer(inputs, share_inputs=True)["logits"])


@functools.cache
def _core() -> ov.Core:
    return ov.Core()


def _scheme(precision: str, checkpoint: Checkpoint) -> Scheme | None:
    """The weights' scheme, None for as stored."""
    schemes: dict[str, Scheme | None] = {"float32": "float", "int8": "int8", "int4": "int4"}
    return schemes.get(precision, None if checkpoint.quantised else "int8")


def _properties(
    precision: str, device: str, threads: int | None, activations: str, cache_dir: Path | str | None
) -> dict[str, Any]:
    """Compiler properties (docs.openvino.ai, "CPU device")."""
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device.startswith("CPU"):
        # Pinned, every process that loads a model would sit on the same first cores, whoever else runs there.
        properties["ENABLE_CPU_PINNING"] = False
        properties["INFERENCE_PRECISION_HINT"] = "bf16" if activations == "bfloat16" else "f32"
        if precision == "float32":
            properties |= {"KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
    if cache_dir is not None:
        properties["CACHE_DIR"] = str(cache_dir)
    return properties


def _borrow(idle: list[ov.InferRequest], compiled: ov.CompiledModel) -> ov.InferRequest:
    try:
        return idle.pop()
    except IndexError:
        return compiled.create_infer_request()


def _give_back(idle: list[ov.InferRequest], request: ov.InferRequest) -> None:
    if len(idle) < IDLE_REQUESTS:
        idle.append(request)


def _own(cache: Cache) -> OpenVINOCache:
    if not isinstance(cache, OpenVINOCache):
        raise TypeError(f"a cache of another backend: {type(cache).__name__}")
    return cache
