from __future__ import annotations

import gc
from collections import Counter

import numpy as np
import openvino as ov
import pytest
from tiny import LLAMA, save_random

from moss_audio.checkpoint import open_checkpoint, quantise_checkpoint
from moss_audio.errors import BackendError, PromptError
from moss_audio.runtime.openvino import backend as module
from moss_audio.runtime.openvino.backend import OpenVINOBackend
from moss_audio.runtime.openvino.encoder import batches, build_encoder
from moss_audio.runtime.openvino.nodes import Weights

CASES = ("short", "exact4s", "tail", "two")
AUDIO_ID = 300


def relative(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def mels_of(golden, case):
    return [golden[key] for key in sorted(golden.files) if key.startswith(f"{case}.mel")]


def layers(compiled: ov.CompiledModel) -> Counter[str]:
    return Counter(node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops())


@pytest.fixture(scope="module")
def exact(moss_tiny):
    return OpenVINOBackend.load(moss_tiny, "float32", threads=1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = save_random(tmp_path_factory.mktemp("llama") / "model")
    return OpenVINOBackend.load(folder, "float32", threads=1)


def read(backend, golden, case):
    """Prefill a golden prompt."""
    ids = golden[f"{case}.input_ids"]
    return backend.prefill(ids, ids == AUDIO_ID, backend.encode_audio(mels_of(golden, case)))


def greedy(backend, cache, logits, n):
    tokens = []
    for _ in range(n):
        tokens.append(int(logits.argmax()))
        logits = backend.decode(cache, np.array(tokens[-1:]))[0]
    return tokens


@pytest.mark.parametrize("case", CASES)
def test_encoder_equals_the_reference_at_every_stage(moss_tiny, golden, case):
    weights = Weights(open_checkpoint(moss_tiny), "float")
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    encoder = ov.Core().compile_model(build_encoder(weights, probes=True), "CPU", properties)
    (inputs,) = batches(weights.config.audio, mels_of(golden, case))
    outputs = encoder(inputs)
    stages = {"encoder": outputs["top"], "adapter": outputs["hidden"][0]}
    for i in range(3):
        stages |= {f"tap{i}": outputs[f"tap{i}"], f"merger{i}": outputs["hidden"][1 + i]}
    for name, found in stages.items():
        assert relative(found, golden[f"{case}.{name}"]) < 1e-4, name


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_the_reference(exact, golden, case):
    ids, wanted = golden[f"{case}.input_ids"], golden[f"{case}.logits"]
    audio = exact.encode_audio(mels_of(golden, case))
    cache, last = exact.prefill(ids, ids == AUDIO_ID, audio)
    assert last.shape == (1, 320) and last.dtype == np.float32 and cache.length == len(ids)
    assert relative(last, wanted[-1:]) < 1e-4
    assert greedy(exact, cache, last, 24) == list(golden[f"{case}.greedy"])


def test_every_position_equals_the_reference(exact, golden):
    ids, wanted = golden["short.input_ids"], golden["short.logits"]
    first_text = int(np.flatnonzero(ids == AUDIO_ID)[-1]) + 1
    audio = exact.encode_audio(mels_of(golden, "short"))
    cache, last = exact.prefill(ids[:first_text], ids[:first_text] == AUDIO_ID, audio)
    rest = exact.decode(cache, ids[first_text:])
    assert rest.shape == (len(ids) - first_text, 320)
    assert relative(np.vstack([last, rest]), wanted[first_text - 1 :]) < 1e-4


def test_chunks_in_small_batches_equal_all_at_once(exact, golden, monkeypatch):
    whole = exact.encode_audio(mels_of(golden, "tail"))
    monkeypatch.setattr("moss_audio.runtime.openvino.encoder.BATCH_MEL_FRAMES", 800)
    parts = exact.encode_audio(mels_of(golden, "tail"))
    assert relative(parts.embeds, whole.embeds) < 1e-5
    assert relative(parts.deepstack, whole.deepstack) < 1e-5


def test_a_prompt_read_in_pieces_equals_the_whole(exact, golden, monkeypatch):
    monkeypatch.setattr(module, "PREFILL_TOKENS", 7)
    cache, last = read(exact, golden, "two")
    assert relative(last[0], golden["two.logits"][-1]) < 1e-4
    assert greedy(exact, cache, last, 8) == list(golden["two.greedy"][:8])


@pytest.mark.parametrize("piece", [5, 7, 512])
def test_the_last_logits_of_a_prompt_however_it_is_read(exact, golden, monkeypatch, piece):
    monkeypatch.setattr(module, "PREFILL_TOKENS", piece)
    ids = golden["two.input_ids"]
    _, rows = exact.prefill(ids, ids == AUDIO_ID, exact.encode_audio(mels_of(golden, "two")), n_logits=6)
    assert relative(rows, golden["two.logits"][-6:]) < 1e-4


def test_rejected_drafts_leave_no_trace(exact, golden):
    cache, logits = read(exact, golden, "tail")
    tokens, n_prompt = [], cache.length
    for step in range(24):
        tokens.append(int(logits.argmax()))
        draft = [tokens[-1], *(7 * step + 11 * i for i in range(step % 4))]
        logits = exact.decode(cache, np.array(draft))[0]
        exact.rewind(cache, n_prompt + len(tokens))
        assert cache.length == n_prompt + len(tokens)
    assert tokens == list(golden["tail.greedy"])
    assert relative(logits, read_all(exact, golden, tokens)) < 1e-5


def read_all(backend, golden, tokens):
    cache, _ = read(backend, golden, "tail")
    return backend.decode(cache, np.array(tokens))[-1]


def test_rewinding_into_the_prompt(exact, golden):
    cache, _ = read(exact, golden, "short")
    exact.decode(cache, np.array([5, 6, 7]))
    exact.rewind(cache, 25)
    again = exact.decode(cache, golden["short.input_ids"][25:])
    assert relative(again, golden["short.logits"][25:]) < 1e-4


def test_interleaved_conversations_do_not_hear_each_other(exact, golden):
    states = {case: [*read(exact, golden, case)] for case in CASES}
    answers: dict[str, list[int]] = {case: [] for case in CASES}
    for _ in range(8):
        for case, (cache, logits) in states.items():
            answers[case].append(int(logits.argmax()))
            states[case][1] = exact.decode(cache, np.array(answers[case][-1:]))[0]
    assert answers == {case: list(golden[f"{case}.greedy"][:8]) for case in CASES}


def test_a_released_conversation_is_reused_clean(exact, golden):
    cache, _ = read(exact, golden, "tail")
    request = cache.request
    del cache
    gc.collect()
    again, last = read(exact, golden, "short")
    assert again.request is request
    assert relative(last, golden["short.logits"][-1]) < 1e-4


def test_text_alone_and_wrong_audio(exact):
    ids = np.array([1, 2, 3])
    _, logits = exact.prefill(ids, np.zeros(3, bool), None)
    assert np.isfinite(logits).all()
    with pytest.raises(PromptError, match="1 audio placeholders for 0 audio frames"):
        exact.prefill(ids, np.array([False, True, False]), None)
    with pytest.raises(PromptError, match="at least one mel frame"):
        exact.encode_audio([np.zeros((128, 0), np.float32)])


def test_attention_rope_and_norms_fuse(exact, llama):
    for backend, norms in ((exact, 4), (llama, 2)):
        n, counts = backend.config.decoder.n_layers, layers(backend.decoder)
        assert counts["ScaledDotProductAttention"] == n
        assert counts["RoPE"] == 2 * n
        assert counts["RMS"] == norms * n + 1
        assert counts["FullyConnected"] == 7 * n + 1
        assert counts["MemoryInput"] == counts["MemoryOutput"] == 2 * n
        assert not counts["MatMul"] and not counts["Softmax"]
        assert counts["Concatenation"] <= 1 and counts["Transpose"] <= n and counts["Broadcast"] <= 1
        assert not layers(backend.encoder)["Softmax"] and not layers(backend.encoder)["MatMul"]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_weights_stay_compressed(tmp_path, precision):
    folder = save_random(tmp_path / "model")
    backend = OpenVINOBackend.load(folder, precision, threads=1)
    types: Counter[str] = Counter()
    for node in backend.decoder.get_runtime_model().get_ops():
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected":
            types[node.input(1).get_source_output().get_element_type().to_string()] += 1
    n_layers = backend.config.decoder.n_layers
    assert types == ({"i8": 7 * n_layers + 1} if precision == "int8" else {"u4": 7 * n_layers, "i8": 1})


@pytest.mark.parametrize(("precision", "close"), [("int8", 0.05), ("int4", 0.3)])
def test_quantised_models_stay_close(moss_tiny, golden, tmp_path, precision, close):
    """The same whether quantised when loaded or before; random weights exaggerate the distance."""
    quantise_checkpoint(moss_tiny, tmp_path / "q", precision)
    now = OpenVINOBackend.load(moss_tiny, precision, threads=1)
    before = OpenVINOBackend.load(tmp_path / "q", threads=1)
    for case in ("short", "two"):
        _, logits = read(now, golden, case)
        assert relative(logits, golden[f"{case}.logits"][-1]) < close
        np.testing.assert_array_equal(logits, read(before, golden, case)[1])


def test_a_quantised_checkpoint_runs_in_float_too(moss_tiny, golden, tmp_path, exact):
    quantise_checkpoint(moss_tiny, tmp_path / "q", "int8")
    backend = OpenVINOBackend.load(tmp_path / "q", "float32", threads=1)
    assert relative(read(backend, golden, "short")[1], golden["short.logits"][-1]) < 0.05


def test_constants_outlive_what_they_were_made_of(tmp_path):
    folder, ids, mask = save_random(tmp_path / "model"), np.arange(20), np.zeros(20, bool)
    _, wanted = OpenVINOBackend.load(folder, "int4", threads=1).prefill(ids, mask, None)
    backend = OpenVINOBackend.load(folder, "int4", threads=1)
    gc.collect()
    _ = [np.full((64, width), 255, np.uint8) for width in (32, 64, 128) for _ in range(200)]
    np.testing.assert_array_equal(backend.prefill(ids, mask, None)[1], wanted)


def test_letters_cover_every_encoder_frame(llama):
    mels = [np.random.default_rng(i).standard_normal((80, n)).astype(np.float32) for i, n in enumerate((250, 33))]
    audio = llama.encode_audio(mels)
    assert audio.letter_logprobs.shape == (125 + 17, 6)
    np.testing.assert_allclose(np.exp(audio.letter_logprobs).sum(1), 1, rtol=1e-5)
    assert audio.embeds.shape == (32 + 5, 64) and audio.deepstack.shape == (2, 37, 64)


def test_bad_choices_list_the_good_ones(moss_tiny):
    with pytest.raises(BackendError, match=r"float64.*auto, float32, int8, int4"):
        OpenVINOBackend.load(moss_tiny, "float64")
    with pytest.raises(BackendError, match=r"TPU.*CPU"):
        OpenVINOBackend.load(moss_tiny, device="TPU")
    with pytest.raises(BackendError, match=r"int1.*float32, bfloat16"):
        OpenVINOBackend.load(moss_tiny, activations="int1")


def test_untied_llama_and_a_wider_output(tmp_path):
    raw = LLAMA | {"tie_word_embeddings": False, "audio_config": LLAMA["audio_config"] | {"output_dim": 40}}
    backend = OpenVINOBackend.load(save_random(tmp_path / "model", raw), threads=1)
    assert backend.encode_audio([np.zeros((80, 17), np.float32)]).embeds.shape == (3, 64)
