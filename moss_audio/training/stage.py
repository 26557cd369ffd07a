"""How a stage begins: what its command is told, and the model that it goes on from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from moss_audio.model.audio_lm import AudioLM
from moss_audio.processor import Processor
from moss_audio.training.loop import load_weights
from moss_audio.training.processes import processes


def arguments(description: str, *, letters: bool = True) -> argparse.ArgumentParser:
    """The command line of a stage; `letters` where it may begin with what the stage of that name learned."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("data", type=Path, help="folder that the recipe's manifests and texts are in")
    parser.add_argument("out", type=Path, help="working folder: what was heard, log, state")
    parser.add_argument("--model", type=Path, required=True, help="model folder to start from")
    if letters:
        parser.add_argument("--letters", type=Path, help="state of the letters stage to put into the encoder first")
    parser.add_argument("--resume", action="store_true")
    return parser


def begin(args: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """The recipe, and where the stage keeps its state. Seeds torch, each process with its rank."""
    torch.manual_seed(processes().rank)
    return json.loads(args.recipe.read_text()), args.out / f"{args.recipe.stem}.safetensors"


def load(args: argparse.Namespace) -> tuple[AudioLM, Processor]:
    """The model to start from, with the letters stage's weights where they are given."""
    model = AudioLM.load(args.model, device=processes().device)
    if args.letters:
        load_weights(args.letters, model.audio_encoder)
    return model, Processor.load(args.model, model.config.audio.n_mels)
