"""Splits of queries: whole, alike for every frame, and about as large as asked for."""

import pandas as pd
import pytest

from pyterrier_selfdistill import split_queries

SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}


@pytest.fixture
def frame():
    """Two rows for each of 500 queries."""
    return pd.DataFrame({"qid": [str(number % 500) for number in range(1000)]})


def test_split_queries_keeps_the_rows_of_a_query_together(frame):
    parts = split_queries(frame, SHARES)
    assert sum(map(len, parts.values())) == 1000
    for name, part in parts.items():
        assert len(part) == pytest.approx(1000 * SHARES[name], rel=0.3)
        assert part["qid"].value_counts().eq(2).all()


def test_split_queries_splits_every_frame_alike(frame):
    parts = split_queries(frame, SHARES)
    parts_of_some = split_queries(frame[::3], SHARES)
    for name in SHARES:
        assert set(parts_of_some[name]["qid"]) <= set(parts[name]["qid"])


def test_split_queries_puts_each_query_into_one_part(frame):
    """Also with shares whose sum is not exact, and with an empty part."""
    shares = {"a": 0.7, "b": 0.1, "c": 0.0, "d": 0.2}
    parts = split_queries(frame, shares)
    assert sorted(pd.concat(parts.values()).index) == list(range(1000))
    assert parts["c"].empty


def test_split_queries_rejects_shares_that_do_not_sum_up(frame):
    with pytest.raises(ValueError, match="sum up to 1.*got {'train': 0.6}"):
        split_queries(frame, {"train": 0.6})
    with pytest.raises(ValueError, match="sum up to 1"):
        split_queries(frame, {"train": 1.5, "valid": -0.5})


def test_split_queries_rejects_identifiers_that_are_not_strings(frame):
    with pytest.raises(TypeError, match="qid of rows to split must be a string.*in 1000 of 1000"):
        split_queries(frame.astype(int))
