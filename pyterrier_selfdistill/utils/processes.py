"""What processes that train together share: their embeddings with gradients, what the first one decides, and errors.

``torchrun`` and ``accelerate launch`` start one process a device, and each runs the same script. In one process alone,
all functions here do nothing but the work.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from sentence_transformers.util import all_gather_padded, get_rank, get_world_size
from torch import Tensor, nn
from torch import distributed as dist

Result = TypeVar("Result")

PACKAGE_LOGGER = logging.getLogger(__name__.partition(".")[0])

TIMEOUT = 24 * 60 * 60
"""For how many seconds processes wait for each other: preparing triples or searching a corpus takes the first one long,
and launchers end the others when one dies."""


@contextmanager
def joined(device: torch.device, arguments: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Join the other processes, if a launcher has started several, and let only the first one log meanwhile.

    Training does so by itself. A script does it before, where its processes are to prepare something :func:`in_turn`.

    Args:
        device: Where the encoder is.
        arguments: Training arguments; ``ddp_backend`` and ``ddp_timeout`` count.

    Example:
        >>> with joined(torch.device("cpu")):
        ...     get_world_size()
        1
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if launched and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        arguments = arguments or {}
        backend = arguments.get("ddp_backend") or dist.get_default_backend_for_device(device.type)
        timeout = timedelta(seconds=arguments.get("ddp_timeout", TIMEOUT))
        dist.init_process_group(backend, timeout=timeout)
    if is_first():
        yield
        return
    level = PACKAGE_LOGGER.level
    PACKAGE_LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        PACKAGE_LOGGER.setLevel(level)


def is_first() -> bool:
    """Tell whether this is the first of all processes, which writes, prints and decides; the only one is it too."""
    return get_rank() == 0


def gather_batch(columns: Sequence[Tensor]) -> list[Tensor]:
    """Put together the embeddings of all processes, so that a loss sees the global batch.

    All processes then compute the same loss of the same batch, and each has the gradient of its own rows. Training
    takes the mean of gradients over processes, as ``DistributedDataParallel`` does, where the gradient of the loss is
    their sum: so that of the rows is multiplied here by the number of processes.

    Args:
        columns: Embeddings, one ``(B, D)`` tensor for each column of texts. Processes may have different B.

    Returns:
        For each column ``(sum of B, D)``: the rows of the first process, of the second, and so on.

    Example:
        In one process, they are what they were.

        >>> gather_batch([torch.eye(2)])
        [tensor([[1., 0.],
                [0., 1.]])]
    """
    processes = get_world_size()
    if processes == 1:
        return list(columns)
    own = torch.stack(list(columns), dim=1)
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * processes)
    # one row of numbers a triple, so that all columns are sent together; the last batch may be of different sizes
    rows = own.flatten(start_dim=1)[None]
    is_row = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    padded, is_row = all_gather_padded(rows, is_row)
    triples = padded[is_row].unflatten(1, own.shape[1:])
    return list(triples.unbind(dim=1))


def share_weights(model: nn.Module) -> None:
    """Give all processes the weights that the first one has, wherever it found them.

    Args:
        model: The model, of the same layers in all processes.
    """
    if get_world_size() == 1:
        return
    with torch.no_grad():
        for weights in model.state_dict().values():
            dist.broadcast(weights, src=0)


def agree(work: Callable[[], Result]) -> Result:
    """Have the first process do something while the others wait, and give its result to all, or raise its error in all.

    Args:
        work: What to do. Its result is sent to the others, pickled.

    Returns:
        The result.

    Example:
        >>> agree(lambda: 1 + 1)
        2
    """
    if get_world_size() == 1:
        return work()
    result = None
    error: Exception | None = None
    if is_first():
        try:
            result = work()
            pickle.dumps(result)
        except Exception as raised:
            error = raised
            result = None
    shared: list[Any] = [result, _picklable(error)]
    dist.broadcast_object_list(shared, src=0)
    result, other_error = shared
    _raise_any([error, other_error])
    return cast(Result, result)


def in_turn(work: Callable[[], Result]) -> Result:
    """Have all processes do something: first the first one, then the first one of each other machine, then the rest.

    What the first one leaves on the disk is there for those that follow. An error of one is raised in all.

    Args:
        work: What to do.

    Returns:
        This process's own result.

    Example:
        >>> in_turn(lambda: 1 + 1)
        2
    """
    if get_world_size() == 1:
        return work()
    result = None
    for turn in range(3):
        error: Exception | None = None
        if turn == _own_turn():
            try:
                result = work()
            except Exception as raised:
                error = raised
        errors = gather_objects(_picklable(error))
        _raise_any([error, *errors])
    return cast(Result, result)


def gather_objects(own: Any) -> list[Any]:
    """Give each process what all of them have.

    Args:
        own: What this one has.

    Returns:
        That of the first process, of the second, and so on.

    Example:
        >>> gather_objects("a")
        ['a']
    """
    gathered = [own] * get_world_size()
    if len(gathered) > 1:
        dist.all_gather_object(gathered, own)
    return gathered


def _own_turn() -> int:
    """Say when it is this process's turn: the first, the first one of another machine, or one of the rest."""
    if is_first():
        return 0
    if os.environ.get("LOCAL_RANK") == "0":
        return 1
    return 2


def _picklable(error: Exception | None) -> Exception | None:
    """Return an error, or one of its words if its own class cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} in another process: {error}")
    return error


def _raise_any(errors: Sequence[Exception | None]) -> None:
    """Raise the first error, if there is one."""
    for error in errors:
        if error is not None:
            raise error
