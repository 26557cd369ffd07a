"""What the mergers are taught with: scenes as they are, and in the parts that task `events` asks about."""

import numpy as np
import pytest

pytest.importorskip("torch")

from toys import SCENES, SOUNDS

from moss_audio.audio import audio_frames
from moss_audio.data.scene import Event, Scene
from moss_audio.inference.spans import spans
from moss_audio.tasks.sounds import CHANGE, MARGIN
from moss_audio.training import sounds
from moss_audio.training.naming import BESIDE
from moss_audio.training.scenes import World


def scene_of(*events, seconds=8.0):
    """A scene of tones: `label, start, end, fold` each, 300 Hz apart."""
    time = np.arange(int(16000 * seconds)) / 16000
    samples, made = 1e-5 * np.random.default_rng(0).normal(size=len(time)), []
    for i, (label, start, end, fold) in enumerate(events):
        tone = np.sin(2 * np.pi * 300 * (i + 1) * time)
        samples += 0.3 * tone * ((time >= start) & (time < end))
        made.append(Event(label, start, end, "sound", -10.0, {"label": label, "fold": fold}))
    return Scene(samples.astype(np.float32), tuple(made))


def test_a_recording_is_of_one_half():
    assert [sounds.half_of({"fold": fold, "audio": "x"}) for fold in (1, 2)] == [1, 0]
    tunes = [sounds.half_of({"tune": f"tune {i}", "audio": f"{i}.wav"}) for i in range(100)]
    assert 30 < sum(tunes) < 70 and sounds.half_of({"tune": "tune 7", "audio": "other.wav"}) == tunes[7]


def test_parts_of_a_scene_are_the_stretches_that_are_named():
    scene = scene_of(("rain", 0.5, 2.0, 1), ("siren", 3.0, 4.0, 2))
    parts = sounds.parts_of(scene, 80)
    assert [(part.labels, part.half) for part in parts] == [({"rain": 1.0}, 1), ({"siren": 1.0}, 0)]
    for part, span in zip(parts, spans(scene.samples, None, CHANGE), strict=True):
        assert part.start == MARGIN and part.end == pytest.approx(MARGIN + span.end - span.start)
        assert part.mel.shape[1] == pytest.approx(100 * (part.end + MARGIN), abs=1)
        assert audio_frames(part.mel.shape[1]) > 12.5 * part.end


def test_what_takes_most_of_a_part_is_heard_and_the_rest_beside_it():
    (part,) = sounds.parts_of(scene_of(("rain", 1.0, 3.0, 1), ("siren", 1.0, 2.4, 1)), 80)
    assert part.labels == {"rain": 1.0, "siren": BESIDE} and part.half == 1
    (part,) = sounds.parts_of(scene_of(("rain", 1.0, 3.0, 1), ("siren", 1.0, 2.4, 2)), 80)
    assert part.half == sounds.BOTH
    (part,) = sounds.parts_of(scene_of(("rain", 1.0, 3.0, 1), ("rain", 1.0, 2.9, 1), ("siren", 1.0, 1.4, 1)), 80)
    assert part.labels == {"rain": 1.0}


def test_parts_that_are_long_or_of_nothing_in_particular_are_left_out():
    assert sounds.parts_of(scene_of(("rain", 0.5, 7.5, 1)), 80) == []
    assert sounds.parts_of(scene_of(), 80) == []
    scene = scene_of(("rain", 1.0, 3.0, 1))
    assert sounds.parts_of(Scene(scene.samples, (Event("rain", 1.0, 1.8, "sound", -10.0, {"fold": 1}),)), 80) == []


def test_scenes_of_several_come_in_parts_and_others_whole(data, tmp_path):
    world = World(SCENES | {"shares": {"scene": 1, "music": 1}}, data, tmp_path)
    scenes, rng = sounds.Scenes(world, 80), np.random.default_rng(0)
    batches = [scenes.next(rng) for _ in range(sounds.BATCHES)]
    spreads = [np.ptp([sound.mel.shape[1] for sound in batch]) for batch in batches]
    drawn = [sound for batch in batches for sound in batch]
    assert sum(spreads) <= np.ptp([sound.mel.shape[1] for sound in drawn])  # of like length
    parts = [sound for sound in drawn if sound.start == MARGIN]
    assert {len(batch) for batch in batches} == {sounds.BATCH} and 0 < len(parts) < len(drawn)
    assert {label for part in parts for label in part.labels} <= set(SOUNDS)
