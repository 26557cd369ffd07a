"""Proof that the public bases were converted rightly, before anything is trained.

    pip install faster-whisper
    python benchmarks/prove_bases.py BASE WHISPER MANIFEST [--clips 5]

BASE comes from `python -m moss_audio.training.bases BASE`; WHISPER is the folder of the same Whisper for
faster-whisper. Our encoder's output goes through Whisper's own decoder, which must transcribe; the language model
alone must answer a question.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ctranslate2
import numpy as np
import torch
from tokenizers import Tokenizer

from moss_audio.audio import load_audio, log_mel
from moss_audio.messages import Message
from moss_audio.model.audio_lm import AudioLM, cut
from moss_audio.processor import Processor

WINDOW = 480_000
PROMPT = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Whisper's decoder behind our encoder, and the language model alone.")
    parser.add_argument("base", type=Path)
    parser.add_argument("whisper", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--clips", type=int, default=5)
    args = parser.parse_args()
    model = AudioLM.load(args.base)
    whisper = ctranslate2.models.Whisper(str(args.whisper), compute_type="float32")
    words = Tokenizer.from_file(str(args.whisper / "tokenizer.json"))
    for line in args.manifest.read_text(encoding="utf-8").splitlines()[: args.clips]:
        row = json.loads(line)
        samples = load_audio(args.manifest.parent / row["audio"])
        mel = log_mel(np.pad(samples, (0, WINDOW - len(samples))), 80)
        top = model.audio_encoder(*cut([[torch.from_numpy(mel)]], 3000)).top.numpy()
        theirs = np.array(whisper.encode(ctranslate2.StorageView.from_array(mel[None])))
        (result,) = whisper.generate(ctranslate2.StorageView.from_array(top), [PROMPT], beam_size=1)
        print(f"reference  {row['text'].lower()}")
        print(f"decoded   {words.decode(result.sequences_ids[0]).strip()}")
        print(f"encoder difference {np.abs(top - theirs).max() / np.abs(theirs).max():.1e} of the largest value\n")

    processor = Processor.load(args.base, model.config.audio.n_mels)
    ids = processor.encode([Message.of("user", "What is the capital of France?")]).input_ids.tolist()
    prompt = len(ids)
    while len(ids) < prompt + 40 and (len(ids) == prompt or ids[-1] != processor.turn_end):
        ids.append(int(model.decode(torch.tensor([ids]), n_logits=1)[0, -1].argmax()))
    print(f"What is the capital of France? → {processor.tokenizer.decode(ids[prompt:])}")


if __name__ == "__main__":
    main()
