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
from moss_audio.config import FRAMES_PER_SECOND
from moss_audio.data.music import PROGRAMS
from moss_audio.data.scene import Scene
from moss_audio.data.wording import EMOTION_WORDS, named
from moss_audio.model.audio_lm import AudioLM, cut
from moss_audio.model.decoder import GatedMLP
from moss_audio.processor import Processor
from moss_audio.training.augment import mask
from moss_audio.training.feed import Background
from moss_audio.training.loop import Plan, fit, load_weights
from moss_audio.training.scenes import World

SILENCE = "silence"
Labelled = tuple[np.ndarray, list[list[str]]]
"""A mel `[n_mels, F]` and the names of what sounds in each of its audio frames."""

SHARPNESS = 20.0
"""Scale of the cosines that the cross-entropy sees."""


def names_of(world: World) -> list[str]:
    """Everything that a frame may sound like."""
    voices = ["a man speaking", "a woman speaking"]
    moods = [f"{word} {voice}" for word in EMOTION_WORDS.values() for voice in voices]
    return [SILENCE, "speech", *voices, *moods, *(f"{name} music" for name in PROGRAMS), *world.labels]


def frame_names(scene: Scene) -> list[list[str]]:
    """What sounds in each audio frame."""
    frames: list[list[str]] = [[] for _ in range(int(scene.seconds * FRAMES_PER_SECOND) + 1)]
    for event in scene.events:
        mood = EMOTION_WORDS.get(event.truth.get("emotion", ""), "")
        name = f"{mood} {named(event)}".strip()
        for i in range(int(event.start * FRAMES_PER_SECOND), min(len(frames), int(event.end * FRAMES_PER_SECOND) + 1)):
            frames[i].append(name)
    behind = [scene.background] if scene.background else [SILENCE]
    return [frame or behind for frame in frames]


@torch.no_grad()
def label_states(model: AudioLM, processor: Processor, names: Sequence[str], n_layers: int) -> Tensor:
    """Hidden states `[K, labels, D]` behind each of the first K layers, a label's tokens averaged."""
    out = []
    start = processor.tokenizer.encode("The sound of")
    for name in names:
        ids = torch.tensor([[*start, *processor.tokenizer.encode(f" {name}")]])
        x, states = model.language_model.embed_tokens(ids), []
        handles = [layer.register_forward_hook(lambda _m, _i, o, s=states: s.append(o[0, len(start) :].mean(0)))
                   for layer in model.language_model.layers[:n_layers]]  # fmt: skip
        model.language_model(x)
        for handle in handles:
            handle.remove()
        out.append(torch.stack(states))
    return torch.stack(out, dim=1)


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
            bias = 0.5 * torch.randn(len(weight), 1)
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


def train(
    model: AudioLM, processor: Processor, recipe: Mapping[str, Any], data: Path, state: Path, resume: bool
) -> None:
    """Run the stage as the recipe says."""
    world = World(recipe["scenes"], data, state.parent / "pcm")
    names, n_taps = names_of(world), len(model.config.audio.taps)
    index = {name: i for i, name in enumerate(names)}
    states = label_states(model, processor, names, n_taps)
    centre = states.mean(1, keepdim=True)
    words = F.normalize(states - centre, dim=-1)
    size = (states - centre).norm(dim=-1).mean(1)
    feed = Background(Scenes(world, processor.config.n_mels, batch=24), recipe["seed"])
    model.audio_encoder.requires_grad_(False).eval()

    def target_of(frames: list[list[str]], n: int) -> Tensor:
        target = torch.zeros(n, len(names))
        for i in range(n):
            here = frames[min(i, len(frames) - 1)]
            for name in here:
                target[i, index[name]] = 1 / len(here)
        return target

    @torch.no_grad()
    def features(batch: Sequence[Labelled], rng: np.random.Generator | None) -> list[tuple[Tensor, Tensor]]:
        """Stacked taps `[K, S, C]` and targets `[S, labels]` of every scene."""
        mels = [torch.from_numpy(mel) for mel, _ in batch]
        rows = [[mask(mel, rng) if rng else mel] for mel in mels]
        with torch.autocast("cpu", torch.bfloat16):
            taps = model.stacked_taps(model.audio_encoder(*cut(rows, model.config.audio.chunk_mel_frames)))
        counts = [-(-mel.shape[1] // 8) for mel in mels]
        parts = taps.to(torch.bfloat16).split(counts, dim=1)
        return [(part, target_of(frames, n)) for part, n, (_, frames) in zip(parts, counts, batch, strict=True)]

    def score(taps: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[K, S, labels]` and the states `[K, S, D]` less their centre."""
        mergers = zip(model.deepstack_audio_merger_list, taps, strict=True)
        heard = torch.stack([merger(tap) for merger, tap in mergers]).float() - centre
        return SHARPNESS * torch.einsum("ksd,kld->ksl", F.normalize(heard, dim=-1), words), heard

    kept: list[tuple[Tensor, Tensor]] = []

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        if len(kept) < recipe["kept_scenes"]:
            while len(kept) < recipe["kept_scenes"]:
                kept.extend(features(feed.next(rng), rng))
            print(f"{len(kept)} scenes kept", flush=True)
            if recipe.get("whiten"):
                whiten(model.deepstack_audio_merger_list, torch.cat([taps for taps, _ in kept[:200]], 1).float())
        picks = [kept[i] for i in rng.integers(len(kept), size=recipe["batch_size"])]
        taps, target = torch.cat([taps for taps, _ in picks], 1), torch.cat([target for _, target in picks])
        logits, heard = score(F.dropout(taps, 0.1))
        scene = torch.cat([torch.full((len(target),), i) for i, (_, target) in enumerate(picks)])
        each = F.cross_entropy(logits.flatten(0, 1), target.repeat(len(logits), 1))
        return recipe["frame_weight"] * each + pooled_loss(heard, target, scene), len(picks)

    def pooled_loss(heard: Tensor, target: Tensor, scene: Tensor) -> Tensor:
        """Every sound of a scene by the mean of its frames, which is what attention over them sees."""
        group = scene * len(names) + target.argmax(-1)
        found, which = group.unique(return_inverse=True)
        share = F.one_hot(which, len(found)).float()
        mean = torch.einsum("sg,ksd->kgd", share / share.sum(0), heard)
        logits = SHARPNESS * torch.einsum("kgd,kld->kgl", F.normalize(mean, dim=-1), words)
        label = found % len(names)
        want = words[:, label] * size[:, None, None]
        distance = ((mean - want).square().sum(-1) / size[:, None].square()).mean()
        each = F.cross_entropy(logits.flatten(0, 1), label.repeat(len(logits)))
        return each + F.cross_entropy(logits.mean(0), label) + 0.05 * distance

    apart = World(recipe["scenes"] | {"shares": {"sound": 1}}, data, state.parent / "pcm", dev=True)
    dev_rng = np.random.default_rng(5)
    drawn = (apart.draw(dev_rng)[1] for _ in range(80))
    unheard = [(log_mel(scene.samples, processor.config.n_mels), frame_names(scene)) for scene in drawn]

    @torch.no_grad()
    def dev() -> dict[str, Any]:
        right = 0
        for item in unheard:
            ((taps, target),) = features([item], None)
            mean = score(taps.float())[1][:, target[:, index[SILENCE]] == 0].mean(1)
            total = torch.einsum("kd,kld->l", F.normalize(mean, dim=-1), words)
            label = next(name for frame in item[1] for name in frame if name != SILENCE)
            right += names[int(total.argmax())] == label
        return {"dev_named": round(right / len(unheard), 3), "dev_clips": len(unheard)}

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
    torch.manual_seed(0)
    model = AudioLM.load(args.model)
    if args.letters:
        load_weights(args.letters, model.audio_encoder)
    processor = Processor.load(args.model, model.config.audio.n_mels)
    state = args.out / f"{args.recipe.stem}.safetensors"
    train(model, processor, json.loads(args.recipe.read_text()), args.data, state, args.resume)


if __name__ == "__main__":
    main()
