"""A composed scene as picture, sound and text, so that a person can check its truth against what is there.

`python -m moss_audio.data.plot RECIPE DATA OUT.png --kind turns --seed 3` draws the scene that this seed gives, writes
it as OUT.wav, and prints its events and what would be asked about it. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from moss_audio.data.scene import Event, Scene
from moss_audio.data.speak import write_wav
from moss_audio.data.wording import named
from moss_audio.tasks import sounds
from moss_audio.tasks.plots import draw_events
from moss_audio.training.scenes import World, ask


def draw_scene(scene: Scene, path: Path) -> None:
    """Waveform, spectrogram, and a lane for every sound and speaker; what goes on behind is a lane of its own.

    Raises `BackendError` without matplotlib, and for a suffix that it cannot write.
    """
    lanes = [sounds.Event(lane_of(event), event.start, event.end) for event in scene.events]
    if scene.background is not None:
        lanes.append(sounds.Event(f"behind: {scene.background}", 0.0, scene.seconds))
    draw_events(scene.samples, lanes, path)


def lane_of(event: Event) -> str:
    """A speaker by name, anything else by its label."""
    return str(event.truth["speaker"]) if event.kind == "speech" and event.truth.get("speaker") else named(event)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a composed scene, to check it by eye and ear.")
    parser.add_argument("recipe", type=Path, help="a recipe with `scenes`, such as recipes/mix.json")
    parser.add_argument("data", type=Path, help="folder that the recipe's manifests are in")
    parser.add_argument("out", type=Path, help="OUT.png; the sound goes to OUT.wav")
    parser.add_argument("--kind", help="of scene, such as turns (default: by the recipe's shares)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="where decoded clips are kept (default: nowhere)")
    args = parser.parse_args()
    recipe = json.loads(args.recipe.read_text(encoding="utf-8"))
    scenes = next(source["scenes"] for source in recipe["sources"] if "scenes" in source)
    with tempfile.TemporaryDirectory() as scratch:
        shares = {args.kind: 1.0} if args.kind else scenes["shares"]
        world = World(scenes | {"shares": shares}, args.data, args.cache or Path(scratch))
        rng = np.random.default_rng(args.seed)
        kind, scene = world.draw(rng)
    draw_scene(scene, args.out)
    write_wav(args.out.with_suffix(".wav"), scene.samples)
    print(f"{kind}, {scene.seconds:.1f} s, behind it {scene.background or 'nothing'}")
    for event in scene.events:
        said = event.truth.get("text", "")
        print(f"{event.start:6.2f} {event.end:6.2f} {event.level_db:6.1f} dB  {lane_of(event)}  {said}".rstrip())
    for question, answer in ask(kind, scene, world.labels, rng, n=6):
        print(f"? {question}\n  {answer}")


if __name__ == "__main__":
    main()
