"""Texts that many rows refer to: each is looked up once, in memory that does not grow with their length."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from more_itertools import sliced

from .columns import string_table

LOOKUPS = 20_000
"""How many texts are looked up at once."""


class TextTable:
    """Texts by the checksums of their identifiers, in a file that goes with the context.

    A text has a position, by which arrays of numpy say what is to be known of it: 36 bytes for each text. Checksums
    stand for identifiers: of ten million, two have the same with a probability of 3 in a million.

    Args:
        read: Looks texts up, by identifiers; what it does not know has no text.

    Attributes:
        checksums: A checksum of each text, uint64.
        trimmed: A checksum of each text without white space around, uint64; 0 if nothing is left.

    Example:
        >>> known = {"d1": "sort rows", "d2": "plot "}
        >>> with TextTable(lambda identifiers: known) as table:
        ...     rows = table.find(pa.array(["d2", "d1", "d9"]), np.array([7, 3, 5], dtype=np.uint64))
        ...     texts = table.take(rows)
        >>> texts.to_pylist()
        ['plot ', 'sort rows', '']
    """

    def __init__(self, read: Callable[[list[str]], Mapping[str, str]]) -> None:
        self._read = read
        # of identifiers, sorted, and the positions of their texts
        self._identifiers = np.empty(0, dtype=np.uint64)
        self._positions = np.empty(0, dtype=np.int32)
        self._ends = np.zeros(1, dtype=np.int64)
        self.checksums = np.empty(0, dtype=np.uint64)
        self.trimmed = np.empty(0, dtype=np.uint64)

    def __enter__(self) -> TextTable:
        self._folder = tempfile.TemporaryDirectory(prefix="texts-")
        self._path = Path(self._folder.name) / "texts"
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._folder.cleanup()

    def __len__(self) -> int:
        return len(self.checksums)

    def find(self, identifiers: pa.Array | pa.ChunkedArray, checksums: np.ndarray) -> np.ndarray:
        """Find the positions of texts, which are looked up if they are not there.

        Args:
            identifiers: The identifiers.
            checksums: Their checksums, uint64, of shape ``(len(identifiers),)``.

        Returns:
            The positions, of the same shape; also for identifiers without a text.
        """
        distinct, first, which = np.unique(checksums, return_index=True, return_inverse=True)
        places = np.searchsorted(self._identifiers, distinct)
        is_known = np.zeros(len(distinct), dtype=bool)
        is_inside = places < len(self._identifiers)
        is_known[is_inside] = self._identifiers[places[is_inside]] == distinct[is_inside]
        if not is_known.all():
            self._append(identifiers.take(pa.array(first[~is_known])))
            new = np.arange(len(self) - int((~is_known).sum()), len(self), dtype=np.int32)
            self._identifiers = np.insert(self._identifiers, places[~is_known], distinct[~is_known])
            self._positions = np.insert(self._positions, places[~is_known], new)
            places = np.searchsorted(self._identifiers, distinct)
        return self._positions[places][which]

    def take(self, positions: np.ndarray) -> pa.Array:
        """Take texts by their positions; those that are not there are empty."""
        if self._ends[-1] == 0:
            return pa.array([""] * len(positions), pa.string())
        self._file.flush()
        data = pa.py_buffer(np.memmap(self._path, mode="r"))
        texts = pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(self._ends), data)
        return texts.take(pa.array(positions)).cast(pa.string())

    def _append(self, identifiers: pa.Array | pa.ChunkedArray) -> None:
        """Look texts up and write them, in the order of their identifiers."""
        for some in sliced(identifiers.to_pylist(), LOOKUPS):
            found = self._read(some)
            texts = string_table({"text": list(map(found.get, some))})["text"].fill_null("")
            lengths = pc.binary_length(texts).to_numpy().astype(np.int64)
            for chunk in texts.chunks:
                self._file.write(_bytes_of(chunk))
            self._ends = np.append(self._ends, self._ends[-1] + np.cumsum(lengths))
            checksums = _checksums_of(texts)
            trimmed = pc.utf8_trim_whitespace(texts)
            trimmed_checksums = _checksums_of(trimmed)
            trimmed_checksums[pc.equal(trimmed, "").to_numpy()] = 0
            self.checksums = np.append(self.checksums, checksums)
            self.trimmed = np.append(self.trimmed, trimmed_checksums)


def _bytes_of(texts: pa.Array) -> memoryview:
    """Return the bytes of all texts of an array that is no part of another."""
    data = texts.buffers()[2]
    if data is None:
        # where all are empty
        return memoryview(b"")
    return memoryview(data)


def _checksums_of(texts: pa.ChunkedArray) -> np.ndarray:
    return pd.util.hash_array(texts.to_numpy(zero_copy_only=False), categorize=False)
