"""Stage *ground*: the mergers learn to tell the decoder's first layers, frame by frame, what is heard.

`python -m moss_audio.training.ground RECIPE DATA OUT --model FOLDER [--letters STATE] [--vectors FILE] [--resume]`.
Neither the encoder nor the language model is trained. A few hidden units a label and tap learn to be active where it
is true, and add to the frame what a word for it would put there, which a decoder has to learn to read; or what the
stage *vectors* learned, which one reads as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moss_audio.audio import audio_frames
from moss_audio.config import FRAMES_PER_SECOND
from moss_audio.data.scene import Pool
from moss_audio.model.audio_lm import AudioLM
from moss_audio.model.decoder import GatedMLP
from moss_audio.processor import Processor
from moss_audio.training import stage
from moss_audio.training.feed import Background
from moss_audio.training.letters import heard
from moss_audio.training.loop import Plan, fit, save_weights
from moss_audio.training.naming import Kinds, Words, kinds_of
from moss_audio.training.precision import autocast
from moss_audio.training.processes import processes
from moss_audio.training.scenes import World
from moss_audio.training.sounds import BATCH, Scenes, Sound, recordings

FRAMES = 16
"""Frames of a sound that are kept, spread over it."""

SPARSE = 100
"""One of so many kept sounds tells which units of a merger do least."""

SHARP = 60.0
"""What the units' SiLU sees of z, so that it is nearly max(0, z): hundreds of units a little below zero add up."""

LEAK = 0.1
"""Slope of what the cross-entropy sees below zero, where the units themselves have none."""

CONTRAST = 6.0
"""Scale of the amounts that the cross-entropy sees."""

CLOSENESS = 0.6
"""Weight of the squared distance to what is true in a frame."""

ELSEWHERE = 0.5
"""Weight of what is said and is not true: many labels, a little of each, drown the one that is."""

QUIETNESS = 2.0
"""How much more both weigh in voices and in silence: what is put there is in the way of words."""

UNNAMED = 0.15
"""How often a clip of which nothing is true comes, beside one of a label with one clip."""


class Kept(NamedTuple):
    """What was heard of N sounds: `taps [N, K, FRAMES, C]`, the `weights [N, FRAMES]` of the frames that there are,
    how much is heard of each of L labels, `labels [N, L]`: 1 is the most of its kind, and their `halves [N]`
    (`sounds.BOTH` where they are of neither alone)."""

    taps: Tensor
    weights: Tensor
    labels: Tensor
    halves: Tensor


def evenly(first: int, last: int, count: int = FRAMES) -> np.ndarray:
    """So many places from `first` to `last`, both among them; where there are fewer, some come twice."""
    return np.linspace(first, last, count).round().astype(int)


def units_of(recipe: Mapping[str, Any], kinds: Kinds) -> list[int]:
    """How many units each label has, as the recipe says for its kind."""
    return [recipe["units"][kind] for kind, names in kinds.items() for _ in names]


class Listener:
    """The frozen encoder: what its taps are while something sounds."""

    def __init__(self, model: AudioLM, words: Words) -> None:
        self.model, self.words = model, words
        self.device = words.targets.device

    @torch.no_grad()
    def taps(self, mels: Sequence[np.ndarray]) -> list[Tensor]:
        """Stacked taps `[K, S, C]` of every clip."""
        with autocast(self.device):
            taps = self.model.stacked_taps(heard(self.model.audio_encoder, mels)).float()
        return list(taps.split([audio_frames(mel.shape[1]) for mel in mels], dim=1))

    def kept(self, sounds: Sequence[Sound]) -> Kept:
        """Frames of every sound, in half precision."""
        taps = self.taps([sound.mel for sound in sounds])
        shape = (len(sounds), len(taps[0]), FRAMES, taps[0].shape[-1])
        frames, weights = torch.zeros(shape, dtype=torch.float16), torch.zeros(len(sounds), FRAMES)
        labels = torch.stack([self.words.amounts(sound.labels) for sound in sounds])
        for i, (own, sound) in enumerate(zip(taps, sounds, strict=True)):
            first = min(int(sound.start * FRAMES_PER_SECOND), own.shape[1] - 1)
            last = max(first, min(int(sound.end * FRAMES_PER_SECOND), own.shape[1] - 1))
            where = evenly(first, last, min(FRAMES, last - first + 1))
            frames[i, :, : len(where)], weights[i, : len(where)] = own[:, where].half(), 1 / len(where)
        return Kept(frames, weights, labels, torch.tensor([sound.half for sound in sounds]))


class Detectors(nn.Module):
    """Hidden units of the mergers, one or more a label and tap: how much of the label is heard in a frame.

    Linear in the taps, as gates are: `one`, the taps along their mean, stands for the constant that a merger lacks.
    Several units hear what several recordings of a label do not have in common. `owner [U]` is each unit's label.
    """

    mean: Tensor
    spread: Tensor
    one: Tensor
    owner: Tensor

    def __init__(self, mean: Tensor, spread: Tensor, units: Sequence[int]) -> None:
        """For taps of `mean [K, C]` and `spread [K, C]`; `units` has the number of units of every label."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.register_buffer("one", mean / mean.square().sum(-1, keepdim=True))
        self.register_buffer("owner", torch.arange(len(units)).repeat_interleave(torch.tensor(units)))
        self.weight = nn.Parameter(1e-3 * torch.randn(*mean.shape, len(self.owner)))
        self.bias = nn.Parameter(torch.zeros(len(mean), len(self.owner)))

    def units(self, taps: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """What the units' gates see, `[N, K, F, U]`, of frames `[N, K, F, C]`, and the constant, `[N, K, F, 1]`.

        A feature that drops out is missing in all frames of a sound.
        """
        one = torch.einsum("nkfc,kc->nkf", taps, self.one)[..., None]
        x = (taps - one * self.mean[:, None]) / self.spread[:, None]
        x = x * F.dropout(torch.ones_like(x[:, :, :1]), dropout)
        return torch.einsum("nkfc,kcu->nkfu", x, self.weight) + one * self.bias[:, None], one

    def forward(self, taps: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """What the cross-entropy sees of frames `[N, K, F, C]` and what the units say of them, `[N, K, F, U]`."""
        z, one = self.units(taps, dropout)
        return F.leaky_relu(z, LEAK), F.silu(SHARP * z) / SHARP * one

    def by_label(self, units: Tensor) -> Tensor:
        """What the units of each label have together, `[…, L]` of `[…, U]`; of what they say, 1 says: it is true."""
        sums = units.new_zeros(*units.shape[:-1], int(self.owner[-1]) + 1)
        return sums.index_add(-1, self.owner, units)

    def gates(self) -> Tensor:
        """The weights `[K, U, C]` of the units' gates."""
        weight = self.weight / self.spread[..., None]
        constant = self.bias - torch.einsum("kc,kcu->ku", self.mean, weight)
        return SHARP * (weight.transpose(1, 2) + constant[..., None] * self.one[:, None])

    def loss(self, kept: Kept, words: Words, dropout: float) -> Tensor:
        """How far the units are from telling what is true of sounds.

        Among the labels of a kind the one most heard should win, in every tap and in all together; in a frame each
        should be said as much as it is heard, and the others not at all.
        """
        seen, said = self(kept.taps.float(), dropout)
        seen = torch.einsum("nkfl,nf->nkl", self.by_label(seen), kept.weights)
        quiet, total = kept.labels.sum(1) == 0, seen.new_zeros(())
        for kind, here in words.spans.items():
            known = kept.labels[:, here].sum(1) > 0
            if kind == "gender":
                quiet = quiet | known
            if known.any():
                right, share = kept.labels[known, here].argmax(1), known.float().mean()
                each = CONTRAST * seen[known][..., here]
                alone = F.cross_entropy(each.flatten(0, 1), right.repeat_interleave(each.shape[1]))
                total = total + share * (F.cross_entropy(each.mean(1), right) + 0.5 * alone)
        true = kept.labels[:, None, None]
        away = CLOSENESS * (self.by_label(said) - true).square()
        wrong = away + ELSEWHERE * (1 - true) * self.by_label(said.abs())
        weights = kept.weights * torch.where(quiet, QUIETNESS, 1.0)[:, None]
        return total + torch.einsum("nkfl,nf->nk", wrong, weights).mean()


@torch.no_grad()
def right(detectors: Detectors, kept: Kept, words: Words) -> dict[str, str]:
    """For every kind, of how many sounds the label is found."""
    parts = zip(kept.taps.split(64), kept.weights.split(64), strict=True)
    amounts = [torch.einsum("nkfu,nf->nu", detectors(taps.float())[1], weights) for taps, weights in parts]
    said, found = detectors.by_label(torch.cat(amounts)), {}
    for kind, here in words.spans.items():
        known = kept.labels[:, here].sum(1) > 0
        same = said[known, here].argmax(1) == kept.labels[known, here].argmax(1)
        found[f"dev_{kind}"] = f"{int(same.sum())}/{len(same)}"
    return found


Said = Mapping[str, Sequence[float]]
"""For every kind the amount of a unit from which it is said, and how loud."""


def thresholds_of(words: Words, said: Said) -> tuple[Tensor, Tensor]:
    """The two numbers of `said` for every label, `[L]` and `[L]`."""
    both = words.targets.new_zeros(2, len(words.names))
    for kind, here in words.spans.items():
        both[:, here] = both.new_tensor(said[kind])[:, None]
    return both[0], both[1]


@torch.no_grad()
def told(detectors: Detectors, words: Words, taps: Tensor, said: Said) -> Tensor:
    """How much of each label's vector mergers would add, `[K, S, L]`, to frames `taps [K, S, C]` after `put_in`."""
    thresholds, loudness = thresholds_of(words, said)
    z, one = detectors.units(taps[None])
    units = F.silu(SHARP * (z - thresholds[detectors.owner] * one)) / SHARP * one
    return detectors.by_label(units)[0] * loudness


@torch.no_grad()
def put_in(
    mergers: Sequence[nn.Module] | nn.ModuleList,
    detectors: Detectors,
    words: Words,
    taps: Sequence[Tensor],
    said: Said,
) -> None:
    """Let `mergers` add what `words` say of what `detectors` hear.

    The units that do least for `taps [K, S, C]` make room.
    """
    gates, seen = detectors.gates(), torch.cat(list(taps), 1)
    thresholds, loudness = thresholds_of(words, said)
    targets = words.targets * loudness[:, None] / SHARP
    gates -= SHARP * thresholds[detectors.owner][:, None] * detectors.one[:, None]
    targets = targets[:, detectors.owner]
    known = targets.norm(dim=-1).sum(0) > 0
    for k, merger in enumerate(mergers):
        assert isinstance(merger, GatedMLP)
        gate, up, down = merger.gate_proj.weight, merger.up_proj.weight, merger.down_proj.weight
        used = (F.silu(seen[k] @ gate.T) * (seen[k] @ up.T)).square().mean(0).sqrt() * down.norm(dim=0)
        free = used.argsort()[: int(known.sum())]
        even = targets[k, known].norm(dim=-1) / down.norm(dim=0).square().mean().sqrt()
        gate[free], up[free] = gates[k, known], even[:, None] * detectors.one[k]
        down[:, free] = (targets[k, known] / even[:, None]).T  # as large as others: they are quantised together


@torch.no_grad()
def of_sounds(part: Detectors, others: Detectors, words: Words) -> Detectors:
    """Detectors of sounds as `part` has them, and of all else as `others` do."""
    both, here = deepcopy(others), words.spans["sound"]
    sounds = (both.owner >= here.start) & (both.owner < here.stop)
    both.weight[..., sounds], both.bias[..., sounds] = part.weight[..., sounds], part.bias[..., sounds]
    return both


def collect(listener: Listener, batches: Iterator[Sequence[Sound]], most: int) -> Kept:
    """What is heard of up to `most` sounds."""
    found: list[Kept] = []
    count = 0
    for batch in batches:
        found.append(listener.kept(batch))
        count += len(batch)
        print(f"\r{min(count, most)}/{most} sounds heard", end="", flush=True)
        if count >= most:
            break
    print()
    return joined(found, most)


def joined(parts: Sequence[Kept], most: int | None = None) -> Kept:
    """Several as one, up to `most` sounds."""
    return Kept(*(torch.cat(same)[:most] for same in zip(*parts, strict=True)))


def shares_of(labels: Tensor) -> np.ndarray:
    """Chances `[N]` to draw each sound of `labels [N, L]`: a label comes by the root of its number."""
    shares = (labels * labels.sum(0).clamp(min=1).rsqrt()).sum(1)
    shares[labels.sum(1) == 0] = UNNAMED
    return np.asarray(shares.double() / shares.double().sum())


def spread_of(kept: Kept) -> tuple[Tensor, Tensor]:
    """Mean and deviation `[K, C]` of the taps."""
    mean, square = torch.zeros(2, kept.taps.shape[1], kept.taps.shape[3])
    for taps, weights in zip(kept.taps.split(64), kept.weights.split(64), strict=True):
        mean += torch.einsum("nkfc,nf->kc", taps.float(), weights) / len(kept.taps)
        square += torch.einsum("nkfc,nf->kc", taps.float().square(), weights) / len(kept.taps)
    return mean, (square - mean.square()).clamp(min=0).sqrt() + 1e-3


def batches_of(clips: Iterator[Sound]) -> Iterator[list[Sound]]:
    """Clips in batches."""
    return iter(lambda: list(islice(clips, BATCH)), [])


def pools_of(world: World) -> list[Pool]:
    """The clips that are heard as they were recorded."""
    return [*(pool for pool, _ in world.sounds), world.music, world.emotion]


def halves_beside(state: Path) -> tuple[Path, Path]:
    """Where a recipe with `halves` leaves the detectors that heard each half, with what is said of them."""
    first, second = (state.with_name(f"{state.stem}_half{half}.safetensors") for half in (0, 1))
    return first, second


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

    What was heard is kept in `STATE.taps`, the detectors under way in `STATE.detectors`. With `halves` two more sets of
    detectors are fitted, each to half of the recordings: what they say of the other half is what unheard ones are like.
    `STATE_halfN_mergers` say of sounds what those of half N do, for a language model that learns from the other half.
    """
    n_mels, cache, file = processor.config.n_mels, state.parent / "pcm", state.with_suffix(".taps")
    world = World(recipe["scenes"], data, cache)
    kinds, device = kinds_of(world, recipe["least"]), model.language_model.embed_tokens.weight.device
    words = Words.learned(vectors, kinds, device) if vectors else Words.of(model, processor, kinds)
    listener = Listener(model, words)
    model.audio_encoder.requires_grad_(False).eval()
    if processes().rank == 0 and not (resume and file.exists()):
        clips = collect(listener, batches_of(recordings(pools_of(world), n_mels)), recipe["recordings"])
        with Background(Scenes(world, n_mels), recipe["seed"]) as feed:
            rng = np.random.default_rng(recipe["seed"])
            scenes = collect(listener, iter(lambda: feed.next(rng), None), recipe["kept_scenes"])
        apart = World(recipe["scenes"], data, cache, dev=True)
        unheard = collect(listener, batches_of(recordings(pools_of(apart), n_mels)), recipe["dev_clips"])
        parts = {"": joined([clips, scenes]), "dev_": unheard}
        save_file({f"{part}{k}": v for part, kept in parts.items() for k, v in kept._asdict().items()}, file)
    processes().wait()
    stored = load_file(file)
    kept, unheard = (Kept(*(stored[part + name] for name in Kept._fields)) for part in ("", "dev_"))
    units, spread = units_of(recipe, kinds), spread_of(kept)

    def fitted(here: Tensor, file: Path) -> Detectors:
        """Detectors of what is kept `here [N]`."""
        where = here.nonzero()[:, 0]
        shares = shares_of(kept.labels[where])
        detectors = Detectors(*spread, units).to(device)
        processes().share(detectors.parameters())  # they begin by chance

        def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
            picks = where[rng.choice(len(shares), recipe["batch_size"], p=shares)]
            batch = Kept(*(x[picks].to(device) for x in kept))
            return detectors.loss(batch, words, recipe["dropout"]), len(picks)

        fit(detectors, Plan.of(recipe), loss_of, lambda: right(detectors, unheard, words), file, resume)
        return detectors

    of_halves: dict[Path, Detectors] = {}
    for half, file in enumerate(halves_beside(state) if recipe.get("halves") else ()):
        of_halves[file] = fitted(kept.halves == half, file.with_suffix(".detectors"))
        if processes().rank == 0:
            save_file(of_halves[file].state_dict(), file, {"said": json.dumps(recipe["said"])})
    detectors = fitted(torch.ones(len(kept.labels), dtype=torch.bool), state.with_suffix(".detectors"))
    mergers = model.deepstack_audio_merger_list
    few = [taps[:, there > 0].float() for taps, there in zip(kept.taps[::SPARSE], kept.weights[::SPARSE], strict=True)]

    def say(mergers: nn.ModuleList, detectors: Detectors, file: Path) -> None:
        put_in(mergers, detectors, words, [taps.to(device) for taps in few], recipe["said"])
        save_weights(mergers, "deepstack_audio_merger_list", file)

    for file, part in of_halves.items():
        say(deepcopy(mergers), of_sounds(part, detectors, words), file.with_stem(f"{file.stem}_mergers"))
    say(mergers, detectors, state)


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
