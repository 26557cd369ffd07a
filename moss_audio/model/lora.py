"""Low-rank adaptation (https://arxiv.org/abs/2106.09685): a few small matrices learn what a layer should add.

`adapt` puts them beside the `nn.Linear` layers whose names match a pattern; names of weights stay what they were, so
that checkpoints and states of other stages load as before. `merge` adds them to the weights, and the model is the one
it was. Knows no data and no training: a recipe gives a learning rate to `.*lora_` and none to the rest.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

MIN_SCALE = 0.25
"""Least `alpha / rank`. What is learnt is multiplied by it: rank 64 with alpha 2, a scale of 0.03, made released models
worse, since the matrices must grow thirtyfold before the output notices."""

PARTS = ("lora_a", "lora_b")


class LoRALinear(nn.Linear):
    """`weight x + bias + scale · b (a x)`: a linear layer that keeps its own weights, with `a [R, in]`, `b [out, R]`.

    `b` begins at zero, so that nothing changes before the first step; `a` is drawn from `seed`, alike in all processes.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, seed: int = 0) -> None:
        check(rank, alpha)
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha = rank, alpha
        draw = torch.randn(rank, base.in_features, generator=torch.Generator().manual_seed(seed))
        self.lora_a = nn.Parameter((draw * base.in_features**-0.5).to(base.weight))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        learnt = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return super().forward(x) + self.alpha / self.rank * learnt

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that computes the same. The sum is taken in float64 and rounded once."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        learnt = self.lora_b.double() @ self.lora_a.double()
        weight = self.weight.double() + self.alpha / self.rank * learnt
        plain.weight, plain.bias = nn.Parameter(weight.to(self.weight.dtype)), self.bias
        return plain


def check(rank: int, alpha: float) -> None:
    """Raise `ValueError` for a rank or an alpha that cannot work."""
    if rank < 1:
        raise ValueError(f"LoRA of rank {rank}; valid: 1 and more, usually 8 to 64")
    if alpha / rank < MIN_SCALE:
        raise ValueError(
            f"LoRA with alpha {alpha:g} and rank {rank} multiplies what is learnt by {alpha / rank:.3g}, which makes "
            f"models worse; valid: alpha of {MIN_SCALE * rank:g} and more. Leave alpha out to get {rank}"
        )


def adapt(model: nn.Module, pattern: str, rank: int = 16, alpha: float | None = None) -> list[str]:
    """Adapt the linear layers whose names match `pattern` from their beginning; their names, in order.

    `alpha` is `rank` unless given. Only the new matrices are left trainable. Raises `ValueError` where no layer
    matches, or one is adapted already.
    """
    alpha = float(rank if alpha is None else alpha)
    check(rank, alpha)
    linear = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    chosen = [(name, layer) for name, layer in linear if re.match(pattern, name)]
    if not chosen:
        some = [name for name, _ in linear[:: max(1, len(linear) // 4)]]
        raise ValueError(f"no linear layer's name begins with {pattern!r}; there are, for example, {some}")
    if twice := [name for name, layer in chosen if isinstance(layer, LoRALinear)]:
        raise ValueError(f"adapted already: {twice[:3]}; merge first")
    model.requires_grad_(False)
    for name, layer in chosen:
        _replace(model, name, LoRALinear(layer, rank, alpha, seed=zlib.crc32(name.encode())))
    for _, layer in adapted(model):
        layer.lora_a.requires_grad_(True)
        layer.lora_b.requires_grad_(True)
    return [name for name, _ in chosen]


def adapted(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The adapted layers by name."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoRALinear))


def merge(model: nn.Module) -> list[str]:
    """Make the adapted layers plain ones that compute the same; their names."""
    layers = list(adapted(model))
    for name, layer in layers:
        _replace(model, name, layer.merged())
    return [name for name, _ in layers]


def save_adapter(model: nn.Module, path: Path) -> None:
    """Write the small matrices alone, with rank and alpha of each layer."""
    layers = dict(adapted(model))
    tensors = {f"{name}.{part}": getattr(layer, part).detach() for name, layer in layers.items() for part in PARTS}
    sizes = {name: f"{layer.rank} {layer.alpha}" for name, layer in layers.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, sizes)


def load_adapter(model: nn.Module, path: Path) -> list[str]:
    """Adapt `model` as `save_adapter` found it. Raises `ValueError` for layers that it has not, or of other sizes."""
    with safe_open(path, framework="pt") as file:
        for name, size in sorted((file.metadata() or {}).items()):
            rank, alpha = size.split()
            adapt(model, f"{re.escape(name)}$", int(rank), float(alpha))
            layer = model.get_submodule(name)
            for part in PARTS:
                tensor, parameter = file.get_tensor(f"{name}.{part}"), getattr(layer, part)
                if tensor.shape != parameter.shape:
                    sizes = f"{list(tensor.shape)}, not {list(parameter.shape)}"
                    raise ValueError(f"{path}: {name}.{part} is {sizes}: it was made for another model")
                parameter.data.copy_(tensor)
    return [name for name, _ in adapted(model)]


def save_merged(model: nn.Module, path: Path) -> None:
    """Write the weights that the adapted layers have when merged, as a stage's state that `training.export` reads."""
    save_file({f"{name}.weight": layer.merged().weight.detach() for name, layer in adapted(model)}, path)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
