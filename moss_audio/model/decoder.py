"""The language model: Qwen3 and Llama decoders with DeepStack as an add in the layer loop.

Rows of a batch are padded on the right, so causal attention needs no mask without a cache; with one, every row keeps a
length of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moss_audio.config import DecoderConfig


@dataclass
class KVCache:
    """Keys and values of B conversations: `keys[layer] [B, n_kv_heads, capacity, head_dim]`, `lengths [B]` in use."""

    capacity: int
    lengths: Tensor
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return int(self.lengths.max())

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        self.lengths = self.lengths.clamp(max=length)

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write `k, v [B, H, T, D]` at `positions [B, T]`; return all keys and values up to the longest row."""
        if layer not in self.keys:
            shape = (k.shape[0], k.shape[1], self.capacity, k.shape[3])
            self.keys[layer], self.values[layer] = k.new_zeros(shape), v.new_zeros(shape)
        rows = torch.arange(len(k), device=k.device)[:, None]
        self.keys[layer][rows, :, positions] = k.transpose(1, 2)
        self.values[layer][rows, :, positions] = v.transpose(1, 2)
        end = int(positions.max()) + 1
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, 1, T, head_dim]` of rotary embeddings, halves repeated (https://arxiv.org/abs/2104.09864)."""
    rates = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = (positions[..., None].float() * rates).repeat(1, 1, 2)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embeddings to `x [B, H, T, head_dim]`, pairing dimension i with i + head_dim/2."""
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query causal attention; `q_norm` and `k_norm` only in the Qwen3 family."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        if config.family == "qwen3":
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.has_norms = config.family == "qwen3"

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], positions: Tensor, cache: KVCache | None, layer: int
    ) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for project in projections)
        if self.has_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is None and q.requires_grad and q.device.type == "cpu":
            return self.o_proj(causal_attention(q, k, v).transpose(1, 2).flatten(2))
        mask = None
        if cache is not None:
            k, v = cache.append(layer, k, v, positions)
            mask = torch.arange(k.shape[2], device=x.device) <= positions[:, None, :, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention `[B, H, T, D]` with grouped `k, v`, written out: the fused one's backward pass is three times slower
    on a CPU at the lengths of training (17 ms against 59 ms for 32 × 9 heads × 128 positions)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ v


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) · up(x))` without biases: the decoder's feed-forward, the adapter and the mergers."""

    def __init__(self, width: int, hidden: int, output: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, output, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm attention and gated feed-forward with residuals."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config.hidden_size, config.ffn_dim, config.hidden_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], positions: Tensor, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, positions, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings in, normed hidden states out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        audio_mask: Tensor | None = None,
        deepstack: Tensor | None = None,
        cache: KVCache | None = None,
        lengths: Tensor | None = None,
        checkpointing: bool = False,
    ) -> Tensor:
        """Run embeddings `x [B, T, D]` through the layers.

        `deepstack [K, S, D]` is added to the outputs of the first K layers where `audio_mask [B, T]` is true. With a
        `cache` the rows go on from its lengths and grow by `lengths [B]` (T where None).
        """
        steps = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        positions = steps if cache is None else cache.lengths[:, None] + steps
        rope = rotary(positions, self.config.head_dim, self.config.rope_theta)
        for i, layer in enumerate(self.layers):
            arguments = (x, rope, positions, cache, i)
            x = checkpoint(layer, *arguments, use_reentrant=False) if checkpointing else layer(*arguments)
            if deepstack is not None and audio_mask is not None and i < len(deepstack):
                x = x.masked_scatter(audio_mask[..., None], x[audio_mask] + deepstack[i].to(x.dtype))
        if cache is not None:
            cache.lengths = cache.lengths + (x.shape[1] if lengths is None else lengths)
        return self.norm(x)
