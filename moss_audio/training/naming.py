"""What sounds are called in the decoder's own terms: the hidden states that a label's words have in its first layers.

Audio frames that look like them are read as words at once. Knows labels, scenes and states; knows no encoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from moss_audio.config import FRAMES_PER_SECOND
from moss_audio.data.music import PROGRAMS
from moss_audio.data.scene import Scene
from moss_audio.data.wording import EMOTION_WORDS, named
from moss_audio.model.audio_lm import AudioLM
from moss_audio.processor import Processor
from moss_audio.training.scenes import World

SILENCE = "silence"

SHARPNESS = 20.0
"""Scale of the cosines that the cross-entropy sees."""

CLOSENESS = 0.3
"""Weight of the distance to a name's target."""

QUIETNESS = 12.0
"""The same for what stays unsaid: little must be put where people speak, or transcripts get worse."""


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
        embeddings = model.language_model.embed_tokens
        ids = torch.tensor([[*start, *processor.tokenizer.encode(f" {name}")]], device=embeddings.weight.device)
        x, states = embeddings(ids), list[Tensor]()
        handles = [layer.register_forward_hook(lambda _m, _i, o, s=states: s.append(o[0, len(start) :].mean(0)))
                   for layer in model.language_model.layers[:n_layers]]  # fmt: skip
        model.language_model(x)
        for handle in handles:
            handle.remove()
        out.append(torch.stack(states))
    return torch.stack(out, dim=1)


class Words:
    """What is to be put into the frames: `targets [K, labels, D]` for all `names`; a name without any stays unsaid."""

    def __init__(self, names: Sequence[str], targets: Tensor) -> None:
        self.names, self.index, self.targets = list(names), {name: i for i, name in enumerate(names)}, targets
        self.directions, sizes = F.normalize(targets, dim=-1), targets.norm(dim=-1)
        self.said = sizes.sum(0) > 0
        self.size = sizes[:, self.said].mean(1)

    @classmethod
    def of(cls, model: AudioLM, processor: Processor, world: World) -> Words:
        """The words for everything that scenes of `world` hold, as `model` has them now."""
        names = names_of(world)
        states = label_states(model, processor, names, len(model.config.audio.taps))
        states = states - states.mean(1, keepdim=True)
        return cls(names, F.normalize(states, dim=-1) * states.norm(dim=-1).mean(1)[:, None, None])

    @classmethod
    def learned(cls, file: Path, world: World, device: torch.device) -> Words:
        """The vectors that the stage *vectors* left in `file`."""
        names = names_of(world)
        with safe_open(file, framework="pt") as state:
            labels, vectors = json.loads(state.metadata()["labels"]), state.get_tensor("vectors").to(device)
        targets = vectors.new_zeros(len(vectors), len(names), vectors.shape[-1])
        rows = [i for i, label in enumerate(labels) if label in names]
        targets[:, [names.index(labels[i]) for i in rows]] = vectors[:, rows]
        return cls(names, targets)

    def logits(self, heard: Tensor) -> Tensor:
        """Scaled cosines `[K, S, labels]` of states `[K, S, D]`."""
        return SHARPNESS * torch.einsum("ksd,kld->ksl", F.normalize(heard, dim=-1), self.directions)

    def loss(self, heard: Tensor, labels: Tensor) -> Tensor:
        """How far the states `[K, N, D]` that whole sounds get are from the targets of their `labels [N]`."""
        said, missed = self.said[labels], (heard - self.targets[:, labels]).square().sum(-1)
        weights = torch.where(said, CLOSENESS, QUIETNESS)
        distance = (weights * missed / self.size[:, None].square()).mean()
        if not said.any():
            return distance
        logits, right = self.logits(heard[:, said]).masked_fill(~self.said, -torch.inf), labels[said]
        each = F.cross_entropy(logits.flatten(0, 1), right.repeat(len(logits)))
        return each + F.cross_entropy(logits.mean(0), right) + distance

    def nearest(self, heard: Tensor) -> Tensor:
        """The names `[N]` that states `[K, N, D]` are nearest to, all layers together."""
        return self.logits(heard).sum(0).masked_fill(~self.said, -torch.inf).argmax(-1)
