"""One process or several: who logs and saves, and how their gradients become one.

Several are started by `accelerate launch` or `torchrun`; each holds the whole model and draws its own batches. A single
process needs no `accelerate`. Knows nothing of models, losses and data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
from torch import Tensor, nn

PATIENCE = timedelta(hours=6)
"""Processes wait for the first one while it measures and saves."""


@dataclass(frozen=True)
class Processes:
    """This process, number `rank` of `count`, and the device it trains on."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    def average(self, parameters: Sequence[nn.Parameter], loss: Tensor, items: int) -> tuple[float, int]:
        """Put the mean of all processes' gradients into `parameters`; mean loss and sum of items.

        A parameter that some processes did not use counts as zero there; one that nobody used keeps no gradient.
        """
        if self.count == 1:
            return loss.item(), items
        from accelerate.utils import reduce

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
    return Processes(state.process_index, state.num_processes, str(state.device))
