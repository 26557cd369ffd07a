"""Conversations without audio for replay: a language model answers plain prompts, and its answers keep it what it is.

`python -m moss_audio.data.chats MODEL TEXTS OUT --count 300`. The prompts ask about words and sentences of TEXTS; the
answers are the model's own, so that training on them beside other tasks moves its plain chat little (self-distillation,
https://arxiv.org/abs/2402.13669). Resumable: the file is the record of what is done.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

from moss_audio.inference.generate import collect, generate
from moss_audio.inference.sampling import SamplingParams
from moss_audio.messages import Message
from moss_audio.processor import Processor
from moss_audio.runtime.select import load_backend

PROMPTS = (
    "What does the word '{word}' mean?", "Use the word '{word}' in a sentence.", "Tell me about {word}.",
    "Rewrite this sentence in other words: {line}", "Continue this text: {line}", "Is this sentence correct? {line}",
    "Write two sentences about {word}.", "Give me a synonym of '{word}'.", "Explain {word} to a child.",
    "Write a short question that this sentence answers: {line}",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Let a model answer plain prompts, for replay in training.")
    parser.add_argument("model")
    parser.add_argument("texts", type=Path, help="a file with a sentence a line")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    backend = load_backend(Path(args.model), "openvino")
    processor = Processor.load(args.model, backend.config.audio.n_mels)
    lines, rng = args.texts.read_text(encoding="utf-8").splitlines(), random.Random(args.seed)
    done = len(args.out.read_text(encoding="utf-8").splitlines()) if args.out.exists() else 0
    params = SamplingParams(temperature=0.7, top_k=40, max_new_tokens=90, seed=args.seed)
    with args.out.open("a", encoding="utf-8") as out:
        for i in range(args.count):
            line = rng.choice(lines).strip()
            word = rng.choice(re.findall(r"[A-Za-z]{5,}", line) or ["sound"]).lower()
            question = rng.choice(PROMPTS).format(word=word, line=line)
            if i < done:
                continue
            prompt = processor.encode([Message.of("user", question)])
            answer, reason, _ = collect(generate(backend, processor.tokenizer, prompt, params))
            row = {"question": question, "answer": answer.strip(), "finish_reason": reason}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
