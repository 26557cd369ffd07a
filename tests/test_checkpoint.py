from __future__ import annotations

import json
import shutil
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tiny import LLAMA, random_tensors, save_random

from moss_audio.checkpoint import (
    expected_tensors,
    find_model,
    open_checkpoint,
    quantise_checkpoint,
    save_checkpoint,
)
from moss_audio.config import ModelConfig
from moss_audio.errors import CheckpointError, ConfigError
from moss_audio.weights import Weight, dequantise, quantise_int4, quantise_int8


def header_of(file: Path) -> dict:
    raw = file.read_bytes()
    return json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])


@pytest.fixture
def editable(tmp_path, moss_tiny):
    """A copy of the fixture that a test may damage, and its tensors."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(moss_tiny / name, folder / name)
    checkpoint = open_checkpoint(moss_tiny)
    return folder, {name: checkpoint.float32(name).copy() for name in checkpoint.names}


def write(file: Path, tensors: dict[str, np.ndarray], dtypes: dict[str, str] | None = None) -> None:
    """A safetensors file by hand, without the checks of the package."""
    codes, header, data = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8", "uint8": "U8"}, {}, b""
    for name, array in tensors.items():
        code = (dtypes or {}).get(name, codes[str(array.dtype)])
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def test_expected_tensors_are_those_of_the_released_format(moss_tiny):
    header = header_of(moss_tiny / "model.safetensors")
    del header["__metadata__"]
    found = {name: tuple(e["shape"]) for name, e in header.items()}
    assert expected_tensors(ModelConfig.load(moss_tiny)) == found


def test_expected_tensors_of_the_4b_count_901_and_5_2_billion_parameters():
    raw = {
        "model_type": "moss_audio",
        "audio_config": {
            "d_model": 1280, "output_dim": 1280, "num_mel_bins": 128, "encoder_layers": 32,
            "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "deepstack_encoder_layer_indexes": [8, 16, 24],
        },
        "language_config": {
            "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728,
            "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "rope_theta": 1e6, "max_position_embeddings": 40960,
        },
        "adapter_hidden_size": 8192, "deepstack_num_inject_layers": 3, "tie_word_embeddings": False,
    }  # fmt: skip
    tensors = expected_tensors(ModelConfig.parse(raw))
    assert len(tensors) == 901
    assert sum(int(np.prod(shape)) for shape in tensors.values()) == pytest.approx(5.22e9, rel=0.005)


def test_tied_models_have_no_head_and_out_proj_comes_with_another_width():
    config = ModelConfig.parse(LLAMA)
    tensors = expected_tensors(config)
    assert "lm_head.weight" not in tensors and "audio_encoder.out_proj.weight" not in tensors
    assert tensors["audio_encoder.letter_head.fc2.weight"] == (6, 32)
    assert tensors["audio_adapter.gate_proj.weight"] == (48, 4 * (32 + 6))
    assert tensors["deepstack_audio_merger_list.1.up_proj.weight"] == (48, 4 * 32)
    wide = ModelConfig.parse(LLAMA | {"audio_config": LLAMA["audio_config"] | {"output_dim": 40}})
    assert expected_tensors(wide)["audio_encoder.out_proj.weight"] == (40, 32)


@pytest.mark.parametrize("name", ["audio_encoder.conv2.bias", "language_model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(editable, name):
    folder, tensors = editable
    del tensors[name]
    write(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        open_checkpoint(folder)


def test_an_extra_a_misshapen_and_a_strangely_typed_tensor_are_named(editable):
    folder, tensors = editable
    write(folder / "model.safetensors", tensors | {"audio_encoder.extra": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"'audio_encoder\.extra' is not part"):
        open_checkpoint(folder)
    write(folder / "model.safetensors", tensors | {"lm_head.weight": tensors["lm_head.weight"].T.copy()})
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' is F32 \[48, 320\]; expected .* \[320, 48\]"):
        open_checkpoint(folder)
    write(folder / "model.safetensors", tensors, {"lm_head.weight": "F64"})
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' .* type F64; valid: F32"):
        open_checkpoint(folder)
    norm = {"language_model.norm.weight": np.ones(48, np.int8)}
    write(folder / "model.safetensors", tensors | norm)
    with pytest.raises(CheckpointError, match=r"'language_model\.norm\.weight' is I8 \[48\]"):
        open_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000, -1])
def test_a_cut_off_file_is_found_before_it_is_read(editable, keep):
    folder, _ = editable
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="download it again"):
        open_checkpoint(folder)


def test_offsets_into_the_header_are_refused(editable):
    folder, tensors = editable
    write(folder / "model.safetensors", tensors)
    raw = (folder / "model.safetensors").read_bytes()
    size = tensors["lm_head.weight"].nbytes
    entry = header_of(folder / "model.safetensors")["lm_head.weight"]["data_offsets"]
    bad = raw.replace(json.dumps(entry).encode(), json.dumps([-8, size - 8]).ljust(len(json.dumps(entry))).encode())
    (folder / "model.safetensors").write_bytes(bad)
    with pytest.raises(CheckpointError, match="lm_head"):
        open_checkpoint(folder)


def test_pickles_and_empty_folders_say_what_is_read(tmp_path, moss_tiny):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    shutil.copyfile(moss_tiny / "config.json", tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="neither"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin .* only safetensors"):
        open_checkpoint(tmp_path)


def test_bfloat16_and_float16_widen_exactly(editable):
    folder, tensors = editable
    bits = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in tensors.items()}
    bits["lm_head.weight"] = tensors["lm_head.weight"].astype(np.float16)
    write(folder / "model.safetensors", bits)
    checkpoint, name = open_checkpoint(folder), "audio_encoder.layers.0.fc1.weight"
    np.testing.assert_array_equal(checkpoint.float32(name), (bits[name].astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_allclose(checkpoint.float32(name), tensors[name], rtol=2**-7)
    np.testing.assert_array_equal(checkpoint.float32("lm_head.weight"), bits["lm_head.weight"].astype(np.float32))


def test_a_sharded_checkpoint_equals_the_whole_one(editable, tmp_path):
    folder, tensors = editable
    raw = json.loads((folder / "config.json").read_text())
    save_checkpoint(tmp_path / "parts", raw, tensors.items(), max_shard_bytes=200_000)
    shards = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(shards) > 5 and max(shard.stat().st_size for shard in shards) < 230_000
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    checkpoint = open_checkpoint(tmp_path / "parts")
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint.float32(name), array)

    shards[2].rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=f"shard {shards[2].name} is missing"):
        open_checkpoint(tmp_path / "parts")


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", "model.bin"])
def test_an_index_cannot_point_outside(editable, place):
    folder, tensors = editable
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, place)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="inside the folder"):
        open_checkpoint(folder)


def test_an_index_that_disagrees_with_its_shard_is_named(editable):
    folder, tensors = editable
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors") | {"ghost": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="disagree about 'ghost'"):
        open_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_checkpoint(folder)


def test_older_configs_open(editable):
    folder, _ = editable
    raw = json.loads((folder / "config.json").read_text())
    del raw["audio_config"]["n_window"], raw["audio_config"]["conv_chunksize"]
    theta = raw["language_config"].pop("rope_theta")
    raw["language_config"]["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
    (folder / "config.json").write_text(json.dumps(raw))
    config = open_checkpoint(folder).config
    assert config.audio.chunk_mel_frames == 400 and config.decoder.rope_theta == 1e6
    raw["language_config"]["unheard_of"] = 1
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="unheard_of"):
        open_checkpoint(folder)


def test_int8_is_within_half_a_step():
    matrix = np.random.default_rng(0).standard_normal((5000, 24), np.float32)
    matrix[3] = 0
    weight = quantise_int8(matrix)
    assert weight.scheme == "int8" and weight.values.dtype == np.int8 and weight.scale.shape == (5000, 1)
    step = np.abs(matrix).max(axis=1, keepdims=True) / 127
    assert (np.abs(dequantise(weight) - matrix) <= 0.501 * step + 1e-12).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_is_within_half_a_step_of_its_group(symmetric):
    matrix = np.random.default_rng(0).standard_normal((7, 256), np.float32) + 0.5
    weight = quantise_int4(matrix, symmetric=symmetric)
    assert (weight.scheme, weight.group, weight.shape) == ("int4", 128, (7, 256))
    assert weight.values.nbytes == matrix.size // 2 and (weight.zero is None) == symmetric
    error = np.abs(dequantise(weight) - matrix).reshape(7, 2, 128).max(axis=2)
    assert (error <= 1.01 * weight.scale.astype(np.float32)).all()
    assert error.mean() < 0.6 * weight.scale.mean()


def test_int4_takes_a_smaller_group_or_int8_where_128_does_not_divide():
    assert quantise_int4(np.ones((4, 576), np.float32)).group == 64
    assert quantise_int4(np.ones((4, 96), np.float32)).group == 32
    assert quantise_int4(np.ones((4, 48), np.float32)).scheme == "int8"


@pytest.mark.parametrize(("scheme", "close"), [("float", 0), ("int8", 0.01), ("int4", 0.2)])
def test_quantising_a_checkpoint_keeps_its_meaning_and_its_other_files(moss_tiny, tmp_path, scheme, close):
    quantise_checkpoint(moss_tiny, tmp_path / "q", scheme)
    before, after = open_checkpoint(moss_tiny), open_checkpoint(tmp_path / "q")
    assert after.quantised == (scheme != "float")
    assert (tmp_path / "q" / "processor_config.json").is_file()
    for name in before.names:
        exact, stored = before.float32(name), after.weight(name)
        if exact.ndim == 2:
            assert stored.scheme in (scheme, "int8")
        else:
            assert stored.scheme == "float"
        assert np.abs(after.float32(name) - exact).max() <= close * np.abs(exact).max()
    if scheme == "int4":
        assert after.weight("language_model.layers.0.self_attn.o_proj.weight").scheme == "int4"
        assert after.weight("lm_head.weight").scheme == "int8"


def test_an_unknown_scheme_lists_the_valid_ones(moss_tiny, tmp_path):
    with pytest.raises(CheckpointError, match=r"int3.*float, int8, int4"):
        quantise_checkpoint(moss_tiny, tmp_path, "int3")


def test_a_quantised_matrix_without_its_scale_is_named(tmp_path):
    tensors = dict(random_tensors(ModelConfig.parse(LLAMA)))
    name = "language_model.layers.0.mlp.up_proj.weight"
    tensors[name] = np.zeros((128, 64), np.int8)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=f"'{name}_scale' is missing"):
        open_checkpoint(tmp_path)
    write(tmp_path / "model.safetensors", tensors | {f"{name}_scale": np.ones((128, 3), np.float32)})
    with pytest.raises(CheckpointError, match=rf"'{name}_scale' is F32 \[128, 3\]; expected F32/F16 \[128, 1\]"):
        open_checkpoint(tmp_path)
    tensors[name] = np.zeros((128, 32), np.uint8)
    write(tmp_path / "model.safetensors", tensors | {f"{name}_scale": np.ones((128, 3), np.float32)})
    with pytest.raises(CheckpointError, match=f"'{name}_scale'"):
        open_checkpoint(tmp_path)


def test_saving_again_replaces_the_weights_and_keeps_the_tokenizer(tmp_path):
    folder = save_random(tmp_path / "model", seed=1)
    (folder / "tokenizer.json").write_text("{}")
    name = "language_model.norm.weight"
    first = open_checkpoint(folder).float32(name).copy()
    save_checkpoint(folder, LLAMA, random_tensors(ModelConfig.parse(LLAMA), seed=2), max_shard_bytes=50_000)
    assert not np.array_equal(open_checkpoint(folder).float32(name), first)
    assert (folder / "tokenizer.json").read_text() == "{}" and not (folder / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model(tmp_path):
    folder = save_random(tmp_path / "model")

    def broken():
        yield from list(random_tensors(ModelConfig.parse(LLAMA), seed=2))[:10]
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="paper"):
        save_checkpoint(folder, LLAMA, broken())
    with pytest.raises(CheckpointError, match="missing"):
        save_checkpoint(folder, LLAMA, list(random_tensors(ModelConfig.parse(LLAMA)))[:10])
    assert open_checkpoint(folder).names and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_round_trip_through_a_file(tmp_path):
    tensors = dict(random_tensors(ModelConfig.parse(LLAMA)))
    name = "language_model.layers.1.mlp.down_proj.weight"
    weights: dict[str, np.ndarray | Weight] = dict(tensors) | {name: quantise_int4(tensors[name], symmetric=True)}
    save_checkpoint(tmp_path / "m", LLAMA, weights.items())
    stored = open_checkpoint(tmp_path / "m").weight(name)
    assert stored.zero is None and stored.group == 128
    np.testing.assert_array_equal(dequantise(stored), dequantise(weights[name]))


def test_find_model(tmp_path, moss_tiny, monkeypatch):
    assert find_model(str(moss_tiny)) == moss_tiny
    with pytest.raises(CheckpointError, match=r"'huge'.*a folder.*a hub id"):
        find_model("huge")
    with pytest.raises(CheckpointError, match="valid"):
        find_model("../owner/name")

    asked = {}

    def download(hub_id, cache_dir, allow_patterns):
        asked.update(hub_id=hub_id, patterns=allow_patterns)
        if hub_id == "nobody/home":
            raise OSError("no route")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=download))
    assert find_model("owner/name-1.5") == tmp_path
    assert asked["hub_id"] == "owner/name-1.5" and not any("bin" in p or "py" in p for p in asked["patterns"])
    with pytest.raises(CheckpointError, match=r"no route.*hf download nobody/home"):
        find_model("nobody/home")


def test_the_embedded_model_is_found_or_its_absence_explained(monkeypatch, tmp_path):
    monkeypatch.setattr("moss_audio.checkpoint.embedded_models", lambda: {"mini": tmp_path})
    assert find_model("mini") == tmp_path
    monkeypatch.setattr("moss_audio.checkpoint.embedded_models", dict)
    with pytest.raises(CheckpointError, match="no embedded model"):
        find_model("mini")
