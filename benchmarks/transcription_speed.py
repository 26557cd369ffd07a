"""Warm transcription speed and word error rate beside faster-whisper on the same clips, in one run.

    pip install faster-whisper
    python benchmarks/transcription_speed.py MANIFEST WHISPER [--clips 20] [--rounds 3]

WHISPER is a faster-whisper model folder or size. Its decoding is greedy, the Mini's is what `transcribe` does by
default. Both use all cores and decode the file themselves; they take turns clip by clip, so that whatever else the
machine does hits both alike. Prints medians and their ratio, and the same for encoder and prompt alone: no way of
decoding is faster than that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from faster_whisper import WhisperModel

import moss_audio
from moss_audio.audio import load_audio
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.evaluation.normalise import english
from moss_audio.inference.sampling import SamplingParams
from moss_audio.inference.transcription import listen
from moss_audio.prompts import TRANSCRIBE


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and word error rate beside faster-whisper base int8 greedy.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("whisper")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.manifest.read_text(encoding="utf-8").splitlines()][: args.clips]

    mini = moss_audio.load(args.model)
    whisper = WhisperModel(args.whisper, device="cpu", compute_type="int8")

    def peer(path: Path) -> str:
        segments, _ = whisper.transcribe(str(path), language="en", beam_size=1, temperature=0.0)
        return " ".join(segment.text for segment in segments)

    def prompt(path: Path) -> str:
        read = listen(mini.backend, mini.processor, [load_audio(path)], TRANSCRIBE)
        mini.backend.prefill(read.inputs.input_ids, read.inputs.audio_mask, read.audio)
        return ""

    systems: dict[str, Callable[[Path], str]] = {
        f"moss-audio {args.model}": lambda path: mini.transcribe(path).text,
        "one text at a time": lambda path: mini.transcribe(path, params=SamplingParams(n_beams=1)).text,
        "faster-whisper": peer,
        "encoder and prompt": prompt,
    }
    times: dict[str, list[float]] = {name: [] for name in systems}
    rates = dict.fromkeys(systems, ErrorRate())
    for system in systems.values():
        system(args.manifest.parent / rows[0]["audio"])
    for round_number in range(args.rounds):
        for row in rows:
            for name, system in systems.items():
                began = time.perf_counter()
                text = system(args.manifest.parent / row["audio"])
                times[name].append(time.perf_counter() - began)
                if round_number == 0:
                    rates[name] += ErrorRate.of(english(row["text"]), english(text))
    seconds = args.rounds * sum(row["seconds"] for row in rows)
    ours, one, theirs, least = (sum(spent) for spent in times.values())
    for name, spent in times.items():
        wrong = "" if name == "encoder and prompt" else f", WER {rates[name].value:.1%} ({rates[name].words} words)"
        median = statistics.median(spent)
        print(f"{name:22} median {median:.3f} s a clip, real-time factor {sum(spent) / seconds:.4f}{wrong}")
    print(f"{len(rows)} clips, {args.rounds} rounds: {theirs / ours:.2f} times as fast as faster-whisper")
    print(f"one text at a time: {theirs / one:.2f} times as fast")
    print(f"were decoding free: {theirs / least:.2f} times as fast")


if __name__ == "__main__":
    main()
