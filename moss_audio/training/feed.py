"""Batches made beside the training step, in a process of their own, so that the network never waits for them."""

from __future__ import annotations

import multiprocessing
from typing import Protocol, TypeVar

import numpy as np

Batch = TypeVar("Batch", covariant=True)


class Batches(Protocol[Batch]):
    """Anything that draws a batch."""

    def next(self, rng: np.random.Generator) -> Batch:
        """One batch, all chance from `rng`."""
        ...


class Background(Batches[Batch]):
    """`source` in a forked process, up to `ahead` batches ahead; chance comes from `seed` and the run's first draw."""

    def __init__(self, source: Batches[Batch], seed: int, ahead: int = 6) -> None:
        self.source, self.seed = source, seed
        self._queue: multiprocessing.Queue[Batch] = multiprocessing.get_context("fork").Queue(ahead)
        self._process: multiprocessing.process.BaseProcess | None = None

    def next(self, rng: np.random.Generator) -> Batch:
        """The next batch; the first call starts the process, so that a resumed run draws other batches."""
        if self._process is None:
            first = int(rng.integers(2**31))
            self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(first,), daemon=True)
            self._process.start()
        while True:
            try:
                return self._queue.get(timeout=60)
            except Exception as error:
                if not self._process.is_alive():
                    raise RuntimeError("the process that makes batches ended; its traceback is above") from error

    def _run(self, first: int) -> None:
        import torch

        torch.set_num_threads(1)
        rng = np.random.default_rng([self.seed, first])
        while True:
            self._queue.put(self.source.next(rng))
