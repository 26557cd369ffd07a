"""LoRA: nothing changes before the first step, only the small matrices learn, and merged is the same as adapted."""

import sys
from copy import deepcopy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny import LLAMA, save_random  # noqa: E402
from torch import nn  # noqa: E402

from moss_audio.checkpoint import open_checkpoint  # noqa: E402
from moss_audio.model.audio_lm import AudioLM  # noqa: E402
from moss_audio.model.lora import (  # noqa: E402
    LoRALinear,
    adapt,
    adapted,
    load_adapter,
    merge,
    save_adapter,
)
from moss_audio.training import adapting, export  # noqa: E402
from moss_audio.training.loop import Plan, fit, load_weights  # noqa: E402

PATTERN = r"language_model\.layers\.\d+\.(self_attn\.[qv]_proj|mlp)"


@pytest.fixture
def folder(tmp_path):
    return save_random(tmp_path / "base")


@pytest.fixture
def model(folder):
    return AudioLM.load(folder)


IDS = torch.arange(1, 21).reshape(2, 10)


def logits(model, checkpointing=False):
    mels = [[torch.linspace(-1, 1, 80 * 60).reshape(80, 60)], [torch.linspace(1, -1, 80 * 60).reshape(80, 60)]]
    audio = model.encode_audio(mels, checkpointing)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, : len(audio.embeds) // 2] = True
    return model.logits(model.hidden(IDS, mask, audio, checkpointing=checkpointing))


def stir(model, scale=0.3):
    for _, layer in adapted(model):
        layer.lora_b.data.normal_(generator=torch.Generator().manual_seed(1)).mul_(scale)


def test_nothing_changes_before_the_first_step(model):
    before, names = logits(model), set(model.state_dict())
    chosen = adapt(model, PATTERN, rank=4)
    assert len(chosen) == 3 * 5 and chosen[0] == "language_model.layers.0.self_attn.q_proj"
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    assert set(model.state_dict()) - names == {f"{name}.lora_{part}" for name in chosen for part in "ab"}


def test_merged_is_the_same_as_adapted_and_plain(model):
    reference, names = logits(model), list(model.state_dict())
    adapt(model, PATTERN, rank=4, alpha=8)
    stir(model)
    learnt = logits(model)
    assert (learnt - reference).abs().max() > 0.1
    merge(model)
    torch.testing.assert_close(logits(model), learnt, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == names and not list(adapted(model))
    assert type(model.language_model.layers[0].mlp.up_proj) is nn.Linear


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_small_matrices_learn(model, checkpointing):
    adapt(model, PATTERN, rank=4)
    stir(model)
    logits(model, checkpointing).square().mean().backward()
    for name, parameter in model.named_parameters():
        small = "lora_" in name
        assert parameter.requires_grad is small and (parameter.grad is not None) is small, name
        assert not small or parameter.grad.abs().max() > 0


def test_checkpointing_gives_the_same_gradients(model):
    adapt(model, PATTERN, rank=4)
    stir(model)
    other = deepcopy(model)
    for network, checkpointing in ((model, False), (other, True)):
        logits(network, checkpointing).square().mean().backward()
    for (_, one), (_, two) in zip(adapted(model), adapted(other), strict=True):
        torch.testing.assert_close(one.lora_a.grad, two.lora_a.grad)


def test_alpha_far_below_the_rank_is_refused(model):
    with pytest.raises(ValueError, match=r"alpha 2 and rank 64 .* by 0\.0312.*alpha of 16 and more"):
        adapt(model, PATTERN, rank=64, alpha=2)
    with pytest.raises(ValueError, match="rank 0"):
        adapt(model, PATTERN, rank=0)
    adapt(model, PATTERN, rank=8)
    assert all(layer.alpha == layer.rank == 8 for _, layer in adapted(model))


def test_patterns_that_match_nothing_or_twice_are_refused(model):
    with pytest.raises(ValueError, match=r"begins with 'decoder'; there are, for example, \['audio_encoder"):
        adapt(model, "decoder")
    adapt(model, PATTERN)
    with pytest.raises(ValueError, match="adapted already: .*merge first"):
        adapt(model, PATTERN)


def test_a_layer_keeps_its_bias_and_its_type():
    base = nn.Linear(6, 3).to(torch.float64)
    layer = LoRALinear(base, 2, 4.0)
    layer.lora_b.data.normal_()
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = base(x) + 2 * x @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)
    assert layer.lora_a.dtype == torch.float64 and layer.merged().bias is base.bias


def test_an_adapter_is_kept_in_a_file_of_its_own(model, folder, tmp_path):
    adapt(model, PATTERN, rank=4, alpha=6)
    stir(model)
    save_adapter(model, tmp_path / "lora.safetensors")
    other = AudioLM.load(folder)
    assert load_adapter(other, tmp_path / "lora.safetensors") == [name for name, _ in adapted(model)]
    torch.testing.assert_close(logits(other), logits(model), rtol=0, atol=0)
    assert all(p.requires_grad is ("lora_" in name) for name, p in other.named_parameters())
    wide = deepcopy(LLAMA)
    wide["language_config"]["intermediate_size"] = 96
    with pytest.raises(ValueError, match=r"down_proj\.lora_a is \[4, 128\], not \[4, 96\]: it was made for another"):
        load_adapter(AudioLM.load(save_random(tmp_path / "wide", wide)), tmp_path / "lora.safetensors")


def test_a_recipe_trains_it_and_export_takes_the_merged_weights(model, folder, tmp_path, monkeypatch):
    adapting.begin(model, {"lora": {"pattern": PATTERN, "rank": 4}})
    plan = Plan(steps=4, warmup=1, lr={".*lora_": 1e-2}, dev_every=2)
    first = logits(model).detach()
    fit(model, plan, lambda rng: (logits(model).square().mean(), 2), dict, tmp_path / "tuned.safetensors")
    assert (logits(model) - first).abs().max() > 1e-3
    again = AudioLM.load(folder)
    adapt(again, PATTERN, rank=4)
    load_weights(tmp_path / "tuned.safetensors", again)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)

    merged, out = adapting.end(model, tmp_path / "tuned.safetensors"), tmp_path / "out"
    assert merged == tmp_path / "tuned_merged.safetensors"
    monkeypatch.setattr(sys, "argv", ["export", *map(str, (folder, merged, out))])
    export.main()
    name = "language_model.layers.1.mlp.up_proj.weight"
    merge(model)
    np.testing.assert_allclose(open_checkpoint(out).float32(name), model.state_dict()[name].numpy(), atol=0.02)
    untouched = "language_model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_allclose(open_checkpoint(out).float32(untouched), model.state_dict()[untouched], atol=0.02)
