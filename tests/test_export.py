"""From stages of training to a model folder, and from Kokoro's quantised graph to a float one."""

import json
import math
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from tiny import LLAMA, random_tensors  # noqa: E402

from moss_audio.checkpoint import INDEX, open_checkpoint, save_checkpoint  # noqa: E402
from moss_audio.config import ModelConfig  # noqa: E402
from moss_audio.training import export  # noqa: E402
from moss_audio.weights import recode  # noqa: E402

ADAPTER, HEAD = "audio_adapter.down_proj.weight", "letter_head.fc2.weight"


def stored(folder):
    """Every array of a checkpoint as it lies on disk."""
    parts = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            parts |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return parts


@pytest.fixture
def base(tmp_path):
    """An int8 model in several files, with a card."""
    config = ModelConfig.parse(LLAMA)
    tensors = [(name, export.Weight(array)) for name, array in random_tensors(config)]
    int8 = [(name, recode(weight, "int8") if len(weight.shape) == 2 else weight) for name, weight in tensors]
    save_checkpoint(tmp_path / "base", LLAMA, int8, max_shard_bytes=40_000)
    (tmp_path / "base/README.md").write_text("A card.\n")
    return tmp_path / "base"


@pytest.fixture
def states(tmp_path):
    """What the letters stage and another leave behind: weights by name, and an optimiser's moments."""
    rng = np.random.default_rng(1)
    head = rng.normal(size=(6, 32)).astype(np.float32)
    adapter = rng.normal(size=(64, 48)).astype(np.float32)
    save_file({HEAD: head, f"m/{HEAD}": head}, tmp_path / "letters.safetensors")
    save_file({ADAPTER: adapter, f"m/{ADAPTER}": adapter, f"v/{ADAPTER}": adapter}, tmp_path / "mix.safetensors")
    return tmp_path / "letters.safetensors", tmp_path / "mix.safetensors"


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["export", *map(str, args)])
    export.main()


def test_what_no_stage_trained_is_passed_on_byte_for_byte(base, states, tmp_path, monkeypatch):
    run(monkeypatch, base, *states, tmp_path / "out")
    before, after = stored(base), stored(tmp_path / "out")
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {f"{name}{part}" for name in (ADAPTER, f"audio_encoder.{HEAD}") for part in ("", "_scale")}
    assert before.keys() == after.keys()
    with safe_open(states[1], framework="numpy") as file:
        trained = file.get_tensor(ADAPTER)
    np.testing.assert_allclose(open_checkpoint(tmp_path / "out").float32(ADAPTER), trained, atol=0.02)
    assert (tmp_path / "out/README.md").read_text() == "A card.\n"


def test_part_of_the_way_to_what_was_trained(base, states, tmp_path, monkeypatch):
    for share in (0.0, 0.5, 1.0):
        run(monkeypatch, base, states[1], tmp_path / str(share), "--share", share)
    start, middle, end = (open_checkpoint(tmp_path / str(share)).float32(ADAPTER) for share in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(start, open_checkpoint(base).float32(ADAPTER), atol=0.02)
    np.testing.assert_allclose(middle, (start + end) / 2, atol=0.04)
    with pytest.raises(SystemExit):
        run(monkeypatch, base, states[1], tmp_path / "out", "--share", 1.5)


def test_tensors_stay_in_their_files(base, states, tmp_path, monkeypatch):
    run(monkeypatch, base, states[1], tmp_path / "out")
    places, kept = (json.loads((folder / INDEX).read_text())["weight_map"] for folder in (base, tmp_path / "out"))
    assert places == kept and len(set(places.values())) > 3
    changed = [f for f in set(places.values()) if (base / f).read_bytes() != (tmp_path / "out" / f).read_bytes()]
    assert changed == [places[ADAPTER]]


def test_the_pattern_names_what_is_stored_in_four_bits(base, states, tmp_path, monkeypatch):
    run(monkeypatch, base, *states, tmp_path / "out", "--int4", r"language_model\.layers\.[12]\.mlp")
    checkpoint = open_checkpoint(tmp_path / "out")
    four = {name for name in checkpoint.names if checkpoint.weight(name).scheme == "int4"}
    assert four == {
        f"language_model.layers.{i}.mlp.{part}_proj.weight" for i in (1, 2) for part in ("gate", "up", "down")
    }


def test_later_stages_win_and_strangers_are_named(base, states, tmp_path):
    later = tmp_path / "later.safetensors"
    save_file({ADAPTER: np.zeros((64, 48), np.float32), "stranger": np.zeros(1, np.float32)}, later)
    trained = export.trained_tensors([*states, later])
    assert not trained[ADAPTER].any() and f"audio_encoder.{HEAD}" in trained
    with pytest.raises(ValueError, match="stranger"):
        list(export.exported(base, trained, "int8", None))


# -- Kokoro --------------------------------------------------------------------------------------------------------


def kokoro_like():
    """A quantised product with a bias and a sine inside a Snake block, in the operators of the published graph."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.integers(0, 256, (8, 4)).astype(np.uint8), "zero": np.array(128, np.uint8),
        "scale": np.array(0.01, np.float32), "bias": rng.integers(-500, 500, 4).astype(np.int32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "q_scale", "q_zero"], "quantise"),
        helper.make_node("MatMulInteger", ["q", "weight", "q_zero", "zero"], ["product"], "product"),
        helper.make_node("Add", ["product", "bias"], ["biased"], "bias"),
        helper.make_node("Cast", ["biased"], ["real"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["q_scale", "scale"], ["both"], "scales"),
        helper.make_node("Mul", ["real", "both"], ["scaled"], "scaled"),
        helper.make_node("Sin", ["scaled"], ["sine"], "resblocks/Sin"),
        helper.make_node("Mul", ["sine", "sine"], ["y"], "square"),
    ]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", n]) for name, n in (("x", 8), ("y", 4))]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "kokoro", shapes[:1], shapes[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), constants


def test_kokoro_in_floating_point():
    pytest.importorskip("onnx")
    from onnx.checker import check_model
    from onnx.reference import ReferenceEvaluator

    from moss_audio.data.kokoro import ACTIVATION_SCALE, to_float

    model, constants = kokoro_like()
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    rewritten = to_float(model)
    check_model(rewritten)
    operators = [node.op_type for node in rewritten.graph.node]
    assert "MatMul" in operators and not {"MatMulInteger", "DynamicQuantizeLinear", "Sin"} & set(operators)
    (y,) = ReferenceEvaluator(rewritten).run(None, {"x": x})
    weight = (constants["weight"].astype(np.float32) - 128) * constants["scale"]
    # A bias is an integer in units of both scales; the activation's own is a constant now.
    expected = np.sin(x @ weight + constants["bias"] * ACTIVATION_SCALE * constants["scale"]) ** 2
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_the_polynomial_is_a_sine_up_to_its_sign():
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    from moss_audio.data.kokoro import to_float

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    node = helper.make_node("Sin", ["x"], ["y"], "decoder/noise_res/Sin")
    model = helper.make_model(
        helper.make_graph([node], "sine", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    x = np.linspace(-12 * math.pi, 12 * math.pi, 4001, dtype=np.float32)
    (y,) = ReferenceEvaluator(to_float(model)).run(None, {"x": x})
    np.testing.assert_allclose(y**2, np.sin(x) ** 2, atol=2e-5)
