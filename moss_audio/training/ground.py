"""Stage *ground*: the mergers learn to put into the decoder's first layers what a word for the sound would put there.

`python -m moss_audio.training.ground RECIPE DATA OUT --model FOLDER [--letters STATE] [--vectors FILE] [--resume]`.
Neither the encoder nor the language model is trained: a linear map a tap is fitted from the mean of a sound's taps to
the hidden states of its label, or to what the stage *vectors* learned, and put into hidden units of the mergers that do
least. A decoder learns to read the label's states as words; the learned vectors it reads as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moss_audio.audio import SAMPLE_RATE, audio_frames, log_mel
from moss_audio.model.audio_lm import AudioLM
from moss_audio.model.decoder import GatedMLP
from moss_audio.processor import Processor
from moss_audio.training import stage
from moss_audio.training.feed import Background
from moss_audio.training.letters import heard
from moss_audio.training.loop import Plan, fit
from moss_audio.training.naming import SILENCE, Words, frame_names
from moss_audio.training.precision import autocast
from moss_audio.training.processes import processes
from moss_audio.training.scenes import World

Labelled = tuple[np.ndarray, list[list[str]]]
"""A mel `[n_mels, F]` and the names of what sounds in each of its audio frames."""

BATCH = 16
"""Clips that the encoder hears at a time."""

GATE = 4.0
"""What the gates of linear units see; their SiLU is nearly straight there."""


class Scenes:
    """Batches of scenes as mels with the names of their frames."""

    def __init__(self, world: World, n_mels: int, batch: int) -> None:
        self.world, self.n_mels, self.batch = world, n_mels, batch

    def next(self, rng: np.random.Generator) -> list[Labelled]:
        """One batch."""
        drawn = (self.world.draw(rng)[1] for _ in range(self.batch))
        return [(log_mel(scene.samples, self.n_mels), frame_names(scene)) for scene in drawn]


def recordings(world: World, n_mels: int, longest: float = 10.0) -> Iterator[Labelled]:
    """Every sound as it was recorded, up to its first `longest` seconds."""
    for pool, _ in world.sounds:
        for label in pool.labels:
            for i in pool.by_label[label]:
                mel = log_mel(pool.store[i][: int(longest * SAMPLE_RATE)], n_mels)
                yield mel, [[label]] * audio_frames(mel.shape[1])


class Listener:
    """The frozen encoder: what its taps are on average while something sounds."""

    def __init__(self, model: AudioLM, words: Words) -> None:
        self.model, self.words = model, words

    @torch.no_grad()
    def taps(self, mels: Sequence[np.ndarray]) -> list[Tensor]:
        """Stacked taps `[K, S, C]` of every clip."""
        with autocast(self.words.targets.device):
            taps = self.model.stacked_taps(heard(self.model.audio_encoder, mels)).float()
        return list(taps.split([audio_frames(mel.shape[1]) for mel in mels], dim=1))

    def pooled(self, batch: Sequence[Labelled]) -> Iterator[tuple[Tensor, int]]:
        """The mean of the taps `[K, C]` over the frames of every sound, silence where there is none, and its name."""
        for taps, (_, frames) in zip(self.taps([mel for mel, _ in batch]), batch, strict=True):
            names = [frames[min(i, len(frames) - 1)] for i in range(taps.shape[1])]
            sounding = {name for here in names for name in here} - {SILENCE} or {SILENCE}
            for name in sorted(sounding):
                where = torch.tensor([name in here for here in names], device=taps.device)
                yield taps[:, where].mean(1), self.words.index[name]


class Maps(nn.Module):
    """Linear maps from pooled taps `[N, K, C]` to the targets `[K, N, D]` of their names."""

    mean: Tensor
    spread: Tensor
    bias: Tensor

    def __init__(self, words: Words, taps: Tensor, labels: Tensor, ridge: float = 0.1) -> None:
        """Begin with ridge regression to the states of the labels, rare ones counted up by the root of their number."""
        super().__init__()
        self.register_buffer("mean", taps.mean(0))
        self.register_buffer("spread", taps.std(0) + 1e-4)
        shares = label_shares(labels).float()
        x, targets = ((taps - self.mean) / self.spread).transpose(0, 1), words.targets[:, labels]
        bias = (targets * shares[:, None]).sum(1)
        products = x.transpose(1, 2) @ (x * shares[:, None]) + ridge * torch.eye(x.shape[-1], device=x.device)
        weight = torch.linalg.solve(products, x.transpose(1, 2) @ ((targets - bias[:, None]) * shares[:, None]))
        self.weight = nn.Parameter(weight)
        self.register_buffer("bias", bias)

    def forward(self, taps: Tensor, dropout: float = 0.0) -> Tensor:
        x = F.dropout((taps - self.mean) / self.spread, dropout)
        return torch.einsum("nkc,kcd->knd", x, self.weight) + self.bias[:, None]


def label_shares(labels: Tensor) -> Tensor:
    """Chances `[N]` to draw each sound: a label comes by the root of its number."""
    shares = labels.bincount()[labels].double().rsqrt()
    return shares / shares.sum()


@torch.no_grad()
def put_in(mergers: Sequence[GatedMLP] | nn.ModuleList, maps: Maps, taps: Sequence[Tensor], scale: float) -> None:
    """Let `mergers` add what `maps` say, `scale` times, with the hidden units that do least for `taps` `[K, S, C]`.

    A map of rank r takes r + 1 units: its singular vectors, and one for the constant. Their gates all see the mean of
    the taps, which hardly varies.
    """
    seen = torch.cat(list(taps), 1)
    for k, merger in enumerate(mergers):
        assert isinstance(merger, GatedMLP)
        gate, up, down = merger.gate_proj.weight, merger.up_proj.weight, merger.down_proj.weight
        used = (F.silu(seen[k] @ gate.T) * (seen[k] @ up.T)).square().mean(0).sqrt() * down.norm(dim=0)
        mean = maps.mean[k]
        matrix = scale * maps.weight[k] / maps.spread[k][:, None]
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        rank = min(int((sizes > 1e-3 * sizes[0]).sum()), len(used) - 1)
        free, passed = used.argsort()[: rank + 1], float(F.silu(torch.tensor(GATE)))
        along = mean / mean.square().sum()
        gate[free] = GATE * along
        up[free[:-1]] = (left[:, :rank] * sizes[:rank].sqrt()).T
        up[free[-1]] = along
        down[:, free[:-1]] = (right[:rank] * sizes[:rank, None].sqrt()).T / passed
        down[:, free[-1]] = (scale * maps.bias[k] - mean @ matrix) / passed


def collect(listener: Listener, batches: Iterator[Sequence[Labelled]], most: int) -> tuple[Tensor, Tensor]:
    """Pooled taps `[N, K, C]` and labels `[N]` of up to `most` sounds."""
    found: list[tuple[Tensor, int]] = []
    for batch in batches:
        found += listener.pooled(batch)
        print(f"\r{min(len(found), most)}/{most} sounds heard", end="", flush=True)
        if len(found) >= most:
            break
    print()
    return torch.stack([taps for taps, _ in found[:most]]), torch.tensor([label for _, label in found[:most]])


def batches_of(clips: Iterator[Labelled]) -> Iterator[list[Labelled]]:
    """Clips in batches."""
    return iter(lambda: list(islice(clips, BATCH)), [])


def train(
    model: AudioLM,
    processor: Processor,
    recipe: Mapping[str, Any],
    data: Path,
    state: Path,
    resume: bool,
    vectors: Path | None = None,
) -> None:
    """Run the stage as the recipe says; `state` is where the mergers go, with samples in `pcm` beside it.

    What was heard is kept in `STATE.taps`, the maps under way in `STATE.maps`.
    """
    n_mels, cache, file = processor.config.n_mels, state.parent / "pcm", state.with_suffix(".taps")
    world = World(recipe["scenes"], data, cache)
    device = model.language_model.embed_tokens.weight.device
    words = Words.learned(vectors, world, device) if vectors else Words.of(model, processor, world)
    listener = Listener(model, words)
    model.audio_encoder.requires_grad_(False).eval()
    with Background(Scenes(world, n_mels, BATCH), recipe["seed"]) as feed:
        rng = np.random.default_rng(recipe["seed"])
        few = listener.taps([mel for mel, _ in feed.next(rng)])
        if processes().rank == 0 and not (resume and file.exists()):
            clips = collect(listener, batches_of(recordings(world, n_mels)), recipe["recordings"])
            scenes = collect(listener, iter(lambda: feed.next(rng), None), recipe["kept_scenes"])
            apart = World(recipe["scenes"], data, cache, dev=True)
            unheard = collect(listener, batches_of(recordings(apart, n_mels)), recipe["dev_clips"])
            names = ("taps", "labels", "dev_taps", "dev_labels")
            parts = (*(torch.cat(pair) for pair in zip(clips, scenes, strict=True)), *unheard)
            save_file({name: part.contiguous() for name, part in zip(names, parts, strict=True)}, file)
    processes().wait()
    kept = {name: part.to(few[0].device) for name, part in load_file(file).items()}
    taps, labels = kept["taps"], kept["labels"]
    maps, shares = Maps(words, taps, labels), label_shares(labels).cpu().numpy()

    processes().share(maps.parameters())

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        picks = torch.from_numpy(rng.choice(len(labels), recipe["batch_size"], p=shares))
        return words.loss(maps(taps[picks], recipe["dropout"]), labels[picks]), len(picks)

    def dev() -> dict[str, Any]:
        with torch.no_grad():
            right = int((words.nearest(maps(kept["dev_taps"])) == kept["dev_labels"]).sum())
        return {"dev_named": round(right / len(kept["dev_labels"]), 3), "dev_clips": len(kept["dev_labels"])}

    fit(maps, Plan.of(recipe), loss_of, dev, state.with_suffix(".maps"), resume)
    mergers = model.deepstack_audio_merger_list
    put_in(mergers, maps, few, recipe["scale"])
    if processes().rank == 0:
        weights = mergers.state_dict(prefix="deepstack_audio_merger_list.")
        save_file({name: weight.contiguous() for name, weight in weights.items()}, state)


def main() -> None:
    parser = stage.arguments("Teach the mergers to put words for sounds into the decoder.")
    parser.add_argument("--vectors", type=Path, help="what the stage *vectors* learned, instead of the labels' words")
    args = parser.parse_args()
    recipe, state = stage.begin(args)
    model, processor = stage.load(args)
    model.audio_encoder.letter_head = model.audio_encoder.piece_head = None  # what they say is not needed here
    train(model, processor, recipe, args.data, state, args.resume, args.vectors)


if __name__ == "__main__":
    main()
