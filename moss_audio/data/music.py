"""Music with exact truth: public-domain tunes → other instruments, keys and tempi, rendered to audio with a manifest.

`python -m moss_audio.data.music OUT --count 600 --soundfont FILE`. The tunes are Ryan's Mammoth Collection (1883) as
music21 carries it, one file a tune. Needs the program `fluidsynth`. Knows scores, not models. Stoppable and resumable:
the manifest is the record of what is done.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moss_audio.signal import TEMPI, tempo_class

SAMPLE_RATE = 16_000
TICKS = 480
"""MIDI ticks in a quarter note."""

PROGRAMS = {
    "piano": 0, "harpsichord": 6, "music box": 10, "vibraphone": 11, "marimba": 12, "xylophone": 13, "church organ": 19,
    "accordion": 21, "harmonica": 22, "acoustic guitar": 24, "electric guitar": 27, "violin": 40, "cello": 42,
    "harp": 46, "strings": 48, "trumpet": 56, "trombone": 57, "french horn": 60, "saxophone": 65, "oboe": 68,
    "clarinet": 71, "flute": 73, "recorder": 74, "ocarina": 79, "sitar": 104, "banjo": 105, "bagpipe": 109,
    "steel drums": 114,
}  # fmt: skip
"""General MIDI programs, counted from 0, by the names of their instruments."""

LOW = {"cello", "trombone", "french horn"}
"""Instruments that play an octave lower."""

ACCOMPANISTS = ("piano", "acoustic guitar", "harp", "strings", "accordion", "church organ")
STYLES = ("reel", "jig", "hornpipe", "strathspey", "waltz", "march", "polka", "clog", "fling", "quickstep")
SHARPS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


@dataclass(frozen=True)
class Note:
    """`pitch` as a MIDI number; `start` and `length` in quarter notes."""

    pitch: int
    start: float
    length: float


@dataclass(frozen=True)
class Tune:
    """A melody with what its book says of it. `tonic` is a pitch class; `beat` is a beat's length in quarter notes."""

    name: str
    notes: tuple[Note, ...]
    tonic: int
    mode: str
    metre: str
    bar: float
    beat: float


@dataclass(frozen=True)
class MusicTruth:
    """What is known of a rendered excerpt, in the words of `prompts.MUSIC_FIELDS`."""

    instruments: list[str]
    tempo: str
    bpm: int
    key: str
    metre: str
    style: str
    mood: str


def mood_of(mode: str, bpm: float) -> str:
    """A plain rule: mode and tempo give the mood."""
    moods = {"major": ("calm", "warm", "cheerful"), "minor": ("sad", "wistful", "tense")}
    return moods[mode][TEMPI.index(tempo_class(bpm))]


def read_tune(path: Path) -> Tune | None:
    """The melody of an ABC file; None where it has no clear key, metre or notes."""
    from music21 import converter

    score = converter.parse(path).flatten()
    key, time = score.getElementsByClass("Key").first(), score.getElementsByClass("TimeSignature").first()
    if key is None or time is None or key.mode not in ("major", "minor"):
        return None
    notes = tuple(
        Note(int(n.pitch.midi), float(n.offset), float(n.quarterLength))
        for n in score.getElementsByClass("Note")
        if n.quarterLength
    )
    beat = 1.5 if time.numerator in (6, 9, 12) and time.denominator == 8 else 1.0
    bar, metre = float(time.barDuration.quarterLength), time.ratioString
    return Tune(path.stem, notes, key.tonic.pitchClass, key.mode, metre, bar, beat) if len(notes) > 16 else None


def excerpt(tune: Tune, rng: random.Random, quarters: float) -> list[Note]:
    """About `quarters` of a tune from the start of one of its bars."""
    last = max(note.start + note.length for note in tune.notes)
    start = tune.bar * rng.randrange(max(1, int((last - quarters) / tune.bar) + 1))
    return [
        Note(note.pitch, note.start - start, note.length)
        for note in tune.notes
        if start <= note.start < start + quarters
    ]


def chords(notes: Sequence[Note], tune: Tune) -> list[Note]:
    """A chord a bar, of the three main ones the one that holds most of the melody, as bass and two upper notes."""
    third = 4 if tune.mode == "major" else 3
    triads = [(tune.tonic, third), ((tune.tonic + 5) % 12, third), ((tune.tonic + 7) % 12, 4)]
    out = []
    for i in range(int(max(note.start for note in notes) / tune.bar) + 1):
        inside = [note for note in notes if tune.bar * i <= note.start < tune.bar * (i + 1)]
        fits = [sum(n.length for n in inside if (n.pitch - root) % 12 in (0, t, 7)) for root, t in triads]
        root, t = triads[fits.index(max(fits))]
        out.append(Note(36 + root, tune.bar * i, tune.bar))
        step = tune.beat if tune.bar > tune.beat else tune.bar
        for k in range(1, max(2, round(tune.bar / step))):
            out += [Note(48 + root + up, tune.bar * i + k * step, 0.8 * step) for up in (t, 7)]
    return out


def clicks(times: np.ndarray, seconds: float) -> np.ndarray:
    """Clicks at `times`, in seconds, over faint noise: `[n]`, always the same."""
    samples = np.random.default_rng(0).normal(0, 1e-4, int(seconds * SAMPLE_RATE))
    click = 0.3 * np.random.default_rng(1).normal(size=400) * np.exp(-np.arange(400) / 80)
    for time in times:
        at = int(time * SAMPLE_RATE)
        samples[at : at + len(click)] += click[: len(samples) - at]
    return samples.astype(np.float32)


def to_midi(parts: Sequence[tuple[int, int, Sequence[Note]]], quarter_bpm: float) -> bytes:
    """A type 1 MIDI file of parts `(program, velocity, notes)`."""

    def length(value: int) -> bytes:
        out = [value & 127]
        while value := value >> 7:
            out.append(128 | value & 127)
        return bytes(reversed(out))

    tempo = struct.pack(">I", round(6e7 / quarter_bpm))[1:]
    tracks = [b"\0\xff\x51\x03" + tempo]
    for channel, (program, velocity, notes) in enumerate(parts):
        events = [(0, bytes([0xC0 | channel, program]))]
        for note in notes:
            on, off = round(TICKS * note.start), round(TICKS * (note.start + 0.95 * note.length))
            events.append((on, bytes([0x90 | channel, note.pitch, velocity])))
            events.append((off, bytes([0x80 | channel, note.pitch, 0])))
        events.sort(key=lambda event: (event[0], event[1][0] & 0xF0 != 0xC0, event[1][0] & 0xF0))
        times = [time for time, _ in events]
        tracks.append(b"".join(length(b - a) + e for a, b, (_, e) in zip([0, *times], times, events, strict=False)))
    chunks = [b"MTrk" + struct.pack(">I", len(track) + 4) + track + b"\0\xff\x2f\0" for track in tracks]
    return b"MThd" + struct.pack(">IHHH", 6, 1, len(chunks), TICKS) + b"".join(chunks)


def render(midi: bytes, soundfont: Path, seconds: float) -> bytes:
    """Sound of a MIDI file as 16-bit mono PCM, cut to `seconds`; `subprocess.TimeoutExpired` for one without end."""
    with tempfile.TemporaryDirectory() as scratch:
        score, out = Path(scratch, "tune.mid"), Path(scratch, "tune.wav")
        score.write_bytes(midi)
        options = ["-niq", "-g", "0.5", "-r", str(SAMPLE_RATE), "-F", str(out)]
        command = ["fluidsynth", *options, str(soundfont), str(score)]
        subprocess.run(command, timeout=30, check=True, capture_output=True)
        with wave.open(str(out)) as wav:
            pcm = np.frombuffer(wav.readframes(int(seconds * SAMPLE_RATE)), "<i2").reshape(-1, wav.getnchannels())
    return pcm.mean(axis=1).astype("<i2").tobytes()


def perform(tune: Tune, rng: random.Random, soundfont: Path) -> tuple[bytes, MusicTruth]:
    """One excerpt of a tune on instruments, in a key and at a tempo of chance, with what is true of it."""
    bpm = round(55 * (190 / 55) ** rng.random())
    seconds = rng.uniform(6, 10)
    notes = excerpt(tune, rng, seconds * bpm / 60 * tune.beat)
    instrument, shift = rng.choice(sorted(PROGRAMS)), rng.randint(-5, 6)
    down = 12 if instrument in LOW else 0
    melody = [Note(note.pitch + shift - down, note.start, note.length) for note in notes]
    parts, names = [(PROGRAMS[instrument], rng.randint(80, 120), melody)], [instrument]
    if rng.random() < 0.4:
        partner = rng.choice([name for name in ACCOMPANISTS if name != instrument])
        up = (shift + 6) % 12 - 6
        harmony = [Note(note.pitch + up, note.start, note.length) for note in chords(notes, tune)]
        parts.append((PROGRAMS[partner], rng.randint(55, 80), harmony))
        names.append(partner)
    style = next((style for style in STYLES if style in tune.name.lower()), "folk tune")
    key = f"{SHARPS[(tune.tonic + shift) % 12]} {tune.mode}"
    truth = MusicTruth(names, tempo_class(bpm), bpm, key, tune.metre, style, mood_of(tune.mode, bpm))
    return render(to_midi(parts, bpm * tune.beat), soundfont, seconds), truth


def tunes(seed: int) -> Iterator[Tune]:
    """Endless tunes in random order; minor ones, a sixth of the book, come three times as often."""
    from music21 import corpus

    paths = [Path(str(path)) for path in corpus.getPaths() if "/ryansMammoth/" in str(path)]
    read, rng = cache(read_tune), random.Random(seed)
    while True:
        try:
            tune = read(rng.choice(paths))
        except Exception as error:  # music21 raises its own kinds and others for scores it cannot expand
            print(f"skipped a score: {error}", file=sys.stderr)
            continue
        if tune is not None and (tune.mode == "minor" or rng.random() < 0.35):
            yield tune


def held_out_tune(name: str) -> bool:
    """Whether a tune is kept for development: one in six, by its name."""
    return sum(map(ord, re.sub(r"\W", "", name))) % 6 == 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Render tunes with exact truth into OUT with OUT.jsonl beside it.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--soundfont", type=Path, default=Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    manifest = args.out.with_suffix(".jsonl")
    done = len(manifest.read_text().splitlines()) if manifest.exists() else 0
    rng = random.Random(args.seed + done)
    with manifest.open("a", encoding="utf-8") as record:
        for i, tune in zip(range(done, args.count), tunes(args.seed + done), strict=False):
            pcm, truth = perform(tune, rng, args.soundfont)
            name = f"{args.seed}_{i:05}.wav"
            with wave.open(str(args.out / name), "wb") as wav:
                wav.setparams((1, 2, SAMPLE_RATE, len(pcm) // 2, "NONE", ""))
                wav.writeframes(pcm)
            row: dict[str, Any] = {
                "audio": f"{args.out.name}/{name}",
                "seconds": round(len(pcm) / 2 / SAMPLE_RATE, 2),
                "tune": tune.name,
                "held_out": held_out_tune(tune.name),
                "music": asdict(truth),
                "source": "ryansMammoth, rendered by fluidsynth",
            }
            record.write(json.dumps(row) + "\n")
            record.flush()


if __name__ == "__main__":
    main()
