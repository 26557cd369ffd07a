"""Which period of music is its beat: a ranking learned from tunes whose tempo is known, for `signal.tempo`.

`python -m moss_audio.training.beats MUSIC.jsonl` prints the weights and how many tempi are right within 8 %, of tunes
that were learned from and of held-out ones. Linear and convex, so the same manifest gives the same weights. Plain
clicks are learned from as well: dance tunes mostly have two or three notes a beat, and a metronome has one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from moss_audio.audio import load_audio
from moss_audio.data.manifest import read_manifest
from moss_audio.data.music import clicks
from moss_audio.signal import BEATS, beat_features

NEAR = 0.04
"""Share by which a beat may differ from the true one in learning."""

RIGHT = 0.08
"""Share by which a tempo that is counted as right may differ."""

FASTEST = 170.0
"""Plain clicks a minute of which each is a beat; of faster ones every second is."""

DECAY = 1e-3
"""Weight of the squared weights, of columns with deviation 1."""


def metronome(rate: float, seconds: float) -> np.ndarray:
    """Clicks `[n]`, so many a minute."""
    return clicks(np.arange(0.3, seconds - 0.1, 60 / rate), seconds)


def learn(features: torch.Tensor, bpm: torch.Tensor) -> torch.Tensor:
    """Weights `[C]` that rank the beats `[B]` nearest to `bpm [N]` first, by `features [N, B, C]`: a softmax."""
    near = (torch.from_numpy(BEATS) / bpm[:, None] - 1).abs() < NEAR
    spread = features.std((0, 1))
    weights = torch.zeros(features.shape[-1], dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        chances = (features / spread @ weights).log_softmax(1)
        value = DECAY * weights.square().sum() - chances.masked_fill(~near, -torch.inf).logsumexp(1).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return (weights / spread).detach()


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn which period of music is its beat.")
    parser.add_argument("manifest", type=Path, help="of `data.music`")
    args = parser.parse_args()
    rows = list(read_manifest(args.manifest))
    features = torch.from_numpy(np.stack([beat_features(load_audio(args.manifest.parent / r["audio"])) for r in rows]))
    bpm = torch.tensor([float(row["music"]["bpm"]) for row in rows], dtype=features.dtype)
    apart = torch.tensor([row["held_out"] for row in rows])
    rates = np.geomspace(50, 340, len(rows) // 10)
    plain = torch.from_numpy(np.where(rates <= FASTEST, rates, rates / 2))
    heard = np.stack([beat_features(metronome(rate, 4.0 + i % 7)) for i, rate in enumerate(rates)])
    learned = torch.cat([features[~apart], torch.from_numpy(heard)]), torch.cat([bpm[~apart], plain])
    weights = torch.from_numpy(np.round(learn(*learned).numpy(), 2))
    print(weights.tolist())
    right = (torch.from_numpy(BEATS)[(features @ weights).argmax(1)] / bpm - 1).abs() <= RIGHT
    for name, here in (("learned from", ~apart), ("held out", apart)):
        print(f"{name} {int(right[here].sum())}/{int(here.sum())}")


if __name__ == "__main__":
    main()
