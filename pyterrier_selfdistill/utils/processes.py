"""Training in several processes: who comes first, what all of them share, and their part of each batch.

``torchrun`` and ``accelerate launch`` start one process per device, and each runs the same script. An error in one
process ends it, and the launcher ends the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
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

# for how many seconds processes wait for each other: the first one may search a corpus meanwhile
TIMEOUT = 24 * 60 * 60


@contextmanager
def joined(device: torch.device, backend: str | None = None, timeout: int = TIMEOUT) -> Iterator[None]:
    """Join the other processes, if a launcher has started several, and let only the first one log below errors."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=device.type == "cpu", backend=backend, timeout=timedelta(seconds=timeout))
    with nullcontext() if is_first() else disable_logging(logging.WARNING):
        yield


@contextmanager
def in_turn() -> Iterator[None]:
    """Let the first process go first, then the first one of each machine: the rest find their files on the disk."""
    if get_world_size() == 1:
        yield
        return
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        yield


def is_first() -> bool:
    """Tell whether this is the first process, or the only one, which writes and decides."""
    return get_rank() == 0


def agree(work: Callable[[], Result]) -> Result:
    """Call a function in the first process, and return its result or raise an error in all of them."""
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
    """Put together the rows of all processes, embeddings with their gradients, so that a loss sees the global batch."""
    if get_world_size() == 1:
        return list(columns)
    triples = torch.stack(list(columns), dim=1)
    # one row of numbers per triple, so that all columns are sent together, and padding makes the batches equal
    rows = triples.flatten(start_dim=1)[None]
    is_row = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    padded, is_row = all_gather_padded(rows, is_row, with_grad=rows.is_floating_point())
    return list(padded[is_row].unflatten(1, triples.shape[1:]).unbind(dim=1))


class PartBatchSampler(Sampler[list[int]]):
    """Divide each global batch evenly among processes, including the last, smaller one, which accelerate does not."""

    def __init__(self, batches: Any, parts: int) -> None:
        self.batches = batches
        self.parts = parts

    @property
    def sampler(self) -> Any:
        """The order of rows, if it is random, which accelerate seeds; otherwise the object to tell of each epoch."""
        sampler = getattr(self.batches, "sampler", None)
        return sampler if type(sampler) is RandomSampler else self

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        self.batches.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Tell the batches and the order of their rows that an epoch begins."""
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
