"""Stage *listen*: the encoder's first layers learn to tell sounds apart, and what it makes of speech stays.

`python -m moss_audio.training.listen RECIPE DATA OUT --model FOLDER [--resume]`. Detectors (`ground`) on the first tap
ask for the sounds. The encoder as it was is the teacher for speech, in all taps and at the top, so that heads, adapter
and language model need not learn anew. Detectors are for the asking: *ground* fits its own to what is heard then.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from moss_audio.config import FRAMES_PER_SECOND
from moss_audio.data.manifest import MelStore, Row
from moss_audio.model.audio_lm import AudioLM
from moss_audio.model.encoder import Encoder, EncoderOutput
from moss_audio.training import stage
from moss_audio.training.augment import augment, colour, fitted, mix
from moss_audio.training.feed import Background
from moss_audio.training.ground import FRAMES, Detectors, Kept, right
from moss_audio.training.letters import heard
from moss_audio.training.loop import Plan, compile_layers, fit
from moss_audio.training.naming import BESIDE, Words, attributes, kinds_of
from moss_audio.training.precision import autocast
from moss_audio.training.processes import processes
from moss_audio.training.scenes import World, is_dev, label_of

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


class Clip(NamedTuple):
    """Row `row` of `store` and how much of each label is heard in it."""

    store: MelStore
    row: int
    labels: Mapping[str, float]

    def mel(self, most: int = 3000) -> np.ndarray:
        """Its log-mel `[n_mels, ≤ most]`."""
        return np.array(self.store[self.row][:, :most], np.float32)

    def crop(self, frames: int, rng: np.random.Generator) -> Tensor:
        """Up to so many frames around one that sounds."""
        mel = self.mel()
        level = mel.mean(0)
        middle = int(rng.choice(np.flatnonzero(level > level.max() - SOUNDING)))
        start = int(np.clip(middle - rng.integers(frames), 0, max(0, mel.shape[1] - frames)))
        return torch.from_numpy(mel[:, start : start + frames])


class Heard(NamedTuple):
    """Crops `mels [N, n_mels, T]`, how much of each label is heard, `labels [N, L]`, the audio frames `[N, FRAMES]`
    where it is, and stretches of `speech [M, n_mels, T']`."""

    mels: Tensor
    labels: Tensor
    frames: Tensor
    speech: Tensor


class Crops:
    """Batches of crops: `pools` of clips by weight, those of sounds changed further and covered by each other."""

    def __init__(self, recipe: Mapping[str, Any], data: Path, cache: Path, n_mels: int, words: Words) -> None:
        def clips(name: str, dev: bool = False) -> list[Clip]:
            store = MelStore(data / name, cache, n_mels)
            rows = [(i, row) for i, row in enumerate(store.rows) if is_dev(row) == dev]
            return [Clip(store, i, self._labels(row, words)) for i, row in rows]

        named = {name: clips(name) for name in recipe["pools"]}
        self.words, self.seconds, self.change = words, float(recipe["seconds"]), float(recipe["augment"])
        self.pools = [[clip for clip in own if clip.labels] for own in named.values()]
        self.weights = np.array([float(weight) for weight in recipe["pools"].values()])
        self.sounds = [own for name, own in zip(named, self.pools, strict=True) if name in recipe["sounds"]]
        counts = Counter(next(iter(clip.labels)) for own in self.sounds for clip in own)
        self.chances = [self._chances(own, counts if own in self.sounds else Counter()) for own in self.pools]
        self.speech = [clip for name in recipe["speech"] for clip in (named.get(name) or clips(name))]
        self.unheard = [clip for name in recipe["pools"] for clip in clips(name, dev=True)][: recipe["dev_clips"]]

    @staticmethod
    def _labels(row: Row, words: Words) -> Mapping[str, float]:
        kind = "music" if "music" in row else "sound" if "label" in row else "speech"
        found = attributes(kind, label_of(row), row)
        return {label: amount for label, amount in found.items() if label in words.index}

    @staticmethod
    def _chances(clips: Sequence[Clip], counts: Mapping[str, int]) -> np.ndarray:
        """A label comes by the root of its number of clips."""
        weights = np.array([max(1, counts[next(iter(clip.labels))]) ** -0.5 for clip in clips])
        return weights / weights.sum()

    def next(self, rng: np.random.Generator) -> Heard:
        """One batch of `seconds` of crops, all of one length, and stretches of speech."""
        frames = int(rng.choice(LENGTHS, p=[0.2, 0.3, 0.3, 0.2]))
        drawn = [self._drawn(frames, rng) for _ in range(int(100 * self.seconds) // frames)]
        mels, labels, where = (torch.from_numpy(np.stack(same)) for same in zip(*drawn, strict=True))
        count, length = SPEECH[int(rng.choice(len(SPEECH), p=[0.3, 0.35, 0.25, 0.1]))]
        speech = np.stack([self._spoken(length, rng) for _ in range(count)])
        return Heard(mels, labels, where, torch.from_numpy(speech))

    def _drawn(self, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A crop, how much is heard of each label, and where."""
        k = int(rng.choice(len(self.pools), p=self.weights / self.weights.sum()))
        clip = self.pools[k][int(rng.choice(len(self.pools[k]), p=self.chances[k]))]
        mel, heard, sound = clip.crop(round(1.2 * frames), rng), dict(clip.labels), self.pools[k] in self.sounds
        if rng.random() < COVERED:
            others = self.sounds[int(rng.integers(len(self.sounds)))]
            other, below = others[int(rng.integers(len(others)))], float(rng.uniform(0, 22))
            mel = mix(mel, other.crop(mel.shape[1], rng), below)
            heard = dict.fromkeys(other.labels, BESIDE) | heard if below < 7 and sound else heard
        mel = augment(colour(mel, rng) if sound else mel, rng, None, self.change if sound else 1.0)
        level = mel[:, :frames].mean(0).numpy()
        loud = np.flatnonzero(level > level.max() - SOUNDING)
        where = loud[np.linspace(0, len(loud) - 1, FRAMES).round().astype(int)] // MELS_PER_FRAME
        labels = np.zeros(len(self.words.names), np.float32)
        for label, amount in heard.items():
            labels[self.words.index[label]] = amount
        return fitted(mel, frames).numpy(), labels, where

    def _spoken(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Clips of speech behind each other."""
        parts: list[Tensor] = []
        while sum(part.shape[1] for part in parts) < 1.25 * frames:
            mel, noise = torch.from_numpy(self.speech[int(rng.integers(len(self.speech)))].mel(1500)), None
            if rng.random() < 0.3:
                others = self.sounds[-1]
                noise = torch.from_numpy(others[int(rng.integers(len(others)))].mel(1000))
            parts.append(augment(mel, rng, noise))
        return fitted(torch.cat(parts, 1), frames).numpy()


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

    @torch.no_grad()
    def kept(clips: Sequence[Clip]) -> Kept:
        taps, labels = [], torch.zeros(len(clips), len(words.names), device=device)
        for row, clip in zip(labels, clips, strict=True):
            with autocast(device):
                own = first_tap([clip.mel(900)])
            taps.append(own[:, np.linspace(0, own.shape[1] - 1, FRAMES).round().astype(int)])
            for label, amount in clip.labels.items():
                row[words.index[label]] = amount
        return Kept(torch.stack(taps), every.expand(len(clips), -1), labels, torch.zeros(len(clips)))

    some = kept([clip for own in crops.pools for clip in own[:: recipe["every"]]])
    flat = some.taps.flatten(0, 2)
    units = [recipe["units"][kind] for kind, names in words.kinds.items() for _ in names]
    detectors = Detectors(flat.mean(0)[None], flat.std(0)[None] + 1e-3, units).to(device)
    processes().share(detectors.parameters())  # they begin by chance
    if recipe.get("compile"):
        compile_layers(encoder.layers)
    shares = torch.tensor(recipe["keep"], device=device)

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        batch = feed.next(rng)
        frames = first_tap(list(batch.mels.numpy()))
        where = batch.frames.to(device)[..., None].expand(-1, -1, frames.shape[-1])
        sounds = Kept(frames.gather(1, where)[:, None], every.expand(len(frames), -1), batch.labels.to(device), where)
        speech = list(batch.speech.numpy())
        with torch.no_grad():
            before = heard(teacher, speech)
        away = distances(heard(encoder, speech), before)
        return detectors.loss(sounds, words, recipe["dropout"]) + (shares * away).sum(), len(frames)

    def dev() -> dict[str, Any]:
        return dict(right(detectors, kept(crops.unheard), words))

    run = state.with_suffix(".ears")
    with Background(crops, recipe["seed"]) as feed:
        fit(Ears(encoder, detectors), Plan.of(recipe), loss_of, dev, run, resume)
    if processes().rank == 0:
        weights = {name: weight.contiguous() for name, weight in encoder.state_dict(prefix="audio_encoder.").items()}
        save_file(weights, state)


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
