"""Shuffle more rows than memory holds, by a checksum of each.

The order depends on the seed and on what the rows hold, never on the order in which they come, so that the first rows
of a query, or of all, are a uniform sample that is the same on every machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ..compat import combine_checksums

BUCKETS = 256
"""Into how many files rows are sorted on disk; the rows of one file are in memory at once."""

BUCKET_SHIFT = np.uint64(64 - 8)
"""By how many bits a checksum is shifted to leave the number of its bucket."""


class Part(NamedTuple):
    """Rows in their new order.

    Attributes:
        rows: The rows.
        checksums: The checksums of each column, uint64, of shape ``(rows,)``.
    """

    rows: pa.Table
    checksums: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> Part:
        """Take some of the rows, by position."""
        checksums = {name: column[rows] for name, column in self.checksums.items()}
        return Part(self.rows.take(pa.array(rows)), checksums)

    def slice(self, start: int, size: int) -> Part:
        """Take the rows of a range."""
        checksums = {name: column[start : start + size] for name, column in self.checksums.items()}
        return Part(self.rows.slice(start, size), checksums)

    def distinct(self) -> Part:
        """Leave out rows that are equal to the one before."""
        is_equal = np.ones(max(len(self.rows) - 1, 0), dtype=bool)
        for column in self.checksums.values():
            is_equal &= column[1:] == column[:-1]
        if not is_equal.any():
            return self
        return self.take(np.flatnonzero(np.append(True, ~is_equal)))


class ExternalShuffle:
    """Rows of strings on disk, in an order that looks random.

    Rows are added a table at a time, then read a part at a time. All parts one after another are in the order of the
    checksums; equal rows have the same checksum, and are next to each other in the same part. Leaving the context
    removes the files.

    Whoever needs the first rows only says how many are ``enough``: only these, and the few others of their last file,
    are ever kept. Where they turn out to be too few, another shuffle of the same rows goes on with the file after.

    Args:
        seed: Which of the orders.
        start: The first file, of :data:`BUCKETS`, whose rows are kept.
        enough: How many rows suffice; all if None.

    Attributes:
        rows: How many rows were added, kept or not.
        stop: The file after the last one whose rows are kept.

    Example:
        >>> with ExternalShuffle(seed=1) as shuffle:
        ...     shuffle.add(pa.table({"query": ["q1", "q2", "q3", "q4"]}))
        ...     parts = [part.rows for part in shuffle.parts()]
        >>> pa.concat_tables(parts)["query"].to_pylist()
        ['q3', 'q4', 'q2', 'q1']
    """

    def __init__(self, seed: int, *, start: int = 0, enough: int | None = None) -> None:
        # pandas takes a key of exactly 16 characters
        self._hash_key = f"{seed:016d}"[-16:]
        self._start = start
        self._enough = enough
        self._sizes = np.zeros(BUCKETS, dtype=int)
        self.stop = BUCKETS
        self.rows = 0

    def __enter__(self) -> ExternalShuffle:
        self._folder = tempfile.TemporaryDirectory(prefix="triples-")
        self._open_files = ExitStack()
        self._buckets: dict[int, pa.RecordBatchStreamWriter] = {}
        return self

    def __exit__(self, *error: object) -> None:
        self._open_files.close()
        self._folder.cleanup()

    @property
    def kept(self) -> int:
        """How many rows there are to read."""
        return int(self._sizes.sum())

    def add(self, table: pa.Table) -> None:
        """Add rows; a missing value becomes an empty string."""
        self.rows += len(table)
        names = table.column_names
        columns = {name: pc.fill_null(table.column(name), "") for name in names}
        checksums = {name: self._checksums(column) for name, column in columns.items()}
        # the first bits of the checksum, so that the order of buckets is that of their checksums
        buckets = (combine_checksums(list(checksums.values())) >> BUCKET_SHIFT).astype(np.uint8)
        kept = np.flatnonzero((buckets >= self._start) & (buckets < self.stop))
        by_bucket = kept[np.argsort(buckets[kept], kind="stable")]
        sizes = np.bincount(buckets[kept], minlength=BUCKETS)
        for name, column in checksums.items():
            columns[f"{name} checksum"] = pa.array(column)
        self._write(pa.table(columns).take(pa.array(by_bucket)), sizes)
        self._sizes += sizes
        self._drop_last()

    def parts(self) -> Iterator[Part]:
        """Read all rows in their new order; nothing can be added after.

        Yields:
            The rows of one file, which is removed.
        """
        self._open_files.close()
        for path in sorted(Path(self._folder.name).iterdir()):
            with pa.ipc.open_stream(path) as stream:
                table = stream.read_all()
            # while triples are written, so that the disk never holds all pairs twice
            path.unlink()
            yield _sort(table)

    def _checksums(self, column: pa.ChunkedArray) -> np.ndarray:
        texts = column.to_numpy(zero_copy_only=False)
        return pd.util.hash_array(texts, hash_key=self._hash_key, categorize=False)

    def _write(self, rows: pa.Table, sizes: np.ndarray) -> None:
        """Write rows, of which the next ``sizes`` belong to each bucket, to the file of it."""
        start = 0
        for bucket in np.flatnonzero(sizes).tolist():
            if bucket not in self._buckets:
                file = pa.ipc.new_stream(self._path(bucket), rows.schema)
                self._buckets[bucket] = self._open_files.enter_context(file)
            self._buckets[bucket].write_table(rows.slice(start, sizes[bucket]))
            start += sizes[bucket]

    def _drop_last(self) -> None:
        """Remove the last files, as long as those before have enough rows."""
        if self._enough is None:
            return
        has_enough = np.cumsum(self._sizes) >= self._enough
        if not has_enough.any():
            return
        stop = int(np.argmax(has_enough)) + 1
        for bucket in range(stop, self.stop):
            if bucket in self._buckets:
                self._buckets[bucket].close()
                self._path(bucket).unlink()
        self._sizes[stop:] = 0
        self.stop = stop

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:03}.arrow"


def _sort(table: pa.Table) -> Part:
    """Sort the rows of a file."""
    names = table.column_names[: table.num_columns // 2]
    checksums = {name: table[f"{name} checksum"].to_numpy() for name in names}
    combined = combine_checksums(list(checksums.values()))
    order = np.argsort(combined)
    by_checksum = combined[order]
    if (by_checksum[1:] == by_checksum[:-1]).any():
        # the columns decide among rows of the same checksum
        keys = [("checksum", "ascending"), *((name, "ascending") for name in names)]
        with_checksum = table.select(names).append_column("checksum", pa.array(combined))
        order = pc.sort_indices(with_checksum, sort_keys=keys).to_numpy()
    return Part(table.select(names), checksums).take(order)
