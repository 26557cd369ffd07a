from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.data.music import clicks
from moss_audio.signal import KEYS, PITCH_CLASSES, chroma, key, onsets, tempo

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def note(midi: int, seconds: float) -> np.ndarray:
    """A plucked tone with overtones."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    hertz = 440 * 2 ** ((midi - 69) / 12)
    partials = sum(np.sin(2 * np.pi * hertz * k * t) / k**1.5 for k in range(1, 5))
    return 0.2 * partials * np.exp(-3 * t) * np.minimum(1, t / 0.005)


def tune(degrees: list[int], tonic: int, minor: bool) -> np.ndarray:
    scale = (0, 2, 3, 5, 7, 8, 10) if minor else (0, 2, 4, 5, 7, 9, 11)
    pitches = [60 + tonic + scale[d % 7] + 12 * (d // 7) for d in degrees]
    return np.concatenate([note(pitch, 0.3) for pitch in pitches]).astype(np.float32)


def test_onsets_are_where_the_clicks_are():
    truth = np.array([0.5, 0.9, 1.7, 2.05, 3.2])
    found = onsets(clicks(truth, 4))
    assert len(found) == len(truth) and np.abs(found - truth).max() < 0.02


@pytest.mark.parametrize("bpm", [72, 90, 100, 120, 133, 150])
def test_tempo_of_clicks(bpm):
    measured = tempo(clicks(np.arange(0.3, 19.5, 60 / bpm), 20))
    assert measured is not None and abs(measured.bpm / bpm - 1) < 0.01
    assert measured.strength > 0.5 and measured.jitter_percent < 1 and abs(measured.drift_percent) < 1


def test_unsteady_playing_is_told_from_steady():
    rng = np.random.default_rng(3)
    steady = np.arange(0.3, 29, 0.6)
    measured = tempo(clicks(steady + rng.normal(0, 0.03, len(steady)), 30))
    assert measured is not None and abs(measured.bpm - 100) < 3
    assert 3 < measured.jitter_percent < 12  # each interval has two errors of 5 %


def test_drift_has_a_direction():
    for rate in (0.9, 1.1):  # the last beat comes at this speed, relative to the first
        lengths = 0.5 / np.linspace(1, rate, 40)
        measured = tempo(clicks(0.3 + np.cumsum(lengths), 0.8 + lengths.sum()))
        assert measured is not None and abs(measured.drift_percent - 100 * (rate - 1)) < 3


@pytest.mark.parametrize("samples", [np.zeros(32_000, np.float32), clicks(np.array([1.0]), 3)])
def test_no_beat_no_tempo(samples):
    assert tempo(samples) is None


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize("minor", [False, True])
def test_key_of_tunes(tonic, minor):
    samples = tune([0, 1, 2, 3, 4, 2, 0, 4, 5, 4, 3, 2, 1, 0, 2, 4, 0, 0], tonic, minor)
    measured = key(samples)
    assert measured is not None and measured.name == f"{PITCH_CLASSES[tonic]} {'minor' if minor else 'major'}"
    assert measured.correlation > 0.7 and measured.margin > 0


def test_noise_and_silence_have_no_key():
    noise = np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32)
    assert key(noise) is None and chroma(noise) is None
    assert key(np.zeros(16_000, np.float32)) is None


def test_a_tone_is_its_pitch_class():
    tones = chroma(note(69, 2.0))
    assert tones is not None and PITCH_CLASSES[int(tones.argmax())] == "A" and tones.max() > 0.6


def test_the_example_is_in_c_major():
    measured = key(load_audio(EXAMPLES / "arpeggio.ogg"))
    assert measured is not None and measured.name == "C major" and measured.name in KEYS


@pytest.mark.parametrize("bpm", [75, 90])
def test_the_beat_is_neither_its_half_nor_its_double(bpm):
    """Two notes a beat, and one in the bass on each."""
    beat = 60 / bpm
    samples = np.zeros(int(10 * SAMPLE_RATE), np.float32)
    for pitch, every in ((76, beat / 2), (43, beat)):
        for time in np.arange(0.2, 9.3, every):
            at, tone = int(time * SAMPLE_RATE), note(pitch, min(0.5, every))
            samples[at : at + len(tone)] += tone[: len(samples) - at].astype(np.float32)
    measured = tempo(samples)
    assert measured is not None and abs(measured.bpm / bpm - 1) < 0.02
