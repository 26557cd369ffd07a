"""One process or several: who logs and saves, and how their gradients become one.

Several are started by `accelerate launch` or `torchrun`; each draws its own batches. Each holds the whole model or,
with `accelerate launch --use_fsdp`, its part of every layer (FSDP2). A single process needs no `accelerate`. Knows
nothing of models, losses and data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

PATIENCE = timedelta(hours=6)
"""Processes wait for the first one while it measures and saves."""


@dataclass(frozen=True)
class Processes:
    """This process, number `rank` of `count`, the device it trains on, and whether layers are `sharded` over all."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    sharded: bool = False

    def shard(self, layers: Iterable[nn.Module]) -> None:
        """If layers are to be sharded, leave this process its part of their weights, gradients and moments.

        A layer is whole only while it runs, and all processes must run it together, backward too
        (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).
        """
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(torch.device(self.device).type, (self.count,))
            for layer in layers:
                fully_shard(layer, mesh=mesh)

    def unshard(self, layers: Iterable[nn.Module]) -> None:
        """Undo `shard`: every process has all weights again, and none trains on."""
        if self.sharded:
            for layer in layers:
                layer.unshard()  # type: ignore[operator]

    def average(self, parameters: Sequence[nn.Parameter], loss: Tensor, items: int) -> tuple[float, int]:
        """Put the mean of all processes' gradients into `parameters`; mean loss and sum of items.

        A parameter that some processes did not use counts as zero there; one that nobody used keeps no gradient. Those
        of sharded layers have the mean already.
        """
        if self.count == 1:
            return loss.item(), items
        from accelerate.utils import reduce

        parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        used = [float(parameter.grad is not None) for parameter in parameters]
        *users, total, n = reduce(torch.tensor([*used, loss.item(), items], device=self.device), "sum").tolist()
        for parameter, n_users in zip(parameters, users, strict=True):
            if n_users:
                own = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                parameter.grad = reduce(own, "mean")
        return total / self.count, int(n)

    def share(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the first one's values."""
        if self.count > 1:
            from accelerate.utils import broadcast

            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data))

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


@cache
def processes() -> Processes:
    """This process as it was launched: alone on the CPU, or one of several, on accelerators where there are some."""
    if "LOCAL_RANK" not in os.environ:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise RuntimeError("training in several processes needs accelerate: pip install 'moss-audio[train]'") from error
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    sharded = state.num_processes > 1 and os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return Processes(state.process_index, state.num_processes, str(state.device), sharded)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; all processes must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor` where and as `parameter` is: on its device, and sharded like it."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor
