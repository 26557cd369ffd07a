"""When sentences are said: `python -m moss_audio.evaluation.times MANIFEST [--model mini] [--limit 50]`.

Clips of MANIFEST follow each other with pauses, two a recording, so that it is known when each is said. The words that
a model writes are aligned with those of the clips; a clip's start and end as the model times them are those of its
first and last word. Prints AAS, the mean of |predicted - true| over all starts and ends (arXiv 2606.01802), in ms.
Measures the product through the public API.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

import moss_audio
from moss_audio.audio import SAMPLE_RATE
from moss_audio.data.scene import SampleStore, speaking
from moss_audio.evaluation.normalise import english
from moss_audio.transcript import Word

Said = tuple[list[str], float, float]
"""The words of a sentence, and when it starts and ends."""


def errors(truth: Sequence[Said], heard: Sequence[Word]) -> list[float]:
    """Seconds between predicted and true starts and ends, of the sentences that were recognised in part.

    A sentence begins where the word that answers to its first one does: that word itself, or what stands in its place.
    """
    spoken = [word for words, _, _ in truth for word in words]
    written = [(bare, word) for word in heard for bare in english(word.text)]
    if not written:
        return []
    places = _answers(spoken, [bare for bare, _ in written])
    found, at = list[float](), 0
    for words, start, end in truth:
        inside = [place for place in places[at : at + len(words)] if place is not None]
        at += len(words)
        if inside:
            found += [abs(written[inside[0]][1].start - start), abs(written[inside[-1]][1].end - end)]
    return found


def _answers(spoken: Sequence[str], written: Sequence[str]) -> list[int | None]:
    """For every spoken word the place of the written one that answers to it, None where it was left out."""
    places: list[int | None] = [None] * len(spoken)
    for kind, a, b, c, d in SequenceMatcher(None, spoken, written, autojunk=False).get_opcodes():
        if kind in ("equal", "replace"):
            for i in range(a, b):
                places[i] = min(d - 1, c + (i - a) * (d - c) // max(1, b - a))
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description="Error of sentence times on recordings of several clips.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--limit", type=int, default=50, help="recordings")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "moss-audio-suites")
    args = parser.parse_args()
    model, store = moss_audio.load(args.model), SampleStore(args.manifest, args.cache)
    rng, all_errors, sentences = np.random.default_rng(0), list[float](), 0
    for i in range(0, min(2 * args.limit, len(store) - 1), 2):
        track, truth = [np.zeros(int(rng.uniform(0.2, 1.0) * SAMPLE_RATE), np.float32)], list[Said]()
        for k in (i, i + 1):
            at, (start, end) = sum(map(len, track)) / SAMPLE_RATE, speaking(store[k])
            truth.append((english(store.rows[k]["text"]), at + start, at + end))
            track += [store[k], np.zeros(int(rng.uniform(0.4, 1.2) * SAMPLE_RATE), np.float32)]
        transcript = model.transcribe(np.concatenate(track))
        all_errors += errors(truth, [word for segment in transcript.segments for word in segment.words])
        sentences += len(truth)
    milliseconds = 1000 * np.array(all_errors)
    print(
        f"{len(all_errors) // 2} of {sentences} sentences: AAS {milliseconds.mean():.0f} ms, "
        f"median {np.median(milliseconds):.0f} ms, 95 % within {np.percentile(milliseconds, 95):.0f} ms"
    )


if __name__ == "__main__":
    main()
