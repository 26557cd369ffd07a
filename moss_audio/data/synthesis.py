"""Speech synthesis for training data: text → 16 kHz samples, with the voice as a label.

Knows three engines and how to drive them safely; knows nothing of manifests or training. Kokoro-82M (Apache-2.0,
ONNX) sounds human and costs a fifth to a half of a core-second a second (`kokoro` makes the faster graph); flite and
espeak-ng are programs, robotic and tens of times faster than real time.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16_000
Synthesiser = Callable[[str, str, float], np.ndarray]
"""`(text, voice, speed) → samples [n]` float32 mono at 16 kHz."""


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker: the `engine` that speaks, its name there, `gender` as labelled by the engine's authors."""

    engine: str
    name: str
    gender: str


FLITE_VOICES = (Voice("flite", "slt", "female"), Voice("flite", "awb", "male"), Voice("flite", "rms", "male"))
ESPEAK_VOICES = tuple(
    Voice("espeak", f"{accent}+{variant}", "female" if variant[0] == "f" else "male")
    for accent in ("en-us", "en-gb")
    for variant in ("m1", "m3", "m7", "f1", "f2", "f4")
)


def kokoro_voices(folder: Path) -> tuple[Voice, ...]:
    """The English voices in a folder of `*.bin` style tables: `af_`, `am_`, `bf_`, `bm_` (accent, then gender)."""
    names = sorted(path.stem for path in folder.glob("[ab][fm]_*.bin"))
    return tuple(Voice("kokoro", name, "female" if name[1] == "f" else "male") for name in names)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Bring float32 `samples [n]` at `rate` Hz to 16 kHz."""
    if rate == SAMPLE_RATE:
        return samples.astype(np.float32)
    from scipy.signal import resample_poly

    divisor = int(np.gcd(rate, SAMPLE_RATE))
    return resample_poly(samples, SAMPLE_RATE // divisor, rate // divisor).astype(np.float32)


def _run(command: list[str], text: str) -> np.ndarray:
    """Run a synthesiser that writes a WAV file to standard output (its header's length may lie)."""
    done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=60, check=True)
    with wave.open(io.BytesIO(done.stdout)) as wav:
        pcm = np.frombuffer(done.stdout[44:], dtype="<i2", count=(len(done.stdout) - 44) // 2)
        return resample(pcm.astype(np.float32) / 32768, wav.getframerate())


def flite(text: str, voice: str, speed: float = 1.0) -> np.ndarray:
    """Speak with flite. `voice` is one of `FLITE_VOICES`' names; `speed` 1 is the voice's own pace."""
    stretch = f"duration_stretch={1 / speed:.3f}"
    return _run(["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", "/dev/stdout"], "")


def espeak(text: str, voice: str, speed: float = 1.0) -> np.ndarray:
    """Speak with espeak-ng. `voice` is `accent+variant`; `speed` 1 is 160 words a minute."""
    return _run(["espeak-ng", "-v", voice, "-s", str(round(160 * speed)), "--stdin", "--stdout"], text)


def english_phonemes(text: str, british: bool) -> str:
    """English text to the phoneme string that Kokoro was trained on: espeak-ng's IPA, punctuation kept between clauses.

    The corrections follow the published kokoro.js front end: https://www.npmjs.com/package/kokoro-js (Apache-2.0).
    """
    language = "en-gb" if british else "en-us"
    pieces = []
    for piece in re.split(r"([;:,.!?])", text):
        if re.fullmatch(r"[;:,.!?]", piece):
            pieces.append(piece)
        elif piece.strip():
            command = ["espeak-ng", "-q", "--ipa", "-v", language, "--stdin"]
            spoken = subprocess.run(command, input=piece.encode(), capture_output=True, timeout=60, check=True)
            lead = " " if pieces else ""
            pieces.append(lead + " ".join(spoken.stdout.decode().split()))
    phonemes = "".join(pieces)
    for pattern, replacement in ((r"ʲ", "j"), (r"r", "ɹ"), (r"x", "k"), (r"ɬ", "l"), (r"(?<=nˈaɪn)ti(?!ː)", "di")):
        phonemes = re.sub(pattern, replacement, phonemes)
    return phonemes.strip()


class Kokoro:
    """Kokoro-82M on OpenVINO: `Kokoro(model, vocabulary, voices)` is a `Synthesiser`.

    `model` is the ONNX file, `vocabulary` the JSON with phoneme → id, `voices` a folder of float32 tables `[510, 256]`,
    one style row a token count. A voice `a+b` is halfway between two.
    """

    def __init__(self, model: Path, vocabulary: Path, voices: Path, threads: int = 1) -> None:
        from moss_audio.runtime.openvino import openvino

        options = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self.request = openvino.Core().compile_model(str(model), "CPU", options).create_infer_request()
        self.vocabulary: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))["vocab"]
        self.voices = voices

    def __call__(self, text: str, voice: str, speed: float = 1.0) -> np.ndarray:
        phonemes = english_phonemes(text, british=voice.startswith("b"))
        tokens = [self.vocabulary[c] for c in phonemes if c in self.vocabulary][:500]
        tables = [np.fromfile(self.voices / f"{name}.bin", dtype=np.float32) for name in voice.split("+")]
        style = np.mean([table.reshape(-1, 256) for table in tables], axis=0)
        feed = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": style[min(len(tokens), len(style) - 1)][None],
            "speed": np.array([speed], dtype=np.float32),
        }
        return resample(np.asarray(next(iter(self.request.infer(feed).values()))).ravel(), 24_000)
