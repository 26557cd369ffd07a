"""The whole network: clips and token ids in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moss_audio.config import ModelConfig
from moss_audio.model.decoder import Decoder, GatedMLP, KVCache
from moss_audio.model.encoder import Encoder, EncoderOutput


class EncodedAudio(NamedTuple):
    """Clips as the decoder hears them, S audio frames over all clips and rows in prompt order.

    `embeds [S, D]`, `deepstack [K, S, D]`; of the heads, if any, `letter_logprobs [E, L]` at 50 frames a second and
    `piece_logits [P, 1 + n_pieces]` at 25.
    """

    embeds: Tensor
    deepstack: Tensor
    letter_logprobs: Tensor | None
    piece_logits: Tensor | None = None


class Chunks(NamedTuple):
    """The clips of a batch cut for the encoder: `mel [N, n_mels, L]`, `frames [N]`, `extents [N]` (see `Encoder`)."""

    mel: Tensor
    frames: Tensor
    extents: Tensor


def cut(rows: Sequence[Sequence[Tensor]], chunk: int, multiple: int = 1) -> Chunks:
    """Cut every mel `[n_mels, F]` of every row into chunks of `chunk` frames, zero-padded to the longest of all.

    The length is a `multiple`: few different ones spare training the cost of new shapes.
    """
    pieces = [[piece for mel in row for piece in mel.split(chunk, dim=1)] for row in rows]
    frames = [[piece.shape[1] for piece in row] for row in pieces]
    extents = [[max(row)] * len(row) for row in frames]
    longest = -(-max(max(row) for row in frames if row) // multiple) * multiple
    mel = torch.stack([F.pad(piece, (0, longest - piece.shape[1])) for row in pieces for piece in row])
    flat = lambda lists: torch.tensor([n for row in lists for n in row], device=mel.device)  # noqa: E731
    return Chunks(mel, flat(frames), flat(extents))


class AudioLM(nn.Module):
    """Encoder, adapter, DeepStack mergers, decoder, head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        audio, width, hidden = config.audio, config.decoder.hidden_size, config.adapter_hidden_size
        self.audio_encoder = Encoder(audio)
        self.audio_adapter = GatedMLP(audio.adapter_dim, hidden, width)
        self.deepstack_audio_merger_list = nn.ModuleList(GatedMLP(audio.tap_dim, hidden, width) for _ in audio.taps)
        self.language_model = Decoder(config.decoder)
        tied, vocab_size = config.decoder.tie_embeddings, config.decoder.vocab_size
        self.lm_head = None if tied else nn.Linear(width, vocab_size, bias=False)

    @classmethod
    def load(cls, folder: Path | str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> AudioLM:
        """Read a checkpoint folder strictly; quantised tensors are widened. Raises `CheckpointError`."""
        from moss_audio.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(folder)
        with torch.device("meta"):
            model = cls(checkpoint.config)
        tensors = {
            name: torch.from_numpy(checkpoint.float32(name)).to(device=device, dtype=dtype)
            for name in model.state_dict()
        }
        model.load_state_dict(tensors, strict=True, assign=True)
        return model.eval()

    def encode_audio(self, rows: Sequence[Sequence[Tensor]], checkpointing: bool = False) -> EncodedAudio:
        """Encode the clips of every row, `rows[b][i] [n_mels, F]`."""
        device = self.language_model.embed_tokens.weight.device
        dtype = self.audio_encoder.layer_norm.weight.dtype
        moved = [[mel.to(device=device, dtype=dtype) for mel in row] for row in rows]
        chunks = cut(moved, self.config.audio.chunk_mel_frames)
        out = self.audio_encoder(*chunks, checkpointing=checkpointing)
        audio = self.adapt_output(out)
        if out.piece_logits is None:
            return audio
        steps = torch.arange(out.piece_logits.shape[1], device=device) < (out.lengths[:, None] + 1) // 2
        return audio._replace(piece_logits=out.piece_logits[steps])

    def adapt_output(self, out: EncoderOutput) -> EncodedAudio:
        """Bring the encoder's output to the decoder's width: adapter on top and letter posteriors, a merger a tap.

        What the piece head says is left out: it is large, and the decoder does not hear it.
        """
        top = out.top
        if out.letter_logprobs is not None:
            top = torch.cat([top, out.letter_logprobs.exp().to(top.dtype)], dim=-1)
        keep = torch.arange(top.shape[1], device=top.device) < out.lengths[:, None]
        embeds = self.audio_adapter(self._stack(top, keep))
        mergers = zip(self.deepstack_audio_merger_list, self.stacked_taps(out), strict=True)
        deepstack = torch.stack([merger(tap) for merger, tap in mergers])
        letters = None if out.letter_logprobs is None else out.letter_logprobs[keep]
        return EncodedAudio(embeds, deepstack, letters)

    def stacked_taps(self, out: EncoderOutput) -> Tensor:
        """What the mergers read: the taps at the audio frames, `[K, S, stack·C]`."""
        keep = torch.arange(out.top.shape[1], device=out.top.device) < out.lengths[:, None]
        return torch.stack([self._stack(tap, keep) for tap in out.taps])

    def _stack(self, x: Tensor, keep: Tensor) -> Tensor:
        """Encoder frames `x [N, E, C]` → audio frames `[S, stack·C]`, the last of a chunk filled up with zeros."""
        stack = self.config.audio.frame_stack
        fill = -x.shape[1] % stack
        x = F.pad(x * keep[..., None], (0, 0, 0, fill)).unflatten(1, (-1, stack)).flatten(2)
        return x[F.pad(keep, (0, fill)).unflatten(1, (-1, stack)).any(-1)]

    def hidden(
        self,
        input_ids: Tensor,
        audio_mask: Tensor | None = None,
        audio: EncodedAudio | None = None,
        cache: KVCache | None = None,
        lengths: Tensor | None = None,
        checkpointing: bool = False,
    ) -> Tensor:
        """Hidden states `[B, T, D]` of `input_ids [B, T]`; `audio` fills the true places of `audio_mask [B, T]`."""
        x = self.language_model.embed_tokens(input_ids)
        deepstack = None
        if audio is not None and audio_mask is not None:
            x = x.masked_scatter(audio_mask[..., None], audio.embeds.to(x.dtype))
            deepstack = audio.deepstack
        return self.language_model(x, audio_mask, deepstack, cache, lengths, checkpointing)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[…, D]` → logits `[…, vocab]`."""
        if self.lm_head is None:
            return F.linear(hidden, self.language_model.embed_tokens.weight)
        return self.lm_head(hidden)

    def decode(
        self,
        input_ids: Tensor,
        audio_mask: Tensor | None = None,
        audio: EncodedAudio | None = None,
        cache: KVCache | None = None,
        lengths: Tensor | None = None,
        n_logits: int | None = None,
    ) -> Tensor:
        """Logits `[B, T, vocab]`, or of the last `n_logits` positions of every row only."""
        hidden = self.hidden(input_ids, audio_mask, audio, cache, lengths)
        if n_logits is not None and lengths is None:
            hidden = hidden[:, -n_logits:]
        elif n_logits is not None and lengths is not None:
            last = lengths[:, None] - n_logits + torch.arange(n_logits, device=hidden.device)
            hidden = hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[2]))
        return self.logits(hidden)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for `batch_size` conversations of up to `capacity` positions."""
        device = self.language_model.embed_tokens.weight.device
        return KVCache(capacity, torch.zeros(batch_size, dtype=torch.long, device=device))
