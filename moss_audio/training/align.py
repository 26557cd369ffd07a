"""Stage *align*: the language model learns to read what the encoder hears.

`python -m moss_audio.training.align RECIPE DATA OUT --model FOLDER [--letters STATE] [--start STATE] [--resume]`.
The encoder is frozen; adapter, mergers and language model train on clips and on sentences that are only spelled (see
`simulate`). What else a recipe may name: `conversations`, and `adapting` instead of training the weights themselves.
"""

from __future__ import annotations

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
from moss_audio.inference.letters import Spelling, spelling
from moss_audio.inference.search import answer_start
from moss_audio.messages import MelPart, Message
from moss_audio.model.audio_lm import AudioLM, cut
from moss_audio.model.encoder import EncoderOutput
from moss_audio.processor import Inputs, Processor, collate
from moss_audio.prompts import SPELLED, TRANSCRIBE
from moss_audio.training import adapting, conversations, stage
from moss_audio.training.augment import augment
from moss_audio.training.examples import Chats, Example, Feed, Scenes, Sentences, Source, Texts
from moss_audio.training.feed import Background
from moss_audio.training.letters import heard
from moss_audio.training.loop import Plan, compile_layers, fit, load_weights
from moss_audio.training.precision import autocast
from moss_audio.training.processes import processes
from moss_audio.training.scenes import World
from moss_audio.training.simulate import LetterBank, garble
from moss_audio.training.spelling import letter_ids, spell

TOKEN_MULTIPLE = 32
"""Lengths of batches: each new one costs a CPU the making of new kernels, and its memory falls to pieces."""


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
        device = model.audio_adapter.down_proj.weight.device
        with autocast(device):
            out = model.audio_encoder(*cut([[mel.to(device)]], model.config.audio.chunk_mel_frames))
        assert out.letter_logprobs is not None
        ids = letter_ids(spelled)
        if len(ids) * 2 < out.letter_logprobs.shape[1]:
            bank.add(out.letter_logprobs[0].float().exp().cpu().numpy(), ids)
    return bank


class Reader:
    """The network and its prompt as this stage trains them: a clip, a question, and the letters that were heard."""

    def __init__(self, model: AudioLM, processor: Processor, bank: LetterBank | None = None) -> None:
        self.model, self.processor, self.bank = model, processor, bank
        self.device = model.audio_adapter.down_proj.weight.device

    @torch.no_grad()
    def hear(self, mels: Sequence[np.ndarray]) -> EncoderOutput:
        """The frozen encoder on one clip a row."""
        return heard(self.model.audio_encoder, mels)

    def loss(self, examples: Sequence[Example], rng: np.random.Generator, error_rate: float) -> Tensor:
        """Mean cross-entropy of the answers' tokens, in nats; up to `error_rate` of a clip's letters are altered."""
        spoken = [example for example in examples if example.mel is not None]
        heard = self.hear([example.mel for example in spoken if example.mel is not None]) if spoken else None
        spellings = iter(self._spelled(heard) if heard is not None else [])
        inputs = []
        for example in examples:
            if example.plain:
                inputs.append(self._plain(example.answer))
                continue
            if example.unasked:
                inputs.append(self._unasked(example.answer))
                continue
            spelled = example.spelled
            if example.mel is not None:
                spelled = self._altered(next(spellings), rng, float(rng.uniform(0, error_rate))).quoted
            turns = [self._ask(example.mel, example.question, spelled), Message.of("assistant", example.answer)]
            if example.mel is None and not spelled:
                turns = []  # plain chat: its one turn is in `more`
            for question, answer in example.more:
                turns += [Message.of("user", question), Message.of("assistant", answer)]
            inputs.append(self.processor.encode(turns, add_generation_prompt=False))
        batch = collate(inputs, 0, TOKEN_MULTIPLE)
        ids, loss_mask, audio_mask = self._here(batch.input_ids, batch.loss_mask, batch.audio_mask)
        audio = self.model.adapt_output(heard) if heard is not None else None
        hidden = self.model.hidden(ids, audio_mask, audio)
        logits = self.model.logits(hidden[:, :-1][loss_mask[:, 1:]])
        return F.cross_entropy(logits.float(), ids[loss_mask])

    def _plain(self, text: str) -> Inputs:
        """Text outside any conversation; its first token is given."""
        ids = np.array(self.processor.tokenizer.encode(text), np.int64)
        return Inputs(ids, np.zeros(len(ids), bool), np.arange(len(ids)) > 0, ())

    def _unasked(self, text: str) -> Inputs:
        """An answer to nothing, as the model that hears nothing writes transcripts along (`inference.search`)."""
        turns = [Message.of("user", TRANSCRIBE), Message.of("assistant", text)]
        asked = self.processor.encode(turns, add_generation_prompt=False)
        start = answer_start(self.processor.tokenizer, asked)
        return Inputs(asked.input_ids[start:], asked.audio_mask[start:], asked.loss_mask[start:], ())

    def _altered(self, spelled: Spelling, rng: np.random.Generator, error_rate: float) -> Spelling:
        """More of the errors that heads make on voices that they were not trained on."""
        if self.bank is None:
            return spelled
        wrong = self.bank.misspell(letter_ids(spelled.letters), rng, error_rate)
        words = None if spelled.words is None else garble(spelled.words, rng, error_rate)
        return Spelling("".join(LETTERS[i - 1] for i in wrong), words)

    def _spelled(self, heard: EncoderOutput) -> list[Spelling]:
        """What the encoder's heads make of each clip."""
        assert heard.letter_logprobs is not None
        letters, lengths = heard.letter_logprobs.float().numpy(force=True), heard.lengths.tolist()
        best = None if heard.piece_logits is None else heard.piece_logits.argmax(-1).numpy(force=True)
        return [
            spelling(letters[i, :n], LETTERS, None if best is None else best[i, : (n + 1) // 2], self.processor.pieces)
            for i, n in enumerate(lengths)
        ]

    def _here(self, *arrays: np.ndarray) -> Iterator[Tensor]:
        return (torch.from_numpy(array).to(self.device) for array in arrays)

    def _ask(self, mel: np.ndarray | None, question: str, spelled: str) -> Message:
        text = SPELLED.format(question=question, letters=spelled)
        return Message.of("user", *([MelPart(mel)] if mel is not None else []), text)

    @torch.no_grad()
    def transcribe(self, mels: Sequence[np.ndarray], max_new_tokens: int = 120) -> list[str]:
        """Greedy transcripts of several clips at a time."""
        eager = torch.compiler.set_stance("force_eager")  # a cache grows token by token: each would be compiled anew
        with eager, autocast(self.device):
            heard = self.hear(mels)
            spellings = self._spelled(heard)
            asked = [self._ask(mel, TRANSCRIBE, spelled.quoted) for mel, spelled in zip(mels, spellings, strict=True)]
            batch = collate([self.processor.encode([message]) for message in asked], pad_id=0)
            ids, audio_mask, lengths = self._here(batch.input_ids, batch.audio_mask, batch.lengths)
            stop = self.processor.turn_end
            cache = self.model.new_cache(len(mels), int(lengths.max()) + max_new_tokens + 1)
            logits = self.model.decode(ids, audio_mask, self.model.adapt_output(heard), cache, lengths, 1)
            answers = [logits[:, -1].argmax(-1)]
            done = answers[0] == stop
            while not done.all() and len(answers) < max_new_tokens:
                answers.append(self.model.decode(answers[-1][:, None], cache=cache)[:, -1].argmax(-1))
                done |= answers[-1] == stop
        rows = torch.stack(answers, 1).tolist()
        ends = [row.index(stop) if stop in row else len(row) for row in rows]
        return [self.processor.tokenizer.decode(row[:end]) for row, end in zip(rows, ends, strict=True)]


def dev_transcripts(reader: Reader, store: MelStore, limit: int) -> Iterator[tuple[str, str]]:
    """Reference and hypothesis of the first `limit` clips, both spelled."""
    for start in range(0, min(limit, len(store)), 10):
        rows = range(start, min(start + 10, limit, len(store)))
        texts = reader.transcribe([store[i] for i in rows])
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

    def source_of(source: Mapping[str, Any]) -> Source | Sentences | Texts | Scenes | Chats:
        if "plain" in source:
            return Texts(source, data)
        if "texts" in source:
            return Sentences(source, data, forbidden, bank, bool(processor.pieces))
        if "chats" in source:
            return Chats(source, data)
        if "scenes" in source:
            world = World(source["scenes"], data, state.parent / "pcm")
            return Scenes(world, float(source["weight"]), n_mels, source.get("turns", (1, 1, 1)))
        if "conversations" in source:
            return conversations.Conversations(source, data, n_mels)
        return Source(source, data, cache, n_mels)

    sources = [source_of(source) for source in recipe["sources"]]
    noise = [MelStore(data / name, cache, n_mels) for name in recipe["noise"]]
    dev_store = MelStore(data / recipe["dev"], cache, n_mels)
    reader, layers = Reader(model, processor, bank), model.language_model.layers
    processes().shard(layers)
    if recipe.get("compile"):
        compile_layers(layers)

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        examples = feed.next(rng)
        return reader.loss(examples, rng, recipe["error_rate"]), len(examples)

    def dev() -> dict[str, Any]:
        rate, sample = ErrorRate(), []
        for reference, text in dev_transcripts(reader, dev_store, recipe["dev_clips"]):
            rate += ErrorRate.of(reference.split(), (spell(text) or "").split())
            sample.append(text)
        return {"dev_wer": round(rate.value, 4), "dev_words": rate.words, "sample": sample[:3]}

    with Background(Feed(sources, recipe["batch_size"], noise, recipe["noise_rate"]), recipe["seed"]) as feed:
        fit(model, Plan.of(recipe), loss_of, dev, state, resume)
    processes().unshard(layers)


def main() -> None:
    parser = stage.arguments("Teach the language model to read what the encoder hears.")
    parser.add_argument("--start", type=Path, nargs="+", default=(), help="states of earlier stages, put in in order")
    args = parser.parse_args()
    recipe, state = stage.begin(args)
    model, processor = stage.load(args)
    if recipe.get("initialise_adapter"):
        initialise_adapter(model, processor)
    for start in args.start:
        load_weights(start, model)
    adapting.begin(model, recipe)
    train(model, processor, recipe, args.data, state, args.resume)
    adapting.end(model, state)


if __name__ == "__main__":
    main()
