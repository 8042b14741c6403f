"""Checksums of triples: the number of distinct ones, and a fingerprint that no size of parts changes."""

import numpy as np
import pyarrow as pa

from pyterrier_selfdistill.data import checksums as module
from pyterrier_selfdistill.data.checksums import DistinctCount, Fingerprint

COLUMNS = ["query", "positive", "negative"]
ROWS = [("sort", "sort rows", "plot a file"), ("plot", "plot a matrix", "read a value")]


def table_of(rows):
    columns = zip(*rows, strict=True)
    return pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=pa.schema(dict.fromkeys(COLUMNS, pa.string())))


def test_distinct_count_merges_what_it_has_seen(monkeypatch):
    monkeypatch.setattr(module, "MERGE_SIZE", 10)
    count = DistinctCount()
    generator = np.random.default_rng(0)
    checksums = generator.integers(500, size=(100, 20)).astype(np.uint64)
    for part in checksums:
        count.add(part)
    assert count.number == len(np.unique(checksums))


def fingerprint_of(*tables):
    fingerprint = Fingerprint()
    for table in tables:
        fingerprint.update(table)
    return fingerprint.hexdigest()


def test_fingerprint_is_known():
    """The same with every release, since runs are resumed and cached triples compared by it."""
    table = table_of([("sört", "", "plot"), ("a", "b", "c")])
    assert fingerprint_of(table) == "f0a933c4ddaa05b0"
    labelled = table.append_column("label", pa.array([0.25, -1.5], pa.float32()))
    assert fingerprint_of(labelled) == "76e02415851b309e"


def test_fingerprint_does_not_depend_on_parts():
    table = table_of(ROWS * 50)
    assert fingerprint_of(table[:7], table[7:30], table[30:30], table[30:]) == fingerprint_of(table)


def test_fingerprint_tells_texts_apart_by_order_and_bounds():
    tables = [
        table_of(ROWS),
        table_of(ROWS[::-1]),
        table_of([("sor", "tsort rows", "plot a file"), ROWS[1]]),
        table_of([ROWS[0], ("plot", "plot a matrix", "read a valu")]),
    ]
    assert len(set(map(fingerprint_of, tables))) == 4
