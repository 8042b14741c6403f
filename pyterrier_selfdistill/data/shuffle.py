"""Shuffle more rows than memory holds, by a checksum of each.

The order depends on the seed and on what the rows hold, never on the order in which they come, so that the first rows
of a query, or of all, are a uniform sample that is the same on every machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

BUCKETS = 256
"""Into how many files rows are sorted on disk; the rows of one file are in memory at once."""


class ExternalShuffle:
    """Rows of strings on disk, in an order that looks random.

    Rows are added a table at a time, then read a part at a time. All parts one after another are in the order of the
    checksums; equal rows have the same checksum, and are next to each other in the same part. Leaving the context
    removes the files.

    Args:
        seed: Which of the orders.

    Attributes:
        rows: How many rows were added.

    Example:
        >>> with ExternalShuffle(seed=1) as shuffle:
        ...     shuffle.add(pa.table({"query": ["q1", "q2", "q3", "q4"]}))
        ...     parts = list(shuffle.parts())
        >>> pd.concat(parts)["query"].tolist()
        ['q3', 'q4', 'q2', 'q1']
    """

    def __init__(self, seed: int) -> None:
        # pandas takes a key of exactly 16 characters
        self._hash_key = f"{seed:016d}"[-16:]
        self.rows = 0

    def __enter__(self) -> ExternalShuffle:
        self._folder = tempfile.TemporaryDirectory(prefix="triples-")
        self._open_files = ExitStack()
        self._buckets: dict[int, pa.RecordBatchStreamWriter] = {}
        return self

    def __exit__(self, *error: object) -> None:
        self._open_files.close()
        self._folder.cleanup()

    def add(self, table: pa.Table) -> None:
        """Add rows; a missing value becomes an empty string."""
        columns = {name: pc.fill_null(table.column(name), "") for name in table.column_names}
        table = pa.table(columns)
        checksums = pd.util.hash_pandas_object(table.to_pandas(), index=False, hash_key=self._hash_key)
        # the first bits of the checksum, so that the order of buckets is that of their checksums
        buckets = (checksums.to_numpy() // np.uint64(2**64 // BUCKETS)).astype(int)
        by_bucket = np.argsort(buckets, kind="stable")
        table = table.append_column("checksum", pa.array(checksums)).take(by_bucket)
        start = 0
        for bucket, size in enumerate(np.bincount(buckets)):
            if size:
                self._write(bucket, table.slice(start, size))
            start += size
        self.rows += len(table)

    def parts(self) -> Iterator[pd.DataFrame]:
        """Read all rows in their new order; nothing can be added after.

        Yields:
            The rows of one file, which is removed.
        """
        self._open_files.close()
        for path in sorted(Path(self._folder.name).iterdir()):
            with pa.ipc.open_stream(path) as stream:
                frame = stream.read_pandas()
            # while triples are written, so that the disk never holds all pairs twice
            path.unlink()
            # the columns decide among rows of the same checksum
            order = ["checksum", *frame.columns.drop("checksum")]
            yield frame.sort_values(order).drop(columns="checksum")

    def _write(self, bucket: int, rows: pa.Table) -> None:
        if bucket not in self._buckets:
            path = Path(self._folder.name) / f"{bucket:03}.arrow"
            self._buckets[bucket] = self._open_files.enter_context(pa.ipc.new_stream(path, rows.schema))
        self._buckets[bucket].write_table(rows)
