"""Windows of long recordings, and where somebody speaks."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.inference.longform import TRAINED_SECONDS, cut, windows
from moss_audio.inference.voice import CHUNK, SURE_CHUNKS, is_spoken, silero

EXAMPLES = Path(__file__).parent.parent / "examples"
SAMPLES = np.random.default_rng(0).normal(0, 0.1, 100 * SAMPLE_RATE).astype(np.float32)


@given(st.lists(st.integers(0, len(SAMPLES)), max_size=8), st.integers(0, len(SAMPLES)))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_windows_are_the_whole_however_it_comes(marks, length):
    samples = SAMPLES[:length]
    edges = sorted({0, length, *(mark for mark in marks if mark < length)})
    blocks = [samples[begin:end] for begin, end in pairwise(edges)]
    found = list(windows(blocks))
    np.testing.assert_array_equal(np.concatenate([window.samples for window in found]), samples)
    assert [window.start for window in found] == [window.start for window in windows(samples)]
    assert all(len(window.samples) <= TRAINED_SECONDS * SAMPLE_RATE for window in found)
    assert all(before.end == after.start for before, after in pairwise(found))


def test_windows_go_on_where_one_ended():
    found = list(windows(SAMPLES))
    assert len(found) > 2
    for i, window in enumerate(found[:-1]):
        rest = list(windows(SAMPLES, start=window.end))
        assert [w.start for w in rest] == [w.start for w in found[i + 1 :]]
        np.testing.assert_array_equal(rest[0].samples, found[i + 1].samples)
    assert list(windows(SAMPLES, start=100.0)) == []
    assert [len(window.samples) for window in windows(SAMPLES[:0])] == [0]


def test_an_hour_takes_the_memory_of_a_window():
    blocks = (SAMPLES[i * 16 : i * 16 + SAMPLE_RATE] for i in range(3600))
    tracemalloc.start()
    n_windows = sum(1 for _ in windows(blocks))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_windows > 120 and peak < 20e6


def speech_but_at(start: float, end: float):
    """A detector that hears speech all the time but for one pause, in samples that carry their own time."""

    def voice(samples):
        for at in range(0, len(samples), CHUNK):
            yield float(not start <= abs(samples[at]) * 100 < end)

    return voice


@given(st.sets(st.integers(0, 100)), st.integers(0, len(SAMPLES)), st.sampled_from([0.0, 0.5]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_neighbours_share_what_is_around_a_cut_that_no_pause_allowed(pauses, length, overlap):
    clock = np.arange(length, dtype=np.float32) / SAMPLE_RATE + 1  # loudest at the end, and never silent

    def voice(samples):  # pauses of half a second, at whole seconds
        for at in range(0, len(samples), CHUNK):
            second, rest = divmod(float(samples[at]) - 1, 1.0)
            yield float(not (second in pauses and rest < 0.5))

    found = list(windows(clock, voice, seconds=10.0, overlap=overlap))
    assert found[0].lead == found[-1].tail == 0
    assert all(len(window.samples) <= 10 * SAMPLE_RATE for window in found)
    own = [w.samples[round(w.lead * SAMPLE_RATE) : len(w.samples) - round(w.tail * SAMPLE_RATE)] for w in found]
    np.testing.assert_array_equal(np.concatenate(own), clock)
    for i, (before, after) in enumerate(pairwise(found)):
        assert before.end == pytest.approx(after.start) and before.tail == after.lead
        in_pause = any(pause <= before.end <= pause + 0.55 for pause in pauses)
        thirds = [before.start + 8 / 3 * n for n in (1, 2)]  # where a cut is looked for, of 8 s
        room = max((min(p + 0.5, at + 8 / 3) - max(p, at) for p in pauses for at in thirds), default=0.0)
        assert in_pause or before.tail == overlap
        if abs(room - 0.3) > 0.04:  # by more than a chunk of the detector
            assert before.tail == (0.0 if room > 0.3 else overlap)
        rest = list(windows(clock, voice, before.end, 10.0, overlap=overlap, lead=before.tail))
        assert [(w.start, len(w.samples), w.lead, w.tail) for w in rest] == [
            (w.start, len(w.samples), w.lead, w.tail) for w in found[i + 1 :]
        ]


def test_cuts_lie_where_nobody_speaks_and_not_where_it_is_merely_quiet():
    window = 28 * SAMPLE_RATE
    clock = np.arange(window, dtype=np.float32) / SAMPLE_RATE / 100  # the later, the louder
    assert cut(clock) == pytest.approx(2 * window / 3, abs=0.2 * SAMPLE_RATE)
    assert 25.0 < cut(clock, speech_but_at(25.0, 25.5)) / SAMPLE_RATE < 25.5
    assert 11.0 < cut(clock, speech_but_at(11.0, 11.5)) / SAMPLE_RATE < 11.5  # no pause in the last third
    assert cut(clock, speech_but_at(99, 99)) == cut(clock)  # nobody ever pauses


@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_voices_are_heard_also_when_they_are_quiet(gain):
    noise = np.random.default_rng(0).normal(0, 0.002, 3 * SAMPLE_RATE).astype(np.float32)
    for name in ("speech_woman", "speech_man"):
        speech = load_audio(EXAMPLES / f"{name}.ogg")
        speech[: len(noise)] += noise[: len(speech)]
        assert is_spoken(gain * speech, silero)
    hum = 0.3 * np.sin(2 * np.pi * 50 * np.arange(3 * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE)
    others = [load_audio(EXAMPLES / f"{name}.ogg") for name in ("siren", "arpeggio", "dtmf")]
    for sound in [hum, noise, np.zeros_like(noise), noise[:100], noise[:0], *others]:
        assert not is_spoken(gain * sound, silero)


def test_who_has_heard_enough_stops_listening():
    heard = []

    def voice(samples):
        for i in range(1000):
            heard.append(i)
            yield 0.9

    assert is_spoken(SAMPLES, voice)
    assert len(heard) == SURE_CHUNKS
