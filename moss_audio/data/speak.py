"""Synthesise a folder of spoken sentences with a manifest: `python -m moss_audio.data.speak --help`.

Stoppable at any line and resumable: the manifest is the record of what is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from moss_audio.data import synthesis


def spoken_texts(folder: Path, forbidden: set[str], n_words: Sequence[int], seed: int) -> Iterator[str]:
    """Endless sentences from the text corpora in `folder`, seeded, none sharing four words in a row with `forbidden`.

    Read-speech lines are upper case without punctuation and are cut into runs of `n_words` (least, most); usage
    examples are kept whole.
    """
    rng, (min_words, max_words) = random.Random(seed), n_words
    lines = (folder / "librispeech_lines.txt").read_text(encoding="utf-8").splitlines()
    examples = (folder / "wordnet_examples.txt").read_text(encoding="utf-8").splitlines()
    while True:
        if rng.random() < 0.6:
            words = rng.choice(lines).lower().split()
            length = rng.randint(min_words, max_words)
            start = rng.randrange(max(1, len(words) - length + 1))
            text = " ".join(words[start : start + length])
        else:
            text = rng.choice(examples).strip()
        words = re.sub(r"[^a-z' ]", " ", text.lower()).split()
        if re.search(r"\d", text) or not min_words <= len(words) <= max_words or not text.isascii():
            continue
        if not any(" ".join(words[i : i + 4]) in forbidden for i in range(len(words) - 3)):
            yield text


def four_grams(manifest: Path) -> set[str]:
    """All runs of four words in a manifest's texts, lower case."""
    grams: set[str] = set()
    for line in manifest.read_text(encoding="utf-8").splitlines():
        words = json.loads(line)["text"].lower().split()
        grams.update(" ".join(words[i : i + 4]) for i in range(len(words) - 3))
    return grams


def write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, synthesis.SAMPLE_RATE, len(samples), "NONE", ""))
        wav.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthesise spoken sentences into OUT with OUT.jsonl beside it.")
    parser.add_argument("engine", choices=("kokoro", "flite", "espeak"))
    parser.add_argument("texts", type=Path, help="folder with librispeech_lines.txt and wordnet_examples.txt")
    parser.add_argument("out", type=Path)
    parser.add_argument("--forbid", type=Path, help="manifest of a development set whose texts must not be spoken")
    parser.add_argument("--minutes", type=float, default=60, help="audio to have in the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kokoro", type=Path, help="folder with kokoro_float.onnx, vocab.json and voices/")
    parser.add_argument("--words", type=int, nargs=2, default=(3, 26), metavar=("MIN", "MAX"))
    args = parser.parse_args()

    speak: synthesis.Synthesiser
    if args.engine == "kokoro":
        speak = synthesis.Kokoro(args.kokoro / "kokoro_float.onnx", args.kokoro / "vocab.json", args.kokoro / "voices")
        voices = synthesis.kokoro_voices(args.kokoro / "voices")
    else:
        speak = synthesis.flite if args.engine == "flite" else synthesis.espeak
        voices = synthesis.FLITE_VOICES if args.engine == "flite" else synthesis.ESPEAK_VOICES

    args.out.mkdir(parents=True, exist_ok=True)
    manifest = args.out.with_suffix(".jsonl")
    done = [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []
    seconds, rng = sum(row["seconds"] for row in done), random.Random(args.seed)
    texts = spoken_texts(args.texts, four_grams(args.forbid) if args.forbid else set(), args.words, args.seed)
    with manifest.open("a", encoding="utf-8") as record:
        for i, text in enumerate(texts):
            voice, speed = rng.choice(voices), rng.uniform(0.85, 1.25)
            partner, mixed = rng.choice([v for v in voices if v.gender == voice.gender]), rng.random() < 0.5
            speaker = f"{voice.name}+{partner.name}" if mixed and args.engine == "kokoro" else voice.name
            if i < len(done):
                continue
            if seconds >= 60 * args.minutes:
                break
            samples = speak(text, speaker, speed)
            name = hashlib.sha1(f"{args.engine} {args.seed} {i}".encode()).hexdigest()[:12] + ".wav"
            write_wav(args.out / name, samples)
            row = {
                "audio": f"{args.out.name}/{name}",
                "text": text,
                "speaker": f"{args.engine}_{speaker}",
                "gender": voice.gender,
                "language": "en",
                "source": f"synthesised by {args.engine}",
                "seconds": round(len(samples) / synthesis.SAMPLE_RATE, 2),
            }
            record.write(json.dumps(row) + "\n")
            record.flush()
            seconds += row["seconds"]


if __name__ == "__main__":
    main()
