"""Stage *vectors*: what would have to be added to a sound's frames for the language model to read its name there.

`python -m moss_audio.training.vectors RECIPE DATA OUT --model FOLDER [--letters STATE] [--vectors FILE --ground STATE]
[--resume]`. The network is frozen; a vector a label and tap is learned through it, from questions about short
recordings. *Ground* lets the mergers add these (`--vectors`), so a language model that is as it was reads sounds,
instruments and voices that it could not. What mergers say of unheard recordings is less clear than a vector alone: with
`--ground`, the vectors of `--vectors` learn on where detectors that have not heard a recording say what they say of it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moss_audio.audio import SAMPLE_RATE, audio_frames, log_mel
from moss_audio.config import FRAMES_PER_SECOND
from moss_audio.data import wording
from moss_audio.data.punctuate import sentence
from moss_audio.data.scene import Event, Scene, active_span
from moss_audio.messages import Message
from moss_audio.model.audio_lm import AudioLM, EncodedAudio
from moss_audio.processor import Processor, collate
from moss_audio.prompts import CAPTION_SPEECH, DESCRIBE_MUSIC, TRANSCRIBE
from moss_audio.training import stage
from moss_audio.training.align import Reader
from moss_audio.training.ground import Detectors, Said, halves_beside, told
from moss_audio.training.loop import Plan, fit
from moss_audio.training.naming import Kinds, Words, attributes, kinds_of
from moss_audio.training.precision import autocast
from moss_audio.training.processes import processes
from moss_audio.training.scenes import World, half_of, label_of

BATCH = 16
"""Recordings that the encoder hears at a time."""

TOKEN_MULTIPLE = 16
"""Prompts are short here, and so are the steps between their lengths."""

LONGEST = 2.4
"""Seconds of a recording that are kept."""

LONGEST_SAID = 4.0
"""Seconds of speech that is kept whole, to be transcribed: what is put into voices must not hide the words."""

SAID = 0.12
"""How often a transcript is asked for."""

MANY = 6
"""How many times more recordings there are of voices that are to be transcribed."""

TURNS = {"gender": 4, "emotion": 2}
"""How often a label of a kind comes before any other comes again; the others once."""

FRAMES = (6, 20)
"""Audio frames of an example: each is a token, and what is added to all of them needs few to be read."""


@dataclass(frozen=True)
class Heard:
    """A recording as the decoder has it: how much of what is heard, `embeds [S, D]`, `states [K, S, D]` of the mergers.

    `spelled` are its letters; `text` is what is said, where that is known and short; `told [K, S, L]` is how much of
    each vector its frames get, None where that is left to chance.
    """

    labels: Mapping[str, float]
    embeds: Tensor
    states: Tensor
    spelled: str
    text: str = ""
    told: Tensor | None = None

    def part(self, rng: np.random.Generator) -> Heard:
        """Some frames in a row."""
        n = min(len(self.embeds), int(rng.integers(FRAMES[0], FRAMES[1] + 1)))
        start = int(rng.integers(len(self.embeds) - n + 1))
        here = slice(start, start + n)
        told = None if self.told is None else self.told[:, here]
        return replace(self, embeds=self.embeds[here], states=self.states[:, here], told=told)


class Recording(NamedTuple):
    """A mel `[n_mels, F]`, how much of what is heard, the most informative first, and what is said."""

    labels: Mapping[str, float]
    mel: np.ndarray
    text: str = ""
    half: int = 0


class Asked(NamedTuple):
    """A question about a recording, to whose frames `share` of its labels' vectors is added and `blur` of another's.

    An answer that is not `whole` goes on after what is written here.
    """

    heard: Heard
    question: str
    answer: str
    whole: bool
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
    def learned(cls, file: Path) -> Vectors:
        """Those that a run of this stage left in `file`."""
        with safe_open(file, framework="pt") as state:
            return cls(json.loads(state.metadata()["labels"]), state.get_tensor("vectors"))

    @classmethod
    def between(cls, recordings: Sequence[Heard], scale: float) -> Vectors:
        """Begin `scale` times as far from the mean of all states as a label's are; rare labels nearer."""
        labels = sorted({label for heard in recordings for label in heard.labels})
        means = torch.stack([heard.states.mean(1) for heard in recordings])
        has = means.new_tensor([[label in heard.labels for label in labels] for heard in recordings])
        sums = torch.einsum("nl,nkd->kld", has, means - means.mean(0))
        return cls(labels, scale * (sums / (has.sum(0) + 2)[:, None]))


class Halves:
    """What detectors that *ground* fitted to one half of the recordings say of the other, in vectors of `labels`."""

    def __init__(self, state: Path, words: Words, labels: Sequence[str]) -> None:
        self.words, self.columns = words, [words.index[label] for label in labels]
        self.detectors, device = list[Detectors](), words.targets.device
        for file in halves_beside(state):
            with safe_open(file, framework="pt", device=str(device)) as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                self.said: Said = json.loads(stored.metadata()["said"])
            detectors = Detectors(tensors["mean"], tensors["spread"], torch.bincount(tensors["owner"]).tolist())
            detectors.load_state_dict(tensors)
            self.detectors.append(detectors)

    def tell(self, taps: Tensor, half: int) -> Tensor:
        """How much of each vector the frames `taps [K, S, C]` of a recording of `half` get, `[K, S, L]`."""
        return told(self.detectors[1 - half], self.words, taps, self.said)[..., self.columns]


class VectorReader(Reader):
    """The frozen network, asked about recordings that it heard before."""

    @torch.no_grad()
    def keep(self, recordings: Sequence[Recording], halves: Halves | None = None) -> list[Heard]:
        """Hear recordings once; those of like length together."""
        kept = []
        ordered = sorted(recordings, key=lambda recording: recording.mel.shape[1])
        for start in range(0, len(ordered), BATCH):
            part = ordered[start : start + BATCH]
            with autocast(self.device):
                out = self.hear([recording.mel for recording in part])
                audio = self.model.adapt_output(out)
            lengths = [audio_frames(recording.mel.shape[1]) for recording in part]
            states = audio.deepstack.float().split(lengths, dim=1)
            tellings: list[Tensor | None] = [None] * len(part)
            if halves:
                taps = self.model.stacked_taps(out).float().split(lengths, dim=1)
                tellings = [halves.tell(own, one.half) for own, one in zip(taps, part, strict=True)]
            heard = audio.embeds.float().split(lengths), states, self._spelled(out), tellings
            for one, embeds, own, spelled, telling in zip(part, *heard, strict=True):
                kept.append(Heard(one.labels, embeds.clone(), own.clone(), spelled.quoted, one.text, telling))
        return kept

    def answer_loss(self, asked: Sequence[Asked], vectors: Vectors) -> Tensor:
        """Mean cross-entropy of the answers' tokens, in nats."""
        value, index, inputs, states = vectors.value, vectors.index, [], []
        for one in asked:
            if one.heard.told is None:
                own = torch.stack([part * value[:, index[label]] for label, part in one.heard.labels.items()]).sum(0)
                added = (one.share * own + one.blur * value[:, index[one.other]])[:, None]
            else:
                added = one.heard.told @ value
            states.append(one.heard.states + added)
            mel = np.zeros((self.processor.config.n_mels, int(len(one.heard.embeds) * 100 / FRAMES_PER_SECOND)))
            message = self._ask(mel, one.question, one.heard.spelled)
            turns = [message, Message.of("assistant", one.answer)]
            inputs.append(self.processor.encode(turns, add_generation_prompt=False))
            if not one.whole:
                inputs[-1].loss_mask[np.flatnonzero(inputs[-1].loss_mask)[-1]] = False
        batch = collate(inputs, 0, TOKEN_MULTIPLE)
        ids, loss_mask, audio_mask = self._here(batch.input_ids, batch.loss_mask, batch.audio_mask)
        audio = EncodedAudio(torch.cat([one.heard.embeds for one in asked]), torch.cat(states, 1), None)
        hidden = self.model.hidden(ids, audio_mask, audio)
        return F.cross_entropy(self.model.logits(hidden[:, :-1][loss_mask[:, 1:]]).float(), ids[loss_mask])


class Questions:
    """Endless questions about kept recordings, by what is true of them; labels come again once all have come."""

    def __init__(self, recordings: Sequence[Heard], kinds: Kinds, share: tuple[float, float], blur: float) -> None:
        self.by_label: dict[str, list[Heard]] = {}
        for heard in recordings:
            for label in (label for label, amount in heard.labels.items() if amount == 1):
                self.by_label.setdefault(label, []).append(heard)
        self.labels, self.share, self.blur = sorted(self.by_label), share, blur
        self._kinds = {label: kind for kind, labels in kinds.items() for label in labels}
        self._yes_no = wording.yes_no([label for label in self.labels if self._kinds[label] == "sound"])
        self._round = [label for label in self.labels for _ in range(TURNS.get(self._kinds[label], 1))]
        self._said = [heard for heard in recordings if heard.text]
        self._left: list[str] = []

    def next(self, rng: np.random.Generator) -> Asked:
        """One of them."""
        if not self._left:
            self._left = rng.permutation(self._round).tolist()
        label = self._left.pop()
        recordings, kind = self.by_label[label], self._kinds[label]
        heard, turn = recordings[int(rng.integers(len(recordings)))], self._turn(kind, label, rng)
        if self._said and rng.random() < SAID:
            heard = self._said[int(rng.integers(len(self._said)))]
            turn = TRANSCRIBE, heard.text, True
        else:
            heard = heard.part(rng)
        others = [x for x in self.labels if self._kinds[x] == kind and x not in heard.labels]
        blurred = str(rng.choice(others or self.labels)), float(rng.uniform(0, self.blur))
        return Asked(heard, *turn, float(rng.uniform(*self.share)), *blurred)

    def _turn(self, kind: str, label: str, rng: np.random.Generator) -> tuple[str, str, bool]:
        """A question that the label answers, its answer, and whether that is all of it."""
        by_name = rng.random() < 0.5
        if kind == "gender" and not by_name:
            return first_field(CAPTION_SPEECH, label)
        if kind in ("sound", "gender"):
            event = Event(label, 0.0, 1.0, "speech" if kind == "gender" else "sound", -20.0, {kind: label})
            task = wording.gender if kind == "gender" else wording.name if by_name else self._yes_no
            turn = task(Scene(np.zeros(1, np.float32), (event,)), rng)
            assert turn is not None
            return *turn, True
        if kind == "emotion":
            return wording.ask("emotion", rng), wording.capital(label), True
        if by_name:
            return wording.ask("instrument", rng), wording.capital(label), True
        return first_field(DESCRIBE_MUSIC, label)


def first_field(question: str, value: str) -> tuple[str, str, bool]:
    """A question for JSON and its answer up to the value of the first field."""
    opening = {CAPTION_SPEECH: '{"gender": "', DESCRIBE_MUSIC: '{"instruments": ["'}[question]
    return question, opening + value, False


def recordings_of(world: World, kinds: Kinds, n_mels: int, most: int, rng: np.random.Generator) -> list[Recording]:
    """Up to `most` recordings of each label, where they sound: of sounds, of music, and of voices."""
    kept, counts = list[Recording](), Counter[str]()
    wanted = {label for labels in kinds.values() for label in labels}
    for pool in [*(pool for pool, _ in (*world.sounds, *world.speech)), world.music, world.emotion]:
        for i in rng.permutation(sorted(i for rows in pool.by_label.values() for i in rows)).tolist():
            row = pool.store.rows[i]
            heard = attributes(pool.kind, label_of(row), row)
            labels = {label: amount for label, amount in heard.items() if label in wanted}
            english = pool.kind == "speech" and row.get("language", "en") == "en"
            short = english and pool.store.lengths[i] < LONGEST_SAID * SAMPLE_RATE
            text = sentence(wording.cased(row["text"])) if short and row.get("text") else ""
            key = f"{next(iter(labels), None)} {'said' if text else ''}"
            if labels and counts[key] < most * (MANY if text else 1):
                counts[key] += 1
                samples = pool.store[i] if text else active_span(pool.store[i], LONGEST)
                kept.append(Recording(labels, log_mel(samples, n_mels), text, half_of(row)))
    return kept


def train(
    model: AudioLM,
    processor: Processor,
    recipe: Mapping[str, Any],
    data: Path,
    state: Path,
    resume: bool,
    learned: Path | None = None,
    ground: Path | None = None,
) -> None:
    """Run the stage as the recipe says; `state` holds how far the vectors moved, `STATE.vectors` what they are.

    With `learned` it goes on from those vectors; with the state of `ground` too, as its detectors say them.
    """
    n_mels, rng = processor.config.n_mels, np.random.default_rng(recipe["seed"])
    model.requires_grad_(False).eval()
    world, reader = World(recipe["scenes"], data, state.parent / "pcm"), VectorReader(model, processor)
    kinds = kinds_of(world, recipe["least"])
    recordings = recordings_of(world, kinds, n_mels, recipe["recordings"], rng)
    if learned:
        vectors = Vectors.learned(learned).to(reader.device)
        if missing := {label for one in recordings for label in one.labels} - vectors.index.keys():
            raise ValueError(f"{learned} has no vectors of {sorted(missing)[:5]}; learn them first, without --vectors")
        words = Words.learned(learned, kinds, reader.device)
        kept = reader.keep(recordings, Halves(ground, words, list(vectors.index)) if ground else None)
    else:
        kept = reader.keep(recordings)
        vectors = Vectors.between(kept, recipe["scale"])
    questions = Questions(kept, kinds, recipe["share"], recipe["blur"])
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
    parser = stage.arguments("Learn what the language model would read as the names of what is heard.")
    parser.add_argument("--vectors", type=Path, help="go on from what this stage learned before")
    parser.add_argument("--ground", type=Path, help="state of *ground* with `halves`: learn as its detectors say them")
    args = parser.parse_args()
    if args.ground and not args.vectors:
        parser.error("--ground needs --vectors: what its detectors are to say")
    recipe, state = stage.begin(args)
    train(*stage.load(args), recipe, args.data, state, args.resume, args.vectors, args.ground)


if __name__ == "__main__":
    main()
