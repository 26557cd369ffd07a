"""The embedded model on the recordings in `examples/`, as a user would run it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moss_audio
from moss_audio import tasks
from moss_audio.audio import load_audio
from moss_audio.checkpoint import find_model
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.evaluation.normalise import english
from moss_audio.evaluation.silence import made

EXAMPLES = Path(__file__).parent.parent / "examples"
TRUTH = {row["audio"]: row for row in map(json.loads, (EXAMPLES / "truth.jsonl").read_text().splitlines())}
SPEECH = sorted(name for name, row in TRUTH.items() if row.get("text"))


@pytest.fixture(scope="module")
def mini():
    return moss_audio.load("mini")


def test_is_small_enough_to_embed_and_has_a_card():
    folder = find_model("mini")
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 160e6
    assert max(file.stat().st_size for file in folder.iterdir()) < 50e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "MIT" in card and "Apache-2.0" in card and "CC BY 4.0" in card


def test_silence_noise_hum_and_music_have_no_words(mini):
    sounds = made(seconds=8)
    assert len(sounds) == 10 and all(samples.shape == (128_000,) for samples in sounds.values())
    assert {name: mini.transcribe(samples).text for name, samples in sounds.items()} == dict.fromkeys(sounds, "")


def test_a_timeline_has_its_times_from_the_signal(mini):
    pause = np.zeros(16_000, np.float32)
    siren, man = (load_audio(EXAMPLES / name) for name in ("siren.ogg", "speech_man.ogg"))
    found = tasks.events(mini, np.concatenate([pause, siren, pause, man])).events
    begins = 1.0, 2.0 + len(siren) / 16_000
    assert found[0].label == "siren" and found[0].start == pytest.approx(begins[0], abs=0.3)
    assert any(event.start == pytest.approx(begins[1], abs=0.5) for event in found)
    assert not any(event.end > begins[1] - 0.6 and event.start < begins[1] - 0.5 for event in found)


def test_transcribes_speech(mini):
    rates = []
    for name in SPEECH:
        transcript = mini.transcribe(EXAMPLES / name)
        rates.append(ErrorRate.of(english(TRUTH[name]["text"]), english(transcript.text)))
        assert transcript.finish_reason == "stop"
        assert " ".join(segment.text for segment in transcript.segments) == transcript.text
        times = [time for segment in transcript.segments for time in (segment.start, segment.end)]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= transcript.duration + 0.05
    assert sum(rates, ErrorRate()).value <= 0.2


@pytest.mark.parametrize("name", sorted(set(TRUTH) - set(SPEECH)))
def test_writes_nothing_where_nobody_speaks(mini, name):
    assert mini.transcribe(EXAMPLES / name).text == ""


def test_a_stream_is_the_transcript(mini):
    name = SPEECH[0]
    streamed = "".join(event.text for event in mini.stream(EXAMPLES / name))
    assert streamed.strip() == mini.transcribe(EXAMPLES / name).text


def test_a_recording_longer_than_the_window_has_all_its_words(mini):
    clips = [load_audio(EXAMPLES / name) for name in SPEECH]
    pause = np.zeros(16000, np.float32)
    samples = np.concatenate([piece for _ in range(6) for clip in clips for piece in (clip, pause)])
    transcript = mini.transcribe(samples)
    words = english(" ".join(TRUTH[name]["text"] for name in SPEECH)) * 6
    assert ErrorRate.of(words, english(transcript.text)).value <= 0.3
    assert transcript.segments[-1].end > len(samples) / 16000 - 5


def test_command_line_prints_one_object_a_file():
    files = [str(EXAMPLES / name) for name in SPEECH]
    command = [sys.executable, "-m", "moss_audio.cli", "transcribe", "--json", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(result["file"]).name for result in results] == SPEECH
    assert all({"file", "text", "segments", "finish_reason", "usage"} <= set(result) for result in results)
