"""What a model knows beside words, on clips, speakers, tunes and scenes that no stage trains on.

`python -m moss_audio.evaluation.suites DATA [--suites sounds events …] [--limit N]` prints a line a suite: how many are
right of how many, with the 95 % interval (Wilson 1927). DATA is a folder of manifests; which rows are kept apart says
`training.scenes.is_dev`. Measures the product through the public API.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

import moss_audio
from moss_audio import tasks
from moss_audio.data import wording
from moss_audio.data.scene import Event, Scene
from moss_audio.inference.engine import MossAudio
from moss_audio.inference.sampling import SamplingParams
from moss_audio.prompts import DESCRIBE_MUSIC, EMOTION, EVENTS, NAME
from moss_audio.tasks.sounds import parse_events
from moss_audio.training.scenes import World

SCENES = {
    "sounds": {"sound_esc.jsonl": 1.0}, "speech": {"speech_dev.jsonl": 1.0}, "music": "music.jsonl",
    "emotion": "emotion.jsonl", "orders": "barista.jsonl", "ambient": "sound_esc.jsonl", "shares": {"scene": 1},
}  # fmt: skip
PARAMS = SamplingParams(max_new_tokens=96)


@dataclass(frozen=True)
class Count:
    """`right` of `total`."""

    right: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % score interval of the share."""
        if not self.total:
            return 0.0, 1.0
        n, share, z = self.total, self.right / self.total, 1.96
        middle, spread = share + z * z / 2 / n, z * (share * (1 - share) / n + z * z / 4 / n / n) ** 0.5
        return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval
        percent = 100 * self.right / max(1, self.total)
        return f"{self.right}/{self.total} = {percent:.1f} % ({100 * low:.0f}…{100 * high:.0f})"


class Ask(Protocol):
    """A model that is asked about `samples [n]`.

    With `options` it answers with one of them (`tasks.choose`), to `EVENTS` with a timeline (`tasks.events`), to
    `DESCRIBE_MUSIC` as `tasks.music` does, with the tempo and the key of the signal.
    """

    def __call__(self, samples: np.ndarray, question: str, options: Sequence[str] = ()) -> str: ...


Suite = Callable[[Ask, World, int], Iterator[tuple[str, bool]]]
"""Yields the name of a figure and whether this item is right."""


def words(text: str) -> set[str]:
    """Lower-case words of at least three letters, without endings that inflect them."""
    return {re.sub(r"(ing|es|s|ed)$", "", word) for word in re.findall(r"[a-z]{3,}", text.lower())}


def nearest(answer: str, labels: Sequence[str]) -> str | None:
    """The label that shares the largest part of its words with an answer, or None."""
    said = words(answer)
    shares = {label: len(said & words(label)) / len(words(label)) for label in labels}
    best = max(shares, key=lambda label: shares[label])
    return best if shares[best] > 0 else None


def clips(world: World, limit: int) -> Iterator[tuple[str, np.ndarray]]:
    """Unheard environmental sounds, spread over the manifest."""
    pool = world.sounds[0][0]
    items = sorted((i, label) for label, indices in pool.by_label.items() for i in indices)
    for i, label in items[:: max(1, len(items) // limit)][:limit]:
        yield label, pool.store[i]


def sounds(ask: Ask, world: World, limit: int) -> Iterator[tuple[str, bool]]:
    """Naming a sound freely, and among four."""
    rng = np.random.default_rng(0)
    for label, samples in clips(world, limit):
        yield "sound, open", nearest(ask(samples, NAME), world.labels) == label
        options = [label, *rng.choice([x for x in world.labels if x != label], 3, replace=False).tolist()]
        rng.shuffle(options)
        yield "sound, four choices", ask(samples, NAME, options) == label


def absent(ask: Ask, world: World, limit: int) -> Iterator[tuple[str, bool]]:
    """Yes and no about sounds that are there and that are not."""
    rng = np.random.default_rng(1)
    for label, samples in clips(world, limit):
        other = str(rng.choice([x for x in world.labels if not words(x) & words(label)]))
        yes = ask(samples, f"Is there {wording.article(label)} in the recording?")
        no = ask(samples, f"Is there {wording.article(other)} in the recording?")
        yield "yes to a present sound", yes.lower().startswith("yes")
        yield "false yes to an absent sound", no.lower().startswith("yes")


def events(ask: Ask, world: World, limit: int) -> Iterator[tuple[str, bool]]:
    """Event timelines: precision and recall with collars of 0.5 s on both ends."""
    rng = np.random.default_rng(2)
    for _ in range(limit):
        scene: Scene = world.draw(rng)[1]
        found = parse_events(ask(scene.samples, EVENTS), scene.seconds)
        left: list[Event] = list(scene.events)
        for segment in found:
            match = next(
                (e for e in left if nearest(segment.label, world.labels) == e.label
                 and abs(e.start - segment.start) <= 0.5 and abs(e.end - segment.end) <= 0.5), None,
            )  # fmt: skip
            yield "events, precision", match is not None
            if match is not None:
                left.remove(match)
        for event in scene.events:
            yield "events, recall", event not in left
            named = [s for s in found if nearest(s.label, world.labels) == event.label]
            yield "events, named at any time", bool(named)
            if named:
                yield "events, start within 0.5 s where named", min(abs(s.start - event.start) for s in named) <= 0.5


def music(ask: Ask, world: World, limit: int) -> Iterator[tuple[str, bool]]:
    """Main instrument, tempo within 8 %, mode."""
    pool = world.music
    items = sorted(i for indices in pool.by_label.values() for i in indices)
    for i in items[:limit]:
        truth, answer = pool.store.rows[i]["music"], ask(pool.store[i], DESCRIBE_MUSIC)
        try:
            said = dict(json.loads(answer))
        except (ValueError, TypeError):
            said = {}
        first = [str(x) for x in said.get("instruments") or [""]] if isinstance(said.get("instruments"), list) else [""]
        yield "music, instrument", truth["instruments"][0] == first[0]
        bpm = said.get("bpm")
        yield "music, tempo within 8 %", isinstance(bpm, int | float) and abs(bpm / truth["bpm"] - 1) <= 0.08
        yield "music, mode", truth["key"].split()[-1] == str(said.get("key", "")).split(" ")[-1]


def voices(ask: Ask, world: World, limit: int) -> Iterator[tuple[str, bool]]:
    """Gender of readers, and emotion of two actors who were never heard."""
    pool = world.speech[0][0]
    for i in sorted(i for indices in pool.by_label.values() for i in indices)[:limit]:
        answer = ask(pool.store[i], "Is the speaker a man or a woman?").lower()
        yield "gender", ("woman" if "woman" in answer else "man") == {"male": "man", "female": "woman"}[
            pool.store.rows[i]["gender"]
        ]
    items = sorted(i for indices in world.emotion.by_label.values() for i in indices)
    for i in items[:: max(1, len(items) // limit)][:limit]:
        answer = ask(world.emotion.store[i], EMOTION).lower()
        yield "emotion, unheard actors", wording.EMOTION_WORDS[world.emotion.store.rows[i]["emotion"]] in answer


def orders(ask: Ask, world: World, limit: int) -> Iterator[tuple[str, bool]]:
    """Coffee orders: each slot, and the whole order."""
    question = "What is ordered? Answer as a JSON object with the keys intent and slots."
    for i in sorted(i for indices in world.orders.by_label.values() for i in indices)[:limit]:
        truth = {k: str(v).strip() for k, v in world.orders.store.rows[i]["slots"].items() if v}
        try:
            slots = json.loads(ask(world.orders.store[i], question)).get("slots", {})
        except (ValueError, AttributeError):
            slots = {}
        for key, value in truth.items():
            yield "orders, slots", isinstance(slots, Mapping) and str(slots.get(key, "")).strip() == value
        yield "orders, whole", slots == truth


SUITES: Mapping[str, Suite] = {
    "sounds": sounds, "absent": absent, "events": events, "music": music, "voices": voices, "orders": orders,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a model knows of sounds, music, voices and orders.")
    parser.add_argument("data", type=Path, help="folder of manifests")
    parser.add_argument("--suites", nargs="+", choices=list(SUITES), default=list(SUITES))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--limit", type=int, default=100, help="items a suite")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "moss-audio-suites")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N answers of each suite")
    args = parser.parse_args()
    model: MossAudio = moss_audio.load(args.model)
    world = World(SCENES, args.data, args.cache, dev=True)
    for suite in args.suites:
        counts: dict[str, Count] = {}
        shown = iter(range(args.show))

        def ask(
            samples: np.ndarray, question: str, options: Sequence[str] = (), shown: Iterator[int] = shown
        ) -> str:
            if options:
                answer = tasks.choose(model, samples, question=question, choices=list(options)).answer or ""
            elif question == EVENTS:
                answer = tasks.events(model, samples).timeline()
            elif question == DESCRIBE_MUSIC:
                music = tasks.music(model, samples).music
                answer = json.dumps(asdict(music)) if music else ""
            else:
                answer = model.ask(samples, question, params=PARAMS).text
            for _ in islice(shown, 1):
                print(f"  {question!r} → {answer!r}")
            return answer

        for name, right in SUITES[suite](ask, world, args.limit):
            before = counts.get(name, Count(0, 0))
            counts[name] = Count(before.right + right, before.total + 1)
        for name, count in counts.items():
            print(f"{name:<40}{count}", flush=True)


if __name__ == "__main__":
    main()
