"""A model, a processor and a folder of manifests that are large enough to train on and small enough for a test."""

from __future__ import annotations

import json
import wave
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from tiny import LLAMA

from moss_audio.config import LETTERS, ModelConfig
from moss_audio.processor import Processor, ProcessorConfig
from moss_audio.tokenizer import Tokenizer

SOUNDS = ("siren", "dog barking", "rain", "footsteps", "church bell", "mouse click")
SCENES: dict[str, Any] = {
    "sounds": {"sound.jsonl": 1.0}, "speech": {"speech.jsonl": 1.0}, "music": "music.jsonl",
    "emotion": "emotion.jsonl", "orders": "orders.jsonl", "ambient": "sound.jsonl",
    "shares": dict.fromkeys(("sound", "scene", "mixed", "voice", "emotion", "order", "music", "nothing"), 1.0),
}  # fmt: skip
"""The `scenes` of a recipe over `write_world`'s manifests."""


def tiny_config() -> ModelConfig:
    raw = deepcopy(LLAMA)
    raw["audio_config"] |= {"letters": LETTERS, "n_window": 1000}
    raw["language_config"]["vocab_size"] = 266
    raw["adapter_hidden_size"] = 128
    return ModelConfig.parse(raw)


def tiny_processor(tokenizer: Path) -> Processor:
    config = ProcessorConfig(80, True, audio_token_id=263, audio_start_id=264, audio_end_id=265)
    processor = Processor(Tokenizer.load(tokenizer), config, 80)
    processor.pieces = tuple(f" {letter}" for letter in "abcdefg")  # as many as `LLAMA` has
    return processor


def write_tones(path: Path, *hertz: float, seconds: float = 0.1) -> None:
    """A recording of tones, one after the other."""
    time = np.arange(int(16000 * seconds)) / 16000
    samples = np.concatenate([np.sin(2 * np.pi * f * time) for f in hertz])
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, 16000, 0, "NONE", ""))
        wav.writeframes((samples * 9000).astype("<i2").tobytes())


def write_world(folder: Path) -> Path:
    """Manifests of every kind of clip, each with rows for training and for development; every clip is a tone."""
    truths: dict[str, list[dict[str, Any]]] = {
        "sound": [{"label": label, "fold": fold} for label in SOUNDS for fold in (1, 2, 3)],
        "speech": [{"text": "GOOD MORNING TO YOU", "gender": gender} for gender in ("male", "female")],
        "music": [
            {"held_out": apart, "music": {"instruments": [name], "tempo": "slow", "bpm": 80, "key": "A minor"}}
            for name in ("piano", "violin") for apart in (True, False)
        ],
        "emotion": [
            {"emotion": mood, "speaker": speaker, "gender": gender, "language": "de"}
            for mood in ("anger", "sadness")
            for speaker, gender in (("emodb_14", "female"), ("emodb_03", "male"), ("emodb_09", "female"))
        ],
        "orders": [
            {"intent": "order_drink", "slots": {"coffeeDrink": drink, "size": "large"}, "text": f"A large {drink}"}
            for drink in ("latte", "espresso", "mocha") * 4
        ],
    }  # fmt: skip
    for base, (kind, rows) in enumerate(truths.items(), 5):
        (folder / kind).mkdir(parents=True)
        for i, row in enumerate(rows):
            tone = 47 * base + 150 * (i // 3 if kind == "sound" else i)
            write_tones(folder / f"{kind}/{i}.wav", tone, 1.1 * tone, seconds=0.3)
            row |= {"audio": f"{kind}/{i}.wav", "seconds": 0.6}
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
