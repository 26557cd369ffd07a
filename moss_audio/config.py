"""What `config.json` says, read strictly into frozen dataclasses.

One format serves the released checkpoints and our own: a key that nobody reads is an error, a value that is not
implemented is an error, and keys that transformers writes without effect here are listed once in `INERT`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moss_audio.errors import ConfigError

FRAMES_PER_SECOND = 12.5
"""Audio frames a second, after every stem."""

INERT = frozenset(
    "architectures auto_map torch_dtype dtype transformers_version _name_or_path _attn_implementation pretrained_path "
    "_attn_implementation_autoset use_cache initializer_range init_std scale_embedding dropout attention_dropout "
    "activation_dropout encoder_layerdrop layerdrop return_dict output_hidden_states output_attentions torchscript "
    "use_bfloat16 pruned_heads chunk_size_feed_forward is_encoder_decoder is_decoder cross_attention_hidden_size "
    "add_cross_attention tie_encoder_decoder finetuning_task id2label label2id task_specific_params problem_type "
    "tokenizer_class prefix bos_token_id pad_token_id eos_token_id sep_token_id decoder_start_token_id max_length "
    "min_length do_sample early_stopping num_beams temperature top_k top_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores "
    "return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens "
    "exponential_decay_length_penalty begin_suppress_tokens num_beam_groups diversity_penalty tf_legacy_loss "
    "encoder_attention_window_size conv_chunksize ignore_index max_window_layers layer_types pretraining_tp "
    "is_llama_config rope_interleaved transformers.js_config num_hidden_layers".split()
)
"""Keys without effect here. `conv_chunksize` only bounds the reference's memory; its result does not depend on it."""

LETTERS = " abcdefghijklmnopqrstuvwxyz'"
"""Symbols of the letter head, in the order of its outputs 1…; output 0 is the CTC blank."""


@dataclass(frozen=True)
class AudioConfig:
    """The encoder. `stem` is `conv2d` (released) or `conv1d` (Whisper's, then `4` frames stacked at the output).

    `letters` and `n_pieces` (lines of `pieces.txt`) are what CTC heads spell, if there are any.
    """

    d_model: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    n_mels: int
    stem: Literal["conv2d", "conv1d"] = "conv2d"
    stem_channels: int = 480
    chunk_mel_frames: int = 400
    taps: tuple[int, ...] = (8, 16, 24)
    output_dim: int = 1280
    layer_norm_eps: float = 1e-5
    letters: str = ""
    n_pieces: int = 0

    @property
    def frame_stack(self) -> int:
        """Encoder frames in one audio frame: 1 behind the 8× stem, 4 behind Whisper's 2× stem."""
        return 1 if self.stem == "conv2d" else 4

    @property
    def n_letters(self) -> int:
        """Outputs of the letter head with the blank, or 0 where there is no head."""
        return len(self.letters) + 1 if self.letters else 0

    @property
    def tap_dim(self) -> int:
        """Width of a tap as the mergers see it."""
        return self.output_dim * self.frame_stack

    @property
    def adapter_dim(self) -> int:
        """Width of the adapter's input: the stacked top, and the stacked letter posteriors where there is a head."""
        return (self.output_dim + self.n_letters) * self.frame_stack


@dataclass(frozen=True)
class DecoderConfig:
    """The language model. `qwen3` has per-head RMSNorm on q and k; `llama` has none."""

    family: Literal["qwen3", "llama"]
    vocab_size: int
    hidden_size: int
    ffn_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_theta: float
    max_positions: int
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint: encoder, adapter width, decoder."""

    audio: AudioConfig
    decoder: DecoderConfig
    adapter_hidden_size: int

    @classmethod
    def load(cls, folder: Path | str) -> ModelConfig:
        """Read `folder/config.json`. Raises `ConfigError` naming the key and the valid values."""
        path = Path(folder) / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is not a readable JSON file: {error}") from error
        return cls.parse(raw)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read the decoded `config.json`."""
        keys = Keys(raw, "config.json")
        keys.only("model_type", "moss_audio")
        audio = _parse_audio(Keys(keys.take("audio_config"), "audio_config"))
        language = Keys(keys.take("language_config"), "language_config")
        tied = bool(language.take("tie_word_embeddings", False))
        tied = bool(keys.take("tie_word_embeddings", tied))
        decoder = _parse_decoder(language, tied)
        config = cls(audio, decoder, keys.take("adapter_hidden_size"))
        keys.only("deepstack_num_inject_layers", len(audio.taps))
        keys.only("vocab_size", decoder.vocab_size, required=False)
        keys.done()
        return config


def _parse_audio(keys: Keys) -> AudioConfig:
    stem = keys.take("stem", "conv2d")
    if stem not in ("conv2d", "conv1d"):
        raise ConfigError(f"audio_config.stem is {stem!r}; valid: 'conv2d', 'conv1d'")
    keys.only("activation_function", "gelu", required=False)
    keys.only("downsample_rate", 8, required=False)
    keys.only("frame_stack", 1 if stem == "conv2d" else 4, required=False)
    keys.take("max_source_positions", 1500)
    d_model = keys.take("d_model")
    config = AudioConfig(
        d_model=d_model,
        n_layers=keys.take("encoder_layers"),
        n_heads=keys.take("encoder_attention_heads"),
        ffn_dim=keys.take("encoder_ffn_dim"),
        n_mels=keys.take("num_mel_bins"),
        stem=stem,
        stem_channels=keys.take("downsample_hidden_size", 480),
        chunk_mel_frames=2 * keys.take("n_window", 200),
        taps=tuple(keys.take("deepstack_encoder_layer_indexes")),
        output_dim=keys.take("output_dim", d_model),
        layer_norm_eps=keys.take("layer_norm_eps", 1e-5),
        letters=keys.take("letters", ""),
        n_pieces=keys.take("n_pieces", 0),
    )
    keys.done()
    if config.d_model % config.n_heads:
        raise ConfigError(f"audio_config: d_model {d_model} is not a multiple of the {config.n_heads} heads")
    if any(not 0 <= tap < config.n_layers for tap in config.taps):
        raise ConfigError(f"audio_config: taps {config.taps} must lie in 0…{config.n_layers - 1}")
    if not 8 <= config.chunk_mel_frames <= 3000 or config.chunk_mel_frames % 8:
        raise ConfigError(f"audio_config: 2·n_window is {config.chunk_mel_frames}; valid: multiples of 8 up to 3000")
    return config


def _parse_decoder(keys: Keys, tied: bool) -> DecoderConfig:
    family = keys.take("model_type")
    if family not in ("qwen3", "llama"):
        raise ConfigError(f"language_config.model_type is {family!r}; valid: 'qwen3', 'llama'")
    keys.only("hidden_act", "silu", required=False)
    for unsupported in ("attention_bias", "mlp_bias", "use_sliding_window"):
        keys.only(unsupported, False, required=False)
    keys.take("sliding_window", None)
    keys.only("rope_scaling", None, required=False)
    rope = Keys(keys.take("rope_parameters", {}) or {}, "language_config.rope_parameters")
    rope.only("rope_type", "default", required=False)
    theta = rope.take("rope_theta", None) or keys.take("rope_theta")
    rope.done()
    keys.take("rope_theta", None)
    n_heads, hidden_size = keys.take("num_attention_heads"), keys.take("hidden_size")
    config = DecoderConfig(
        family=family,
        vocab_size=keys.take("vocab_size"),
        hidden_size=hidden_size,
        ffn_dim=keys.take("intermediate_size"),
        n_layers=keys.take("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=keys.take("num_key_value_heads", n_heads),
        head_dim=keys.take("head_dim", None) or hidden_size // n_heads,
        rope_theta=float(theta),
        max_positions=keys.take("max_position_embeddings"),
        rms_norm_eps=keys.take("rms_norm_eps", 1e-6),
        tie_embeddings=tied,
    )
    keys.done()
    if config.n_heads % config.n_kv_heads:
        raise ConfigError(f"language_config: {config.n_heads} heads are no multiple of {config.n_kv_heads} k/v heads")
    return config


class Keys:
    """A JSON object whose keys are taken one by one, so that what is left over can be named."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{where} must be a JSON object, not {raw!r}")
        self.left, self.where = dict(raw), where

    def take(self, key: str, *default: Any) -> Any:
        """The value of `key`, or the default; without a default a missing key is an error."""
        if key not in self.left and not default:
            raise ConfigError(f"{self.where} has no {key!r}")
        return self.left.pop(key, *default)

    def only(self, key: str, value: Any, required: bool = True) -> None:
        """Take a key for which a single value is implemented."""
        found = self.take(key) if required else self.take(key, value)
        if found != value:
            raise ConfigError(f"{self.where}.{key} is {found!r}; only {value!r} is implemented")

    def done(self) -> None:
        """Complain about keys that nobody took."""
        unknown = sorted(set(self.left) - INERT)
        if unknown:
            raise ConfigError(f"{self.where} has unknown keys {unknown}; remove them or use a newer moss-audio")
