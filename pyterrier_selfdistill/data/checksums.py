"""Checksums of triples, whose texts would fill the memory: how many are distinct, and a fingerprint of all."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

MERGE_SIZE = 100_000
"""How many new checksums are kept before they are merged into those that were seen."""


class DistinctCount:
    """Counts distinct values by their checksums, at 8 bytes each.

    Example:
        >>> count = DistinctCount()
        >>> count.add(np.array([3, 5, 3], dtype=np.uint64))
        >>> count.add(np.array([5, 7], dtype=np.uint64))
        >>> count.number
        3
    """

    def __init__(self) -> None:
        self._seen = np.empty(0, dtype=np.uint64)
        self._new: list[np.ndarray] = []

    def add(self, checksums: np.ndarray) -> None:
        """Add checksums, of type uint64."""
        self._new.append(np.unique(checksums))
        # rarely, since merging sorts all
        if sum(map(len, self._new)) > max(len(self._seen), MERGE_SIZE):
            self._merge()

    @property
    def number(self) -> int:
        """The number of distinct checksums."""
        self._merge()
        return len(self._seen)

    def _merge(self) -> None:
        self._seen = np.unique(np.concatenate([self._seen, *self._new]))
        self._new = []


class Fingerprint:
    """A checksum of the columns of a table that comes in parts, whatever their size.

    Example:
        >>> whole, parts = Fingerprint(), Fingerprint()
        >>> table = pa.table({"query": ["sort", "plot"]})
        >>> whole.update(table)
        >>> parts.update(table[:1])
        >>> parts.update(table[1:])
        >>> whole.hexdigest() == parts.hexdigest()
        True
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {}

    def update(self, table: pa.Table) -> None:
        """Add rows, always with the same columns."""
        work: list[tuple[Any, list[Any]]] = []
        for name in table.column_names:
            parts = _column_bytes(table[name])
            if name not in self._columns:
                self._columns[name] = [hashlib.sha256() for _ in parts]
            # a checksum for each column, so that the size of parts does not matter
            work += zip(self._columns[name], parts, strict=True)
        # hashlib computes without the lock of the interpreter
        with ThreadPoolExecutor(len(work)) as pool:
            list(pool.map(_update_checksum, work))

    def hexdigest(self) -> str:
        """Return the checksum of all, of 16 characters."""
        fingerprint = hashlib.sha256()
        for name, checksums in self._columns.items():
            fingerprint.update(name.encode())
            for checksum in checksums:
                fingerprint.update(checksum.digest())
        return fingerprint.hexdigest()[:16]


def _update_checksum(work: tuple[Any, list[Any]]) -> None:
    checksum, buffers = work
    for buffer in buffers:
        checksum.update(buffer)


def _column_bytes(column: pa.ChunkedArray) -> list[list[Any]]:
    """Return the bytes of numbers; or of texts one after another, and of their lengths, which tell them apart."""
    if not pa.types.is_string(column.type):
        return [[column.to_numpy().tobytes()]]
    texts, lengths = [], []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        places = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        lengths.append(np.diff(places).astype("<i4").tobytes())
        # there is no buffer where all texts are empty
        if data is not None:
            texts.append(memoryview(data)[places[0] : places[-1]])
    return [texts, lengths]
