"""Clips without speech that a model transcribes as words: `python -m moss_audio.evaluation.silence MANIFEST`."""

from __future__ import annotations

import argparse
from pathlib import Path

import moss_audio
from moss_audio.data.manifest import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the clips without speech that are given words.")
    parser.add_argument("manifest", type=Path, help="clips in which nobody speaks")
    parser.add_argument("--fold", type=int, help="only the rows of this fold")
    parser.add_argument("--model", default="mini")
    args = parser.parse_args()
    model = moss_audio.load(args.model)
    rows = [row for row in read_manifest(args.manifest) if args.fold is None or row["fold"] == args.fold]
    invented = 0
    for row in rows:
        text = model.transcribe(args.manifest.parent / row["audio"]).text
        invented += bool(text)
        if text:
            print(f"{row['label']}: {text}")
    print(f"{invented} of {len(rows)} clips without speech were given words")


if __name__ == "__main__":
    main()
