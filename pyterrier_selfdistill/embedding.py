"""How the columns of a batch become vectors: documents in one pool, in passes of like length.

A pass through the model is as wide as its longest text, so that a batch of short documents and a long one consists of
padding for the most part. :func:`arrange` puts the positives and the negatives of a batch into one pool, shortest
first, :func:`embed` runs the model on a few parts of it, each as wide as its own longest text, and
:func:`restore` puts the vectors back where the texts were. Which texts make a batch does not change, so
neither does the loss, but for rounding and for what dropout draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers.base.losses.merged_forward import merge_feature_batches
from torch import Tensor, nn

Features = dict[str, Any]
"""The tokens of some texts, as a model of sentence-transformers takes them."""

MOST_PASSES = 8
"""Into how many passes to divide a pool at most; with more, there is little padding left to save."""

ROWS_OF_A_PASS = {"cpu": 8}
"""How many texts make a pass worth its overhead, by the type of the device."""

ROWS_OF_A_PASS_ELSEWHERE = 64
"""The same for devices that compute many texts in the time of one."""


class Arrangement(NamedTuple):
    """The columns of a batch, in the order in which to embed them.

    Attributes:
        batches: What to embed: the queries and the pool of documents, or column by column.
        widths: How many tokens of each text of the pool lie before its last padding, ascending; None without a pool.
        positions: Where in the pool each document is, column by column; None without a pool.
    """

    batches: list[Features]
    widths: Tensor | None = None
    positions: Tensor | None = None


def arrange(columns: Iterable[Features]) -> Arrangement:
    """Put all columns but the first, the queries, into one pool that is sorted by length.

    Args:
        columns: The tokens of each column: query, positive, and one or more negatives.

    Returns:
        The arrangement. Columns stay as they are where the model has no tokens, has no padding (flattened inputs of
        flash attention), or treats columns differently.

    Example:
        >>> columns = [["sort"], ["sort the rows of a table"], ["read"]]
        >>> queries, pool = arrange([encoder.model.preprocess(texts) for texts in columns]).batches
        >>> pool["attention_mask"].sum(dim=1)
        tensor([3, 8])
    """
    columns = list(columns)
    queries, *documents = columns
    pool = None
    if len(documents) > 1:
        pool = merge_feature_batches(documents)
    if pool is None or "attention_mask" not in pool:
        return Arrangement(columns)
    widths, order = _widths(pool["attention_mask"]).sort(stable=True)
    return Arrangement([queries, _take(pool, order)], widths, order.argsort())


def embed(model: nn.Module, arrangement: Arrangement) -> list[Tensor]:
    """Embed a batch, the pool in passes of like length.

    Args:
        model: The model.
        arrangement: What :func:`arrange` returns.

    Returns:
        One ``(B, D)`` tensor a column.

    Example:
        >>> columns = [["sort"], ["sort the rows of a table"], ["read"]]
        >>> arrangement = arrange([encoder.model.preprocess(texts) for texts in columns])
        >>> [embeddings.shape for embeddings in embed(encoder.model, arrangement)]
        [torch.Size([1, 32]), torch.Size([1, 32]), torch.Size([1, 32])]
    """
    if arrangement.widths is None:
        return [model(batch)["sentence_embedding"] for batch in arrangement.batches]
    queries, pool = arrangement.batches
    embedded_queries = model(queries)["sentence_embedding"]
    passes = number_of_passes(len(arrangement.widths), arrangement.widths.device)
    widths = arrangement.widths.cpu().numpy()
    begin = 0
    parts = []
    for end in divide(widths, passes):
        part = _take(pool, slice(begin, end), width=widths[end - 1])
        parts.append(model(part)["sentence_embedding"])
        begin = end
    return restore([embedded_queries, torch.cat(parts)], arrangement.positions)


def restore(embeddings: list[Tensor], positions: Tensor | None) -> list[Tensor]:
    """Put embeddings back into columns.

    Args:
        embeddings: One ``(rows, D)`` tensor for each batch of an :class:`Arrangement`.
        positions: Its positions.

    Returns:
        One ``(B, D)`` tensor a column: query, positive, and one or more negatives.

    Example:
        >>> queries, pool = torch.tensor([[1], [2]]), torch.tensor([[3], [4], [5], [6]])
        >>> restore([queries, pool], torch.tensor([3, 0, 2, 1]))[1]
        tensor([[6],
                [3]])
    """
    if positions is None:
        return embeddings
    queries, pool = embeddings
    return [queries, *pool[positions].split(len(queries))]


def number_of_passes(rows: int, device: torch.device) -> int:
    """Choose into how many passes to divide a pool.

    Args:
        rows: The number of texts.
        device: Where the model is.

    Returns:
        The number.

    Example:
        >>> number_of_passes(40, torch.device("cpu")), number_of_passes(40, torch.device("cuda"))
        (5, 1)
    """
    least = ROWS_OF_A_PASS.get(device.type, ROWS_OF_A_PASS_ELSEWHERE)
    return min(MOST_PASSES, math.ceil(rows / least))


def divide(lengths: np.ndarray, number: int) -> list[int]:
    """Divide texts into parts, so that padding each part to its longest text takes the fewest tokens.

    Args:
        lengths: The tokens of each text, ascending.
        number: The number of parts.

    Returns:
        The end of each part.

    Example:
        >>> divide(np.array([5, 5, 5, 6, 50, 60]), 2)
        [4, 6]
    """
    # texts of one length belong together, so that the parts can only end where a length does
    widths, starts = np.unique(lengths, return_index=True)
    if len(widths) < number:
        parts = np.array_split(lengths, number)
        return np.cumsum([len(part) for part in parts]).tolist()
    borders = np.append(starts, len(lengths))
    # tokens[i, j]: those of the texts between two borders, padded
    tokens = np.where(np.tri(len(borders), dtype=bool), np.inf, 0.0)
    tokens[:, 1:] += widths * (borders[None, 1:] - borders[:, None])
    fewest = tokens[0]
    choices = []
    for _ in range(number - 1):
        candidates = fewest[:, None] + tokens
        choices.append(candidates.argmin(axis=0))
        fewest = candidates.min(axis=0)
    chosen = [len(widths)]
    for choice in reversed(choices):
        chosen.append(int(choice[chosen[-1]]))
    return [int(borders[border]) for border in reversed(chosen)]


def _widths(mask: Tensor) -> Tensor:
    """Find where the last token of each text is, counted from 1, whichever side is padded."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)


def _take(features: Features, rows: Tensor | slice, width: int | None = None) -> Features:
    """Take the features of some texts, cut at a width."""
    full = features["attention_mask"].shape[1]
    taken: Features = {}
    for name, value in features.items():
        # the length of the prompt is the same for all
        if not isinstance(value, Tensor) or name == "prompt_length":
            taken[name] = value
        elif value.ndim > 1 and value.shape[1] == full:
            taken[name] = value[rows][:, :width]
        else:
            taken[name] = value[rows]
    return taken
