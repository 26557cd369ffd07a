"""Batches made beside the training step, in a process of their own, so that the network never waits for them."""

from __future__ import annotations

import multiprocessing
import queue
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np

Batch = TypeVar("Batch", covariant=True)


class Batches(Protocol[Batch]):
    """Anything that draws a batch."""

    def next(self, rng: np.random.Generator) -> Batch:
        """One batch, all chance from `rng`."""
        ...


class Background(Batches[Batch]):
    """`source` in a forked process, up to `ahead` batches ahead; chance comes from `seed` and the run's first draw.

    The process ends with `close`, with the `with` block, or by itself when the run that started it is gone.
    """

    def __init__(self, source: Batches[Batch], seed: int, ahead: int = 6) -> None:
        self.source, self.seed = source, seed
        self._queue: multiprocessing.Queue[Batch] = multiprocessing.get_context("fork").Queue(ahead)
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def next(self, rng: np.random.Generator) -> Batch:
        """The next batch; the first call starts the process, so that a resumed run draws other batches."""
        if self._process is None:
            first = int(rng.integers(2**31))
            self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(first,), daemon=True)
            self._process.start()
        while True:
            try:
                return self._queue.get(timeout=1)
            except queue.Empty as error:
                if not self._process.is_alive():
                    raise RuntimeError("the process that makes batches ended; its traceback is above") from error

    def close(self) -> None:
        """End the process and wait until it is gone. Closing twice does nothing."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()  # it holds nothing but batches that nobody wants any more
            self._process.join()
        self._queue.close()

    def _run(self, first: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._queue.cancel_join_thread()
        rng, parent = np.random.default_rng([self.seed, first]), multiprocessing.parent_process()
        while parent is not None and parent.is_alive():
            batch = self.source.next(rng)
            while parent.is_alive():
                try:
                    self._queue.put(batch, timeout=1)
                    break
                except queue.Full:
                    continue
