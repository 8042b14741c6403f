"""Rows in the order of a checksum, sorted on disk."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

BUCKETS = 256
"""Into how many parts pairs are sorted on disk; each part is in memory at once."""


def sort_into_buckets(tables: Iterable[pa.Table], seed: int, folder: Path) -> int:
    """Writes rows to files by the first bits of a checksum of them and the seed, and counts them."""
    files: dict[int, Any] = {}
    number = 0
    with ExitStack() as stack:
        for table in tables:
            number += len(table)
            table = pa.table({name: pc.fill_null(table.column(name), "") for name in table.column_names})
            checksums = pd.util.hash_pandas_object(table.to_pandas(), index=False, hash_key=f"{seed:016d}"[-16:])
            buckets = (checksums.to_numpy() // np.uint64(2**64 // BUCKETS)).astype(int)
            table = table.append_column("checksum", pa.array(checksums)).take(np.argsort(buckets, kind="stable"))
            start = 0
            for bucket, size in enumerate(np.bincount(buckets)):
                if size and bucket not in files:
                    files[bucket] = stack.enter_context(pa.ipc.new_stream(folder / f"{bucket:03}.arrow", table.schema))
                if size:
                    files[bucket].write_table(table.slice(start, size))
                start += size
    return number


def read_bucket(path: Path) -> pd.DataFrame:
    """Reads a file of :func:`sort_into_buckets` in the order of the checksums, and removes it."""
    with pa.ipc.open_stream(path) as stream:
        frame = stream.read_pandas()
    path.unlink()
    return frame.sort_values(["checksum", *frame.columns.drop("checksum")]).drop(columns="checksum")
