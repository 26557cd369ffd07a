"""What is true of a sound, as labels of four kinds, and what the language model would read as each of them.

Knows labels, scenes and the decoder's states; knows no encoder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from moss_audio.data.music import PROGRAMS
from moss_audio.data.wording import EMOTION_WORDS, VOICES
from moss_audio.model.audio_lm import AudioLM
from moss_audio.processor import Processor
from moss_audio.training.scenes import World

Kinds = Mapping[str, Sequence[str]]
"""Labels by what they tell: `sound`, `instrument`, `emotion`, `gender`. No label is of two kinds."""


def kinds_of(world: World, least: int) -> Kinds:
    """The labels of `world`, sounds with `least` recordings or more. Instruments are such wherever they sound."""
    counts: Counter[str] = Counter()
    for pool, _ in world.sounds:
        counts.update({label: len(rows) for label, rows in pool.by_label.items()})
    sounds = sorted(label for label, count in counts.items() if count >= least and label not in PROGRAMS)
    voices = {"emotion": tuple(EMOTION_WORDS.values()), "gender": tuple(VOICES)}
    return {"sound": sounds, "instrument": tuple(PROGRAMS), **voices}


BESIDE = 0.5
"""How much is heard of an instrument that accompanies the first."""


def attributes(kind: str, label: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """What is true of a clip of `kind` sound, speech or music, the most telling first, and how much of it is heard."""
    if kind == "music":
        first, *others = truth["music"]["instruments"]
        return {first: 1.0, **dict.fromkeys(others, BESIDE)}
    if kind == "sound":
        return {label: 1.0}
    emotion, gender = EMOTION_WORDS.get(truth.get("emotion", "")), truth.get("gender")
    return ({emotion: 1.0} if emotion else {}) | ({gender: 1.0} if gender in VOICES else {})


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
    """What is added to a frame in which a label is heard: `targets [K, labels, D]`, zero for what stays unsaid."""

    def __init__(self, kinds: Kinds, targets: Tensor) -> None:
        self.kinds, self.names = kinds, [name for names in kinds.values() for name in names]
        self.index, self.targets = {name: i for i, name in enumerate(self.names)}, targets
        ends = list(accumulate(map(len, kinds.values())))
        self.spans = {kind: slice(end - len(kinds[kind]), end) for kind, end in zip(kinds, ends, strict=True)}

    @classmethod
    def of(cls, model: AudioLM, processor: Processor, kinds: Kinds) -> Words:
        """The words for the labels, as `model` has them now: what they differ in, all of one size."""
        said = [VOICES.get(name, name) for names in kinds.values() for name in names]
        states = label_states(model, processor, said, len(model.config.audio.taps))
        states = states - states.mean(1, keepdim=True)
        return cls(kinds, F.normalize(states, dim=-1) * states.norm(dim=-1).mean(1)[:, None, None])

    def amounts(self, heard: Mapping[str, float]) -> Tensor:
        """How much of each label is `heard`, `[labels]`; what is no label is left out."""
        found = torch.zeros(len(self.names))
        for label in heard.keys() & self.index.keys():
            found[self.index[label]] = heard[label]
        return found

    @classmethod
    def unsaid(cls, kinds: Kinds, device: torch.device) -> Words:
        """The labels alone, with nothing to add."""
        return cls(kinds, torch.zeros(1, sum(map(len, kinds.values())), 1, device=device))

    @classmethod
    def learned(cls, file: Path, kinds: Kinds, device: torch.device) -> Words:
        """The vectors that the stage *vectors* left in `file`; other labels stay unsaid."""
        names = [name for labels in kinds.values() for name in labels]
        with safe_open(file, framework="pt") as state:
            labels, vectors = json.loads(state.metadata()["labels"]), state.get_tensor("vectors").to(device)
        targets = vectors.new_zeros(len(vectors), len(names), vectors.shape[-1])
        rows = [i for i, label in enumerate(labels) if label in names]
        targets[:, [names.index(labels[i]) for i in rows]] = vectors[:, rows]
        return cls(kinds, targets)
