"""What training has cost plain text: `python -m moss_audio.evaluation.perplexity TEXTS MODEL [MODEL …] [--limit N]`.

Perplexity a token of the lines of a file, each alone, under every model named: folders or `mini`. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from moss_audio.checkpoint import find_model
from moss_audio.model.audio_lm import AudioLM
from moss_audio.tokenizer import Tokenizer


@torch.no_grad()
def perplexity(model: AudioLM, rows: Sequence[Sequence[int]]) -> float:
    """Perplexity of token rows, the first of each given."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([list(row)])
        logits = model.decode(ids)[0, :-1].float()
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(row) - 1
    return math.exp(total / max(1, count))


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity of models on the lines of a text file.")
    parser.add_argument("texts", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--limit", type=int, default=200)
    args = parser.parse_args()
    lines = [line for line in args.texts.read_text(encoding="utf-8").splitlines() if len(line) > 20][-args.limit :]
    for name in args.models:
        folder = find_model(name)
        tokenizer = Tokenizer.load(folder)
        rows = [ids for line in lines if len(ids := tokenizer.encode(line)) > 2]
        value = perplexity(AudioLM.load(folder), rows)
        print(f"{name:<40}{value:8.2f}  ({sum(map(len, rows)) - len(rows)} tokens)")


if __name__ == "__main__":
    main()
