"""Tools to check and time what scenes are made of: the picture of a scene, and word times by the letter head."""

import json
import sys

import numpy as np
import pytest
from fakes import letter_head
from toys import SCENES, write_world

from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.config import LETTERS
from moss_audio.data import plot, timing
from moss_audio.data.scene import Event, Scene
from moss_audio.inference.letters import forced_alignment


def test_a_scene_is_drawn_written_and_told(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    data = write_world(tmp_path / "data")
    (tmp_path / "mix.json").write_text(json.dumps({"sources": [{"texts": "x"}, {"scenes": SCENES}]}))
    arguments = ["plot", str(tmp_path / "mix.json"), str(data), str(tmp_path / "scene.png")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--kind", "scene", "--seed", "1"])
    plot.main()
    first = capsys.readouterr().out
    assert (tmp_path / "scene.png").read_bytes()[:4] == b"\x89PNG"
    assert first.startswith("scene, ") and "\n? " in first and " dB  " in first
    seconds = float(first.split()[1])
    assert len(load_audio(tmp_path / "scene.wav")) / SAMPLE_RATE == pytest.approx(seconds, abs=0.1)
    plot.main()
    assert capsys.readouterr().out == first


def test_lanes_are_speakers_sounds_and_what_is_behind(monkeypatch):
    said = Event("speech", 0.0, 1.0, "speech", -20.0, {"speaker": "ann", "gender": "female"})
    man = Event("speech", 1.0, 2.0, "speech", -20.0, {"gender": "male"})
    events = (said, man, Event("siren", 2, 3, "sound", 0, {}))
    drawn = []
    monkeypatch.setattr(plot, "draw_events", lambda samples, events, path: drawn.extend(events))
    plot.draw_scene(Scene(np.zeros(4 * SAMPLE_RATE, np.float32), events, "rain"), "out.png")
    assert [one.label for one in drawn] == ["ann", "a man speaking", "siren", "behind: rain"]
    assert (drawn[3].start, drawn[3].end) == (0.0, 4.0)


def test_words_get_times_where_letters_and_sound_agree():
    logprobs = letter_head("a cab", frames_per_letter=10, lead=25)

    def align(samples, text):
        return forced_alignment(logprobs, text, LETTERS)

    def tone(seconds):
        return np.sin(np.arange(int(seconds * SAMPLE_RATE)) * 0.2)

    quiet = np.zeros(SAMPLE_RATE // 2)
    row = {"text": "A cab", "seconds": 2.0}
    clip = np.concatenate([quiet, tone(0.9), quiet]).astype(np.float32)
    found = timing.timed(row, clip, align)
    assert [word[0] for word in found["words"]] == ["A", "cab"] and found["words"][0][1] == pytest.approx(0.5, abs=0.05)
    late = np.concatenate([quiet, quiet, quiet, tone(0.9)]).astype(np.float32)
    assert timing.timed(row, late, align) == row
    assert timing.timed(row, clip, lambda samples, text: ()) == row


def test_timing_goes_on_where_it_stopped(tmp_path, monkeypatch):
    data = write_world(tmp_path / "data")
    calls = []
    monkeypatch.setattr(timing, "by_letters", lambda model: lambda samples, text: calls.append(text) or ())
    monkeypatch.setattr(sys, "argv", ["timing", str(data / "speech.jsonl"), str(data / "out.jsonl")])
    lines = (data / "speech.jsonl").read_text().splitlines(keepends=True)
    (data / "out.jsonl").write_text(lines[0])
    timing.main()
    assert (data / "out.jsonl").read_text().splitlines(keepends=True) == lines and len(calls) == 1
