"""The page's arithmetic, module by module, against known answers."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import pytest

from moss_audio.audio import load_audio
from moss_audio.transcript import WRITERS, Segment


@pytest.fixture(scope="module")
def call(browser, address):
    """Calls `code`, in which `m` is a module of the page and `x` the argument, and gives its JSON."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address, timeout=60_000)

    def evaluate(module: str, code: str, x: object = None):
        load = f"const m = await import('/static/{module}.js')"
        return json.loads(page.evaluate(f"async x => {{ {load}; return JSON.stringify(await ({code})); }}", x))

    yield evaluate
    context.close()


def test_a_tone_lies_where_its_pitch_is(call):
    tone = "Float32Array.from({length: 16000}, (_, i) => Math.sin(2 * Math.PI * x * i / 16000))"
    top, low = 2595 * np.log10(1 + 8000 / 700), 2595 * np.log10(1 + 60 / 700)
    for hz in (500, 2000):
        image = np.reshape(call("audio", f"[...m.spectrogram({tone}, 20, 96)]", hz), (96, 20))
        assert image.min() == 0 and image.max() == 1
        expected = 95 * (top - 2595 * np.log10(1 + hz / 700)) / (top - low)
        assert abs(image[:, 10].argmax() - expected) <= 1


def test_the_outline_is_relative_to_the_loudest(call):
    peaks = call("audio", "[...m.outline(Float32Array.of(0, 0.1, -0.2, 0, 0.4, 0.1), 3)]")
    assert peaks == pytest.approx([0.25, 0.5, 1])
    assert max(call("audio", "[...m.outline(new Float32Array(5), 10)]")) == 0
    assert call("audio", "[...m.spectrogram(new Float32Array(0), 4, 2)]") == pytest.approx([0] * 8)


def test_recordings_are_wav_files(call):
    values = [0, 1, -2, 32767, -32768, 5]
    data = call("audio", "m.wav([Int16Array.from(x.slice(0, 4)), Int16Array.from(x.slice(4))]).arrayBuffer()"
                ".then(b => [...new Uint8Array(b)])", values)  # fmt: skip
    samples = load_audio(io.BytesIO(bytes(data)))
    assert np.allclose(samples * 32768, values, atol=0.5)


def test_subtitles_are_those_of_the_package(call):
    segments = [Segment(0.0, 1.5, "Ham & <eggs>."), Segment(3661.0628, 3662.9, "Come home.")]
    plain = [segment.to_dict() for segment in segments]
    assert call("transcript", "m.toSrt(x)", plain) == WRITERS["srt"](segments)
    assert call("transcript", "m.toVtt(x)", plain) == WRITERS["vtt"](segments)


def test_words_listed_apart_find_their_segments(call):
    answer = {
        "text": "One two. Three.",
        "segments": [{"start": 0.5, "end": 1.0, "text": " One two."}, {"start": 2.0, "end": 2.5, "text": " Three."}],
        "words": [{"word": w, "start": s, "end": s + 0.2} for w, s in (("One", 0.4), ("two.", 0.8), ("Three.", 2.0))],
    }
    first, second = call("transcript", "m.segmentsOf(x)", answer)
    assert [w["word"] for w in first["words"]] == ["One", "two."] and second["words"][0]["word"] == "Three."
    assert call("transcript", "m.segmentsOf(x)", {"text": " "}) == []
    assert call("transcript", "m.segmentsOf(x)", {"text": "Hi.", "duration": 2})[0]["end"] == 2


def test_labels_of_events_never_overlap(call):
    events = [{"label": f"sound {i}", "start": i * 0.1, "end": i * 0.1 + 0.05} for i in range(30)]
    placed = call("paint", "m.layoutEvents(x, 3, 300)", events)
    assert len(placed) == 30 and all(0 <= p["left"] <= 300 and p["span"] >= 4 for p in placed)
    for lane in {p["lane"] for p in placed}:
        starts = [p["labelLeft"] for p in placed if p["lane"] == lane]
        assert all(b - a > 40 for a, b in pairwise(starts))


@pytest.mark.parametrize(("seconds", "digits", "text"), [(0, 0, "0:00"), (75.25, 2, "1:15.25"), (3661, 0, "1:01:01"),
                                                         (59.999, 1, "0:59.9"), (0.3, 1, "0:00.3")])  # fmt: skip
def test_clock(call, seconds, digits, text):
    assert call("dom", "m.clock(...x)", [seconds, digits]) == text
