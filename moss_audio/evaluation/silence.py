"""Clips without speech that a model transcribes as words: `python -m moss_audio.evaluation.silence [MANIFEST ...]`.

Without a manifest, ten minutes of sounds made here: silence, noise, hum and music.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import moss_audio
from moss_audio.audio import SAMPLE_RATE
from moss_audio.data.manifest import read_manifest
from moss_audio.inference.engine import AudioSource

MAJOR = (0, 4, 7)
"""Semitones of a chord above its root."""


def made(seconds: float = 60.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Ten sounds of `seconds` each, by name: `samples [n]` in which nobody speaks."""
    random, n = np.random.default_rng(seed), int(seconds * SAMPLE_RATE)
    time = np.arange(n) / SAMPLE_RATE
    white = random.standard_normal(n)
    hum = np.sum([np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3, 5, 7)], axis=0)
    beat = np.exp(-8 * (2 * time % 1)) * white
    sweep = np.sin(2 * np.pi * np.cumsum(200 * 2 ** (3 * np.abs(time / 4 % 2 - 1))) / SAMPLE_RATE)
    sounds = {
        "digital silence": (np.zeros(n), -120),
        "faint white noise": (white, -55),
        "loud white noise": (white, -15),
        "pink noise": (coloured(white, 0.5), -25),
        "brown noise": (coloured(white, 1.0), -20),
        "mains hum": (hum, -20),
        "mains hum and hiss": (hum / hum.std() + 0.3 * white, -35),
        "chords": (chords(time, random), -18),
        "chords and a beat": (chords(time, random) / 3 + beat, -15),
        "a siren's sweep": (sweep, -20),
    }
    return {name: level(samples, db) for name, (samples, db) in sounds.items()}


def coloured(white: np.ndarray, slope: float) -> np.ndarray:
    """Noise `[n]` whose amplitude falls with the frequency to the power of `slope`: 0.5 is pink, 1 brown."""
    spectrum = np.fft.rfft(white)
    return np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1) ** slope, len(white))


def chords(time: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Two plucked major chords a second, at the `time [n]` of every sample in seconds."""
    bar, since = np.divmod(time, 0.5)
    roots = random.integers(-12, 13, int(bar[-1]) + 1)[bar.astype(int)]
    phases = [2 * np.pi * 220 * 2 ** ((roots + step) / 12) * since for step in MAJOR]
    chord: np.ndarray = np.sum([np.sin(k * phase) / k**2 for phase in phases for k in (1, 2, 3)], axis=0)
    return chord * np.exp(-4 * since)


def level(samples: np.ndarray, db: float) -> np.ndarray:
    """`samples [n]` at an RMS of `db` below full scale, cut off there."""
    rms = float(np.sqrt(np.mean(samples**2))) or 1.0
    return np.clip(samples / rms * 10 ** (db / 20), -1, 1).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the clips without speech that are given words.")
    parser.add_argument("manifests", type=Path, nargs="*", help="clips in which nobody speaks; none: ten made here")
    parser.add_argument("--fold", type=int, help="only the rows of this fold")
    parser.add_argument("--model", default="mini")
    args = parser.parse_args()
    model = moss_audio.load(args.model)
    n_clips = n_invented = 0
    seconds = 0.0
    for name, source in _clips(args.manifests, args.fold):
        transcript = model.transcribe(source)
        n_clips, n_invented = n_clips + 1, n_invented + bool(transcript.text)
        seconds += transcript.duration
        if transcript.text:
            print(f"{name}: {transcript.text}")
    print(f"{n_invented} of {n_clips} clips without speech were given words ({seconds / 60:.1f} minutes)")


def _clips(manifests: list[Path], fold: int | None) -> Iterator[tuple[str, AudioSource]]:
    """Name and recording of every clip."""
    if not manifests:
        yield from made().items()
    for manifest in manifests:
        for row in read_manifest(manifest):
            if fold is None or row["fold"] == fold:
                yield str(row.get("label", row["audio"])), manifest.parent / row["audio"]


if __name__ == "__main__":
    main()
