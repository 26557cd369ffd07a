"""Word error rate of a model on a manifest: `python -m moss_audio.evaluation.speech MANIFEST [--model mini]`.

Measures the product, through the public API, as a user would run it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import moss_audio
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.evaluation.normalise import english
from moss_audio.inference.sampling import SamplingParams
from moss_audio.prompts import TRANSCRIPT_BEAMS


@dataclass(frozen=True)
class SpeechReport:
    """Pooled word error rate with its 95 % interval over clips, and the real-time factor (seconds per second)."""

    clips: int
    words: int
    wer: float
    low: float
    high: float
    rtf: float


def interval(rates: list[ErrorRate], draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the pooled rate, drawing clips with replacement."""
    errors, words = np.array([(rate.errors, rate.words) for rate in rates]).T
    picks = np.random.default_rng(seed).integers(len(rates), size=(draws, len(rates)))
    low, high = np.percentile(errors[picks].sum(1) / words[picks].sum(1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description="Word error rate of a model on a manifest of clips with `text`.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--backend", choices=("openvino", "torch"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--beams", type=int, default=TRANSCRIPT_BEAMS, help="texts weighed at a time; 1 is fastest")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N transcripts")
    args = parser.parse_args()
    model = moss_audio.load(args.model, backend=args.backend)
    params = SamplingParams(n_beams=args.beams)
    rows = [json.loads(line) for line in args.manifest.read_text(encoding="utf-8").splitlines()][: args.limit]
    rates, seconds, busy = [], 0.0, 0.0
    for i, row in enumerate(rows):
        began = time.perf_counter()
        text = model.transcribe(args.manifest.parent / row["audio"], params=params).text
        busy += time.perf_counter() - began
        seconds += row["seconds"]
        rates.append(ErrorRate.of(english(row["text"]), english(text)))
        if i < args.show:
            print(f"{rates[-1].value:5.2f}  {row['text'].lower()}\n       {text}")
    total = sum(rates, ErrorRate())
    report = SpeechReport(len(rates), total.words, total.value, *interval(rates), busy / seconds)
    print(
        f"{report.clips} clips, {report.words} words: WER {report.wer:.1%} "
        f"(95 % {report.low:.1%}…{report.high:.1%}), real-time factor {report.rtf:.3f}"
    )


if __name__ == "__main__":
    main()
