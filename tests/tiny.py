"""Random checkpoints of a few kilobytes, built in seconds, for tests that need a whole model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moss_audio.checkpoint import expected_tensors, save_checkpoint
from moss_audio.config import ModelConfig

LLAMA: dict[str, Any] = {
    "model_type": "moss_audio",
    "audio_config": {
        "stem": "conv1d",
        "d_model": 32,
        "encoder_layers": 3,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 80,
        "n_window": 52,
        "deepstack_encoder_layer_indexes": [0, 1],
        "letters": " abc'",
        "n_pieces": 7,
    },
    "language_config": {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    },
    "adapter_hidden_size": 48,
    "deepstack_num_inject_layers": 2,
    "tie_word_embeddings": True,
}
"""Whisper's stem, a letter head, a piece head, a Llama decoder with tied embeddings; every chunk is 1.04 s."""


def random_tensors(config: ModelConfig, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a checkpoint, large enough that layers, taps and letters all show in the logits."""
    rng = np.random.default_rng(seed)
    for name, shape in expected_tensors(config).items():
        noise = rng.standard_normal(shape, np.float32)
        yield name, 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.2 * noise


def save_random(folder: Path, raw: dict[str, Any] = LLAMA, seed: int = 0) -> Path:
    """Write a random checkpoint."""
    save_checkpoint(folder, raw, random_tensors(ModelConfig.parse(raw), seed))
    return folder
