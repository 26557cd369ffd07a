"""Scenes for training, drawn endlessly from manifests: which pools there are, and which kinds of scene in which share.

The recipe's `scenes` name the manifests; development folds, speakers and tunes stay out (`is_dev`), and with `half` the
sounds of the other half (`half_of`). Knows `data.scene`, `data.wording` and `data.spoken`; knows no network.

Kinds: `sound`, `voice`, `emotion`, `order`, `music` (one clip), `scene` (sounds), `mixed` (sounds and speech), `turns`
(people who speak in turn), `words` (single words, of the recipe's `keywords`), `nothing` (silence, noise, hum).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.data import spoken, wording
from moss_audio.data.manifest import Row, held_out
from moss_audio.data.scene import (
    Event,
    Pool,
    SampleStore,
    Scene,
    active_span,
    compose,
    converse,
    room,
    sounding,
    spoken_event,
)

AMBIENT = (
    "rain", "wind", "sea waves", "traffic noise", "crowd chatter", "engine", "stream", "thunderstorm", "crackling fire",
    "birds chirping", "crickets", "washing machine", "vacuum cleaner", "street ambience", "flowing water", "airplane",
    "helicopter", "train", "white noise", "pink noise", "electric fan", "construction site", "insects buzzing",
)  # fmt: skip
"""Labels that may go on behind other sounds."""

DEV_EMOTION_SPEAKERS = ("emodb_14", "emodb_10")
"""A woman and a man of the emotional recordings who are never trained on."""

SAME = {
    "siren (synthesized)": "siren", "gunfire (imitation)": "gunfire", "cow mooing (imitation)": "cow mooing",
    "pig oinking (imitation)": "pig oinking", "laser sound": "laser gun", "drinking, sipping": "drinking",
    "door opening or closing": "door creaking", "subway train": "train", "telephone": "telephone ringing",
    "motor": "engine", "crowd": "crowd chatter", "sawing": "hand saw", "running tap": "pouring water",
    "pouring liquid": "pouring water", "clapping": "clapping", "drum": "drum kick", "click": "mouse click",
    "can crushing": "can opening", "bottle or can opening": "can opening",
}  # fmt: skip
"""Labels that mean the same to a listener."""

LONGEST_TURN = 6.0
"""Seconds of a clip that may be a turn of a conversation."""

CONTENT = ("text", "pseudo_text", "words", "intent", "slots")
"""Labels that hold for the whole of a clip alone."""


def is_dev(row: Row) -> bool:
    """Rows of training manifests that are kept for development."""
    if "fold" in row:
        return bool(row["fold"] == 3)
    if "music" in row:
        return bool(row["held_out"])
    if "emotion" in row:
        return row["speaker"] in DEV_EMOTION_SPEAKERS
    return "intent" in row and held_out(row)


def half_of(row: Row) -> int:
    """To which half of the recordings a row belongs, 0 or 1: by fold, tune or speaker, so that none is in both."""
    if "fold" in row:
        return int(row["fold"]) % 2
    own = str(row.get("tune") or row.get("speaker") or row.get("audio"))
    return hashlib.sha1(own.encode()).digest()[0] % 2


def label_of(row: Row) -> str:
    """What a clip is called in a scene."""
    if "music" in row:
        return str(row["music"]["instruments"][0])
    if "label" in row:
        return SAME.get(row["label"], str(row["label"]))
    return "speech"


class World:
    """All clips of a `data` folder that scenes are made of; `dev` turns to those that are kept for development."""

    def __init__(self, recipe: Mapping[str, Any], data: Path, cache: Path, dev: bool = False) -> None:
        @functools.cache
        def store_of(name: str) -> SampleStore:
            return SampleStore(data / name, cache)

        def pool(
            name: str,
            kind: str,
            keep: Callable[[Row], bool] = lambda row: True,
            label: Callable[[Row], str] = label_of,
            longest: float = 16.0,
        ) -> Pool:
            store, apart = store_of(name), name.endswith("_dev.jsonl")
            half = recipe.get("half") if kind == "sound" else None
            chosen = [
                i for i, row in enumerate(store.rows)
                if (apart or is_dev(row)) == dev and keep(row) and 0.25 < store.lengths[i] / SAMPLE_RATE < longest
                and (half is None or half_of(row) == half)
            ]  # fmt: skip
            return Pool(store, kind, chosen, [label(store.rows[i]) for i in chosen])

        def pools(names: Mapping[str, float], make: Callable[[str], Pool]) -> list[tuple[Pool, float]]:
            made = [(make(name), float(weight)) for name, weight in names.items()]
            return [(pool, weight) for pool, weight in made if pool.labels]

        def turns(name: str) -> Pool:
            def keep(row: Row) -> bool:
                return "speaker" in row and "text" in row

            return pool(name, "speech", keep, lambda row: str(row["speaker"]), LONGEST_TURN)

        self.sounds = pools(recipe["sounds"], lambda name: pool(name, "sound"))
        self.speech = pools(recipe["speech"], lambda name: pool(name, "speech"))
        self.turns = pools(recipe["speech"], turns)
        self.keywords = pool(recipe["keywords"], "speech") if "keywords" in recipe else None
        self.music = pool(recipe["music"], "music")
        self.emotion = pool(recipe["emotion"], "speech")
        self.orders = pool(recipe["orders"], "speech")
        self.ambient = pool(recipe["ambient"], "sound", lambda row: label_of(row) in AMBIENT)
        self.labels = sorted({label for pool, _ in self.sounds for label in pool.labels})
        self.shares = {str(kind): float(share) for kind, share in recipe["shares"].items()}
        if "turns" in self.shares and not self.turns:
            raise ValueError("a share of `turns` needs `speech` with `speaker` and `text` in its rows")
        if "words" in self.shares and self.keywords is None:
            raise ValueError("a share of `words` needs a manifest of single words as `keywords`")

    def draw(self, rng: np.random.Generator) -> tuple[str, Scene]:
        """One scene and its kind."""
        kinds = list(self.shares)
        weights = np.array([self.shares[kind] for kind in kinds])
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        return kind, getattr(self, f"_{kind}")(rng)

    def _sound(self, rng: np.random.Generator) -> Scene:
        weights = np.array([weight for _, weight in self.sounds])
        pool = self.sounds[int(rng.choice(len(weights), p=weights / weights.sum()))][0]
        return self._alone(pool, rng, longest=6.0)

    def _scene(self, rng: np.random.Generator) -> Scene:
        behind = self.ambient if rng.random() < 0.35 else None
        return compose(self.sounds, rng, int(rng.integers(2, 5)), float(rng.uniform(5, 10)), behind)

    def _mixed(self, rng: np.random.Generator) -> Scene:
        behind = self.ambient if rng.random() < 0.5 else None
        pools = [*self.sounds, *((pool, 1.5 * weight) for pool, weight in self.speech)]
        return compose(pools, rng, int(rng.integers(2, 4)), float(rng.uniform(6, 11)), behind)

    def _voice(self, rng: np.random.Generator) -> Scene:
        weights = np.array([weight for _, weight in self.speech])
        pool = self.speech[int(rng.choice(len(weights), p=weights / weights.sum()))][0]
        return self._alone(pool, rng, longest=8.0)

    def _turns(self, rng: np.random.Generator) -> Scene:
        n_speakers = int(rng.choice([1, 2, 3], p=[0.2, 0.55, 0.25]))
        n_turns = int(rng.integers(n_speakers, n_speakers + 3))
        return converse(self.turns, rng, n_speakers, n_turns, 15.0, self.ambient if rng.random() < 0.2 else None)

    def _words(self, rng: np.random.Generator) -> Scene:
        assert self.keywords is not None
        return compose([(self.keywords, 1.0)], rng, int(rng.integers(2, 5)), float(rng.uniform(5, 9)))

    def _emotion(self, rng: np.random.Generator) -> Scene:
        return self._alone(self.emotion, rng, longest=8.0)

    def _order(self, rng: np.random.Generator) -> Scene:
        return self._alone(self.orders, rng, longest=9.0)

    def _music(self, rng: np.random.Generator) -> Scene:
        return self._alone(self.music, rng, longest=9.0)

    def _nothing(self, rng: np.random.Generator) -> Scene:
        n, kind = int(rng.uniform(1, 6) * SAMPLE_RATE), rng.random()
        noise = rng.normal(size=n) * 10 ** (rng.uniform(-80, -30) / 20)
        if kind < 0.3:
            noise = np.cumsum(noise) - np.linspace(0, noise.sum(), n)
        elif kind < 0.45:
            hum = sum(np.sin(2 * np.pi * f * np.arange(n) / SAMPLE_RATE) / f for f in (50, 100, 150, 200))
            noise = noise * 0.1 + hum * 10 ** (rng.uniform(-50, -20) / 20)
        return Scene((noise / max(1.0, float(np.abs(noise).max()))).astype(np.float32), ())

    def _alone(self, pool: Pool, rng: np.random.Generator, longest: float) -> Scene:
        """One clip as it was recorded, or its sounding part in silence."""
        label, clip, row = pool.draw(rng, longest, whole=True)
        start = int(rng.integers(max(1, len(clip) - int(longest * SAMPLE_RATE) + 1)))
        if pool.kind == "speech" and len(clip) > int(longest * SAMPLE_RATE):
            row = {key: value for key, value in row.items() if key not in CONTENT}
        clip = clip[start : start + int(longest * SAMPLE_RATE)]
        if pool.kind == "sound" and rng.random() < 0.4:
            clip = active_span(clip, longest)
            pad = [np.zeros(int(rng.uniform(0.05, 1.2) * SAMPLE_RATE), np.float32) for _ in range(2)]
            clip = np.concatenate([pad[0], clip, pad[1]])
        if pool.kind == "sound":
            speed = rng.uniform(0.88, 1.14)
            clip = np.interp(np.arange(0, len(clip) - 1, speed), np.arange(len(clip)), clip).astype(np.float32)
        event = Event(label, *sounding(clip), pool.kind, -20.0, row)
        if pool.kind == "speech" and "text" in row:
            event = spoken_event(row, clip, 0.0, -20.0)
        if rng.random() < 0.3:
            _, behind, _ = self.ambient.draw(rng, longest, whole=True)
            behind = np.resize(behind, len(clip))
            peaks = float(np.abs(clip).max()), max(1e-4, float(np.abs(behind).max()))
            clip = clip + 10 ** (rng.uniform(-30, -8) / 20) * peaks[0] / peaks[1] * behind
        return replace(Scene(clip, (event,)), samples=room(clip, rng))


def questions(kind: str, labels: Sequence[str]) -> Sequence[tuple[wording.Task, float]]:
    """The tasks of a kind of scene, by weight."""
    yes_no, choose = wording.yes_no(labels), wording.choose(labels)
    silent: Sequence[tuple[wording.Task, float]] = (
        (wording.transcribe, 2), (wording.name, 1), (wording.events, 1), (wording.describe, 1), (yes_no, 0.5),
        (spoken.anybody, 0.7), (spoken.timed, 0.4), (spoken.speakers, 0.3),
    )  # fmt: skip
    return {
        "sound": ((wording.name, 5), (yes_no, 2.5), (choose, 0.5), (wording.describe, 1), (wording.events, 1),
                  (wording.transcribe, 0.4), (spoken.anybody, 0.2)),
        "scene": ((wording.events, 3), (wording.relate, 2), (wording.describe, 1), (yes_no, 1.5), (wording.name, 0.7),
                  (wording.reason, 0.5), (wording.background, 0.7), (wording.narrate, 0.4), (wording.transcribe, 0.3)),
        "mixed": ((wording.transcribe, 2), (wording.events, 2), (wording.describe, 1.5), (wording.background, 0.7),
                  (yes_no, 1), (wording.relate, 0.7), (wording.narrate, 0.4), (wording.gender, 0.4),
                  (spoken.timed, 0.7), (spoken.speakers, 0.4), (spoken.anybody, 0.3)),
        "voice": ((wording.gender, 4), (wording.describe, 1), (wording.events, 0.5), (yes_no, 0.7), (wording.name, 0.5),
                  (wording.transcribe, 1), (wording.speaker, 0.7), (spoken.timed, 0.4), (spoken.words, 0.4),
                  (spoken.speakers, 0.3), (spoken.anybody, 0.3)),
        "turns": ((spoken.timed, 3), (spoken.speakers, 2), (wording.transcribe, 2), (spoken.dialogue, 1.5),
                  (spoken.who, 1), (spoken.said, 1), (spoken.words, 1), (wording.events, 0.5), (wording.describe, 0.5),
                  (wording.gender, 0.3)),
        "words": ((spoken.words, 3), (spoken.timed, 1), (wording.transcribe, 1)),
        "emotion": ((wording.emotion, 4), (wording.gender, 1), (wording.speaker, 0.7)),
        "order": ((wording.order_drink, 3), (wording.transcribe, 1), (wording.gender, 0.0)),
        "music": ((wording.music, 5), (wording.describe, 0.5), (yes_no, 0.5), (wording.transcribe, 0.4),
                  (spoken.anybody, 0.2)),
        "nothing": silent,
    }[kind]  # fmt: skip


def ask(kind: str, scene: Scene, labels: Sequence[str], rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    """Up to `n` different questions about a scene, with their answers."""
    tasks = questions(kind, labels)
    weights = np.array([weight for _, weight in tasks])
    picks = rng.choice(len(tasks), min(n, int((weights > 0).sum())), replace=False, p=weights / weights.sum())
    return [turn for i in picks if (turn := tasks[int(i)][0](scene, rng)) is not None]
