"""Make the recordings of this folder and `truth.jsonl`: `python examples/make.py --kokoro FOLDER [--soundfont FILE]`.

Everything heard is our own: sentences written for this folder, tones computed here, and a tune written here as MIDI.
Needs espeak-ng, fluidsynth and a General MIDI sound font (Debian: fluid-soundfont-gm).
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np

from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.data.synthesis import Kokoro

FOLDER = Path(__file__).parent
SENTENCES = {
    "speech_woman": ("af_heart", "female", "We walked along the river and watched the boats come home."),
    "speech_man": ("bm_george", "male", "Please leave the lamp on, because the stairs are very dark."),
    "caller": ("bf_emma", "female", "Hello, this is Villanueva. The heating has failed, and I need somebody today."),
}
DTMF_ROWS, DTMF_COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)
"""Frequencies in Hz of the telephone keypad, ITU-T Q.23."""
ARPEGGIO = (60, 64, 67, 72, 76, 72, 67, 64, 60)
"""MIDI notes of C major, up and down."""


def dtmf(digits: str) -> np.ndarray:
    """A number dialled on a keypad: 200 ms a digit, 150 ms between."""
    time, pieces = np.arange(int(0.2 * SAMPLE_RATE)) / SAMPLE_RATE, []
    for digit in digits:
        row, column = divmod("123456789*0#".index(digit), 3)
        pair = np.sin(2 * np.pi * DTMF_ROWS[row] * time) + np.sin(2 * np.pi * DTMF_COLUMNS[column] * time)
        pieces += [0.25 * pair, np.zeros(int(0.15 * SAMPLE_RATE))]
    return np.concatenate(pieces)


def siren(seconds: float) -> np.ndarray:
    """A tone that rises and falls between 600 and 1200 Hz every two seconds."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    hz = 900 - 300 * np.cos(np.pi * time)
    return 0.4 * np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE)


def arpeggio(notes: tuple[int, ...], soundfont: Path) -> np.ndarray:
    """Notes on a piano, one every 300 ms, rendered by fluidsynth from a MIDI file of one track."""
    track = bytes([0, 0xC0, 0])  # General MIDI program 1, acoustic grand piano
    for note in notes:
        track += bytes([0, 0x90, note, 90, 72, 0x80, note, 0])  # 72 ticks of 1/240 s
    track += bytes([0, 0xFF, 0x2F, 0])
    midi = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 120) + b"MTrk" + struct.pack(">I", len(track)) + track
    with tempfile.TemporaryDirectory() as folder:
        tune, sound = Path(folder) / "tune.mid", Path(folder) / "tune.wav"
        tune.write_bytes(midi)
        options = ["-ni", "-g", "2.5", "-r", str(SAMPLE_RATE), "-F", str(sound)]
        subprocess.run(["fluidsynth", *options, str(soundfont), str(tune)], check=True, capture_output=True, timeout=60)
        return load_audio(sound)[: int((0.3 * len(notes) + 1.2) * SAMPLE_RATE)]


def write(name: str, samples: np.ndarray) -> float:
    """Write `FOLDER/name` as Ogg Opus (24 kbit/s) or FLAC, by its ending. Returns the duration in seconds."""
    kind, codec = ("flac", "flac") if name.endswith(".flac") else ("ogg", "libopus")
    pcm = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    with av.open(str(FOLDER / name), "w", format=kind, options={"fflags": "+bitexact"}) as output:
        track: Any = output.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        track.bit_rate = 24_000
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        output.mux(track.encode(frame))
        output.mux(track.encode(None))
    return round(len(pcm) / SAMPLE_RATE, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the example recordings and their truth.")
    parser.add_argument("--kokoro", type=Path, required=True, help="folder with kokoro.onnx, vocab.json and voices/")
    parser.add_argument("--soundfont", type=Path, default=Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"))
    args = parser.parse_args()

    rows = []
    speak = Kokoro(args.kokoro / "kokoro.onnx", args.kokoro / "vocab.json", args.kokoro / "voices")
    for stem, (voice, gender, text) in SENTENCES.items():
        seconds = write(f"{stem}.ogg", speak(text, voice, 1.0))
        rows.append({"audio": f"{stem}.ogg", "seconds": seconds, "kind": "speech", "text": text, "gender": gender})
    seconds = write("dtmf.ogg", dtmf("1973"))
    rows.append({"audio": "dtmf.ogg", "seconds": seconds, "kind": "sound", "event": "phone keypad", "digits": "1973"})
    seconds = write("siren.ogg", siren(4.0))
    rows.append({"audio": "siren.ogg", "seconds": seconds, "kind": "sound", "event": "siren"})
    seconds = write("arpeggio.ogg", arpeggio(ARPEGGIO, args.soundfont))
    music = {"instrument": "piano", "key": "C major", "notes": list(ARPEGGIO)}
    rows.append({"audio": "arpeggio.ogg", "seconds": seconds, "kind": "music"} | music)
    seconds = write("silence.flac", np.zeros(3 * SAMPLE_RATE))
    rows.append({"audio": "silence.flac", "seconds": seconds, "kind": "silence", "text": ""})
    (FOLDER / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
