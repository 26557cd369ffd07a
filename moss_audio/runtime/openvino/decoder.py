"""The language model as one stateful graph, for the Qwen3 and Llama families.

Inputs, for B rows of T new tokens after P slots of the cache:

    input_ids  [B, T]
    audio      [1 + K, B, T, D]  embeddings and DeepStack at audio positions, zero elsewhere; [1 + K, 1, 1, D] of zeros
                                 where there is no audio
    is_text    [B, T, 1]         0 at audio positions, 1 elsewhere; [1, 1, 1] where there is no audio
    cos, sin   [B, T, 1, head_dim]  rotary embeddings of the positions
    mask       [B, 1, T, P + T]  0 where token t sees slot p, -inf elsewhere
    beam_idx   [B]               row of the cache that each row goes on from
    n_logits   [1]               how many of the last positions get logits

Output: `logits [B, n_logits, vocab]`. The cache is the state of an infer request, so that a conversation is a request.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from moss_audio.config import DecoderConfig
from moss_audio.runtime.openvino.nodes import Weights, floats, heads, ints, parameter, result, swap


def rotary(positions: np.ndarray, config: DecoderConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines `[T, head_dim]` of rotary embeddings, halves repeated (arXiv 2104.09864)."""
    rates = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim)
    angles = np.tile(positions[:, None].astype(np.float32) * rates.astype(np.float32), (1, 2))
    return np.cos(angles), np.sin(angles)


def build_decoder(weights: Weights) -> ov.Model:
    """The graph of embeddings, layers and head."""
    config, n_taps = weights.config.decoder, len(weights.config.audio.taps)
    input_ids = parameter("input_ids", np.int64, -1, -1)
    audio = parameter("audio", np.float32, 1 + n_taps, -1, -1, config.hidden_size)
    is_text = parameter("is_text", np.float32, -1, -1, 1)
    cos = parameter("cos", np.float32, -1, -1, 1, config.head_dim)
    sin = parameter("sin", np.float32, -1, -1, 1, config.head_dim)
    mask = parameter("mask", np.float32, -1, 1, -1, -1)
    beam_idx = parameter("beam_idx", np.int32, -1)
    n_logits = parameter("n_logits", np.int64, 1)
    cache = _Cache(config, input_ids, beam_idx)
    heard = [op.gather(audio, ints(i, scalar=True), ints(0, scalar=True)) for i in range(1 + n_taps)]
    x = op.add(op.multiply(weights.rows("language_model.embed_tokens.weight", input_ids), is_text), heard[0])
    for i in range(config.n_layers):
        name = f"language_model.layers.{i}"
        y = weights.rms_norm(x, f"{name}.input_layernorm", config.rms_norm_eps)
        x = op.add(x, _attention(weights, y, (cos, sin), mask, cache, i))
        y = weights.rms_norm(x, f"{name}.post_attention_layernorm", config.rms_norm_eps)
        x = op.add(x, weights.gated_mlp(y, f"{name}.mlp"))
        if i < n_taps:
            x = op.add(x, heard[1 + i])
    x = op.slice(x, op.negative(n_logits), ints(np.iinfo(np.int64).max), ints(1), ints(1))
    x = weights.rms_norm(x, "language_model.norm", config.rms_norm_eps)
    logits = weights.linear(x, "language_model.embed_tokens" if config.tie_embeddings else "lm_head")
    inputs = [input_ids, audio, is_text, cos, sin, mask, beam_idx, n_logits]
    return ov.Model([result("logits", logits)], cache.sinks, inputs, "decoder")


class _Cache:
    """Keys and values as graph state `[B, P, n_kv_heads, head_dim]`, in the form that fuses with attention."""

    def __init__(self, config: DecoderConfig, input_ids: ov.Node, beam_idx: ov.Node) -> None:
        self.shape = ov.PartialShape([-1, -1, config.n_kv_heads, config.head_dim])
        self.beam_idx, self.sinks = beam_idx, list[ov.Node]()
        rows = op.gather(op.shape_of(input_ids), ints(0), ints(0, scalar=True))
        empty = op.concat([rows, ints(0, config.n_kv_heads, config.head_dim)], 0)
        self.empty = op.broadcast(floats(0.0), empty)

    def append(self, name: str, new: ov.Node) -> ov.Node:
        """Everything cached under `name` with `new [B, T, n_kv_heads, head_dim]` behind it."""
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = self.shape, ov.Type.f32, name
        variable = Variable(info)
        past = op.gather(op.read_value(self.empty, variable), self.beam_idx, ints(0, scalar=True))
        present = op.concat([past, new], 1)
        self.sinks.append(op.assign(present, variable))
        return present


def _attention(
    weights: Weights, x: ov.Node, rope: tuple[ov.Node, ov.Node], mask: ov.Node, cache: _Cache, layer: int
) -> ov.Node:
    """Grouped-query attention over the cache; `q_norm` and `k_norm` only in the Qwen3 family."""
    config, name = weights.config.decoder, f"language_model.layers.{layer}.self_attn"
    parts = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
    q, k, v = (heads(weights.linear(x, f"{name}.{p}_proj"), n, config.head_dim) for p, n in parts.items())
    if config.family == "qwen3":
        q = weights.rms_norm(q, f"{name}.q_norm", config.rms_norm_eps)
        k = weights.rms_norm(k, f"{name}.k_norm", config.rms_norm_eps)
    q, k = (_rotate(y, *rope, config.head_dim) for y in (q, k))
    k, v = cache.append(f"{layer}.k", k), cache.append(f"{layer}.v", v)
    groups = config.n_heads // config.n_kv_heads
    k, v = (_repeat(y, groups, config) for y in (k, v))
    y = op.scaled_dot_product_attention(swap(q), swap(k), swap(v), mask)
    y = op.reshape(swap(y), ints(0, 0, config.n_heads * config.head_dim), special_zero=True)
    return weights.linear(y, f"{name}.o_proj")


def _rotate(x: ov.Node, cos: ov.Node, sin: ov.Node, head_dim: int) -> ov.Node:
    """Rotary embeddings on `x [B, T, H, head_dim]`, dimension i paired with i + head_dim / 2."""
    # The axis must be spelt 3 and the factor -1.0: with -1 for the axis the plugin does not see a RoPE.
    a, b = op.variadic_split(x, ints(3, scalar=True), ints(head_dim // 2, -1)).outputs()
    turned = op.concat([op.multiply(b, floats(-1.0)), a], -1)
    return op.add(op.multiply(x, cos), op.multiply(turned, sin))


def _repeat(x: ov.Node, groups: int, config: DecoderConfig) -> ov.Node:
    """Every key/value head of `x [B, P, H, head_dim]` once for each query head of its group; the fusion drops it."""
    if groups == 1:
        return x
    front = op.gather(op.shape_of(x), ints(0, 1, 2), ints(0, scalar=True))
    shape = op.concat([front, ints(groups, config.head_dim)], 0)
    x = op.broadcast(op.unsqueeze(x, ints(3)), shape, broadcast_spec="BIDIRECTIONAL")
    return op.reshape(x, ints(0, 0, config.n_heads, config.head_dim), special_zero=True)
