"""Triples of several collections, to train with at once.

Each collection keeps a dataset and an account of its own, since no batch has triples of two: the documents of a batch
are compared with each other, and those of two collections are easy to tell apart.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from datasets import Dataset, DatasetDict

from .cache import Triples
from .columns import LABEL


class SeveralTriples(NamedTuple):
    """Training data of several collections.

    Attributes:
        dataset: The triples of each collection, by its name. They may differ in how many negatives they have.
        summary: Where they come from, and what became of every row:

            - ``collections``, the summaries of all by name, as :class:`.cache.Triples` has them;
            - ``read``, ``triples``, ``dropped`` (by reason), ``queries`` and ``positives``, the sums;
            - ``fingerprint``, a checksum of names and fingerprints in their order.
    """

    dataset: DatasetDict
    summary: dict[str, Any]


TrainingData: TypeAlias = Triples | SeveralTriples
"""Triples of one collection, or of several."""

TrainingSet: TypeAlias = Dataset | DatasetDict
"""The dataset of either."""


def read_collections(sources: Mapping[str, Any], read: Callable[[Any], Triples]) -> SeveralTriples:
    """Read the triples of several collections.

    Args:
        sources: What each collection has, by its name.
        read: What reads it.

    Returns:
        The triples of all.

    Raises:
        ValueError: If there is no collection, a name is not a string, or only some collections have labels.

    Example:
        >>> from pyterrier_selfdistill.data.triples import from_texts
        >>> sources = {"a": [("sort", "sort rows", "plot")], "b": [("plot", "plot a file", "sort", "read")]}
        >>> triples = read_collections(sources, from_texts)
        >>> triples.dataset.num_rows, triples.summary["triples"]
        ({'a': 1, 'b': 1}, 2)
    """
    require_names(sources, "source")
    if isinstance(sources, DatasetDict):
        raise ValueError(
            f"a DatasetDict may hold splits of one collection, got {list(sources)}: name the split to train with, such "
            "as source['train'], or give dict(source) if these are collections"
        )
    parts = {}
    for name, source in sources.items():
        with in_collection(name):
            parts[name] = read(source)
    return join_collections(parts)


def join_collections(parts: Mapping[str, Triples]) -> SeveralTriples:
    """Put the triples of collections side by side.

    Args:
        parts: The triples of each collection, by its name.

    Returns:
        The triples of all.

    Raises:
        ValueError: If only some collections have labels.
    """
    _require_labels_in_all_or_none(parts)
    dataset = DatasetDict({name: part.dataset for name, part in parts.items()})
    return SeveralTriples(dataset, _join_summaries({name: part.summary for name, part in parts.items()}))


def require_names(collections: Mapping[Any, Any], option: str) -> None:
    """Check that there are collections, and that their names can be written.

    Args:
        collections: What is given for each collection.
        option: What it was given as.

    Raises:
        ValueError: If there is none, or a name is not a string, or empty.

    Example:
        >>> require_names({}, "source")
        Traceback (most recent call last):
        ValueError: source must name at least one collection, such as {'a': ...}, got none
    """
    if not collections:
        raise ValueError(f"{option} must name at least one collection, such as {{'a': ...}}, got none")
    wrong = [name for name in collections if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise ValueError(f"the names of collections in {option} must be strings such as 'a', got {wrong}")


@contextmanager
def in_collection(name: str) -> Iterator[None]:
    """Have errors say which collection they are of."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the collection {name!r}")
        raise


def parts_of(dataset: TrainingSet) -> list[Dataset]:
    """List the datasets that batches are made of.

    Args:
        dataset: The dataset of one collection, or those of several.

    Returns:
        One or more datasets.
    """
    if isinstance(dataset, DatasetDict):
        return list(dataset.values())
    return [dataset]


def _require_labels_in_all_or_none(parts: Mapping[str, Triples]) -> None:
    """Check labels now: a loss that needs them would fail in the first batch of the collection without them."""
    labelled = [name for name, part in parts.items() if LABEL in part.dataset.column_names]
    others = [name for name in parts if name not in labelled]
    if labelled and others:
        raise ValueError(
            f"a column {LABEL!r} must be in all collections or in none, got it in {labelled} and not in {others}; add "
            "it there, or drop it here"
        )


def _join_summaries(summaries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Add up what became of the rows of all collections."""
    dropped: Counter[str] = Counter()
    fingerprints = []
    for name, summary in summaries.items():
        dropped.update(summary["dropped"])
        fingerprints.append((name, summary["fingerprint"]))
    totals = {}
    for count in ("read", "triples", "queries", "positives"):
        totals[count] = sum(summary[count] for summary in summaries.values())
    checksum = hashlib.sha256(json.dumps(fingerprints).encode())
    return {
        "collections": dict(summaries),
        **totals,
        "dropped": dict(dropped),
        "fingerprint": checksum.hexdigest()[:16],
    }
