"""Mel chunks → encoder frames, taps, letters and pieces of words. Knows no clips, no tokens, no language model.

Both encoders are Whisper's (https://arxiv.org/abs/2212.04356): pre-norm layers, exact GELU, a key projection without
bias. They differ in the stem; nothing crosses a chunk.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moss_audio.config import AudioConfig


class EncoderOutput(NamedTuple):
    """`top [N, E, output_dim]`, `taps` of the same shape, `lengths [N]` ≤ E; of a checkpoint with heads also
    `letter_logprobs [N, E, L]` and `piece_logits [N, ceil(E / 2), 1 + n_pieces]`."""

    top: Tensor
    taps: tuple[Tensor, ...]
    letter_logprobs: Tensor | None
    lengths: Tensor
    piece_logits: Tensor | None = None


def sinusoids(length: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Whisper's fixed positions `[length, channels]`: sines in the first half, cosines in the second."""
    steps = torch.arange(channels // 2, device=device, dtype=torch.float32)
    rates = torch.exp(-math.log(10_000) / (channels // 2 - 1) * steps)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Conv2dStem(nn.Module):
    """Three stride-2 convolutions over (mel, time) and a projection: 8 mel frames become one encoder frame."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        channels, mels = config.stem_channels, config.n_mels
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.stem_proj = nn.Linear(channels * math.ceil(mels / 8), config.d_model)

    def forward(self, mel: Tensor, extents: Tensor) -> Tensor:
        x = mel[:, None]
        for conv in (self.conv1, self.conv2, self.conv3):
            extents = (extents + 1) // 2
            x = _zero_after(F.gelu(conv(x)), extents)
        return self.stem_proj(x.permute(0, 3, 1, 2).flatten(2))


class Conv1dStem(nn.Module):
    """Whisper's two convolutions over time: 2 mel frames become one encoder frame."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.n_mels, config.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)

    def forward(self, mel: Tensor, extents: Tensor) -> Tensor:
        x = _zero_after(F.gelu(self.conv1(mel)), extents)
        return F.gelu(self.conv2(x)).transpose(1, 2)


def _zero_after(x: Tensor, extents: Tensor) -> Tensor:
    """Zero `x [N, …, T]` from `extents[n]` on, so that a chunk's neighbours in a batch never reach into it."""
    keep = torch.arange(x.shape[-1], device=x.device) < extents[:, None]
    return x * keep.view(len(x), *[1] * (x.dim() - 2), -1)


class Attention(nn.Module):
    """Bidirectional multi-head attention over the frames of one chunk."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_heads = config.n_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for project in projections)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.d_model, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class LetterHead(nn.Module):
    """CTC over letters at the encoder's frame rate: normed top → log-probabilities, blank first."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.output_dim, config.output_dim)
        self.fc2 = nn.Linear(config.output_dim, config.n_letters)

    def forward(self, top: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(top))).float().log_softmax(-1)


class PieceHead(nn.Module):
    """CTC over pieces of words, two encoder frames a step: normed top → logits, blank first.

    The shape of Whisper's last decoder layer in which every step attends to itself alone: `mix` is the product of its
    cross-attention's value and output projections, then its feed-forward, final norm and token embedding.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.output_dim
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, width)
        self.final_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.blank = nn.Linear(width, 1)
        self.pieces = nn.Linear(width, config.n_pieces, bias=False)

    def forward(self, top: Tensor, keep: Tensor) -> Tensor:
        """`top [N, E, output_dim]`, of which the frames `keep [N, E]` are heard and the rest count as zeros."""
        steps = F.pad(top * keep[..., None], (0, 0, 0, top.shape[1] % 2)).unflatten(1, (-1, 2)).mean(2)
        x = self.mix(steps)
        x = self.final_norm(x + self.fc2(F.gelu(self.fc1(self.norm(x)))))
        return torch.cat([self.blank(x), self.pieces(x)], dim=-1)


class Encoder(nn.Module):
    """Stem, layers, taps, top. Chunks in a batch may differ in length."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        stem: nn.Module = Conv2dStem(config) if config.stem == "conv2d" else Conv1dStem(config)
        for name, part in stem.named_children():
            self.add_module(name, part)
        self._stem = type(stem).forward
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))
        self.layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.out_proj = nn.Linear(config.d_model, config.output_dim) if config.output_dim != config.d_model else None
        self.letter_head = LetterHead(config) if config.letters else None
        self.piece_head = PieceHead(config) if config.n_pieces else None

    def forward(self, chunks: Tensor, frames: Tensor, extents: Tensor, checkpointing: bool = False) -> EncoderOutput:
        """Encode `chunks [N, n_mels, L]`, zero from `frames[n]` on.

        `extents[n]` in `frames[n]…L` is the length that chunk n was padded to in its own prompt: the stem sees zeros up
        to there and the edge of the world behind it, as it would alone.
        """
        x = self._stem(self, chunks, extents)
        x = x + sinusoids(x.shape[1], x.shape[2], x.device).to(x.dtype)
        lengths = (frames + 1) // 2 if self.config.stem == "conv1d" else (frames + 7) // 8
        keep = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        mask = None if bool(keep.all()) else keep[:, None, None]
        taps = []
        for i, layer in enumerate(self.layers):
            x = checkpoint(layer, x, mask, use_reentrant=False) if checkpointing else layer(x, mask)
            if i in self.config.taps:
                taps.append(x)
        top = self.layer_norm(x)
        if self.out_proj is not None:
            top, taps = self.out_proj(top), [self.out_proj(tap) for tap in taps]
        letters = self.letter_head(top) if self.letter_head is not None else None
        pieces = self.piece_head(top, keep) if self.piece_head is not None else None
        return EncoderOutput(top, tuple(taps), letters, lengths, pieces)
