"""Annotation of recordings without labels: cuts fall between events, only what annotators agree on is kept."""

import json
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from toys import write_tones

from moss_audio.audio import SAMPLE_RATE, Limits
from moss_audio.data import annotate as command
from moss_audio.data.annotate import annotate, hear, read_done, recordings_in
from moss_audio.data.branches import Annotators, Branch, caption, music, sounds, speech
from moss_audio.data.conversations import read
from moss_audio.data.cutting import segments
from moss_audio.inference.generate import Usage
from moss_audio.inference.spans import activity, spans
from moss_audio.inference.voice import CHUNK
from moss_audio.tasks.result import Cost
from moss_audio.tasks.songs import Music, MusicResult
from moss_audio.tasks.sounds import Event
from moss_audio.transcript import Segment


def sound(seconds, hertz=440.0, level=0.3):
    return level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)


def silence(seconds):
    return np.random.default_rng(0).normal(size=int(seconds * SAMPLE_RATE)) * 1e-4


def track(*parts):
    return np.concatenate(parts).astype(np.float32)


def no_voice(samples):
    return iter([0.0] * -(-len(samples) // CHUNK))


def all_voice(samples):
    return iter([0.95] * -(-len(samples) // CHUNK))


def saying(*texts):
    spans = [(2.0 * i, 2.0 * i + 1.5) for i in range(len(texts))]
    return lambda samples: [Segment(*span, text) for span, text in zip(spans, texts, strict=True)]


COST = Cost(1.0, "stop", Usage())
NOBODY = Annotators(no_voice, [saying()], lambda samples: MusicResult(COST, None, None, None), lambda samples: (),
                    lambda samples, question: "Yes.")  # fmt: skip
SOMEBODY = replace(NOBODY, voice=all_voice)


# --- where to cut ---


def test_what_sounds_is_active_and_silence_is_not():
    samples = track(silence(1), sound(1), silence(1))
    active = activity(samples)
    assert active[55:95].all() and not active[:45].any() and not active[105:].any()
    assert not activity(np.zeros(SAMPLE_RATE, np.float32)).any()


def test_events_are_found_with_their_edges():
    found = spans(track(silence(1), sound(1.5), silence(1), sound(2.0, 900), silence(0.5)))
    assert [(round(e.start, 1), round(e.end, 1)) for e in found] == [(1.0, 2.5), (3.5, 5.5)]


def test_a_change_of_spectrum_parts_two_sounds_without_a_pause_but_not_a_speaker():
    noise = np.random.default_rng(1).normal(size=3 * SAMPLE_RATE) * 0.2
    samples = track(sound(3, 300), noise)
    found = spans(samples)
    assert len(found) == 2 and found[0].end == found[1].start == pytest.approx(3.0, abs=0.15)
    assert len(spans(samples, all_voice)) == 1


def test_segments_hold_whole_events_and_leave_silence_out():
    rng = np.random.default_rng(3)
    parts, truth, at = [], [], 0.0
    for i in range(24):
        quiet, loud = float(rng.uniform(0.5, 4)), float(rng.uniform(0.5, 6))
        parts += [silence(quiet), sound(loud, 200 + 60 * i)]
        truth.append((at + quiet, at + quiet + loud))
        at += quiet + loud
    samples = track(*parts, silence(2))
    found = list(segments(samples))
    for start, end in truth:
        assert sum(one.start <= start + 0.05 and end - 0.05 <= one.end for one in found) == 1
    assert all(one.whole and one.end - one.start <= 21 for one in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert not list(segments(np.zeros(5 * SAMPLE_RATE, np.float32))) and not list(segments(np.zeros(0, np.float32)))


def test_an_event_longer_than_any_segment_is_cut_and_says_so():
    found = list(segments(track(sound(70))))
    assert len(found) > 2 and not any(one.whole for one in found)
    assert all(one.end - one.start <= 30 for one in found)
    assert sum(one.end - one.start for one in found) == pytest.approx(70, abs=0.1)


# --- what annotators agree on ---

TALK = track(sound(3))


def test_speech_is_kept_where_recognisers_agree():
    def heard(*recognisers):
        return speech(TALK, replace(SOMEBODY, recognisers=recognisers))

    kept = heard(saying("Good morning.", "How are you?"), saying("good morning how are you"))
    assert kept.asked[0] == ("Transcribe the audio.", "Good morning. How are you?")
    assert kept.asked[1][1] == "[0.00]Good morning.[1.50][2.00]How are you?[3.50]"
    assert kept.phrase == 'somebody says: "Good morning. How are you?"' and not kept.dropped
    parted = heard(saying("good morning how are you"), saying("could mourning"))
    assert parted.asked == () and parted.dropped == ("recognisers differ: 1.00 of the words",)


def test_one_recogniser_must_fit_the_voice():
    assert speech(TALK, replace(SOMEBODY, recognisers=[saying("Good morning to you.")])).asked
    many = speech(TALK, replace(SOMEBODY, recognisers=[saying("yes " * 40)]))
    none = speech(TALK, SOMEBODY)
    invented = speech(TALK, replace(NOBODY, recognisers=[saying("Thank you.")]))
    assert many.dropped[0].startswith("words do not fit the voice: 13")
    assert none.dropped == ("nothing written where somebody speaks",)
    assert invented.dropped == ("words where nobody speaks",) and speech(TALK, NOBODY) == Branch("speech")


def tune(bpm=100, notes=(0, 4, 7, 12, 7, 4)):
    length = 60 / bpm
    decay = np.exp(-4 * np.arange(int(length * SAMPLE_RATE)) / SAMPLE_RATE / length)
    return track(*(sound(length, 261.6 * 2 ** (notes[i % len(notes)] / 12))[: len(decay)] * decay for i in range(18)))


def test_music_is_what_is_heard_and_measured_alike():
    def says(bpm, key):
        heard = Music(("piano",), "moderate", bpm, key, "4/4", "folk tune", "warm")
        return replace(NOBODY, music=lambda samples: MusicResult(COST, heard, None, None))

    both = music(tune(), says(101, "C major"))
    assert both.truth == {"bpm": 100, "tempo": "moderate", "key": "C major"} and not both.dropped
    assert both.phrase == "music at about 100 beats per minute in C major" and len(both.asked) == 2
    one = music(tune(), says(140, "C major"))
    assert one.truth == {"key": "C major"} and one.dropped == ("tempo: 140 heard, 100 measured",)
    neither = music(tune(), says(140, "F minor"))
    assert neither.phrase == "" and neither.asked == () and len(neither.dropped) == 2
    assert music(track(silence(3)), says(100, "C major")) == Branch("music")


def test_sounds_are_confirmed_and_timed_by_the_signal():
    samples = track(silence(1), sound(1), silence(1), sound(1, 2000), silence(1))
    said = (Event("siren", 1.2, 2.1), Event("bell", 3.0, 4.2), Event("rain", 4.2, 5.0), Event("dog", 1.0, 2.0),
            Event("man speaking", 3.0, 4.0))  # fmt: skip
    by = replace(NOBODY, events=lambda samples: said, ask=lambda samples, q: "No." if "dog" in q else "Yes.")
    found = sounds(samples, by)
    assert found.truth["labels"] == ["siren", "bell"] and found.phrase == "siren, then bell"
    assert [(e["start"], e["end"]) for e in found.truth["events"]] == [(1.0, 2.0), (3.0, 4.0)]
    assert found.asked[1][1] == "[1.0]siren[2.0][3.0]bell[4.0]"
    assert found.dropped == (
        "nothing sounds there: rain", "denied when asked: dog", "nobody speaks there: man speaking",
    )  # fmt: skip
    loose = sounds(samples, replace(by, events=lambda samples: (Event("siren", 1.0, 4.9),)))
    assert loose.truth["events"] == [] and loose.dropped == ("the signal has other times: siren",)


def test_branches_become_one_caption():
    heard = Branch("sounds", "a man speaking, then siren", truth={"labels": ["a man speaking", "siren"]})
    said = Branch("speech", 'somebody says: "Hello."', truth={"text": "Hello."})
    plays = Branch("music", "music in C major")
    assert caption([heard, plays, said]) == 'Siren; music in C major; somebody says: "Hello."'
    assert caption([heard, Branch("music"), Branch("speech")]) == "A man speaking, then siren."
    assert caption([Branch("sounds"), Branch("music"), Branch("speech")]) is None


# --- files ---


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    write_tones(tmp_path / "in/a.wav", 300, seconds=2)
    write_tones(tmp_path / "in/deep/b.wav", 500, seconds=1)
    (tmp_path / "in/bad.wav").write_text("not audio")
    (tmp_path / "in/notes.txt").write_text("no recording")
    return tmp_path


BELL = replace(NOBODY, events=lambda samples: (Event("bell", 0.0, len(samples) / SAMPLE_RATE),))


def run(folder, by=BELL, limit=None):
    todo = recordings_in(folder / "in")[:limit]
    return list(annotate(folder / "in", folder / "out.jsonl", by, Limits(), todo))


def test_a_folder_becomes_conversations_and_bad_files_are_listed(folder):
    done = {one.recording: one for one in run(folder)}
    assert list(done) == ["a.wav", "bad.wav", "deep/b.wav"]
    assert "is not audio" in done["bad.wav"].error and done["bad.wav"].conversations == 0
    found = [conversation for conversation, _ in read(folder / "out.jsonl")]
    assert [c.truth["branch"] for c in found] == ["caption", "sounds"] * 2
    assert found[0].turns[-1].content == "Bell." and found[0].truth["recording"] == "a.wav"
    assert found[2].turns[0].content == "out/deep__b.wav.0001.wav" and all(c.messages() for c in found)


def test_a_stopped_run_goes_on_without_losing_or_doubling(folder):
    whole = folder / "whole"
    whole.mkdir()
    (whole / "in").symlink_to(folder / "in")
    run(whole)
    run(folder, limit=1)
    with (folder / "out.jsonl").open("a") as out, (folder / "out.done.jsonl").open("a") as record:
        out.write('{"conversation": [{"role": "us')
        record.write('{"recording": "bad')
    assert [one.recording for one in run(folder)] == ["bad.wav", "deep/b.wav"]
    assert (folder / "out.jsonl").read_bytes() == (whole / "out.jsonl").read_bytes()
    assert len(read_done(folder / "out.done.jsonl")) == 3 and run(folder) == []


def test_a_recording_beyond_the_limit_is_skipped(folder):
    found, done = hear(folder / "in/a.wav", "a.wav", folder, BELL, Limits(max_seconds=1.0))
    assert found == [] and "longer than 1 s" in done.error


def test_the_command_tells_what_it_did(folder, monkeypatch, capsys):
    monkeypatch.setattr(command.moss_audio, "load", lambda name: name)
    monkeypatch.setattr(command.Annotators, "of", lambda model, second: BELL)
    monkeypatch.setattr(sys, "argv", ["annotate", str(folder / "in"), str(folder / "out.jsonl"), "--limit", "2"])
    command.main()
    out, err = capsys.readouterr()
    assert "2 conversations" in out and "could not be read: bad.wav" in out and "1/2 a.wav: 1 segments" in err
    command.main()
    assert "1 recordings to annotate, 2 done before" in capsys.readouterr().err
    assert json.loads((folder / "out.done.jsonl").read_text().splitlines()[2])["recording"] == "deep/b.wav"
