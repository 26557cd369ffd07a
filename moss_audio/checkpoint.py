"""Model folders: what must be in them, reading them strictly and lazily, writing them whole, finding them.

Knows the tensor names of both families; knows neither PyTorch nor any runtime. Names, shapes
and types are checked from the headers alone, before the first weight is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from moss_audio.config import AudioConfig, DecoderConfig, ModelConfig
from moss_audio.errors import CheckpointError
from moss_audio.shards import FLOAT_TYPES, INTEGER_TYPES, Entry, map_array, read_header, write_shard
from moss_audio.weights import SCHEMES, Scheme, Weight, dequantise, recode

INT4_PREFIX = "language_model.layers."
"""Where int4 goes when it is asked for; the rest takes int8. Most of the bytes that a new token reads are here; the
encoder is bound by arithmetic and gains nothing, and rare tokens' rows of the embedding suffer most."""

HUB_FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

Parts = dict[str, tuple[tuple[str, ...], set[tuple[int, ...]]]]
"""Tensors that store one weight, each with its valid types and shapes."""


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint. The two-dimensional ones, and only they, may be quantised."""
    audio, decoder = config.audio, config.decoder
    tensors = _encoder_tensors(audio)
    widths = {"audio_adapter": audio.adapter_dim}
    widths |= {f"deepstack_audio_merger_list.{i}": audio.tap_dim for i in range(len(audio.taps))}
    for name, width in widths.items():
        tensors |= _gated_mlp(name, width, config.adapter_hidden_size, decoder.hidden_size)
    return tensors | _decoder_tensors(decoder)


def _encoder_tensors(config: AudioConfig) -> dict[str, tuple[int, ...]]:
    d, channels, tensors = config.d_model, config.stem_channels, dict[str, tuple[int, ...]]()

    def add(name: str, *shape: int, bias: bool = True) -> None:
        tensors[f"audio_encoder.{name}.weight"] = shape
        if bias:
            tensors[f"audio_encoder.{name}.bias"] = shape[:1]

    if config.stem == "conv2d":
        add("conv1", channels, 1, 3, 3)
        add("conv2", channels, channels, 3, 3)
        add("conv3", channels, channels, 3, 3)
        add("stem_proj", d, channels * math.ceil(config.n_mels / 8))
    else:
        add("conv1", d, config.n_mels, 3)
        add("conv2", d, d, 3)
    for layer in (f"layers.{i}" for i in range(config.n_layers)):
        for projection in ("q", "k", "v", "out"):
            add(f"{layer}.self_attn.{projection}_proj", d, d, bias=projection != "k")
        add(f"{layer}.self_attn_layer_norm", d)
        add(f"{layer}.fc1", config.ffn_dim, d)
        add(f"{layer}.fc2", d, config.ffn_dim)
        add(f"{layer}.final_layer_norm", d)
    add("layer_norm", d)
    if config.output_dim != d:
        add("out_proj", config.output_dim, d)
    if config.letters:
        add("letter_head.fc1", config.output_dim, config.output_dim)
        add("letter_head.fc2", config.n_letters, config.output_dim)
    if config.n_pieces:
        add("piece_head.mix", config.output_dim, config.output_dim)
        add("piece_head.norm", config.output_dim)
        add("piece_head.fc1", config.ffn_dim, config.output_dim)
        add("piece_head.fc2", config.output_dim, config.ffn_dim)
        add("piece_head.final_norm", config.output_dim)
        add("piece_head.blank", 1, config.output_dim)
        add("piece_head.pieces", config.n_pieces, config.output_dim, bias=False)
    return tensors


def _decoder_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    width, q, kv = config.hidden_size, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    tensors: dict[str, tuple[int, ...]] = {"language_model.embed_tokens.weight": (config.vocab_size, width)}
    for layer in (f"language_model.layers.{i}" for i in range(config.n_layers)):
        tensors[f"{layer}.self_attn.q_proj.weight"] = (q, width)
        tensors[f"{layer}.self_attn.k_proj.weight"] = (kv, width)
        tensors[f"{layer}.self_attn.v_proj.weight"] = (kv, width)
        tensors[f"{layer}.self_attn.o_proj.weight"] = (width, q)
        if config.family == "qwen3":
            tensors |= {f"{layer}.self_attn.{p}_norm.weight": (config.head_dim,) for p in "qk"}
        tensors |= _gated_mlp(f"{layer}.mlp", width, config.ffn_dim, width)
        tensors[f"{layer}.input_layernorm.weight"] = tensors[f"{layer}.post_attention_layernorm.weight"] = (width,)
    tensors["language_model.norm.weight"] = (width,)
    if not config.tie_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, width)
    return tensors


def _gated_mlp(name: str, width: int, hidden: int, output: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.gate_proj.weight": (hidden, width),
        f"{name}.up_proj.weight": (hidden, width),
        f"{name}.down_proj.weight": (output, hidden),
    }


class Checkpoint:
    """A checked model folder. Tensors are mapped from disk when asked for, one at a time."""

    def __init__(self, folder: Path, config: ModelConfig, entries: Mapping[str, Entry]) -> None:
        self.folder, self.config = folder, config
        self.names = tuple(expected_tensors(config))
        self._entries = entries

    @property
    def quantised(self) -> bool:
        """Whether matrices are stored in int8 or int4."""
        return any(entry.dtype in INTEGER_TYPES for entry in self._entries.values())

    def weight(self, name: str, scheme: Scheme | None = None) -> Weight:
        """Tensor `name` as stored (a view of the file, bfloat16 widened) or, if it is a matrix, in `scheme`."""
        parts = (self._entries.get(name + suffix) for suffix in ("_scale", "_zero"))
        stored = Weight(map_array(self._entries[name]), *(None if part is None else map_array(part) for part in parts))
        if scheme is None or len(stored.shape) != 2:
            return stored
        return recode(stored, "int8" if scheme == "int4" and not name.startswith(INT4_PREFIX) else scheme)

    def float32(self, name: str) -> np.ndarray:
        """Tensor `name` in float32, whatever it is stored in."""
        return dequantise(self.weight(name))


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Open a model folder.

    Raises `CheckpointError` naming the file or tensor that is missing, unexpected, misshapen or of an unknown type, and
    `ConfigError` for `config.json`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; give the folder that holds config.json and {SINGLE}")
    config, entries = ModelConfig.load(folder), dict[str, Entry]()
    for file, names in _shards(folder).items():
        header = read_header(file)
        if names is not None and set(header) != names:
            odd = sorted(set(header) ^ names)[0]
            raise CheckpointError(f"{file} and {INDEX} disagree about {odd!r}; download both again")
        entries |= header
    _check(config, entries)
    return Checkpoint(folder, config, entries)


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a folder, and the names that the index puts into each."""
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    index = folder / INDEX
    if not index.is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"{', '.join(pickles)} would run code when opened: only safetensors are read. " if pickles else ""
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}. {found}Download or convert the weights")
    try:
        places = {str(name): str(file) for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error!r}") from error
    shards: dict[Path, set[str] | None] = {}
    for file in sorted(set(places.values())):
        inside = PurePosixPath(file)
        if inside.is_absolute() or ".." in inside.parts or "\\" in file or inside.suffix != ".safetensors":
            raise CheckpointError(f"{index} points to {file!r}; shards must be .safetensors files inside the folder")
        if not (folder / inside).is_file():
            raise CheckpointError(f"the shard {file} is missing from {folder}; download it again")
        shards[folder / inside] = {name for name, place in places.items() if place == file}
    return shards


def _check(config: ModelConfig, entries: Mapping[str, Entry]) -> None:
    """Compare headers with the configuration."""
    expected, seen = expected_tensors(config), set[str]()
    for name, shape in expected.items():
        if name not in entries:
            raise CheckpointError(f"tensor {name!r} is missing; config.json asks for shape {list(shape)}")
        quantised = entries[name].dtype in INTEGER_TYPES and len(shape) == 2
        allowed = _quantised_form(name, shape, entries) if quantised else {name: (tuple(FLOAT_TYPES), {shape})}
        for part, (types, shapes) in allowed.items():
            if part not in entries:
                raise CheckpointError(f"tensor {part!r} is missing: {name!r} is quantised and needs it")
            found = entries[part]
            if found.dtype not in types or found.shape not in shapes:
                wanted = " or ".join(str(list(shape)) for shape in sorted(shapes))
                raise CheckpointError(
                    f"tensor {part!r} is {found.dtype} {list(found.shape)}; expected {'/'.join(types)} {wanted}"
                )
        seen |= set(allowed)
    if extra := sorted(set(entries) - seen):
        raise CheckpointError(f"tensor {extra[0]!r} is not part of this model ({len(extra)} such); check config.json")


def _quantised_form(name: str, shape: tuple[int, ...], entries: Mapping[str, Entry]) -> Parts:
    """What a quantised matrix is stored as (see `weights`)."""
    (out, width), scales = shape, ("F32", "F16")
    if entries[name].dtype == "I8":
        return {name: (("I8",), {shape}), f"{name}_scale": (scales, {(out, 1)})}
    groups: set[tuple[int, ...]] = {(out, n) for n in range(1, width // 2 + 1) if width % (2 * n) == 0}
    parts: Parts = {name: (("U8",), {(out, width // 2)}), f"{name}_scale": (scales, groups)}
    if f"{name}_zero" in entries:
        scale = entries.get(f"{name}_scale")
        parts[f"{name}_zero"] = (("U8",), {scale.shape} if scale else groups)
    return parts


def save_checkpoint(
    folder: Path | str,
    config_json: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray | Weight]],
    max_shard_bytes: int = 45_000_000,
    places: Mapping[str, str] | None = None,
) -> None:
    """Write `config.json` and `tensors` (float32, float16 or `Weight`) as safetensors shards, one shard in memory.

    A new shard begins at `max_shard_bytes`, or where `places` (tensor → file, as in an index) names another file, whose
    name it gets: a model that changes in part then changes few files.

    Everything is written beside the folder and swapped in at the end, so no reader meets half a model. Other files of
    an existing folder (tokenizer, card) are kept. Raises `CheckpointError` if the result would not open.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.is_file() and file.suffix != ".safetensors" and file.name not in ("config.json", INDEX):
                shutil.copy2(file, new)
        (new / "config.json").write_text(json.dumps(dict(config_json), indent=2) + "\n", encoding="utf-8")
        _write_shards(new, tensors, max_shard_bytes, places or {})
        open_checkpoint(new)
        if folder.is_dir():
            os.rename(folder, Path(scratch) / "old")
        os.rename(new, folder)


def quantise_checkpoint(source: Path | str, target: Path | str, scheme: Scheme) -> None:
    """Write `source` again to `target` with its matrices in `scheme` and the rest in float32, tensor by tensor.

    Tokenizer and processor files come along. Raises `CheckpointError`.
    """
    if scheme not in SCHEMES:
        raise CheckpointError(f"scheme is {scheme!r}; valid: {', '.join(SCHEMES)}")
    checkpoint, target = open_checkpoint(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    for pattern in HUB_FILES[:-1]:
        for file in checkpoint.folder.glob(pattern):
            if file.name not in ("config.json", INDEX) and target.resolve() != checkpoint.folder.resolve():
                shutil.copy2(file, target)
    config_json = json.loads((checkpoint.folder / "config.json").read_text("utf-8"))
    save_checkpoint(target, config_json, ((name, checkpoint.weight(name, scheme)) for name in checkpoint.names))


def _write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray | Weight]], max_shard_bytes: int, places: Mapping[str, str]
) -> None:
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    place = None
    for name, array in _stored_parts(tensors):
        before, place = place, places.get(name, place)
        full = sum(part.nbytes for part in pending.values()) + array.nbytes > max_shard_bytes
        if pending and (full or place != before):
            shards.append(write_shard(folder / f"{len(shards)}", pending))
            pending = {}
        pending[name] = array
    shards.append(write_shard(folder / f"{len(shards)}", pending))
    if len(shards) == 1:
        os.rename(folder / "0", folder / SINGLE)
        return
    files = list[str]()
    for i, names in enumerate(shards, 1):
        new = f"model-{i:05d}-of-{len(shards):05d}.safetensors" if not places else f"more-{i:05d}.safetensors"
        kept = places.get(names[0], new)
        files.append(kept if kept not in files else new)
    for i, file in enumerate(files):
        os.rename(folder / str(i), folder / file)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    size = sum((folder / file).stat().st_size for file in files)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _stored_parts(tensors: Iterable[tuple[str, np.ndarray | Weight]]) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in tensors:
        weight = tensor if isinstance(tensor, Weight) else Weight(tensor)
        for suffix, array in (("", weight.values), ("_scale", weight.scale), ("_zero", weight.zero)):
            if array is not None:
                yield name + suffix, np.ascontiguousarray(array).reshape(array.shape)


def embedded_models() -> dict[str, Path]:
    """Models inside this package by name; empty where the package was built without them."""
    assets = Path(__file__).parent / "assets"
    return {path.parent.name: path.parent for path in sorted(assets.glob("*/config.json"))}


def find_model(name: str | Path, cache_dir: Path | str | None = None) -> Path:
    """The folder of a model: an embedded name, a local folder, or a hub id `owner/name`, downloaded once.

    Raises `CheckpointError` that lists the valid names, or says how to go on without a network.
    """
    embedded = embedded_models()
    if str(name) in embedded:
        return embedded[str(name)]
    if Path(name).is_dir():
        return Path(name)
    if str(name) == "mini":
        raise CheckpointError("this build of the package has no embedded model; give a model folder or a hub id")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or str(name).startswith((".", "/")):
        valid = ", ".join([*embedded, "a folder", "a hub id such as OpenMOSS-Team/MOSS-Audio-4B-Instruct"])
        raise CheckpointError(f"no model {str(name)!r}; valid: {valid}")
    return _download(str(name), cache_dir)


def _download(hub_id: str, cache_dir: Path | str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"downloading {hub_id} needs `pip install huggingface_hub`, or give a folder") from error
    try:
        return Path(snapshot_download(hub_id, cache_dir=cache_dir, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        raise CheckpointError(
            f"{hub_id} could not be downloaded ({type(error).__name__}: {error}). Where there is a network, run "
            f"`hf download {hub_id} --local-dir FOLDER`, copy the folder here and give its path as the model"
        ) from error
