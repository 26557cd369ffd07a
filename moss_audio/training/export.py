"""Trained stages → one quantised model folder: `python -m moss_audio.training.export BASE STATE… OUT`.

Tensors that no stage trained are passed on as BASE stores them, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from moss_audio.checkpoint import INDEX, INT4_PREFIX, open_checkpoint, save_checkpoint
from moss_audio.weights import GROUP, SCHEMES, Scheme, Weight, dequantise, quantise_int4, recode

OTHER_FILES = ("processor_config.json", "tokenizer.json", "pieces.txt", "README.md")


def trained_tensors(states: list[Path]) -> dict[str, np.ndarray]:
    """The weights of stages by their names in the model, later stages over earlier; `letters*` are the encoder's."""
    tensors: dict[str, np.ndarray] = {}
    for state in states:
        prefix = "audio_encoder." if state.stem.startswith("letters") else ""
        with safe_open(state, framework="numpy") as file:
            names = [name for name in file.keys() if name[:2] not in ("m/", "v/")]  # noqa: SIM118
            tensors |= {prefix + name: file.get_tensor(name) for name in names}
    return tensors


def exported(
    base: Path,
    trained: Mapping[str, np.ndarray],
    scheme: Scheme,
    int4: str | None,
    group: int = GROUP,
    share: float = 1.0,
) -> Iterator[tuple[str, Weight]]:
    """Every tensor of `base` with the trained ones in their place; matrices whose name matches `int4` in 4 bits.

    Of those, a `group` of columns shares a scale in the language model, where small groups keep sounds apart
    (`docs/log.md`), and `weights.GROUP` elsewhere. With a `share` below 1 the rest of each trained tensor is as `base`
    has it: part of the way keeps more of what was known (https://arxiv.org/abs/2109.01903).
    """
    checkpoint = open_checkpoint(base)
    if strangers := sorted(set(trained) - set(checkpoint.names)):
        raise ValueError(f"the stages hold tensors that {base} has not: {strangers[:5]}")
    if share < 1:
        trained = {name: (1 - share) * checkpoint.float32(name) + share * own for name, own in trained.items()}
    for name in checkpoint.names:
        weight = Weight(trained[name]) if name in trained else checkpoint.weight(name)
        if len(weight.shape) == 2 and int4 is not None and re.match(int4, name):
            own = group if name.startswith(INT4_PREFIX) else GROUP
            weight = quantise_int4(dequantise(weight), own) if name in trained else recode(weight, "int4")
        elif len(weight.shape) == 2 and (name in trained or weight.scheme == "float"):
            weight = recode(weight, scheme)
        yield name, weight


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the weights of training stages into a model folder.")
    parser.add_argument("base", type=Path, help="model folder that the stages started from")
    parser.add_argument("states", type=Path, nargs="+", help="in order; letters*.safetensors are the encoder's")
    parser.add_argument("out", type=Path)
    parser.add_argument("--scheme", choices=SCHEMES, default="int8", help="of matrices (default: int8)")
    parser.add_argument("--int4", metavar="PATTERN", help="names of matrices to store in 4 bits")
    parser.add_argument("--group", type=int, default=GROUP, help="columns under one scale in the language model's")
    parser.add_argument("--share", type=float, default=1.0, help="how far to go from BASE to what was trained, 0 to 1")
    args = parser.parse_args()
    if not 0 <= args.share <= 1:
        parser.error(f"--share is {args.share}; valid: from 0, which is BASE, to 1, which is what was trained")
    config = json.loads((args.base / "config.json").read_text(encoding="utf-8"))
    index = args.base / INDEX
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else None
    tensors = exported(args.base, trained_tensors(args.states), args.scheme, args.int4, args.group, args.share)
    save_checkpoint(args.out, config, tensors, places=places)
    for file in OTHER_FILES:
        if (args.base / file).is_file() and args.base.resolve() != args.out.resolve():
            shutil.copyfile(args.base / file, args.out / file)


if __name__ == "__main__":
    main()
