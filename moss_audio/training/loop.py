"""The loop that every stage shares: optimiser, schedule, log, and state that survives a stop at any step."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moss_audio.training.precision import autocast
from moss_audio.training.processes import placed, processes, whole


@dataclass(frozen=True)
class Plan:
    """How long and how fast: `lr` maps patterns of parameter names to peak rates; the first match counts.

    `decay` does the same with weight decay; names that match none have `weight_decay`.
    """

    steps: int
    warmup: int
    lr: Mapping[str, float]
    dev_every: int
    seed: int = 0
    weight_decay: float = 0.01
    log_every: int = 20
    decay: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Plan:
        """The plan in a recipe file."""
        decay = {key: recipe[key] for key in ("weight_decay", "decay") if key in recipe}
        return cls(recipe["steps"], recipe["warmup"], recipe["lr"], recipe["dev_every"], recipe["seed"], **decay)

    def rate(self, name: str) -> float:
        """The peak learning rate of a parameter."""
        return _first(self.lr, name, 0.0)

    def decay_of(self, name: str) -> float:
        """The weight decay of a parameter."""
        return _first(self.decay, name, self.weight_decay)

    def scale(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))))


def _first(values: Mapping[str, float], name: str, otherwise: float) -> float:
    """The value of the first pattern that `name` matches."""
    return next((value for pattern, value in values.items() if re.match(pattern, name)), otherwise)


def fit(
    model: nn.Module,
    plan: Plan,
    loss_of: Callable[[np.random.Generator], tuple[Tensor, int]],
    dev: Callable[[], dict[str, Any]],
    state: Path,
    resume: bool = False,
) -> None:
    """Train `model` in place. `loss_of(rng)` draws a batch and returns its loss and how many items it held.

    Every `dev_every` steps the trainable weights and the optimiser's moments go to `state` (safetensors) and a line
    with `dev()` to `state.jsonl`. With `resume` a run goes on from its last state. Of several processes (`processes`)
    each draws its own batches, gradients are averaged, and the first one measures, logs and saves; where layers are
    sharded, all measure, since none has them alone.
    """
    trainable = _trainable(model, plan)
    kinds: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        kind = plan.rate(name), plan.decay_of(name), isinstance(parameter, DTensor)
        kinds.setdefault(kind, []).append(parameter)
    groups = [{"params": kinds[kind], "peak": kind[0], "weight_decay": kind[1]} for kind in sorted(kinds)]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    run, parameters = processes(), list(trainable.values())
    step = _load(state, trainable, optimiser) if resume and state.exists() else 0
    rng = np.random.default_rng([plan.seed, step, run.rank])  # a zero at the end changes nothing: alone as it was
    losses: list[float] = []
    items, began = 0, time.monotonic()
    while step < plan.steps:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * plan.scale(step)
        with autocast(parameters[0].device):
            loss, count = loss_of(rng)
        loss.backward()  # type: ignore[no-untyped-call]
        mean_loss, count = run.average(parameters, loss.detach(), count)
        norm = clip(parameters, 1.0)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient at step {step} is {norm}; lower the learning rates")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(mean_loss)
        items, step = items + count, step + 1
        pause = step % plan.dev_every == 0 or step == plan.steps
        if step % plan.log_every == 0 or pause:
            line: dict[str, Any] = {"step": step, "loss": round(float(np.mean(losses)), 4)}
            line["items_per_second"] = round(items / (time.monotonic() - began), 2)
            if pause:
                tensors = _tensors(trainable, optimiser)
                if run.rank == 0:
                    _save(state, tensors, step)
                if run.rank == 0 or run.sharded:
                    line |= dev()
            if run.rank == 0:
                _log(state, line)
            losses, items, began = [], 0, time.monotonic()
    run.wait()


def _trainable(model: nn.Module, plan: Plan) -> dict[str, nn.Parameter]:
    """The parameters that have a learning rate; the others are frozen."""
    trainable = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = plan.rate(name) > 0
        if parameter.requires_grad:
            trainable[name] = parameter
    if not trainable:
        raise ValueError(f"no parameter's name begins with one of {list(plan.lr)}; correct `lr` in the recipe")
    return trainable


def _log(state: Path, line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)
    with state.with_suffix(".jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Fuse the small operations of each layer (a quarter to a third of a step on a CPU); takes half a minute once."""
    torch._dynamo.config.cache_size_limit = 64  # lengths differ from batch to batch; graphs for any length serve all
    for layer in layers:
        layer.compile(dynamic=True)


def clip(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Shrink the gradients to a norm of at most `most`; returns the norm that they had."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    kinds = ([g for g in gradients if isinstance(g, DTensor) == sharded] for sharded in (False, True))
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if norm > most:
        for gradient in gradients:
            gradient.mul_(most / (norm + 1e-6))
    return norm


def _tensors(trainable: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments by name; all processes must ask together."""
    tensors = {}
    for name, parameter in trainable.items():
        tensors[name] = whole(parameter.detach())
        if moments := optimiser.state.get(parameter):  # none yet where no gradient has come
            tensors["m/" + name], tensors["v/" + name] = whole(moments["exp_avg"]), whole(moments["exp_avg_sq"])
    return tensors


def _save(state: Path, tensors: Mapping[str, Tensor], step: int) -> None:
    scratch = state.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, {"step": str(step)})
    scratch.replace(state)


def _load(state: Path, trainable: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
    with safe_open(state, framework="pt") as file:
        step, known = int(file.metadata()["step"]), set(file.keys())
        for name, parameter in trainable.items():
            parameter.data.copy_(placed(file.get_tensor(name), parameter))
            if "m/" + name not in known:
                continue
            optimiser.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": placed(file.get_tensor("m/" + name), parameter),
                "exp_avg_sq": placed(file.get_tensor("v/" + name), parameter),
            }
    return step


def save_weights(module: nn.Module, prefix: str, file: Path) -> None:
    """Put all weights of `module` into `file`, under their names in the model that has it as `prefix`."""
    if processes().rank == 0:
        weights = module.state_dict(prefix=f"{prefix}.")
        save_file({name: weight.contiguous() for name, weight in weights.items()}, file)


def load_weights(state: Path, model: nn.Module) -> None:
    """Put the trained weights of a stage's `state` into `model`."""
    with safe_open(state, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name[:2] not in ("m/", "v/")}  # noqa: SIM118
    unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"{state} holds tensors that the model has not: {unexpected[:5]}")
