"""The PyTorch network against the released system's golden arrays, and against itself."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moss_audio.config import LETTERS, AudioConfig, DecoderConfig, ModelConfig  # noqa: E402
from moss_audio.model.audio_lm import AudioLM, cut  # noqa: E402

CASES = ("short", "exact4s", "tail", "two")
AUDIO_ID = 300


def tiny_mini(**audio) -> ModelConfig:
    """A Mini in small: Whisper's stem, letter head, Llama decoder with tied embeddings."""
    encoder = AudioConfig(
        d_model=32, n_layers=3, n_heads=4, ffn_dim=48, n_mels=20, stem="conv1d", chunk_mel_frames=120, taps=(0, 1),
        output_dim=32, letters=LETTERS,
    )  # fmt: skip
    decoder = DecoderConfig(
        family="llama", vocab_size=AUDIO_ID + 3, hidden_size=24, ffn_dim=40, n_layers=3, n_heads=4, n_kv_heads=2,
        head_dim=6, rope_theta=1e5, max_positions=512, tie_embeddings=True,
    )  # fmt: skip
    return ModelConfig(dataclasses.replace(encoder, **audio), decoder, adapter_hidden_size=16)


@pytest.fixture(scope="module")
def released(moss_tiny):
    return AudioLM.load(moss_tiny)


@pytest.fixture(params=["conv1d+llama", "conv2d+qwen3"])
def model(request, moss_tiny):
    torch.manual_seed(0)
    if request.param == "conv1d+llama":
        return AudioLM(tiny_mini()).eval()
    return AudioLM.load(moss_tiny)


def prompt(model: AudioLM, seconds: list[float], seed: int = 0):
    """Random clips of so many seconds and a prompt with their placeholders: mels, `input_ids [1, T]`, mask."""
    rng = torch.Generator().manual_seed(seed)
    n_mels = model.config.audio.n_mels
    mels = [torch.rand(n_mels, round(100 * s), generator=rng) for s in seconds]
    ids = [5, 6]
    for mel in mels:
        ids += [7] + [AUDIO_ID] * -(-mel.shape[1] // 8) + [8]
    ids = torch.tensor([[*ids, 9, 10, 11]])
    return mels, ids, ids == AUDIO_ID


def close(actual, golden: np.ndarray) -> None:
    error = np.abs(actual.numpy() - golden).max() / np.abs(golden).max()
    assert actual.shape == golden.shape and error < 1e-4, f"relative error {error:.2e}"


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_agrees_with_the_released_system(released, golden, case):
    mels = [torch.from_numpy(golden[name]) for name in sorted(golden.files) if name.startswith(f"{case}.mel")]
    out = released.audio_encoder(*cut([mels], 400))
    keep = torch.arange(out.top.shape[1]) < out.lengths[:, None]
    close(out.top[keep], golden[f"{case}.encoder"])
    audio = released.encode_audio([mels])
    close(audio.embeds, golden[f"{case}.adapter"])
    for i, tap in enumerate(out.taps):
        close(tap[keep], golden[f"{case}.tap{i}"])
        close(audio.deepstack[i], golden[f"{case}.merger{i}"])
    ids = torch.from_numpy(golden[f"{case}.input_ids"])[None]
    close(released.decode(ids, ids == AUDIO_ID, audio)[0], golden[f"{case}.logits"])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_greedy_tokens_are_the_released_ones(released, golden, case):
    mels = [torch.from_numpy(golden[name]) for name in sorted(golden.files) if name.startswith(f"{case}.mel")]
    ids = torch.from_numpy(golden[f"{case}.input_ids"])[None]
    cache = released.new_cache(1, 512)
    logits = released.decode(ids, ids == AUDIO_ID, released.encode_audio([mels]), cache, n_logits=1)
    tokens = []
    for _ in golden[f"{case}.greedy"]:
        tokens.append(int(logits[0, -1].argmax()))
        logits = released.decode(torch.tensor([tokens[-1:]]), cache=cache)
    assert tokens == golden[f"{case}.greedy"].tolist()


@torch.no_grad()
def test_cached_decoding_equals_uncached_and_truncation_forgets(model):
    mels, ids, mask = prompt(model, [1.3, 0.4])
    audio = model.encode_audio([mels])
    extra = torch.tensor([[20, 21, 22, 23]])
    whole = torch.cat([ids, extra], 1)
    expected = model.decode(whole, whole == AUDIO_ID, audio)[0, ids.shape[1] :]
    cache = model.new_cache(1, 256)
    model.decode(ids, mask, audio, cache)
    model.decode(torch.tensor([[40, 41]]), cache=cache)
    cache.truncate(ids.shape[1])
    steps = torch.cat([model.decode(extra[:, i : i + 1], cache=cache)[0] for i in range(4)])
    torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-5)
    assert cache.length == whole.shape[1]


@torch.no_grad()
def test_a_row_of_a_ragged_batch_equals_the_row_alone(model):
    rows = [prompt(model, seconds, seed) for seed, seconds in enumerate([[1.3], [0.25, 2.1], [0.6]])]
    longest = max(ids.shape[1] for _, ids, _ in rows)
    batch = torch.zeros(len(rows), longest, dtype=torch.long)
    for b, (_, ids, _) in enumerate(rows):
        batch[b, : ids.shape[1]] = ids
    lengths = torch.tensor([ids.shape[1] for _, ids, _ in rows])
    cache = model.new_cache(len(rows), 256)
    audio = model.encode_audio([mels for mels, _, _ in rows])
    first = model.decode(batch, batch == AUDIO_ID, audio, cache, lengths, n_logits=1)
    second = model.decode(torch.tensor([[30], [31], [32]]), cache=cache)
    for b, (mels, ids, mask) in enumerate(rows):
        alone = model.new_cache(1, 256)
        logits = model.decode(ids, mask, model.encode_audio([mels]), alone, n_logits=1)
        torch.testing.assert_close(first[b], logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            second[b], model.decode(torch.tensor([[30 + b]]), cache=alone)[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_tensor(model, checkpointing):
    model.train()
    mels, ids, mask = prompt(model, [1.3])
    audio = model.encode_audio([mels], checkpointing)
    loss = model.logits(model.hidden(ids, mask, audio, checkpointing=checkpointing)).square().mean()
    if audio.letter_logprobs is not None:
        loss = loss + audio.letter_logprobs.square().mean()
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@torch.no_grad()
def test_deepstack_reaches_audio_positions_of_the_first_layers_only(model):
    mels, ids, mask = prompt(model, [0.5])
    audio = model.encode_audio([mels])
    changed = audio._replace(deepstack=audio.deepstack + 1.0)
    before, after = (model.hidden(ids, mask, a) for a in (audio, changed))
    start = int(mask[0].nonzero()[0])
    torch.testing.assert_close(before[:, :start], after[:, :start])
    assert not torch.allclose(before[:, start:], after[:, start:])


@torch.no_grad()
def test_nothing_crosses_a_chunk():
    torch.manual_seed(0)
    model = AudioLM(tiny_mini()).eval()
    (mel, *_), *_ = prompt(model, [2.4])
    whole = model.encode_audio([[mel]])
    halves = [model.encode_audio([[half]]) for half in mel.split(120, dim=1)]
    torch.testing.assert_close(whole.embeds, torch.cat([half.embeds for half in halves]), rtol=1e-4, atol=1e-5)
