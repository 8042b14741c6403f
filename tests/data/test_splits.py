"""Splits of queries: whole, alike for every frame, and about as large as asked for."""

import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(cuts=st.lists(st.integers(0, 100), max_size=4))
def test_split_queries_by_whole_percents_goes_by_the_checksum_modulo_100(cuts):
    """The same with every release, since models were evaluated with these splits."""
    bounds = [0, *sorted(cuts), 100]
    shares = {str(part): size / 100 for part, size in enumerate(np.diff(bounds).tolist())}
    frame = pd.DataFrame({"qid": [str(number) for number in range(300)]})
    percents = frame["qid"].map(lambda qid: zlib.crc32(qid.encode()) % 100)
    for part, rows in split_queries(frame, shares).items():
        start, end = bounds[int(part)], bounds[int(part) + 1]
        assert rows["qid"].tolist() == frame["qid"][(percents >= start) & (percents < end)].tolist()


def test_split_queries_gives_what_is_known():
    """The same on every machine and with every release."""
    frame = pd.DataFrame({"qid": [str(number) for number in range(1000)]})
    parts = split_queries(frame, {"train": 0.99, "valid": 0.0075, "test": 0.0025})
    assert parts["valid"]["qid"].tolist() == ["79", "178", "200", "578", "730", "793", "820", "919", "927", "959"]
    assert parts["test"]["qid"].tolist() == ["836"]


def test_split_queries_by_less_than_a_percent():
    frame = pd.DataFrame({"qid": [str(number) for number in range(100_000)]})
    shares = {"train": 0.9845, "valid": 0.005, "test": 0.01, "rest": 0.0005}
    parts = split_queries(frame, shares)
    for name, share in shares.items():
        assert len(parts[name]) == pytest.approx(100_000 * share, rel=0.15)


def test_split_queries_loses_none_where_shares_do_not_sum_up_exactly():
    frame = pd.DataFrame({"qid": [str(number) for number in range(100_000)]})
    parts = split_queries(frame, {"a": 0.33333, "b": 0.33333, "c": 0.33333})
    assert sum(map(len, parts.values())) == 100_000


def test_split_queries_by_a_seed_is_another_split(frame):
    usual, same, other = [split_queries(frame, SHARES, seed)["valid"] for seed in (0, 0, 1)]
    assert usual.equals(split_queries(frame, SHARES)["valid"])
    assert same.equals(usual)
    assert len(other) == pytest.approx(200, rel=0.3)
    shared = set(usual["qid"]) & set(other["qid"])
    assert len(shared) < other["qid"].nunique() / 2


@pytest.mark.parametrize(
    "shares",
    [
        {"train": 0.6},
        {"train": 1.5, "valid": -0.5},
        {"train": float("nan"), "valid": 0.1},
        {"train": "0.9", "valid": "0.1"},
        {"train": None, "valid": 1.0},
        {"train": True},
        {0: 0.9, 1: 0.1},
        {},
        [0.9, 0.1],
        0.9,
        None,
    ],
    ids=repr,
)
def test_split_queries_rejects_shares_that_are_no_numbers_or_do_not_sum_up(frame, shares):
    with pytest.raises(ValueError, match="shares must be numbers from 0 to 1 that sum up to 1, such as .*, got"):
        split_queries(frame, shares)


def test_split_queries_takes_shares_of_numpy(frame):
    shares = {"train": np.float32(0.75), "valid": np.float64(0.25)}
    for name, part in split_queries(frame, shares).items():
        assert part.equals(split_queries(frame, {"train": 0.75, "valid": 0.25})[name])
    assert len(split_queries(frame, {"train": np.int64(1)})["train"]) == 1000


def test_split_queries_rejects_what_is_no_frame(frame):
    with pytest.raises(TypeError, match="frame must be an instance of DataFrame"):
        split_queries(frame["qid"].tolist())


def test_split_queries_rejects_identifiers_that_are_not_strings(frame):
    with pytest.raises(TypeError, match="qid of rows to split must be a string.*in 1000 of 1000"):
        split_queries(frame.astype(int))
