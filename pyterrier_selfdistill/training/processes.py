"""Training in several processes, as ``torchrun`` and ``accelerate launch`` start them.

Each process trains with its part of every batch, and the loss sees the whole one (:mod:`..distributed`). What happens
once, such as claiming the folder of the run, happens in the first process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.util import get_world_size
from torch import nn
from torch.utils.data import RandomSampler, Sampler
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.several import TrainingData
from ..distributed import gather_objects, in_turn
from ..text_losses import SelfDistillationLoss


def read_in_turn(read: Callable[[], TrainingData]) -> TrainingData:
    """Read triples in all processes, which must be the same ones; the first writes the cache that others find.

    Args:
        read: What reads them.

    Returns:
        The triples.

    Raises:
        ValueError: If the processes have different triples.
    """
    triples = in_turn(read)
    fingerprints = gather_objects(triples.summary["fingerprint"])
    if len(set(fingerprints)) > 1:
        raise ValueError(
            f"the processes were given different triples: their fingerprints are {fingerprints}; give all the same "
            "source, in the same order. Each process gets its part of a batch from the trainer"
        )
    return triples


def sees_global_batch(loss: nn.Module) -> bool:
    """Tell whether a loss gathers the batches of all processes, however large their parts are.

    Args:
        loss: A loss on texts.

    Returns:
        Whether it does; those of sentence-transformers need parts of the same size, and most do not gather.
    """
    return isinstance(loss, SelfDistillationLoss)


def require_whole_models(arguments: SentenceTransformerTrainingArguments) -> None:
    """Check that each process has all weights, with which it encodes between the steps.

    Args:
        arguments: The training arguments.

    Raises:
        ValueError: If the weights are to be divided among the processes.
    """
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if arguments.fsdp or by_launcher or is_deepspeed_zero3_enabled():
        raise ValueError(
            "FSDP and the third stage of ZeRO divide the weights among processes, and encoding between the steps needs "
            "all of them; train without, or with the first or second stage of ZeRO, which divide what is larger: the "
            "gradients and the optimizer's state"
        )


def require_batches(triples: int, arguments: SentenceTransformerTrainingArguments, loss: nn.Module) -> None:
    """Check that there is a batch for several processes to share.

    Args:
        triples: How many triples there are.
        arguments: The training arguments.
        loss: The loss on texts.

    Raises:
        ValueError: If there is none.
    """
    processes = get_world_size()
    if processes == 1:
        return
    needed = processes
    if arguments.dataloader_drop_last or not sees_global_batch(loss):
        needed = processes * arguments.train_batch_size
    if triples < needed:
        raise ValueError(
            f"{triples} triples make no batch for {processes} processes, which need {needed}; give more triples, lower "
            "per_device_train_batch_size, or start fewer processes"
        )


def leaves_too_few(rows: int, batch_size: int, processes: int) -> bool:
    """Tell whether the last batch has fewer rows than there are processes, so that it is to be left out.

    Args:
        rows: How many rows a collection has.
        batch_size: How many rows a global batch has.
        processes: How many processes there are.

    Returns:
        Whether it has.

    Example:
        >>> leaves_too_few(9, 8, processes=2), leaves_too_few(10, 8, processes=2), leaves_too_few(16, 8, processes=2)
        (True, False, False)
    """
    return 0 < rows % batch_size < processes


class PartBatchSampler(Sampler[list[int]]):
    """Divides each global batch among the processes.

    One after another come the rows of the first process, of the second, and so on, which accelerate deals out. A last
    batch is divided as evenly as can be.

    Args:
        batches: The global batches, in the order in which one process would train with them, and none with fewer rows
            than there are processes (see :func:`leaves_too_few`).
        parts: How many processes there are.

    Example:
        >>> batches = [[3, 1, 0, 2], [6, 5, 4]]
        >>> list(PartBatchSampler(batches, parts=2))
        [[3, 1], [0, 2], [6], [5, 4]]
    """

    def __init__(self, batches: Any, *, parts: int) -> None:
        self.batches = batches
        self.parts = parts

    @property
    def sampler(self) -> Any:
        """What orders the rows: accelerate replaces a random sampler, and tells any other of each epoch."""
        ordering = getattr(self.batches, "sampler", None)
        if type(ordering) is RandomSampler:
            return ordering
        return self

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        self.batches.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Tell the batches, and what orders their rows, that an epoch begins."""
        orderings: list[Any] = [self.batches, getattr(self.batches, "sampler", None)]
        for ordering in orderings:
            if hasattr(ordering, "set_epoch"):
                ordering.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            if len(batch) < self.parts:
                continue
            bounds = [len(batch) * part // self.parts for part in range(self.parts + 1)]
            for start, end in pairwise(bounds):
                yield batch[start:end]

    def __len__(self) -> int:
        return len(self.batches) * self.parts
