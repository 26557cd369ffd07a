"""Stage *listen*: the encoder's first layers learn to tell sounds apart, and what it makes of speech stays.

`python -m moss_audio.training.listen RECIPE DATA OUT --model FOLDER [--resume]`. Detectors (`ground`) on the first tap
ask for the sounds. The encoder as it was is the teacher for speech, in all taps and at the top, so that heads, adapter
and language model need not learn anew. Detectors are for the asking: *ground* fits its own to what is heard then.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from moss_audio.config import FRAMES_PER_SECOND
from moss_audio.data.manifest import MelStore, Row
from moss_audio.model.audio_lm import AudioLM
from moss_audio.model.encoder import Encoder, EncoderOutput
from moss_audio.training import stage
from moss_audio.training.augment import augment, colour, fitted, mix
from moss_audio.training.feed import Background
from moss_audio.training.ground import FRAMES, Detectors, Kept, evenly, right, units_of
from moss_audio.training.letters import heard
from moss_audio.training.loop import Plan, compile_layers, fit, save_weights
from moss_audio.training.naming import BESIDE, Words, attributes, kinds_of
from moss_audio.training.precision import autocast
from moss_audio.training.processes import processes
from moss_audio.training.scenes import World, is_dev, label_of
from moss_audio.training.sounds import BOTH

T = TypeVar("T")

MELS_PER_FRAME = round(100 / FRAMES_PER_SECOND)
"""Mel frames in an audio frame."""

SOUNDING = 0.6
"""How far below its loudest frame a clip still sounds, in Whisper's scale: 24 dB."""

COVERED = 0.5
"""How often a clip has another over it, 0–22 dB quieter; what is less than 7 dB quieter is heard too."""

LENGTHS = (192, 256, 384, 512)
"""Mel frames of a batch's crops, one of these; no row of a batch is filled up."""

SPEECH = ((4, 384), (2, 704), (1, 1408), (1, 2432))
"""Speech that is heard in a step: how many stretches, and their mel frames."""


def sounding(mel: np.ndarray) -> np.ndarray:
    """The frames of `mel [n_mels, F]` in which it sounds."""
    level = mel.mean(0)
    return np.flatnonzero(level > level.max() - SOUNDING)


def one_of(several: Sequence[T], rng: np.random.Generator) -> T:
    """One of several, each as likely."""
    return several[int(rng.integers(len(several)))]


class Clip(NamedTuple):
    """Row `row` of `store` and how much of each label is heard in it."""

    store: MelStore
    row: int
    labels: Mapping[str, float]

    @property
    def first(self) -> str:
        """The most telling label."""
        return next(iter(self.labels))

    def mel(self, most: int = 3000) -> np.ndarray:
        """Its log-mel `[n_mels, ≤ most]`."""
        return np.array(self.store[self.row][:, :most], np.float32)

    def crop(self, frames: int, rng: np.random.Generator) -> Tensor:
        """Up to so many frames around one that sounds."""
        mel = self.mel()
        middle = int(rng.choice(sounding(mel)))
        start = int(np.clip(middle - rng.integers(frames), 0, max(0, mel.shape[1] - frames)))
        return torch.from_numpy(mel[:, start : start + frames])


class Pool(NamedTuple):
    """Clips with their `chances`, the `weight` of all, and whether they are sounds, which are changed further."""

    clips: Sequence[Clip]
    chances: np.ndarray
    weight: float
    sounds: bool


class Heard(NamedTuple):
    """Crops `mels [N, n_mels, T]`, how much of each label is heard, `labels [N, L]`, the audio frames `[N, FRAMES]`
    where it is, and stretches of `speech [M, n_mels, T']`."""

    mels: np.ndarray
    labels: np.ndarray
    frames: np.ndarray
    speech: np.ndarray


class Crops:
    """Batches of crops from `pools`, sounds over them, and of speech, what is in the last pool of sounds behind it."""

    def __init__(self, recipe: Mapping[str, Any], data: Path, cache: Path, n_mels: int, words: Words) -> None:
        @functools.cache
        def store_of(name: str) -> MelStore:
            return MelStore(data / name, cache, n_mels)

        def clips(names: Iterable[str], dev: bool = False) -> list[Clip]:
            stores = [store_of(name) for name in names]
            rows = [(store, i, row) for store in stores for i, row in enumerate(store.rows) if is_dev(row) == dev]
            return [Clip(store, i, _labels(row, words)) for store, i, row in rows]

        self.words, self.seconds, self.change = words, float(recipe["seconds"]), float(recipe["augment"])
        labelled = {name: [clip for clip in clips([name]) if clip.labels] for name in recipe["pools"]}
        self.sounds = [labelled[name] for name in recipe["pools"] if name in recipe["sounds"]]
        counts = Counter(clip.first for own in self.sounds for clip in own)
        self.pools = []
        for name, own in labelled.items():
            sounds = name in recipe["sounds"]
            chances = np.array([counts[clip.first] ** -0.5 if sounds else 1.0 for clip in own])
            self.pools.append(Pool(own, chances / chances.sum(), float(recipe["pools"][name]), sounds))
        weights = np.array([pool.weight for pool in self.pools])
        self.shares = weights / weights.sum()
        self.speech = clips(recipe["speech"])
        self.unheard = clips(recipe["pools"], dev=True)[: recipe["dev_clips"]]

    def next(self, rng: np.random.Generator) -> Heard:
        """One batch of `seconds` of crops, all of one length, and stretches of speech."""
        frames = int(rng.choice(LENGTHS, p=[0.2, 0.3, 0.3, 0.2]))
        drawn = [self._drawn(frames, rng) for _ in range(int(100 * self.seconds) // frames)]
        mels, labels, where = (np.stack(same) for same in zip(*drawn, strict=True))
        count, length = SPEECH[int(rng.choice(len(SPEECH), p=[0.3, 0.35, 0.25, 0.1]))]
        return Heard(mels, labels, where, np.stack([self._spoken(length, rng) for _ in range(count)]))

    def _drawn(self, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A crop, how much is heard of each label, and where."""
        pool = self.pools[int(rng.choice(len(self.pools), p=self.shares))]
        clip = pool.clips[int(rng.choice(len(pool.clips), p=pool.chances))]
        mel, heard = clip.crop(round(1.2 * frames), rng), clip.labels
        if rng.random() < COVERED:
            other, below = one_of(one_of(self.sounds, rng), rng), float(rng.uniform(0, 22))
            mel = mix(mel, other.crop(mel.shape[1], rng), below)
            heard = {**dict.fromkeys(other.labels, BESIDE), **heard} if below < 7 and pool.sounds else heard
        mel = augment(colour(mel, rng) if pool.sounds else mel, rng, None, self.change if pool.sounds else 1.0)
        loud = sounding(mel[:, :frames].numpy())
        where = loud[evenly(0, len(loud) - 1)] // MELS_PER_FRAME
        return fitted(mel, frames).numpy(), self.words.amounts(heard).numpy(), where

    def _spoken(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Clips of speech behind each other."""
        parts: list[Tensor] = []
        while sum(part.shape[1] for part in parts) < 1.25 * frames:
            mel = torch.from_numpy(one_of(self.speech, rng).mel(1500))
            noise = torch.from_numpy(one_of(self.sounds[-1], rng).mel(1000)) if rng.random() < 0.3 else None
            parts.append(augment(mel, rng, noise))
        return fitted(torch.cat(parts, 1), frames).numpy()


def _labels(row: Row, words: Words) -> Mapping[str, float]:
    """What is heard in a clip that `words` has a label for."""
    kind = "music" if "music" in row else "sound" if "label" in row else "speech"
    found = attributes(kind, label_of(row), row)
    return {label: amount for label, amount in found.items() if label in words.index}


def lower_part(encoder: Encoder) -> Encoder:
    """The same encoder up to its first tap, weights shared."""
    lower = copy.copy(encoder)
    layers = encoder.layers[: encoder.config.taps[0] + 1]
    lower._modules = {**encoder._modules, "layers": layers, "letter_head": None, "piece_head": None}
    return lower


def distances(now: EncoderOutput, before: EncoderOutput) -> Tensor:
    """How far taps and top are from those of `before`, in shares of their variance, `[K + 1]`."""
    pairs = zip((*now.taps, now.top), (*before.taps, before.top), strict=True)
    return torch.stack([((a - b).float().square() / (b.float().var((0, 1)) + 1e-3)).mean() for a, b in pairs])


class Ears(nn.Module):
    """What is trained: the encoder, and the detectors that ask it for sounds."""

    def __init__(self, encoder: Encoder, detectors: Detectors) -> None:
        super().__init__()
        self.audio_encoder, self.detectors = encoder, detectors


def train(
    model: AudioLM, words: Words, recipe: Mapping[str, Any], data: Path, state: Path, resume: bool
) -> None:
    """Run the stage as the recipe says; `state` is where the encoder's trained weights go, by their names in the model.

    The run itself is kept in `STATE.ears`, with features in `mels` beside it.
    """
    encoder, device = model.audio_encoder, words.targets.device
    teacher, lower = copy.deepcopy(encoder).eval(), lower_part(encoder)
    crops = Crops(recipe, data, state.parent / "mels", encoder.config.n_mels, words)
    every = torch.full((FRAMES,), 1 / FRAMES, device=device)

    def first_tap(mels: Sequence[np.ndarray]) -> Tensor:
        """Audio frames `[N, S, C]` of the first tap, of clips of one length."""
        return model.stacked_taps(heard(lower, mels))[0].unflatten(0, (len(mels), -1)).float()

    def of(frames: Tensor, labels: Tensor) -> Kept:
        """What is heard in `frames [N, 1, FRAMES, C]`, all of them alike, of no half."""
        return Kept(frames, every.expand(len(frames), -1), labels.to(device), torch.full((len(frames),), BOTH))

    @torch.no_grad()
    def kept(clips: Sequence[Clip]) -> Kept:
        taps = []
        for clip in clips:
            with autocast(device):
                own = first_tap([clip.mel(900)])
            taps.append(own[:, evenly(0, own.shape[1] - 1)])
        return of(torch.stack(taps), torch.stack([words.amounts(clip.labels) for clip in clips]))

    some = kept([clip for pool in crops.pools for clip in pool.clips[:: recipe["every"]]])
    flat = some.taps.flatten(0, 2)
    detectors = Detectors(flat.mean(0)[None], flat.std(0)[None] + 1e-3, units_of(recipe, words.kinds)).to(device)
    processes().share(detectors.parameters())  # they begin by chance
    if recipe.get("compile"):
        compile_layers(encoder.layers)
    shares = torch.tensor(recipe["keep"], device=device)

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        batch = feed.next(rng)
        frames = first_tap(list(batch.mels))
        where = torch.from_numpy(batch.frames).to(device)[..., None].expand(-1, -1, frames.shape[-1])
        sounds = of(frames.gather(1, where)[:, None], torch.from_numpy(batch.labels))
        speech = list(batch.speech)
        with torch.no_grad():
            before = heard(teacher, speech)
        away = distances(heard(encoder, speech), before)
        return detectors.loss(sounds, words, recipe["dropout"]) + (shares * away).sum(), len(frames)

    ears, run = Ears(encoder, detectors), state.with_suffix(".ears")
    with Background(crops, recipe["seed"]) as feed:
        fit(ears, Plan.of(recipe), loss_of, lambda: right(detectors, kept(crops.unheard), words), run, resume)
    save_weights(encoder, "audio_encoder", state)


def main() -> None:
    parser = stage.arguments("Teach the encoder's first layers to tell sounds apart.", letters=False)
    args = parser.parse_args()
    recipe, state = stage.begin(args)
    model = AudioLM.load(args.model, device=processes().device)
    model.audio_encoder.letter_head = model.audio_encoder.piece_head = None  # they read the top, which stays
    kinds = kinds_of(World(recipe["scenes"], args.data, state.parent / "pcm"), recipe["least"])
    words = Words.unsaid(kinds, model.audio_encoder.layer_norm.weight.device)
    train(model, words, recipe, args.data, state, args.resume)


if __name__ == "__main__":
    main()
