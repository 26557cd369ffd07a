"""Stage *ground*: the mergers learn to put into the decoder's first layers what a word for the sound would put there.

`python -m moss_audio.training.ground RECIPE DATA OUT --model FOLDER [--letters STATE] [--resume]`. The language model
does not run: its hidden states for every label are taken once, and each audio frame of a scene learns to look, at the
output of layer k, like the label of what sounds in it. A pretrained decoder reads such frames as words at once.
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
from moss_audio.processor import Processor
from moss_audio.training.augment import mask
from moss_audio.training.feed import Background
from moss_audio.training.loop import Plan, fit, load_weights
from moss_audio.training.scenes import World

SILENCE = "silence"
Labelled = tuple[np.ndarray, list[list[str]]]
"""A mel `[n_mels, F]` and the names of what sounds in each of its audio frames."""

SHARPNESS = 12.0
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
    feed = Background(Scenes(world, processor.config.n_mels, recipe["batch_size"]), recipe["seed"])

    def score(batch: Sequence[Labelled], rng: np.random.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        mels = [torch.from_numpy(mel) for mel, _ in batch]
        rows = [[mask(mel, rng) if rng else mel] for mel in mels]
        with torch.no_grad():
            out = model.audio_encoder(*cut(rows, model.config.audio.chunk_mel_frames))
        audio = model.adapt_output(out)
        target = torch.zeros(audio.deepstack.shape[1], len(names))
        at = 0
        for mel, frames in batch:
            n = -(-mel.shape[1] // 8)
            for i in range(n):
                here = frames[min(i, len(frames) - 1)]
                for name in here:
                    target[at + i, index[name]] = 1 / len(here)
            at += n
        heard = audio.deepstack.float() - centre
        logits = SHARPNESS * torch.einsum("ksd,kld->ksl", F.normalize(heard, dim=-1), words)
        want = torch.einsum("sl,kld->ksd", target, words) * size[:, None, None]
        distance = ((heard - want).square().sum(-1) / size[:, None].square()).mean()
        return logits, target, distance

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        batch = feed.next(rng)
        logits, target, distance = score(batch, rng)
        each = F.cross_entropy(logits.flatten(0, 1), target.repeat(len(logits), 1))
        mean = F.cross_entropy(logits.mean(0), target)
        return each + mean + 0.2 * distance, len(batch)

    apart = World(recipe["scenes"] | {"shares": {"sound": 1}}, data, state.parent / "pcm", dev=True)
    dev_rng = np.random.default_rng(5)
    unheard = [scene for _, scene in (apart.draw(dev_rng) for _ in range(60)) if scene.events[0].label in index]

    @torch.no_grad()
    def dev() -> dict[str, Any]:
        right = 0
        for scene in unheard:
            logits, _, _ = score([(log_mel(scene.samples, processor.config.n_mels), frame_names(scene))], None)
            frames = torch.tensor([SILENCE not in names for names in frame_names(scene)][: logits.shape[1]])
            total = logits.mean(0)[: len(frames)][frames].softmax(-1).mean(0)
            right += names[int(total.argmax())] == scene.events[0].label
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
