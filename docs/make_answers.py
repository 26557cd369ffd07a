"""Write docs/answers.md: `python docs/make_answers.py DATA` asks the embedded model about twenty unheard recordings.

DATA is a folder of manifests; the recordings are rows that no stage of training has (`training.scenes.is_dev`), taken
at even distances. Answers are written down as they come, right or wrong.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import moss_audio
from moss_audio import tasks
from moss_audio.data.scene import Pool
from moss_audio.evaluation.suites import SCENES
from moss_audio.inference.engine import MossAudio
from moss_audio.prompts import DESCRIBE, DESCRIBE_MUSIC, EMOTION, EVENTS, NAME, TRANSCRIBE
from moss_audio.training.scenes import World

PAGE = Path(__file__).with_name("answers.md")
HEAD = """# Twenty recordings, twenty answers

What MOSS-Audio-Mini says about recordings, speakers, tunes and scenes that no stage of its training heard: taken at
even distances, not chosen, and written down as they came (`python docs/make_answers.py DATA`). Transcripts, event
timelines and what is said of music are those of `transcribe`, `events` and `music`, the others of `ask`.

| # | what is heard | asked | answered |
|---|---|---|---|
"""


def spread(pool: Pool, n: int) -> Iterator[int]:
    """Rows at even distances."""
    rows = sorted(i for indices in pool.by_label.values() for i in indices)
    return iter(rows[:: max(1, len(rows) // n)][:n])


def recordings(world: World) -> Iterator[tuple[str, str, np.ndarray]]:
    """Truth, question and samples."""
    speech, sounds, music = world.speech[0][0], world.sounds[0][0], world.music
    for i in spread(speech, 5):
        yield f"“{speech.store.rows[i]['text'].lower()}”", TRANSCRIBE, speech.store[i]
    for i in spread(sounds, 5):
        yield sounds.store.rows[i]["label"], NAME, sounds.store[i]
    for i in spread(music, 2):
        truth = music.store.rows[i]["music"]
        yield f"{', '.join(truth['instruments'])}; {truth['bpm']} bpm, {truth['key']}", DESCRIBE_MUSIC, music.store[i]
    for i in spread(world.emotion, 2):
        yield f"a German sentence, {world.emotion.store.rows[i]['emotion']}", EMOTION, world.emotion.store[i]
    for i in spread(world.orders, 2):
        slots = {k: v for k, v in world.orders.store.rows[i]["slots"].items() if v}
        yield f"an order: {slots}", "What is ordered? Answer as a JSON object with the keys intent and slots.", \
            world.orders.store[i]
    rng = np.random.default_rng(3)
    for question in (EVENTS, DESCRIBE, EVENTS):
        scene = world.draw(rng)[1]
        truth = "; ".join(f"{event.label} {event.start:.1f}–{event.end:.1f} s" for event in scene.events)
        yield f"a scene: {truth}; behind: {scene.background or 'nothing'}", question, scene.samples
    yield "nothing: faint noise", "What do you hear?", rng.normal(size=64_000).astype(np.float32) * 1e-3


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|") or "(nothing)"


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the embedded model about twenty unheard recordings.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "moss-audio-suites")
    args = parser.parse_args()
    model: MossAudio = moss_audio.load(args.model)
    world, lines = World(SCENES, args.data, args.cache, dev=True), list[str]()
    for number, (truth, question, samples) in enumerate(recordings(world), 1):
        if question == TRANSCRIBE:
            answer = model.transcribe(samples).text
        elif question == EVENTS:
            answer = tasks.events(model, samples).timeline()
        elif question == DESCRIBE_MUSIC:
            answer = "; ".join(tasks.music(model, samples).to_text().splitlines())
        else:
            answer = model.ask(samples, question).text
        lines.append(f"| {number} | {cell(truth)} | {cell(question)} | {cell(answer)} |\n")
    PAGE.write_text(HEAD + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
