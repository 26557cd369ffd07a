"""Times of words for a manifest with transcripts: `python -m moss_audio.data.timing MANIFEST OUT [--model mini]`.

The letter head of a model is the teacher: the best CTC path that spells a row's `text` tells when each word is said
(`inference.letters.forced_alignment`), to 20 ms. Where that path begins or ends elsewhere than what sounds in the clip
(`scene.speaking`), transcript or clip is not trusted, and the row gets no times. Rows come out as they were, with
`words` as `[text, start, end]`. Resumable: rows already in OUT are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moss_audio.audio import load_audio, log_mel
from moss_audio.checkpoint import find_model
from moss_audio.data.manifest import read_manifest
from moss_audio.data.scene import speaking
from moss_audio.inference.letters import forced_alignment
from moss_audio.runtime.select import load_backend
from moss_audio.transcript import Word

Aligner = Callable[[np.ndarray, str], tuple[Word, ...]]
"""`(samples [n], text) → words`, those of `text.split()`, or none."""

MAX_OFF = 0.4
"""Seconds between the first word and where the clip begins to sound, or the last and where it ends."""


def timed(row: dict[str, Any], samples: np.ndarray, align: Aligner) -> dict[str, Any]:
    """The row with the times of its words, where they can be trusted."""
    words = align(samples, row["text"])
    start, end = speaking(samples)
    if not words or abs(words[0].start - start) > MAX_OFF or abs(words[-1].end - end) > MAX_OFF:
        return row
    return row | {"words": [[word.text, word.start, word.end] for word in words]}


def by_letters(model: str) -> Aligner:
    """The letter head of a model."""
    backend = load_backend(find_model(model))
    audio = backend.config.audio
    if not audio.letters:
        raise ValueError(f"{model} has no letter head; take mini")

    def align(samples: np.ndarray, text: str) -> tuple[Word, ...]:
        logprobs = backend.encode_audio([log_mel(samples, audio.n_mels)]).letter_logprobs
        assert logprobs is not None
        return forced_alignment(logprobs, text, audio.letters)

    return align


def main() -> None:
    parser = argparse.ArgumentParser(description="Give a manifest's transcripts the times of their words.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="mini")
    args = parser.parse_args()
    rows, align = read_manifest(args.manifest), by_letters(args.model)
    n_done = len(read_manifest(args.out)) if args.out.exists() else 0
    n_timed = 0
    with args.out.open("a", encoding="utf-8") as out:
        for i, row in enumerate(rows[n_done:], n_done + 1):
            if row.get("text"):
                row = timed(row, load_audio(args.manifest.parent / row["audio"]), align)
            n_timed += "words" in row
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            print(f"\r{i}/{len(rows)}", end="", file=sys.stderr)
    print(f"{n_timed} of {len(rows) - n_done} rows have times", file=sys.stderr)


if __name__ == "__main__":
    main()
