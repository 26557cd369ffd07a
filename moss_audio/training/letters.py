"""Stage *letters*: the encoder's letter head and upper layers learn to spell speech, with CTC and no language model.

`python -m moss_audio.training.letters RECIPE DATA OUT --model FOLDER [--start STATE] [--resume]`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moss_audio.data.manifest import MelStore
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.model.audio_lm import AudioLM, cut
from moss_audio.model.encoder import Encoder
from moss_audio.training.examples import Example, Feed, Source
from moss_audio.training.loop import Plan, compile_layers, fit, load_weights
from moss_audio.training.processes import processes
from moss_audio.training.spelling import greedy_text, letter_ids, spell


def ctc_loss(encoder: Encoder, examples: list[Example], inner_weight: float = 0.0) -> Tensor:
    """CTC loss of the answers, in nats a letter; a clip too short for its letters counts nothing.

    `inner_weight` is the share of the same loss on the last tap, which keeps the layers below in shape (intermediate
    CTC, https://arxiv.org/abs/2102.03216).
    """
    ids = [letter_ids(spell(example.answer) or "") for example in examples]
    device = encoder.layer_norm.weight.device
    mels = [[torch.from_numpy(example.mel).to(device)] for example in examples]
    out = encoder(*cut(mels, encoder.config.chunk_mel_frames))
    assert out.letter_logprobs is not None and encoder.letter_head is not None
    targets = torch.tensor([i for row in ids for i in row], device=device)
    sizes = torch.tensor([len(row) for row in ids], device=device)

    def loss_of(logprobs: Tensor) -> Tensor:
        rows = logprobs.float().transpose(0, 1)
        return F.ctc_loss(rows, targets, out.lengths, sizes, reduction="sum", zero_infinity=True) / len(targets)

    loss = loss_of(out.letter_logprobs)
    if inner_weight:
        inner = encoder.letter_head(encoder.layer_norm(out.taps[-1]))
        loss = (1 - inner_weight) * loss + inner_weight * loss_of(inner)
    return loss


@torch.no_grad()
def word_error_rate(encoder: Encoder, store: MelStore, limit: int) -> ErrorRate:
    """Word error rate of the greedy letters on the first `limit` clips."""
    encoder.eval()
    rate, device = ErrorRate(), encoder.layer_norm.weight.device
    for i in range(min(limit, len(store))):
        mel = torch.from_numpy(store[i].astype(np.float32)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            out = encoder(*cut([[mel]], encoder.config.chunk_mel_frames))
        assert out.letter_logprobs is not None
        rate += ErrorRate.of((spell(store.rows[i]["text"]) or "").split(), greedy_text(out.letter_logprobs[0]).split())
    encoder.train()
    return rate


def train(encoder: Encoder, recipe: Mapping[str, Any], data: Path, state: Path, resume: bool) -> None:
    """Run the stage as the recipe says; `state` is where it keeps its weights, with features in `mels` beside it."""
    n_mels, cache = encoder.config.n_mels, state.parent / "mels"
    sources = [Source(source, data, cache, n_mels, encoder.eval()) for source in recipe["sources"]]
    noise = [MelStore(data / name, cache, n_mels) for name in recipe["noise"]]
    dev_store = MelStore(data / recipe["dev"], cache, n_mels)
    feed = Feed(sources, recipe["batch_size"], noise, recipe["noise_rate"])
    if recipe.get("compile"):
        compile_layers(encoder.layers)

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        examples = feed.next(rng)
        return ctc_loss(encoder, examples, recipe.get("inner_weight", 0.0)), len(examples)

    def dev() -> dict[str, Any]:
        rate = word_error_rate(encoder, dev_store, recipe["dev_clips"])
        return {"dev_wer": round(rate.value, 4), "dev_words": rate.words}

    fit(encoder.train(), Plan.of(recipe), loss_of, dev, state, resume)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the letter head and the encoder's upper layers.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("data", type=Path, help="folder that the recipe's manifests are in")
    parser.add_argument("out", type=Path, help="working folder: mels, log, state")
    parser.add_argument("--model", type=Path, required=True, help="model folder to start from")
    parser.add_argument("--start", type=Path, help="state of an earlier run of this stage to start from")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(processes().rank)
    encoder = AudioLM.load(args.model, device=processes().device).audio_encoder
    if args.start:
        load_weights(args.start, encoder)
    state = args.out / f"{args.recipe.stem}.safetensors"
    train(encoder, json.loads(args.recipe.read_text()), args.data, state, args.resume)


if __name__ == "__main__":
    main()
