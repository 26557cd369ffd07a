"""Stage *letters*: the encoder's upper layers and its heads learn to spell speech, with CTC and no language model.

`python -m moss_audio.training.letters RECIPE DATA OUT --model FOLDER [--start STATE] [--resume]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moss_audio.data.manifest import MelStore
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.model.audio_lm import AudioLM, cut
from moss_audio.model.encoder import Encoder, EncoderOutput
from moss_audio.training import stage
from moss_audio.training.examples import Feed, Source
from moss_audio.training.feed import Background
from moss_audio.training.loop import Plan, compile_layers, fit, load_weights
from moss_audio.training.precision import autocast
from moss_audio.training.processes import processes
from moss_audio.training.spelling import PieceSpeller, greedy_text, letter_ids, spell

MEL_MULTIPLE = 64
"""Lengths of batches: each new one costs a CPU the making of new kernels."""


def heard(encoder: Encoder, mels: Sequence[np.ndarray]) -> EncoderOutput:
    """The encoder on one clip a row."""
    device = encoder.layer_norm.weight.device
    rows = [[torch.from_numpy(mel.astype(np.float32, copy=False)).to(device)] for mel in mels]
    return encoder(*cut(rows, encoder.config.chunk_mel_frames, MEL_MULTIPLE))


def letter_loss(encoder: Encoder, out: EncoderOutput, answers: Sequence[str], inner_weight: float = 0.0) -> Tensor:
    """CTC loss of the answers' letters, in nats a letter; a clip too short for its letters counts nothing.

    `inner_weight` is the share of the same loss on the last tap, which keeps the layers below in shape (intermediate
    CTC, https://arxiv.org/abs/2102.03216).
    """
    assert out.letter_logprobs is not None and encoder.letter_head is not None
    ids = [letter_ids(answer) for answer in answers]
    loss = ctc_loss(out.letter_logprobs, ids, out.lengths)
    if inner_weight:
        inner = encoder.letter_head(encoder.layer_norm(out.taps[-1]))
        loss = (1 - inner_weight) * loss + inner_weight * ctc_loss(inner, ids, out.lengths)
    return loss


def piece_loss(out: EncoderOutput, ids: Sequence[Sequence[int]]) -> Tensor:
    """CTC loss of pieces of words, in nats a piece. Only the outputs that the batch needs go through the CTC search."""
    assert out.piece_logits is not None
    used, places = torch.unique(torch.tensor([0, *(i for row in ids for i in row)]), return_inverse=True)
    logits = out.piece_logits
    logprobs = logits[..., used.to(logits.device)].float() - logits.float().logsumexp(-1, keepdim=True)
    flat, rows = iter(places.tolist()[1:]), []
    for row in ids:
        rows.append([next(flat) for _ in row])
    return ctc_loss(logprobs, rows, (out.lengths + 1) // 2)


def ctc_loss(logprobs: Tensor, ids: Sequence[Sequence[int]], lengths: Tensor) -> Tensor:
    """CTC loss of `ids` in `logprobs [N, E, L]`, blank first, in nats an id; rows without room for theirs count 0."""
    targets = torch.tensor([i for row in ids for i in row], device=logprobs.device)
    sizes = torch.tensor([len(row) for row in ids], device=logprobs.device)
    rows = logprobs.float().transpose(0, 1)
    return F.ctc_loss(rows, targets, lengths, sizes, reduction="sum", zero_infinity=True) / max(1, len(targets))


@torch.no_grad()
def word_error_rates(encoder: Encoder, speller: PieceSpeller | None, store: MelStore, limit: int) -> list[ErrorRate]:
    """Word error rates of the greedy letters, and of the greedy pieces, on the first `limit` clips."""
    encoder.eval()
    rates = [ErrorRate(), ErrorRate()]
    for i in range(min(limit, len(store))):
        with autocast(encoder.layer_norm.weight.device):
            out = heard(encoder, [store[i]])
        assert out.letter_logprobs is not None
        length = int(out.lengths[0])
        texts = [greedy_text(out.letter_logprobs[0, :length])]
        if speller is not None and out.piece_logits is not None:
            texts.append(speller.text(out.piece_logits[0, : (length + 1) // 2]))
        for k, text in enumerate(texts):
            rates[k] += ErrorRate.of((spell(store.rows[i]["text"]) or "").split(), text.split())
    encoder.train()
    return rates


def train(
    encoder: Encoder, recipe: Mapping[str, Any], data: Path, state: Path, resume: bool,
    speller: PieceSpeller | None = None, aligner: Encoder | None = None,
) -> None:
    """Run the stage as the recipe says; `state` is where it keeps its weights, with features in `mels` beside it.

    `speller` is for encoders with a piece head. `aligner` finds words for splicing; by default `encoder` does.
    """
    n_mels, cache = encoder.config.n_mels, state.parent / "mels"
    cutter = (aligner or encoder).eval()
    sources = [Source(source, data, cache, n_mels, cutter) for source in recipe["sources"]]
    noise = [MelStore(data / name, cache, n_mels) for name in recipe["noise"]]
    dev_store = MelStore(data / recipe["dev"], cache, n_mels)
    if recipe.get("compile"):
        compile_layers(encoder.layers)

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, int]:
        examples = feed.next(rng)
        answers = [spell(example.answer) or "" for example in examples]
        out = heard(encoder, [example.mel for example in examples if example.mel is not None])
        loss = letter_loss(encoder, out, answers, recipe.get("inner_weight", 0.0))
        if speller is not None:
            loss = loss + recipe["piece_weight"] * piece_loss(out, [speller.ids(answer) for answer in answers])
        return loss, len(examples)

    def dev() -> dict[str, Any]:
        letters, pieces = word_error_rates(encoder, speller, dev_store, recipe["dev_clips"])
        line = {"dev_wer": round(letters.value, 4), "dev_words": letters.words}
        return line | ({"dev_wer_pieces": round(pieces.value, 4)} if speller is not None else {})

    with Background(Feed(sources, recipe["batch_size"], noise, recipe["noise_rate"]), recipe["seed"]) as feed:
        fit(encoder.train(), Plan.of(recipe), loss_of, dev, state, resume)


def main() -> None:
    parser = stage.arguments("Train the letter head and the encoder's upper layers.", letters=False)
    parser.add_argument("--start", type=Path, help="state of an earlier run of this stage to start from")
    parser.add_argument("--aligner", type=Path, help="model whose letter head finds words to exchange; default: MODEL")
    args = parser.parse_args()
    recipe, state = stage.begin(args)
    encoder = AudioLM.load(args.model, device=processes().device).audio_encoder
    speller = PieceSpeller(args.model) if encoder.config.n_pieces else None
    aligner = AudioLM.load(args.aligner, device=processes().device).audio_encoder if args.aligner else None
    if args.start:
        load_weights(args.start, encoder)
    train(encoder, recipe, args.data, state, args.resume, speller, aligner)


if __name__ == "__main__":
    main()
