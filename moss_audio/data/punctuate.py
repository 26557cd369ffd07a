"""Case and punctuation for transcripts that have none: `python -m moss_audio.data.punctuate MANIFEST OUT WHISPER`.

A recogniser (Whisper behind faster-whisper) hears each clip; its spelling is taken over for exactly the words that it
has in common with the transcript, so that no word of the transcript ever changes. Clips without a transcript get the
recogniser's own as `pseudo_text`. Resumable: rows already in OUT are kept.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.data.manifest import read_manifest


def bare(word: str) -> str:
    """A word without case and punctuation, for comparing."""
    return re.sub(r"[^a-z0-9']", "", word.lower().replace("’", "'"))


def restore(words: list[str], heard: list[str]) -> list[str]:
    """`words` of a transcript in the spelling of the `heard` words, where the two agree."""
    out = [word.lower() for word in words]
    for match in SequenceMatcher(None, [bare(w) for w in words], [bare(w) for w in heard], False).get_matching_blocks():
        for k in range(match.size):
            out[match.a + k] = re.sub(r"[^\w',.;:?!-]", "", heard[match.b + k].replace("’", "'"))
    return out


def sentence(words: list[str]) -> str:
    """Words as one utterance: capital first, full stop last where nothing ends it."""
    text = " ".join("I" + word[1:] if re.match(r"i(\W|$)", word) else word for word in words)
    text = text[:1].upper() + text[1:]
    return text if re.search(r"[.?!]$", text) else re.sub(r"[\s,;:-]+$", "", text) + "."


def windows(rows: list[dict[str, Any]], seconds: float = 28, pause: float = 0.6) -> Iterator[list[dict[str, Any]]]:
    """Rows in groups that fit into one of Whisper's windows; a row without transcript stands alone."""
    group: list[dict[str, Any]] = []
    for row in rows:
        length = sum(r["seconds"] + pause for r in group) + row["seconds"]
        if group and (length > seconds or "text" not in row or "text" not in group[0]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def main() -> None:
    parser = argparse.ArgumentParser(description="Give a manifest's transcripts case and punctuation.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("whisper", help="folder of a faster-whisper model")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    from faster_whisper import WhisperModel

    model = WhisperModel(args.whisper, device="cpu", compute_type="int8", cpu_threads=args.threads)
    rows = read_manifest(args.manifest)
    done = len(read_manifest(args.out)) if args.out.exists() else 0
    pause = np.zeros(int(0.6 * SAMPLE_RATE), np.float32)
    with args.out.open("a", encoding="utf-8") as out:
        for group in windows(rows[done:]):
            pieces = [piece for row in group for piece in (load_audio(args.manifest.parent / row["audio"]), pause)]
            segments, _ = model.transcribe(np.concatenate(pieces), language="en", beam_size=1, without_timestamps=True)
            heard = " ".join(segment.text for segment in segments).split()
            if "text" not in group[0]:
                group[0]["pseudo_text"] = " ".join(heard)
            else:
                counts = np.cumsum([0, *(len(row["text"].split()) for row in group)])
                spelled = restore([word for row in group for word in row["text"].split()], heard)
                for row, start, end in zip(group, counts, counts[1:], strict=False):
                    row["text"] = sentence(spelled[start:end])
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in group)
            out.flush()
            done += len(group)
            print(f"\r{done}/{len(rows)}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
