from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from tiny import LLAMA, save_random

from moss_audio.errors import BackendError
from moss_audio.runtime.backend import N_PIECES, AudioEmbeds
from moss_audio.runtime.openvino.backend import OpenVINOBackend
from moss_audio.runtime.select import load_backend

torch = pytest.importorskip("torch")

QWEN = LLAMA | {
    "audio_config": {
        "d_model": 32, "output_dim": 40, "num_mel_bins": 80, "encoder_layers": 3, "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "downsample_hidden_size": 6, "deepstack_encoder_layer_indexes": [0, 2],
    },
    "language_config": LLAMA["language_config"] | {"model_type": "qwen3", "head_dim": 24},
    "tie_word_embeddings": False,
}  # fmt: skip
AUDIO_ID = 95


@pytest.fixture(scope="module", params=[LLAMA, QWEN], ids=["llama-conv1d-letters", "qwen3-conv2d-out_proj"])
def pair(request, tmp_path_factory):
    """One random model on both runtimes."""
    from moss_audio.runtime.torch_backend import TorchBackend

    folder = save_random(tmp_path_factory.mktemp("pair") / "model", request.param)
    return OpenVINOBackend.load(folder, "float32", threads=1), TorchBackend.load(folder, "float32")


def prompt(audio: AudioEmbeds):
    """Text, all audio frames with a marker in between, text."""
    half = len(audio.embeds) // 2
    heard = [[AUDIO_ID] * half, [7], [AUDIO_ID] * (len(audio.embeds) - half)]
    ids = np.array([1, 2, 3, *heard[0], *heard[1], *heard[2], 4, 5])
    return ids, ids == AUDIO_ID


def clips(*frames):
    rng = np.random.default_rng(len(frames))
    return [rng.standard_normal((80, n)).astype(np.float32) for n in frames]


def close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("frames", [(1,), (101,), (104,), (383,), (400,), (805, 33), (250, 104, 9)])
def test_audio_agrees(pair, frames):
    ours, reference = (backend.encode_audio(clips(*frames)) for backend in pair)
    close(ours.embeds, reference.embeds)
    close(ours.deepstack, reference.deepstack)
    assert len(ours.embeds) == sum(-(-n // 8) for n in frames)
    assert (ours.letter_logprobs is None) == (reference.letter_logprobs is None)
    if ours.letter_logprobs is not None:
        close(ours.letter_logprobs, reference.letter_logprobs)
        assert len(ours.letter_logprobs) == sum(-(-n // 2) for n in frames)
        np.testing.assert_array_equal(ours.piece_ids, reference.piece_ids)
        close(ours.piece_logprobs, reference.piece_logprobs)
        assert ours.piece_ids.shape == (sum(-(-n // 4) for n in frames), N_PIECES) and ours.piece_ids.max() == 7
        np.testing.assert_allclose(np.exp(ours.piece_logprobs).sum(1), 1, atol=1e-4)


def test_prefill_decode_and_rewind_agree(pair):
    audio = pair[0].encode_audio(clips(250, 104))
    ids, mask = prompt(audio)
    (a, ours), (b, reference) = (backend.prefill(ids, mask, audio) for backend in pair)
    close(ours, reference)
    for tokens in ([9], [10, 11, 12], [13], list(range(20, 60))):
        rows = [backend.decode(cache, np.array(tokens)) for backend, cache in zip(pair, (a, b), strict=True)]
        assert rows[0].shape == (len(tokens), 96)
        close(*rows)
        keep = a.length - len(tokens) // 2
        for backend, cache in zip(pair, (a, b), strict=True):
            backend.rewind(cache, keep)
            assert cache.length == keep


def test_deepstack_is_heard(pair):
    audio = pair[0].encode_audio(clips(120))
    ids, mask = prompt(audio)
    silent = AudioEmbeds(audio.embeds, np.zeros_like(audio.deepstack))
    for backend in pair:
        with_taps, without = (backend.prefill(ids, mask, heard)[1] for heard in (audio, silent))
        assert np.abs(with_taps - without).max() > 1e-2 * np.abs(with_taps).max()


def test_a_torch_cache_grows_past_its_first_size(pair):
    ours, reference = pair
    tokens = np.arange(400) % 90
    caches = [backend.prefill(np.array([1, 2]), np.zeros(2, bool), None)[0] for backend in pair]
    close(ours.decode(caches[0], tokens), reference.decode(caches[1], tokens))


def test_the_golden_prompts_agree_on_torch(moss_tiny, golden):
    backend = load_backend(moss_tiny, "torch", precision="float32")
    ids = golden["two.input_ids"]
    audio = backend.encode_audio([golden["two.mel0"], golden["two.mel1"]])
    cache, logits = backend.prefill(ids, ids == 300, audio)
    close(logits[0], golden["two.logits"][-1])
    tokens = []
    for _ in range(24):
        tokens.append(int(logits.argmax()))
        logits = backend.decode(cache, np.array(tokens[-1:]))[0]
    assert tokens == list(golden["two.greedy"])


def test_the_backend_fits_the_device(moss_tiny):
    assert type(load_backend(moss_tiny)).__name__ == "OpenVINOBackend"
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="PyTorch cannot use the device 'cuda'"):
            load_backend(moss_tiny, device="cuda")


def test_bad_choices_and_missing_packages_name_the_fix(moss_tiny, monkeypatch):
    with pytest.raises(BackendError, match=r"'jax'.*openvino, torch"):
        load_backend(moss_tiny, "jax")
    with pytest.raises(BackendError, match=r"int8.*bfloat16"):
        load_backend(moss_tiny, "torch", precision="int8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install 'moss-audio\[gpu\]'"):
        load_backend(moss_tiny, "torch")


def test_a_cache_of_the_other_backend_is_refused(pair):
    ours, reference = pair
    cache, _ = reference.prefill(np.array([1]), np.zeros(1, bool), None)
    with pytest.raises(TypeError, match="KVCache"):
        ours.decode(cache, np.array([1]))
