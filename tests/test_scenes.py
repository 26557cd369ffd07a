"""Scenes, their questions, and music: the truth is what was put in, and the answers say no more."""

import json
import struct
import wave

import numpy as np
import pytest

from moss_audio.data import wording
from moss_audio.data.music import Note, Tune, chords, excerpt, mood_of, to_midi
from moss_audio.data.scene import Event, Pool, SampleStore, Scene, active_span, compose
from moss_audio.signal import tempo_class
from moss_audio.transcript import parse_timestamped


@pytest.fixture
def pool(tmp_path):
    """Four clips of one second: a tone in the middle, silence around it."""
    rows = []
    for i, label in enumerate(("siren", "dog barking", "rain", "footsteps")):
        tone = np.zeros(16000)
        tone[4000:12000] = 0.5 * np.sin(2 * np.pi * (300 + 200 * i) * np.arange(8000) / 16000)
        with wave.open(str(tmp_path / f"{i}.wav"), "wb") as wav:
            wav.setparams((1, 2, 16000, 0, "NONE", ""))
            wav.writeframes((tone * 32767).astype("<i2").tobytes())
        rows.append({"audio": f"{i}.wav", "label": label, "seconds": 1.0})
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = SampleStore(tmp_path / "clips.jsonl", tmp_path / "cache")
    return Pool(store, "sound", range(4), [row["label"] for row in rows])


def scene_of(*spans, background=None, kind="sound", **truth):
    events = tuple(Event(label, start, end, kind, -20.0 - i * 6, truth) for i, (label, start, end) in enumerate(spans))
    return Scene(np.zeros(16000 * 8, np.float32), events, background)


def test_samples_survive_the_store(pool, tmp_path):
    again = SampleStore(tmp_path / "clips.jsonl", tmp_path / "cache")
    np.testing.assert_array_equal(again[2], pool.store[2])
    assert len(active_span(pool.store[0], 5.0)) == pytest.approx(8000, abs=640)


def test_a_scene_is_reproducible_and_sounds_where_its_truth_says(pool):
    one, two = (compose([(pool, 1.0)], np.random.default_rng(3), 3, 8.0) for _ in range(2))
    np.testing.assert_array_equal(one.samples, two.samples)
    assert one.events == two.events and one.events
    for seed in range(20):
        scene = compose([(pool, 1.0)], np.random.default_rng(seed), 3, 8.0)
        assert len(scene.samples) == 8 * 16000 and np.abs(scene.samples).max() <= 1
        quiet = np.ones(len(scene.samples), bool)
        for event in scene.events:
            assert 0 <= event.start < event.end <= 8.0
            span = slice(int(event.start * 16000), int(event.end * 16000))
            quiet[span] = False
            quiet[span.stop : span.stop + 8000] = False  # a room may ring on
            assert np.square(scene.samples[span]).mean() > 1e-5
        assert not quiet.any() or np.square(scene.samples[quiet]).mean() < 1e-5


def test_the_timeline_reads_back():
    scene = scene_of(("siren", 0.5, 2.0), ("dog barking", 3.0, 3.5))
    _, answer = wording.events(scene, np.random.default_rng(0))
    assert answer == "[0.5]siren[2.0][3.0]dog barking[3.5]"
    found = [(s.start, s.end, s.text) for s in parse_timestamped(answer, 8.0)]
    assert found == [(0.5, 2.0, "siren"), (3.0, 3.5, "dog barking")]


def test_answers_follow_the_truth():
    rng = np.random.default_rng(0)
    scene = scene_of(("siren", 0.5, 2.0), ("dog barking", 3.0, 3.5), background="rain")
    assert wording.name(scene, rng)[1] == "Siren and dog barking."
    assert wording.describe(scene, rng)[1] == "Siren, then dog barking, with rain in the background."
    assert wording.background(scene, rng)[1] == "Rain."
    assert "0.5 is earlier.</think>Siren." in wording.reason(scene, rng)[1]
    asked = dict(filter(None, (wording.relate(scene, rng) for _ in range(60))))
    assert asked["Which sound comes first?"] == "Siren."
    assert asked["Which lasts longer, a siren or dog barking?"] == "Siren."
    empty = scene_of()
    assert wording.events(empty, rng)[1] == wording.name(empty, rng)[1] == wording.NOTHING
    assert wording.transcribe(empty, rng)[1] == ""


def test_absent_sounds_are_truly_absent():
    task = wording.yes_no(["siren", "dog barking", "dog growling", "rain"])
    scene = scene_of(("dog barking", 0.5, 2.0), background="rain")
    for seed in range(40):
        question, answer = task(scene, np.random.default_rng(seed))
        assert answer == ("Yes." if "dog barking" in question else "No.")
        assert "growling" not in question and "rain" not in question


def test_choices_hold_the_answer_once():
    task, rng = wording.choose(["siren", "rain", "wind", "engine", "bell"]), np.random.default_rng(0)
    for _ in range(10):
        question, letter = task(scene_of(("siren", 0, 1)), rng)
        assert f"{letter}. siren" in question and question.count("siren") == 1
    assert task(scene_of(("siren", 0, 1), ("bell", 2, 3)), rng) is None


def test_speech_without_a_transcript_or_beside_voices_is_not_transcribed():
    rng = np.random.default_rng(0)
    assert wording.transcribe(scene_of(("speech", 0, 2), kind="speech", text="GOOD MORNING"), rng)[1] == "Good morning."
    assert wording.transcribe(scene_of(("speech", 0, 2), kind="speech"), rng) is None
    assert wording.transcribe(scene_of(("speech", 0, 2), kind="speech", text="Hallo", language="de"), rng) is None
    assert wording.transcribe(scene_of(("laughing", 0, 2)), rng) is None
    assert wording.emotion(scene_of(("speech", 0, 2), kind="speech", emotion="anger"), rng)[1] == "Angry."


def test_rules_of_music():
    assert [tempo_class(bpm) for bpm in (60, 90, 129, 130)] == ["slow", "moderate", "moderate", "fast"]
    assert mood_of("minor", 60) == "sad" and mood_of("major", 150) == "cheerful"
    tune = Tune("x", tuple(Note(60 + i % 5, 0.5 * i, 0.5) for i in range(64)), 0, "major", "4/4", 4.0, 1.0)
    import random

    notes = excerpt(tune, random.Random(0), 8.0)
    assert 14 <= len(notes) <= 18 and notes[0].start == 0
    assert {note.pitch % 12 for note in chords(notes, tune)} <= {0, 2, 4, 5, 7, 9, 11}


def test_a_midi_file_has_its_tracks_and_ends():
    data = to_midi([(40, 100, [Note(60, 0.0, 1.0), Note(64, 1.0, 0.5)]), (0, 60, [Note(48, 0.0, 2.0)])], 120)
    assert data[:4] == b"MThd" and struct.unpack(">HHH", data[8:14]) == (1, 3, 480)
    assert data.count(b"MTrk") == 3 and data.count(b"\xff\x2f\x00") == 3
    assert b"\xc0\x28" in data and bytes([0x90, 60, 100]) in data and bytes([0x80, 60, 0]) in data
