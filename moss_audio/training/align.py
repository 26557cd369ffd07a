"""Stage *align*: the language model learns to read what the encoder hears.

`python -m moss_audio.training.align RECIPE DATA OUT --model FOLDER [--letters STATE] [--start STATE] [--resume]`.
The encoder is frozen; adapter, mergers and language model train on clips and on sentences that are only spelled (see
`simulate`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moss_audio.config import LETTERS
from moss_audio.data.manifest import MelStore
from moss_audio.data.speak import four_grams
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.messages import MelPart, Message
from moss_audio.model.audio_lm import AudioLM, EncodedAudio, cut
from moss_audio.processor import Processor, collate
from moss_audio.prompts import TRANSCRIBE
from moss_audio.training.augment import augment
from moss_audio.training.examples import Example, Feed, Sentences, Source
from moss_audio.training.loop import Plan, fit, load_weights
from moss_audio.training.simulate import LetterBank
from moss_audio.training.spelling import letter_ids, spell


@torch.no_grad()
def initialise_adapter(model: AudioLM, processor: Processor) -> None:
    """Let the adapter start as a speller: a letter's posterior becomes the embedding of that letter's token.

    The posteriors of the stacked frames sum to `stack`, so a gate row of ones on them is a constant, and the hidden
    unit behind it passes one posterior on; `down_proj` turns it into the embedding. The rest starts small.
    """
    audio, adapter = model.config.audio, model.audio_adapter
    embed = model.language_model.embed_tokens.weight
    for name, weight in model.deepstack_audio_merger_list.named_parameters():
        if name.endswith("down_proj.weight"):
            weight.mul_(0.02)
    adapter.down_proj.weight.mul_(0.1)
    width = audio.output_dim + audio.n_letters
    inputs = [slot * width + audio.output_dim + i for slot in range(audio.frame_stack) for i in range(audio.n_letters)]
    passed = float(F.silu(torch.tensor(float(audio.frame_stack))))
    for unit, column in enumerate(inputs):
        letter = unit % audio.n_letters
        for matrix in (adapter.gate_proj.weight, adapter.up_proj.weight):
            matrix[unit] = 0
        adapter.gate_proj.weight[unit, inputs] = 1
        adapter.up_proj.weight[unit, column] = 1
        token = processor.tokenizer.encode(LETTERS[letter - 1])[0]
        adapter.down_proj.weight[:, unit] = embed[token] / passed if letter else 0


@torch.no_grad()
def build_bank(model: AudioLM, stores: Sequence[MelStore], clips: int, rng: np.random.Generator) -> LetterBank:
    """Posteriors of `clips` augmented recordings, cut by letter."""
    bank = LetterBank(model.config.audio.n_letters)
    for _ in range(clips):
        store = stores[int(rng.integers(len(stores)))]
        i = int(rng.integers(len(store)))
        spelled = spell(store.rows[i].get("text") or "")
        if not spelled or store.frames[i] > 1800:
            continue
        mel = augment(torch.from_numpy(store[i].astype(np.float32)), rng)
        with torch.autocast("cpu", torch.bfloat16):
            out = model.audio_encoder(*cut([[mel]], model.config.audio.chunk_mel_frames))
        assert out.letter_logprobs is not None
        ids = letter_ids(spelled)
        if len(ids) * 2 < out.letter_logprobs.shape[1]:
            bank.add(out.letter_logprobs[0].float().exp().numpy(), ids)
    return bank


@torch.no_grad()
def hear(model: AudioLM, examples: Sequence[Example], deaf: np.ndarray) -> tuple[Tensor, list[Tensor], Tensor]:
    """Encoder frames of a batch: `top [N, E, ·]` with posteriors, taps, lengths; `deaf[n]`: row n has only letters."""
    audio = model.config.audio
    lengths = torch.tensor([(example.mel_frames + 1) // 2 for example in examples])
    top = torch.zeros(len(examples), int(lengths.max()), audio.output_dim + audio.n_letters)
    taps = [torch.zeros(*top.shape[:2], audio.output_dim) for _ in audio.taps]
    spoken = [n for n, example in enumerate(examples) if example.mel is not None]
    if spoken:
        mels = [[torch.from_numpy(examples[n].mel)] for n in spoken]
        out = model.audio_encoder(*cut(mels, audio.chunk_mel_frames))
        assert out.letter_logprobs is not None
        for i, n in enumerate(spoken):
            e = int(lengths[n])
            top[n, :e, audio.output_dim :] = out.letter_logprobs[i, :e].exp()
            if not deaf[n]:
                top[n, :e, : audio.output_dim] = out.top[i, :e]
                for tap, heard in zip(taps, out.taps, strict=True):
                    tap[n, :e] = heard[i, :e]
    for n, example in enumerate(examples):
        if example.posteriors is not None:
            top[n, : len(example.posteriors), audio.output_dim :] = torch.from_numpy(example.posteriors)
    return top, taps, lengths


def answer_loss(model: AudioLM, processor: Processor, examples: Sequence[Example], deaf: np.ndarray) -> Tensor:
    """Mean cross-entropy of the answers' tokens, in nats."""
    n_mels = processor.config.n_mels
    inputs = []
    for example in examples:
        mel = MelPart(np.broadcast_to(np.float32(0), (n_mels, example.mel_frames)))
        turn = [Message.of("user", mel, example.question), Message.of("assistant", example.answer)]
        inputs.append(processor.encode(turn, add_generation_prompt=False))
    batch = collate(inputs, pad_id=0)
    top, taps, lengths = hear(model, examples, deaf)
    audio: EncodedAudio = model.adapt(top, taps, lengths)
    ids, loss_mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.loss_mask)
    hidden = model.hidden(ids, torch.from_numpy(batch.audio_mask), audio)
    logits = model.logits(hidden[:, :-1][loss_mask[:, 1:]])
    return F.cross_entropy(logits.float(), ids[loss_mask])


@torch.no_grad()
def transcribe_rows(
    model: AudioLM, processor: Processor, mels: Sequence[np.ndarray], max_new_tokens: int = 120
) -> list[str]:
    """Greedy transcripts of several clips at a time."""
    prompts = [processor.encode([Message.of("user", MelPart(mel), TRANSCRIBE)]) for mel in mels]
    batch = collate(prompts, pad_id=0)
    lengths = torch.from_numpy(batch.lengths)
    with torch.autocast("cpu", torch.bfloat16):
        audio = model.encode_audio([[torch.from_numpy(np.array(mel, np.float32)) for mel in row] for row in batch.mels])
        cache = model.new_cache(len(mels), int(lengths.max()) + max_new_tokens + 1)
        ids, audio_mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.audio_mask)
        tokens = model.decode(ids, audio_mask, audio, cache, lengths, 1)[:, -1].argmax(-1)
        answers, done = [tokens], tokens == processor.turn_end
        while not done.all() and len(answers) < max_new_tokens:
            tokens = model.decode(tokens[:, None], cache=cache)[:, -1].argmax(-1)
            done |= tokens == processor.turn_end
            answers.append(tokens)
    rows = torch.stack(answers, 1).tolist()
    stops = [row.index(processor.turn_end) if processor.turn_end in row else len(row) for row in rows]
    return [processor.tokenizer.decode(row[:stop]) for row, stop in zip(rows, stops, strict=True)]


def dev_transcripts(model: AudioLM, processor: Processor, store: MelStore, limit: int) -> Iterator[tuple[str, str]]:
    """Reference and hypothesis of the first `limit` clips, both spelled."""
    for start in range(0, min(limit, len(store)), 10):
        rows = range(start, min(start + 10, limit, len(store)))
        texts = transcribe_rows(model, processor, [store[i] for i in rows])
        for i, text in zip(rows, texts, strict=True):
            yield spell(store.rows[i]["text"]) or "", text


def train(
    model: AudioLM, processor: Processor, recipe: Mapping[str, Any], data: Path, state: Path, resume: bool
) -> None:
    """Run the stage as the recipe says; `state` is where it keeps its weights, with features in `mels` beside it."""
    n_mels, cache = processor.config.n_mels, state.parent / "mels"
    rng = np.random.default_rng(recipe["seed"])
    model.audio_encoder.requires_grad_(False).eval()
    bank_stores = [MelStore(data / name, cache, n_mels) for name in recipe["bank"]["manifests"]]
    with torch.no_grad():
        bank = build_bank(model, bank_stores, recipe["bank"]["clips"], rng)
    print(f"bank: {sum(map(len, bank.by_letter.values()))} letters", flush=True)
    forbidden = four_grams(data / recipe["dev"])
    sources: list[Source | Sentences] = [
        Sentences(source, data, forbidden, bank) if "texts" in source else Source(source, data, cache, n_mels)
        for source in recipe["sources"]
    ]
    noise = [MelStore(data / name, cache, n_mels) for name in recipe["noise"]]
    dev_store = MelStore(data / recipe["dev"], cache, n_mels)
    feed = Feed(sources, recipe["batch_frames"], noise, recipe["noise_rate"])

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        examples = feed.next(rng)
        return answer_loss(model, processor, examples, rng.random(len(examples)) < recipe["deaf_rate"]), len(examples)

    def dev() -> dict[str, Any]:
        rate, sample = ErrorRate(), []
        for reference, text in dev_transcripts(model, processor, dev_store, recipe["dev_clips"]):
            rate += ErrorRate.of(reference.split(), (spell(text) or "").split())
            sample.append(text)
        return {"dev_wer": round(rate.value, 4), "dev_words": rate.words, "sample": sample[:3]}

    fit(model, Plan.of(recipe), loss_of, dev, state, resume)


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the language model to read what the encoder hears.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("data", type=Path, help="folder that the recipe's manifests and texts are in")
    parser.add_argument("out", type=Path, help="working folder: mels, log, state")
    parser.add_argument("--model", type=Path, required=True, help="model folder to start from")
    parser.add_argument("--letters", type=Path, help="state of the letters stage to put into the encoder first")
    parser.add_argument("--start", type=Path, help="state of an earlier run of this stage to start from")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = AudioLM.load(args.model)
    processor = Processor.load(args.model, model.config.audio.n_mels)
    if args.letters:
        load_weights(args.letters, model.audio_encoder)
    initialise_adapter(model, processor)
    if args.start:
        load_weights(args.start, model)
    state = args.out / f"{args.recipe.stem}.safetensors"
    train(model, processor, json.loads(args.recipe.read_text()), args.data, state, args.resume)


if __name__ == "__main__":
    main()
