"""What can be measured without a model: levels, and of music its onsets, tempo and how steady it is, and the key.

Knows samples, not scores. Every measure of music is None where there is nothing to measure, such as the key of noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moss_audio.audio import HOP_LENGTH, SAMPLE_RATE, log_mel

FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH

HOP = SAMPLE_RATE // 50
"""Energy is measured in steps of 20 ms."""

QUIET_DB = 38.0
"""Below the loudest step by this much, a clip is silent: recordings have their own noise floor."""

PITCH_CLASSES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
"""Names of the twelve tones, each as keys are most often written."""

KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in PITCH_CLASSES)

PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
"""How well each tone fits a key with tonic C, as listeners rated it (Krumhansl and Kessler, Psychological Review 89,
1982)."""

TEMPI = ("slow", "moderate", "fast")
"""Classes of tempo."""

BEATS = np.exp(np.linspace(np.log(40.0), np.log(240.0), 180))
"""Tempi that are weighed, in beats a minute, a hundredth apart."""

_MULTIPLES = np.array([1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 2, 3, 4, 6])
"""How well onsets repeat after so many beats tells which of the periods in music is the beat."""

_BASS = slice(0, 14)
"""Mel bands below 400 Hz, where accompanists mark the bar."""

_WEIGHTS = np.array([
    2.74, 6.03, 6.14, 2.31, 3.12, 8.72, -2.17, -2.78, 6.81, -2.2, 2.0, -1.41,
    -1.78, 1.07, 1.44, -2.09, 0.43, 6.23, -2.12, -3.23, 0.68, -2.09, 1.41, 0.21,
    1.07, -2.14, -0.35, -0.46,
])  # fmt: skip
"""What each column of `beat_features` is worth, learned by `training.beats` from 1,688 excerpts of dance tunes and
200 of plain clicks."""

_RATIOS = np.array([1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 3 / 2, 2, 3, 4])
"""Note lengths in beats that intervals are compared with."""


@dataclass(frozen=True)
class Tempo:
    """`bpm` in beats a minute. `strength` (0 to 1) says how well the onsets repeat after a beat.

    `jitter_percent` is the typical deviation of intervals from even ones; `drift_percent` is how much faster (above 0)
    or slower the end is than the beginning. Both are None with fewer than five usable intervals.
    """

    bpm: float
    strength: float
    jitter_percent: float | None
    drift_percent: float | None


@dataclass(frozen=True)
class Key:
    """`name` such as `D major`. `correlation` with its profile and `margin` over the next best key, both up to 1."""

    name: str
    correlation: float
    margin: float


def tempo_class(bpm: float) -> str:
    """Of `TEMPI`: slow below 90 beats a minute, fast from 130 on."""
    return TEMPI[0 if bpm < 90 else 1 if bpm < 130 else 2]


def energy_db(samples: np.ndarray) -> np.ndarray:
    """Level of every 20 ms of `samples [n]`, in dB of full scale."""
    steps = samples[: len(samples) // HOP * HOP].reshape(-1, HOP)
    return 10 * np.log10(np.square(steps, dtype=np.float64).mean(axis=1) + 1e-10)


def onset_strength(mel: np.ndarray) -> np.ndarray:
    """How much louder each 10 ms of a log-mel `[bands, F]` is than 20 ms before, at least 0: the mean over bands."""
    flux: np.ndarray = np.zeros(mel.shape[1])
    flux[2:] = np.maximum(0.0, mel[:, 2:] - mel[:, :-2]).mean(axis=0)
    return flux


def onsets(samples: np.ndarray) -> np.ndarray:
    """Times in seconds at which notes begin: peaks of the onset strength (after Böck et al., DAFx 2012)."""
    return _peaks(onset_strength(log_mel(samples, 80)))


def beat_features(samples: np.ndarray) -> np.ndarray:
    """What tells whether `samples [n]` has each of `BEATS` as its beat, `[180, 28]`.

    Repetition of all onsets and of those in the bass after `_MULTIPLES` of the beat; then the tempo, and onsets a beat,
    each as octaves and their square.
    """
    return _rhythm(samples).features


def tempo(samples: np.ndarray) -> Tempo | None:
    """The tempo of `samples [n]`; None with fewer than four onsets or two beats, or where they do not repeat.

    Half, double and three halves of the beat repeat as well: which of them people would count was learned.
    """
    times, repeats, features = _rhythm(samples)
    possible = BEATS * len(samples) >= 2 * 60 * SAMPLE_RATE
    if len(times) < 4 or not possible.any():
        return None
    bpm = float(BEATS[int(np.where(possible, features @ _WEIGHTS, -np.inf).argmax())])
    near = np.arange(int(0.97 * 60 * FRAMES_PER_SECOND / bpm), int(1.03 * 60 * FRAMES_PER_SECOND / bpm) + 2)
    near = near[near < len(repeats)]
    if not len(near) or repeats[near].max() < 0.1:
        return None
    lag = int(near[repeats[near].argmax()])
    beat = _vertex(repeats, lag) / FRAMES_PER_SECOND
    beat, jitter, drift = _steadiness(times, beat)
    return Tempo(round(60 / beat, 1), round(min(1.0, float(repeats[lag])), 3), jitter, drift)


def key(samples: np.ndarray) -> Key | None:
    """The key of `samples [n]`: that whose profile correlates best with how much each tone sounds."""
    tones = chroma(samples)
    if tones is None:
        return None
    scores = {
        f"{tonic} {mode}": float(np.corrcoef(tones, np.roll(profile, shift))[0, 1])
        for mode, profile in PROFILES.items()
        for shift, tonic in enumerate(PITCH_CLASSES)
    }
    best, second = sorted(scores, key=lambda name: -scores[name])[:2]
    if scores[best] < 0.5:
        return None
    return Key(best, round(scores[best], 3), round(scores[best] - scores[second], 3))


def chroma(samples: np.ndarray, n_fft: int = 4096) -> np.ndarray | None:
    """How much each of the twelve tones sounds between 100 and 2000 Hz, `[12]` with sum 1; None where none stands out.

    Only peaks of the spectrum count, at their exact frequency, so that noise and the skirts of loud tones do not.
    """
    samples = np.pad(np.asarray(samples, np.float32), (0, max(0, n_fft - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, n_fft)[:: n_fft // 4]
    window, total = np.hanning(n_fft).astype(np.float32), np.zeros(12)
    low, high = round(100 * n_fft / SAMPLE_RATE), round(2000 * n_fft / SAMPLE_RATE)
    n_peaks = 0
    for start in range(0, len(frames), 64):  # blocks, so that an hour does not need gigabytes
        magnitude = np.abs(np.fft.rfft(frames[start : start + 64] * window))[:, : high + 2]
        middle, left, right = magnitude[:, 1:-1], magnitude[:, :-2], magnitude[:, 2:]
        # The magnitudes of noise are Rayleigh: not one of 10,000 is over four times the median.
        floor = np.maximum(0.1 * middle.max(axis=1), 4 * np.median(middle[:, low:], axis=1))[:, None] + 1e-6
        peak = (middle > left) & (middle >= right) & (middle > floor) & (np.arange(1, high + 1) >= low)
        shift = 0.5 * (left - right) / np.where(peak, left - 2 * middle + right, -1.0)
        hertz = (np.arange(1, high + 1) + shift) * SAMPLE_RATE / n_fft
        pitch = 12 * np.log2(np.where(peak, hertz, 440.0) / 440.0) + 69
        classes = np.rint(pitch).astype(int) % 12
        weight = np.where(peak, np.sqrt(middle), 0.0)
        np.add.at(total, classes[peak], weight[peak])
        n_peaks += int(peak.sum())
    return total / total.sum() if n_peaks > len(frames) / 2 else None


class _Rhythm(NamedTuple):
    """Times of the onsets, how well their strength repeats after each 10 ms, and `beat_features`."""

    times: np.ndarray
    repeats: np.ndarray
    features: np.ndarray


def _rhythm(samples: np.ndarray) -> _Rhythm:
    """All that tells of beats, from one log-mel."""
    mel = log_mel(samples, 80)
    strength = onset_strength(mel)
    times, repeats = _peaks(strength), _autocorrelation(strength)
    lags = 60 * FRAMES_PER_SECOND / BEATS[:, None] * _MULTIPLES
    around = lags + np.maximum(1.0, 0.02 * lags) * np.linspace(-1, 1, 5)[:, None, None]  # players are not exact
    columns: list[np.ndarray] = []
    for curve in (repeats, _autocorrelation(onset_strength(mel[_BASS]))):
        best = np.interp(around, np.arange(len(curve)), curve).max(axis=0)
        columns.append(np.where(lags < 0.75 * len(curve), best, 0.0))
    rate = len(times) * SAMPLE_RATE / len(samples)
    for octaves in (np.log2(BEATS / 100), np.log2(60 * rate / BEATS + 1e-3)):
        columns += [octaves[:, None], octaves[:, None] ** 2]
    return _Rhythm(times, repeats, np.hstack(columns))


def _peaks(strength: np.ndarray) -> np.ndarray:
    """Times in seconds of the peaks of an onset strength `[F]`."""
    if strength.max(initial=0.0) < 0.02:
        return np.empty(0)
    padded = np.pad(strength, 10, mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 21)
    peak = (strength >= around[:, 7:14].max(axis=1)) & (strength > around.mean(axis=1) + 0.1 * strength.max())
    found: list[int] = []
    for frame in np.flatnonzero(peak):
        if not found or frame - found[-1] > 5:
            found.append(int(frame))
    return np.array([_vertex(strength, frame) for frame in found]) / FRAMES_PER_SECOND


def _autocorrelation(curve: np.ndarray) -> np.ndarray:
    """How well a curve `[n]` repeats after each lag, 1 at none; longer lags are not punished for their overlap."""
    centred = curve - curve.mean()
    size = 1 << (2 * len(centred) - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    repeats = np.fft.irfft(np.abs(spectrum) ** 2, size)[: len(centred)]
    shares: np.ndarray = repeats / (repeats[0] * (1 - np.arange(len(centred)) / len(centred)).clip(0.1) + 1e-12)
    return shares


def _vertex(curve: np.ndarray, at: int) -> float:
    """Where a parabola through the maximum at index `at` and its neighbours has its top."""
    if not 0 < at < len(curve) - 1:
        return float(at)
    left, middle, right = (float(value) for value in curve[at - 1 : at + 2])
    bend = left - 2 * middle + right
    return at + (0.5 * (left - right) / bend if bend < 0 else 0.0)


def _steadiness(times: np.ndarray, beat: float) -> tuple[float, float | None, float | None]:
    """The beat that the intervals between onsets agree on, their jitter, and the drift over the recording."""
    intervals = np.diff(times) / beat
    nearest = _RATIOS[np.abs(np.log(intervals[:, None] / _RATIOS)).argmin(axis=1)]
    local = intervals / nearest
    usable = np.abs(np.log(local)) < np.log(1.15)  # others are no simple part of a beat
    if usable.sum() < 5:
        return beat, None, None
    middles = (0.5 * (times[1:] + times[:-1]))[usable]
    local = local[usable]
    slope, level = np.polyfit(middles - middles.mean(), local, 1)
    trend = level + slope * (middles - middles.mean())
    # 1.48 × the median absolute deviation is the standard deviation of normal errors, whatever a few outliers do.
    jitter = 1.4826 * float(np.median(np.abs(local / trend - 1)))
    drift = float(trend[0] / trend[-1] - 1)
    return beat * float(np.median(local)), round(100 * jitter, 1), round(100 * drift, 1)
