"""Augmentation of log-mels, cheap enough to do anew every time a clip is seen."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mix(mel: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Add `noise` to `mel` (both `[n_mels, F]` in Whisper's scale) in the power domain at `snr_db`, by mean power."""
    power, other = 10 ** (4 * mel - 4), 10 ** (4 * noise - 4)
    repeats = -(-mel.shape[1] // noise.shape[1])
    other = other.repeat(1, repeats)[:, : mel.shape[1]]
    other = other * (power.mean() / other.mean().clamp(min=1e-10)) * 10 ** (-snr_db / 10)
    log = (power + other).clamp(min=1e-10).log10()
    return (log.clamp(min=float(log.max()) - 8) + 4) / 4


def warp(mel: Tensor, tempo: float, pitch: float) -> Tensor:
    """Stretch time by `1 / tempo` and shift the mel axis by the factor `pitch`, both by linear interpolation."""
    n_mels, frames = mel.shape
    out = F.interpolate(mel[None], size=max(8, round(frames / tempo)), mode="linear", align_corners=False)[0]
    source = (torch.arange(n_mels) * pitch).clamp(max=n_mels - 1.001)
    low = source.long()
    share = (source - low)[:, None]
    return out[low] * (1 - share) + out[low + 1] * share


def mask(mel: Tensor, rng: np.random.Generator, n_bands: int = 2, band: int = 16, rate: float = 0.09) -> Tensor:
    """SpecAugment (https://arxiv.org/abs/1904.08779): blank `n_bands` of ≤ `band` mels and about `rate` of the time."""
    mel, floor = mel.clone(), float(mel.mean())
    n_mels, frames = mel.shape
    for _ in range(n_bands):
        width = int(rng.integers(0, band + 1))
        start = int(rng.integers(0, n_mels - width))
        mel[start : start + width] = floor
    for _ in range(int(frames * rate / 10) + 1):
        width = int(rng.integers(0, 21))
        start = int(rng.integers(0, max(1, frames - width)))
        mel[:, start : start + width] = floor
    return mel


def augment(mel: Tensor, rng: np.random.Generator, noise: Tensor | None = None, change: float = 1.0) -> Tensor:
    """One random variation of a clip: tempo ±15 %, pitch ±8 %, noise at 5–25 dB where given, masks.

    With a larger `change` all of it reaches further, so that encoders err on clips that they know by heart.
    """
    mel = warp(mel, *(float(np.exp(rng.uniform(-change, change) * reach)) for reach in (0.14, 0.08)))
    if noise is not None:
        mel = mix(mel, noise, float(rng.uniform(5, 25)) - 10 * (change - 1))
    return mask(mel, rng, rate=0.09 * change)


def colour(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Louder or softer as a whole, by 4 dB, and in broad bands, by 2.4 dB: another microphone, another room."""
    bands = np.interp(np.arange(len(mel)), np.linspace(0, len(mel) - 1, 5), rng.normal(0, 0.06, 5))
    return mel + float(rng.normal(0, 0.1)) + torch.from_numpy(bands.astype(np.float32))[:, None]


def fitted(mel: Tensor, frames: int) -> Tensor:
    """The first `frames` of a clip, the quietest value behind a shorter one."""
    missing = max(0, frames - mel.shape[1])
    return F.pad(mel[:, :frames], (0, missing), value=float(mel.min()))
