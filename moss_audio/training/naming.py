"""What sounds are called in the decoder's own terms: the hidden states that a label's words have in its first layers.

Audio frames that look like them are read as words at once. Knows labels, scenes and states; knows no encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
    """What the frames are to look like: `states [K, labels, D]` of all `names`, taken apart from their centre."""

    def __init__(self, names: Sequence[str], states: Tensor) -> None:
        self.names, self.index = list(names), {name: i for i, name in enumerate(names)}
        self.centre = states.mean(1, keepdim=True)
        self.directions = F.normalize(states - self.centre, dim=-1)
        self.size = (states - self.centre).norm(dim=-1).mean(1)

    @classmethod
    def of(cls, model: AudioLM, processor: Processor, world: World) -> Words:
        """The words for everything that scenes of `world` hold, as `model` has them now."""
        names = names_of(world)
        return cls(names, label_states(model, processor, names, len(model.config.audio.taps)))

    def logits(self, heard: Tensor) -> Tensor:
        """Scaled cosines `[K, S, labels]` of states `[K, S, D]` without their centre."""
        return SHARPNESS * torch.einsum("ksd,kld->ksl", F.normalize(heard, dim=-1), self.directions)

    def loss(self, heard: Tensor, labels: Tensor) -> Tensor:
        """How far the states `[K, N, D]` of whole sounds, about the centre, are from those of their `labels [N]`."""
        logits = self.logits(heard)
        want = self.directions[:, labels] * self.size[:, None, None]
        distance = ((heard - want).square().sum(-1) / self.size[:, None].square()).mean()
        each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))
        return each + F.cross_entropy(logits.mean(0), labels) + 0.05 * distance

    def nearest(self, heard: Tensor) -> Tensor:
        """The names `[N]` that states `[K, N, D]` about the centre are nearest to, all layers together."""
        return self.logits(heard).sum(0).argmax(-1)
