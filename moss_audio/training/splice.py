"""New sentences in real voices: words of recordings exchanged for words of others, cut by CTC alignment.

A few hundred recordings are soon known by heart. Exchanging words leaves voices and rooms as they are and takes the
sentences away, so that spelling has to come from what is heard (aligned data augmentation, arXiv 2104.01393).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from moss_audio.config import LETTERS
from moss_audio.data.manifest import MelStore
from moss_audio.inference.letters import forced_alignment
from moss_audio.model.audio_lm import cut
from moss_audio.model.encoder import Encoder
from moss_audio.training.precision import autocast
from moss_audio.training.spelling import spell

MEL_FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class SpokenWord:
    """Mel frames `start…end` of clip `index` in which `text` is said."""

    index: int
    text: str
    start: int
    end: int


class WordPool:
    """The words of a manifest, by clip and by gender of the speaker."""

    def __init__(self, store: MelStore, encoder: Encoder) -> None:
        self.store = store
        self.clips: dict[int, list[SpokenWord]] = {}
        self.by_gender: dict[str, list[SpokenWord]] = defaultdict(list)
        for i, row in enumerate(store.rows):
            spelled = spell(row.get("text") or "")
            words = _cut_words(i, spelled, store[i], encoder) if spelled else []
            if words:
                self.clips[i] = words
                self.by_gender[row.get("gender", "")] += words

    def splice(self, i: int, rng: np.random.Generator, rate: float) -> tuple[np.ndarray, str] | None:
        """Clip i with about `rate` of its words exchanged, as `mel [n_mels, F]` and text; None if not aligned."""
        if i not in self.clips:
            return None
        mel, pool = self.store[i].astype(np.float32), self.by_gender[self.store.rows[i].get("gender", "")]
        pieces, texts, at = [], [], 0
        for word in self.clips[i]:
            other = pool[int(rng.integers(len(pool)))] if rng.random() < rate else word
            piece = self.store[other.index][:, other.start : other.end].astype(np.float32)
            here = mel[:, word.start : word.end]
            pieces += [mel[:, at : word.start], piece + (here.mean() - piece.mean() if other is not word else 0)]
            texts.append(other.text)
            at = word.end
        return np.concatenate([*pieces, mel[:, at:]], axis=1), " ".join(texts)


@torch.no_grad()
def _cut_words(i: int, spelled: str, mel: np.ndarray, encoder: Encoder) -> list[SpokenWord]:
    """The words of a clip, parted halfway between the last letter of one and the first of the next."""
    device = encoder.layer_norm.weight.device
    with autocast(device):
        clip = torch.from_numpy(mel.astype(np.float32)).to(device)
        out = encoder(*cut([[clip]], encoder.config.chunk_mel_frames))
    assert out.letter_logprobs is not None
    words = forced_alignment(out.letter_logprobs[0].float().cpu().numpy(), spelled, LETTERS)
    if not words:
        return []
    starts, ends = np.array([[word.start, word.end] for word in words]).T
    between = (ends[:-1] + starts[1:]) / 2
    edges = [max(0.0, starts[0] - 0.1), *between, ends[-1] + 0.1]
    frames = np.clip(np.round(np.array(edges) * MEL_FRAMES_PER_SECOND), 0, mel.shape[1]).astype(int)
    spans = zip(words, frames, frames[1:], strict=False)
    return [SpokenWord(i, word.text, int(a), int(b)) for word, a, b in spans if b > a]
