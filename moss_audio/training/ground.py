"""Stage *ground*: the mergers learn to put into the decoder's first layers what a word for the sound would put there.

`python -m moss_audio.training.ground RECIPE DATA OUT --model FOLDER [--letters STATE] [--resume]`. The language model
does not run: its hidden states for every label are taken once, and each audio frame of a scene learns to look, at the
output of layer k, like the label of what sounds in it. A pretrained decoder reads such frames as words at once.
The encoder is frozen: its taps for `kept_scenes` scenes are computed once and kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moss_audio.audio import log_mel
from moss_audio.model.audio_lm import AudioLM, cut
from moss_audio.model.decoder import GatedMLP
from moss_audio.processor import Processor
from moss_audio.training.augment import mask
from moss_audio.training.feed import Background
from moss_audio.training.loop import Plan, fit, load_weights
from moss_audio.training.naming import SILENCE, Words, frame_names
from moss_audio.training.precision import autocast
from moss_audio.training.processes import processes
from moss_audio.training.scenes import World

Labelled = tuple[np.ndarray, list[list[str]]]
"""A mel `[n_mels, F]` and the names of what sounds in each of its audio frames."""


@torch.no_grad()
def whiten(mergers: Sequence[GatedMLP] | torch.nn.ModuleList, taps: Tensor) -> None:
    """Start `mergers` anew on inputs that are nearly constant: taps `[K, S, C]` vary by a third of their mean.

    The gates see each column at unit variance; along the mean, which acts as a bias, they get a value of chance.
    """
    for merger, tap in zip(mergers, taps, strict=True):
        assert isinstance(merger, GatedMLP)
        mean, spread = tap.mean(0), tap.std(0)
        for projection in (merger.gate_proj, merger.up_proj):
            weight = torch.randn_like(projection.weight) / tap.shape[1] ** 0.5 / spread
            bias = 0.5 * torch.randn(len(weight), 1, device=weight.device)
            projection.weight.copy_(weight + (bias - (weight @ mean)[:, None]) * mean / mean.square().sum())
        merger.down_proj.weight.normal_(std=merger.down_proj.in_features**-0.5)


class Scenes:
    """Batches of scenes as mels with the names of their frames."""

    def __init__(self, world: World, n_mels: int, batch: int) -> None:
        self.world, self.n_mels, self.batch = world, n_mels, batch

    def next(self, rng: np.random.Generator) -> list[Labelled]:
        """One batch."""
        drawn = (self.world.draw(rng)[1] for _ in range(self.batch))
        return [(log_mel(scene.samples, self.n_mels), frame_names(scene)) for scene in drawn]


class Listener:
    """The network as this stage trains it: the frozen encoder's taps, and what the mergers make of them."""

    def __init__(self, model: AudioLM, words: Words) -> None:
        self.model, self.words, self.mergers = model, words, model.deepstack_audio_merger_list

    @torch.no_grad()
    def features(self, batch: Sequence[Labelled], rng: np.random.Generator | None) -> list[tuple[Tensor, Tensor]]:
        """Stacked taps `[K, S, C]` and targets `[S, labels]` of every scene."""
        device = self.words.centre.device
        mels = [torch.from_numpy(mel) for mel, _ in batch]
        rows = [[(mask(mel, rng) if rng else mel).to(device)] for mel in mels]
        with autocast(device):
            heard = self.model.audio_encoder(*cut(rows, self.model.config.audio.chunk_mel_frames))
            taps = self.model.stacked_taps(heard)
        counts = [-(-mel.shape[1] // 8) for mel in mels]
        parts = taps.to(torch.bfloat16).split(counts, dim=1)
        return [(part, self.words.target(frames, n)) for part, n, (_, frames) in zip(parts, counts, batch, strict=True)]

    def hear(self, taps: Tensor) -> Tensor:
        """The states `[K, S, D]` that the mergers give."""
        return torch.stack([merger(tap) for merger, tap in zip(self.mergers, taps, strict=True)])

    def loss(self, picks: Sequence[tuple[Tensor, Tensor]], frame_weight: float) -> Tensor:
        """Frames and sounds of several scenes."""
        taps, target = torch.cat([taps for taps, _ in picks], 1), torch.cat([target for _, target in picks])
        heard = self.hear(F.dropout(taps.float(), 0.1))
        return self.words.loss(heard, target, [len(target) for _, target in picks], frame_weight)

    @torch.no_grad()
    def names_right(self, item: Labelled) -> bool:
        """Whether one sound by itself gets its name, by the mean of the frames in which it sounds."""
        ((taps, target),) = self.features([item], None)
        sounding = target[:, self.words.index[SILENCE]] == 0
        label = next(name for frame in item[1] for name in frame if name != SILENCE)
        return self.words.nearest(self.hear(taps.float())[:, sounding]) == label


def unheard_sounds(recipe: Mapping[str, Any], data: Path, cache: Path, n_mels: int) -> list[Labelled]:
    """The 80 sounds of development that the stage is measured on, always the same."""
    apart = World(recipe["scenes"] | {"shares": {"sound": 1}}, data, cache, dev=True)
    rng = np.random.default_rng(5)
    drawn = (apart.draw(rng)[1] for _ in range(80))
    return [(log_mel(scene.samples, n_mels), frame_names(scene)) for scene in drawn]


def train(
    model: AudioLM, processor: Processor, recipe: Mapping[str, Any], data: Path, state: Path, resume: bool
) -> None:
    """Run the stage as the recipe says; `state` is where it keeps its weights, with samples in `pcm` beside it."""
    n_mels, cache = processor.config.n_mels, state.parent / "pcm"
    world = World(recipe["scenes"], data, cache)
    listener = Listener(model, Words.of(model, processor, world))
    model.audio_encoder.requires_grad_(False).eval()
    unheard = unheard_sounds(recipe, data, cache, n_mels)
    kept, fresh = list[tuple[Tensor, Tensor]](), not (resume and state.exists())

    def keep(feed: Background[list[Labelled]], rng: np.random.Generator) -> None:
        while len(kept) < recipe["kept_scenes"]:
            kept.extend(listener.features(feed.next(rng), rng))
        print(f"{len(kept)} scenes kept", flush=True)
        feed.close()
        if recipe.get("whiten") and fresh:
            whiten(listener.mergers, torch.cat([taps for taps, _ in kept[:200]], 1).float())
            processes().share(listener.mergers.parameters())

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        if not kept:
            keep(feed, rng)
        picks = [kept[i] for i in rng.integers(len(kept), size=recipe["batch_size"])]
        return listener.loss(picks, recipe["frame_weight"]), len(picks)

    def dev() -> dict[str, Any]:
        right = sum(listener.names_right(item) for item in unheard)
        return {"dev_named": round(right / len(unheard), 3), "dev_clips": len(unheard)}

    with Background(Scenes(world, n_mels, batch=24), recipe["seed"]) as feed:
        fit(model, Plan.of(recipe), loss_of, dev, state, resume)


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the mergers to put words for sounds into the decoder.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="working folder: samples, log, state")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--letters", type=Path, help="state of the letters stage to put into the encoder first")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(processes().rank)
    model = AudioLM.load(args.model, device=processes().device)
    if args.letters:
        load_weights(args.letters, model.audio_encoder)
    processor = Processor.load(args.model, model.config.audio.n_mels)
    model.audio_encoder.letter_head = model.audio_encoder.piece_head = None  # what they say is not needed here
    state = args.out / f"{args.recipe.stem}.safetensors"
    train(model, processor, json.loads(args.recipe.read_text()), args.data, state, args.resume)


if __name__ == "__main__":
    main()
