"""Multi-GPU training: order the processes, share results, and divide batches among them.

``torchrun`` and ``accelerate launch`` start one process per device, and each runs the same script. If an error ends one
process, the launcher ends the others.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from more_itertools import divide
from sentence_transformers.util import all_gather_padded, disable_logging, get_rank, get_world_size
from torch import Tensor
from torch.utils.data import RandomSampler, Sampler

Result = TypeVar("Result")

# how many seconds processes wait for each other, for example while the first one searches a corpus
TIMEOUT = 24 * 60 * 60


@contextmanager
def joined(device: torch.device, backend: str | None = None, timeout: int = TIMEOUT) -> Iterator[None]:
    """Join the other processes of a launcher, if any. Only the first process logs messages below errors."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=device.type == "cpu", backend=backend, timeout=timedelta(seconds=timeout))
    with nullcontext() if is_first() else disable_logging(logging.WARNING):
        yield


@contextmanager
def in_turn() -> Iterator[None]:
    """Run the first process, then the first one of each machine, then the others, which find the files on disk."""
    if get_world_size() == 1:
        yield
        return
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        yield


@contextmanager
def map_in_threads(number: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Share the cores of torch among some threads, and return a ``map`` that runs in them."""
    if number == 1:
        yield map
        return
    cores = torch.get_num_threads()
    started = threading.Barrier(number + 1)

    def start() -> None:
        torch.get_num_threads()  # otherwise, the first operation would set the number of the process
        torch.set_num_threads(cores // number)
        started.wait()

    pool = ThreadPoolExecutor(number, initializer=start)
    try:
        # each starts a thread, since the others wait
        for _ in range(number):
            pool.submit(int)
        started.wait()
        # threads that start later, anywhere, get the number that was set last
        torch.set_num_threads(cores)
        yield pool.map
    finally:
        started.abort()  # otherwise, threads would wait forever if another one could not start
        pool.shutdown(cancel_futures=True)


def is_first() -> bool:
    """Tell whether this is the first or only process, which writes files and makes decisions."""
    return get_rank() == 0


def agree(work: Callable[[], Result]) -> Result:
    """Call a function in the first process, and return its result or raise its error in all processes."""
    if get_world_size() == 1:
        return work()
    error: Exception | None = None
    shared: list[Any] = [None, None]
    if is_first():
        try:
            shared[0] = work()
        except Exception as raised:
            error = raised
            shared[1] = f"{type(error).__name__} in the first process: {error}"
    result, words = broadcast_object_list(shared)
    if words is not None:
        raise error or RuntimeError(words)
    return cast(Result, result)


def gather_batch(columns: Sequence[Tensor]) -> list[Tensor]:
    """Gather the rows of all processes, including gradients of embeddings, so that a loss sees the global batch."""
    if get_world_size() == 1:
        return list(columns)
    triples = torch.stack(list(columns), dim=1)
    # one row of numbers per triple sends all columns together; padding equalizes the batches
    rows = triples.flatten(start_dim=1)[None]
    is_row = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    padded, is_row = all_gather_padded(rows, is_row, with_grad=rows.is_floating_point())
    return list(padded[is_row].unflatten(1, triples.shape[1:]).unbind(dim=1))


class PartBatchSampler(Sampler[list[int]]):
    """Divide each global batch evenly among processes, including the last, smaller batch (unlike accelerate)."""

    def __init__(self, batches: Any, parts: int) -> None:
        self.batches = batches
        self.parts = parts

    @property
    def sampler(self) -> Any:
        """The random sampler that accelerate seeds, or this object, which is told of each epoch."""
        sampler = getattr(self.batches, "sampler", None)
        return sampler if type(sampler) is RandomSampler else self

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        self.batches.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Tell the batches and their sampler that an epoch begins."""
        orders: list[Any] = [self.batches, getattr(self.batches, "sampler", None)]
        for told in orders:
            if hasattr(told, "set_epoch"):
                told.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            if len(batch) >= self.parts:
                yield from map(list, divide(self.parts, batch))

    def __len__(self) -> int:
        return len(self.batches) * self.parts
