"""Trained stages → one quantised model folder: `python -m moss_audio.training.export BASE STATE… OUT`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from moss_audio.checkpoint import quantise_checkpoint, save_checkpoint
from moss_audio.model.audio_lm import AudioLM
from moss_audio.training.loop import load_weights
from moss_audio.weights import SCHEMES


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the weights of training stages into a model folder.")
    parser.add_argument("base", type=Path, help="model folder that the stages started from")
    parser.add_argument("states", type=Path, nargs="+", help="in order; letters*.safetensors are the encoder's")
    parser.add_argument("out", type=Path)
    parser.add_argument("--scheme", choices=SCHEMES, default="int8")
    args = parser.parse_args()
    model = AudioLM.load(args.base)
    for state in args.states:
        load_weights(state, model.audio_encoder if state.stem.startswith("letters") else model)
    config = json.loads((args.base / "config.json").read_text(encoding="utf-8"))
    tensors = ((name, tensor.numpy()) for name, tensor in model.state_dict().items())
    if args.scheme == "float":
        save_checkpoint(args.out, config, tensors)
    else:
        floats = args.out.with_name(args.out.name + ".float")
        save_checkpoint(floats, config, tensors)
        quantise_checkpoint(floats, args.out, args.scheme)
        shutil.rmtree(floats)
    for file in ("processor_config.json", "tokenizer.json"):
        shutil.copyfile(args.base / file, args.out / file)


if __name__ == "__main__":
    main()
