"""The audio half as one graph: mel chunks → audio embeddings, DeepStack, letters and pieces of words.

Inputs: `mel [N, n_mels, L]`, chunks of one prompt padded with zeros to its longest, and with Whisper's stem on to a
round length; with that stem `seen [1, 1, L]`, 0 in what is padded beyond the longest and 1 before;
`mask [N, 1, 1, E]`, 0 for an encoder frame inside its chunk and -inf for padding; `groups [S, stack]`, for every audio
frame the encoder frames `n · E + e` that it stacks, where `N · E` stands for a frame of zeros; with a letter head
`frames [F]`, the encoder frames that exist; with a piece head `steps [P]`, the head's steps that exist. `batches`
makes all of them.

Outputs: `hidden [1 + K, S, D]`, the embeddings and the K DeepStack layers; `letters [F, n_letters]` log-probabilities;
`pieces [P, N_PIECES]`, the best outputs, and `piece_logprobs` of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import openvino as ov
from openvino import opset13 as op

from moss_audio.config import AudioConfig, ModelConfig
from moss_audio.runtime.backend import N_PIECES
from moss_audio.runtime.openvino.nodes import Weights, floats, heads, ints, parameter, result, sinusoids, swap

BATCH_MEL_FRAMES = 3200
"""Mel frames encoded together: the released stem needs about 60 KiB of activations for each."""

LENGTH_STEP = 64
"""Mel frames that lengths are a multiple of: the plugin keeps kernels for every length it meets, some 5 MB each."""


def batches(config: AudioConfig, mels: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Cut the clips `mels[i] [n_mels, F_i]` of one prompt into chunks; yields the graph's inputs, some chunks a time.

    All chunks are padded to the longest of the prompt, whatever their batch, as the reference does.
    """
    size = config.chunk_mel_frames
    chunks = [mel[:, start : start + size] for mel in mels for start in range(0, mel.shape[1], size)]
    longest = max(chunk.shape[1] for chunk in chunks)
    count = max(1, BATCH_MEL_FRAMES // longest)
    return (_inputs(config, chunks[start : start + count], longest) for start in range(0, len(chunks), count))


def _inputs(config: AudioConfig, chunks: Sequence[np.ndarray], longest: int) -> dict[str, np.ndarray]:
    """The graph's inputs for `chunks`, the longest of whose prompt has `longest` mel frames."""
    whisper = config.stem == "conv1d"
    length = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, config.chunk_mel_frames) if whisper else longest
    mel = np.zeros((len(chunks), config.n_mels, length), np.float32)
    for row, chunk in zip(mel, chunks, strict=True):
        row[:, : chunk.shape[1]] = chunk
    stride, stack = 8 // config.frame_stack, config.frame_stack
    counts, width = [-(-chunk.shape[1] // stride) for chunk in chunks], -(-length // stride)
    mask = np.where(np.arange(width) < np.array(counts)[:, None], 0, -np.inf).astype(np.float32)
    groups, frames, steps = [], [], []
    for n, count in enumerate(counts):
        index = np.full(-(-count // stack) * stack, len(chunks) * width)
        index[:count] = n * width + np.arange(count)
        groups.append(index.reshape(-1, stack))
        frames.append(index[:count])
        steps.append(n * -(-width // 2) + np.arange(-(-count // 2)))
    inputs = {"mel": mel, "mask": mask[:, None, None], "groups": np.concatenate(groups)}
    inputs |= {"seen": (np.arange(length) < longest).astype(np.float32)[None, None]} if whisper else {}
    inputs |= {"frames": np.concatenate(frames)} if config.letters else {}
    return inputs | ({"steps": np.concatenate(steps)} if config.n_pieces else {})


def rounded(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`inputs` with more rows in their lists of frames, so that few lengths occur; `true_rows` undoes it."""
    steps = {"groups": LENGTH_STEP // 8, "frames": LENGTH_STEP // 2, "steps": LENGTH_STEP // 4}

    def longer(rows: np.ndarray, step: int) -> np.ndarray:
        return np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % step, axis=0)])

    return {name: longer(value, steps[name]) if name in steps else value for name, value in inputs.items()}


def true_rows(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the graph says about the rows of `inputs`, out of its `outputs` for `rounded(inputs)`."""
    rows_of = {"letters": "frames", "pieces": "steps", "piece_logprobs": "steps"}
    heads = {name: rows for name, rows in rows_of.items() if rows in inputs}
    found = {name: outputs[name][: len(inputs[rows])] for name, rows in heads.items()}
    return {"hidden": outputs["hidden"][:, : len(inputs["groups"])], **found}


def build_encoder(weights: Weights, probes: bool = False) -> ov.Model:
    """The graph. `probes` adds the outputs `top` and `tapK [S, stack · width]`, as the golden files hold them."""
    config = weights.config
    audio = config.audio
    mel = parameter("mel", np.float32, -1, audio.n_mels, -1)
    mask = parameter("mask", np.float32, -1, 1, 1, -1)
    groups = parameter("groups", np.int64, -1, audio.frame_stack)
    frames = parameter("frames", np.int64, -1)
    seen = parameter("seen", np.float32, 1, 1, -1)
    x = _conv2d_stem(weights, mel) if audio.stem == "conv2d" else _conv1d_stem(weights, mel, seen)
    x = _add_positions(weights, x)
    taps = []
    for i in range(audio.n_layers):
        x = _layer(weights, x, mask, f"audio_encoder.layers.{i}")
        if i in audio.taps:
            taps.append(x)
    top = weights.layer_norm(x, "audio_encoder.layer_norm", audio.layer_norm_eps)
    if audio.output_dim != audio.d_model:
        top, *taps = (weights.linear(y, "audio_encoder.out_proj", bias=True) for y in (top, *taps))
    outputs, parameters = {}, [mel, mask, groups, *([seen] if audio.stem == "conv1d" else [])]
    heard = [top]
    if audio.letters:
        letters = _letter_head(weights, top)
        rows = op.reshape(letters, ints(-1, audio.n_letters), special_zero=False)
        outputs["letters"] = op.gather(rows, frames, ints(0, scalar=True))
        heard.append(op.exp(letters))
        parameters.append(frames)
    if audio.n_pieces:
        steps = parameter("steps", np.int64, -1)
        for name, best in zip(("piece_logprobs", "pieces"), _best_pieces(weights, top, mask), strict=True):
            outputs[name] = op.gather(best, steps, ints(0, scalar=True))
        parameters.append(steps)
    top, taps = _stacked(audio, heard, groups), [_stacked(audio, [tap], groups) for tap in taps]
    outputs["hidden"] = _adapt(weights, config, top, taps)
    if probes:
        outputs |= {"top": top} | {f"tap{i}": tap for i, tap in enumerate(taps)}
    return ov.Model([result(name, node) for name, node in outputs.items()], parameters, "encoder")


def _conv2d_stem(weights: Weights, mel: ov.Node) -> ov.Node:
    """Three stride-2 convolutions over (mel, time), flattened channel-major and projected: `[N, E, d_model]`."""
    x = op.unsqueeze(mel, ints(1))
    for name in ("conv1", "conv2", "conv3"):
        kernel = weights.vector(f"audio_encoder.{name}.weight")
        bias = op.reshape(weights.vector(f"audio_encoder.{name}.bias"), ints(1, -1, 1, 1), special_zero=False)
        x = op.gelu(op.add(op.convolution(x, kernel, [2, 2], [1, 1], [1, 1], [1, 1]), bias), "erf")
    x = op.reshape(swap(x, (0, 3, 1, 2)), ints(0, 0, -1), special_zero=True)
    return weights.linear(x, "audio_encoder.stem_proj", bias=True)


def _conv1d_stem(weights: Weights, mel: ov.Node, seen: ov.Node) -> ov.Node:
    """Whisper's two convolutions over time, the second of stride 2: `[N, E, d_model]`.

    Each sees zeros in what is not `seen`, as it would beyond the edge.
    """
    x = mel
    for name, stride in (("conv1", 1), ("conv2", 2)):
        kernel = weights.vector(f"audio_encoder.{name}.weight")
        bias = op.reshape(weights.vector(f"audio_encoder.{name}.bias"), ints(1, -1, 1), special_zero=False)
        x = op.multiply(x, seen) if name == "conv2" else x
        x = op.gelu(op.add(op.convolution(x, kernel, [stride], [1], [1], [1]), bias), "erf")
    return swap(x, (0, 2, 1))


def _add_positions(weights: Weights, x: ov.Node) -> ov.Node:
    """Sinusoidal positions that restart at 0 in every chunk."""
    audio = weights.config.audio
    table = weights.constant(sinusoids(audio.chunk_mel_frames * audio.frame_stack // 8, audio.d_model))
    length = op.gather(op.shape_of(x), ints(1), ints(0, scalar=True))
    return op.add(x, op.slice(table, ints(0), length, ints(1), ints(1)))


def _layer(weights: Weights, x: ov.Node, mask: ov.Node, name: str) -> ov.Node:
    """One pre-norm Whisper layer; `k_proj` has no bias."""
    audio = weights.config.audio
    y = weights.layer_norm(x, f"{name}.self_attn_layer_norm", audio.layer_norm_eps)
    q, k, v = (weights.linear(y, f"{name}.self_attn.{p}_proj", bias=p != "k") for p in "qkv")
    q, k, v = (swap(heads(part, audio.n_heads, audio.d_model // audio.n_heads)) for part in (q, k, v))
    y = swap(op.scaled_dot_product_attention(q, k, v, mask))
    y = op.reshape(y, ints(0, 0, audio.d_model), special_zero=True)
    x = op.add(x, weights.linear(y, f"{name}.self_attn.out_proj", bias=True))
    y = weights.layer_norm(x, f"{name}.final_layer_norm", audio.layer_norm_eps)
    y = op.gelu(weights.linear(y, f"{name}.fc1", bias=True), "erf")
    return op.add(x, weights.linear(y, f"{name}.fc2", bias=True))


def _letter_head(weights: Weights, top: ov.Node) -> ov.Node:
    """Log-probabilities `[N, E, n_letters]`, blank first."""
    y = op.gelu(weights.linear(top, "audio_encoder.letter_head.fc1", bias=True), "erf")
    return op.log_softmax(weights.linear(y, "audio_encoder.letter_head.fc2", bias=True), -1)


def _best_pieces(weights: Weights, top: ov.Node, mask: ov.Node) -> tuple[ov.Node, ov.Node]:
    """The piece head's most likely outputs of every step, `[N · ceil(E / 2), N_PIECES]`, blank 0: log-probabilities and
    numbers (`model.encoder.PieceHead`)."""
    audio, name = weights.config.audio, "audio_encoder.piece_head"
    x = op.multiply(top, op.reshape(op.exp(mask), ints(0, -1, 1), special_zero=True))
    x = op.concat([x, op.slice(op.multiply(x, floats(0.0)), ints(0), ints(1), ints(1), ints(1))], 1)
    length = op.gather(op.shape_of(x), ints(1), ints(0, scalar=True))
    even = op.multiply(op.divide(length, ints(2)), ints(2))
    x = op.reshape(op.slice(x, ints(0), even, ints(1), ints(1)), ints(0, -1, 2, audio.output_dim), special_zero=True)
    x = weights.linear(op.reduce_mean(x, ints(2), keep_dims=False), f"{name}.mix", bias=True)
    y = weights.layer_norm(x, f"{name}.norm", audio.layer_norm_eps)
    y = op.gelu(weights.linear(y, f"{name}.fc1", bias=True), "erf")
    x = weights.layer_norm(op.add(x, weights.linear(y, f"{name}.fc2", bias=True)), f"{name}.final_norm",
                           audio.layer_norm_eps)  # fmt: skip
    logits = op.concat([weights.linear(x, f"{name}.blank", bias=True), weights.linear(x, f"{name}.pieces")], -1)
    count = min(N_PIECES, 1 + audio.n_pieces)
    best = op.topk(op.log_softmax(logits, -1), ints(count, scalar=True), -1, "max", "value")
    logprobs, numbers = (op.reshape(best.output(i), ints(-1, count), special_zero=False) for i in range(2))
    return logprobs, numbers


def _stacked(audio: AudioConfig, parts: Sequence[ov.Node], groups: ov.Node) -> ov.Node:
    """Audio frames `[S, stack · C]` from encoder frames `[N, E, C]`, the parts side by side in every frame."""
    width = audio.output_dim + (audio.n_letters if len(parts) > 1 else 0)
    x = parts[0] if len(parts) == 1 else op.concat(list(parts), -1)
    x = op.reshape(x, ints(-1, width), special_zero=False)
    if audio.frame_stack > 1:
        x = op.concat([x, op.constant(np.zeros((1, width), np.float32))], 0)
    x = op.gather(x, groups, ints(0, scalar=True))
    return op.reshape(x, ints(-1, width * audio.frame_stack), special_zero=False)


def _adapt(weights: Weights, config: ModelConfig, top: ov.Node, taps: Sequence[ov.Node]) -> ov.Node:
    """Adapter and mergers: `[1 + K, S, D]`."""
    layers = [weights.gated_mlp(top, "audio_adapter")]
    layers += [weights.gated_mlp(tap, f"deepstack_audio_merger_list.{i}") for i, tap in enumerate(taps)]
    return op.concat([op.unsqueeze(layer, ints(0)) for layer in layers], 0)
