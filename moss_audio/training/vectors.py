"""Stage *vectors*: what mergers would have to add to a sound's frames for the language model to read its name there.

`python -m moss_audio.training.vectors RECIPE DATA OUT --model FOLDER [--letters STATE] [--resume]`. The network is
frozen; a vector a label and tap is learned through it, from questions about short recordings. *Ground* fits the mergers
to these vectors (`--vectors`), so a language model that is as it was reads sounds that it could not before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from moss_audio.audio import audio_frames, log_mel
from moss_audio.config import FRAMES_PER_SECOND
from moss_audio.data import wording
from moss_audio.data.scene import Event, Scene, active_span
from moss_audio.messages import Message
from moss_audio.model.audio_lm import AudioLM, EncodedAudio
from moss_audio.processor import Processor, collate
from moss_audio.training import stage
from moss_audio.training.align import Reader
from moss_audio.training.loop import Plan, fit
from moss_audio.training.precision import autocast
from moss_audio.training.processes import processes
from moss_audio.training.scenes import World

BATCH = 16
"""Recordings that the encoder hears at a time."""

TOKEN_MULTIPLE = 16
"""Prompts are short here, and so are the steps between their lengths."""

LONGEST = 2.4
"""Seconds of a recording that are kept."""

FRAMES = (6, 20)
"""Audio frames of an example: each is a token, and what is added to all of them needs few to be read."""


@dataclass(frozen=True)
class Heard:
    """A recording as the decoder has it: its label, `embeds [S, D]`, `states [K, S, D]` of the mergers, its letters."""

    label: str
    embeds: Tensor
    states: Tensor
    spelled: str

    def part(self, rng: np.random.Generator) -> Heard:
        """Some frames in a row."""
        n = min(len(self.embeds), int(rng.integers(FRAMES[0], FRAMES[1] + 1)))
        start = int(rng.integers(len(self.embeds) - n + 1))
        here = slice(start, start + n)
        return Heard(self.label, self.embeds[here], self.states[:, here], self.spelled)


class Asked(NamedTuple):
    """A question about a recording, to whose frames `share` of its label's vector is added and `blur` of another's."""

    heard: Heard
    question: str
    answer: str
    share: float
    other: str
    blur: float


class Vectors(nn.Module):
    """Vectors `[K, L, D]` of `labels`, learned in units of their size as they began."""

    start: Tensor
    unit: Tensor

    def __init__(self, labels: Sequence[str], start: Tensor) -> None:
        super().__init__()
        self.index = {label: i for i, label in enumerate(labels)}
        self.register_buffer("start", start)
        self.register_buffer("unit", start.norm(dim=-1).mean(1)[:, None, None] / math.sqrt(start.shape[-1]))
        self.moved = nn.Parameter(torch.zeros_like(start))

    @property
    def value(self) -> Tensor:
        """What they are now."""
        return self.start + self.unit * self.moved

    @classmethod
    def between(cls, recordings: Sequence[Heard], scale: float) -> Vectors:
        """Begin `scale` times as far from the mean of all states as a label's are; rare labels nearer."""
        labels = sorted({heard.label for heard in recordings})
        means = torch.stack([heard.states.mean(1) for heard in recordings])
        rows = torch.tensor([labels.index(heard.label) for heard in recordings], device=means.device)
        counts = rows.bincount(minlength=len(labels))[:, None, None]
        sums = means.new_zeros(len(labels), *means.shape[1:]).index_add_(0, rows, means - means.mean(0))
        return cls(labels, scale * (sums / (counts + 2)).transpose(0, 1).contiguous())


class VectorReader(Reader):
    """The frozen network, asked about recordings that it heard before."""

    @torch.no_grad()
    def keep(self, recordings: Sequence[tuple[str, np.ndarray]]) -> list[Heard]:
        """Hear labelled mels once; those of like length together."""
        kept = []
        ordered = sorted(recordings, key=lambda recording: recording[1].shape[1])
        for start in range(0, len(ordered), BATCH):
            part = ordered[start : start + BATCH]
            with autocast(self.device):
                out = self.hear([mel for _, mel in part])
                audio = self.model.adapt_output(out)
            lengths = [audio_frames(mel.shape[1]) for _, mel in part]
            states = audio.deepstack.float().split(lengths, dim=1)
            rows = zip(part, audio.embeds.float().split(lengths), states, self._spelled(out), strict=True)
            kept += [Heard(label, embeds, own, spelled.quoted) for (label, _), embeds, own, spelled in rows]
        return kept

    def answer_loss(self, asked: Sequence[Asked], vectors: Vectors) -> Tensor:
        """Mean cross-entropy of the answers' tokens, in nats."""
        value, index, inputs, states = vectors.value, vectors.index, [], []
        for one in asked:
            added = one.share * value[:, index[one.heard.label]] + one.blur * value[:, index[one.other]]
            states.append(one.heard.states + added[:, None])
            mel = np.zeros((self.processor.config.n_mels, int(len(one.heard.embeds) * 100 / FRAMES_PER_SECOND)))
            message = self._ask(mel, one.question, one.heard.spelled)
            turns = [message, Message.of("assistant", one.answer)]
            inputs.append(self.processor.encode(turns, add_generation_prompt=False))
        batch = collate(inputs, 0, TOKEN_MULTIPLE)
        ids, loss_mask, audio_mask = self._here(batch.input_ids, batch.loss_mask, batch.audio_mask)
        audio = EncodedAudio(torch.cat([one.heard.embeds for one in asked]), torch.cat(states, 1), None)
        hidden = self.model.hidden(ids, audio_mask, audio)
        return F.cross_entropy(self.model.logits(hidden[:, :-1][loss_mask[:, 1:]]).float(), ids[loss_mask])


class Questions:
    """Endless questions about kept recordings: half ask for the name, half whether a sound is there."""

    def __init__(self, recordings: Sequence[Heard], share: tuple[float, float], blur: float) -> None:
        self.by_label: dict[str, list[Heard]] = {}
        for heard in recordings:
            self.by_label.setdefault(heard.label, []).append(heard)
        self.labels, self.share, self.blur = sorted(self.by_label), share, blur
        self._yes_no = wording.yes_no(self.labels)
        self._left: list[str] = []

    def next(self, rng: np.random.Generator) -> Asked:
        """One of them; every label comes once before any comes again."""
        if not self._left:
            self._left = rng.permutation(self.labels).tolist()
        label = self._left.pop()
        recordings = self.by_label[label]
        heard = recordings[int(rng.integers(len(recordings)))].part(rng)
        scene = Scene(np.zeros(1, np.float32), (Event(label, 0.0, 1.0, "sound", -20.0, {}),))
        turn = (wording.name if rng.random() < 0.5 else self._yes_no)(scene, rng)
        assert turn is not None
        other = str(rng.choice([x for x in self.labels if x != label]))
        return Asked(heard, *turn, float(rng.uniform(*self.share)), other, float(rng.uniform(0, self.blur)))


def recordings_of(world: World, n_mels: int, most: int, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Up to `most` recordings of each label, where they sound."""
    found: dict[str, list[np.ndarray]] = {}
    for pool, _ in world.sounds:
        for label in pool.labels:
            have = found.setdefault(label, [])
            picks = rng.permutation(pool.by_label[label])[: most - len(have)]
            have += [log_mel(active_span(pool.store[int(i)], LONGEST), n_mels) for i in picks]
    return [(label, mel) for label, mels in found.items() for mel in mels]


def train(
    model: AudioLM, processor: Processor, recipe: dict[str, Any], data: Path, state: Path, resume: bool
) -> None:
    """Run the stage as the recipe says; `state` holds how far the vectors moved, `STATE.vectors` what they are."""
    n_mels, rng = processor.config.n_mels, np.random.default_rng(recipe["seed"])
    model.requires_grad_(False).eval()
    world, reader = World(recipe["scenes"], data, state.parent / "pcm"), VectorReader(model, processor)
    kept = reader.keep(recordings_of(world, n_mels, recipe["recordings"], rng))
    vectors = Vectors.between(kept, recipe["scale"])
    questions = Questions(kept, recipe["share"], recipe["blur"])
    print(f"{len(kept)} recordings of {len(questions.labels)} labels", flush=True)

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        asked = [questions.next(rng) for _ in range(recipe["batch_size"])]
        return reader.answer_loss(asked, vectors), len(asked)

    def dev() -> dict[str, Any]:
        moved = (vectors.unit * vectors.moved.detach()).norm(dim=-1) / vectors.start.norm(dim=-1).clamp(min=1e-6)
        return {"moved": round(float(moved.mean()), 3)}

    fit(vectors, Plan.of(recipe), loss_of, dev, state, resume)
    if processes().rank == 0:
        metadata = {"labels": json.dumps(list(vectors.index))}
        save_file({"vectors": vectors.value.detach().contiguous()}, state.with_suffix(".vectors"), metadata)


def main() -> None:
    args = stage.arguments("Learn what the language model would read as the names of sounds.").parse_args()
    recipe, state = stage.begin(args)
    train(*stage.load(args), recipe, args.data, state, args.resume)


if __name__ == "__main__":
    main()
