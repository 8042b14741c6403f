"""The external shuffle: an order of seed and rows alone, and no file left behind."""

import tempfile

import pandas as pd
import pyarrow as pa
import pytest

from pyterrier_selfdistill.data.triples import BUCKETS, ExternalShuffle


@pytest.fixture
def table():
    """A thousand rows, of which every tenth is a duplicate."""
    numbers = [str(number % 900) for number in range(1000)]
    return pa.table({"query": numbers, "positive": numbers[::-1]})


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def rows_of(parts):
    return pd.concat([part.rows.to_pandas() for part in parts]).to_numpy().tolist()


def shuffled(seed, *tables):
    with ExternalShuffle(seed) as shuffle:
        for table in tables:
            shuffle.add(table)
        return rows_of(shuffle.parts())


def test_shuffle_gives_all_rows_in_another_order(table):
    rows = table.to_pandas().to_numpy().tolist()
    assert shuffled(1, table) != rows
    assert sorted(shuffled(1, table)) == sorted(rows)


def test_shuffle_depends_on_the_seed_and_not_on_the_order_of_rows(table):
    backwards = table.take(list(range(999, -1, -1)))
    assert shuffled(1, table) == shuffled(1, backwards) == shuffled(1, table[:300], table[300:])
    assert shuffled(1, table) != shuffled(2, table)


def test_shuffle_puts_duplicate_rows_into_the_same_part(table):
    with ExternalShuffle(0) as shuffle:
        shuffle.add(table)
        shuffle.add(table)
        assert shuffle.rows == 2000
        distinct = [len(part.distinct().rows) for part in shuffle.parts()]
    assert sum(distinct) == len(table.to_pandas().drop_duplicates())


def test_shuffle_makes_missing_values_empty():
    assert shuffled(0, pa.table({"query": ["1", None]})) in ([["1"], [""]], [[""], ["1"]])


def test_shuffle_removes_its_files(table, temporary):
    with ExternalShuffle(0) as shuffle:
        shuffle.add(table)
        assert list(temporary.rglob("*.arrow"))
    assert not list(temporary.iterdir())


def test_shuffle_removes_its_files_after_an_error(table, temporary):
    def read_and_fail():
        with ExternalShuffle(0) as shuffle:
            shuffle.add(table)
            for _ in shuffle.parts():
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read_and_fail()
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("enough", [1, 30, 1000, 2000])
def test_shuffle_keeps_the_first_rows_only_and_goes_on_where_it_stopped(table, temporary, enough):
    parts, start = [], 0
    while start < BUCKETS:
        with ExternalShuffle(0, start=start, enough=enough) as shuffle:
            for begin in range(0, 1000, 100):
                shuffle.add(table[begin : begin + 100])
            assert shuffle.rows == 1000
            first = rows_of(shuffle.parts())
        assert len(first) == shuffle.kept >= min(enough, 1000 - len(parts))
        parts += first
        start = shuffle.stop
    assert parts == shuffled(0, table)


def test_shuffle_of_enough_rows_keeps_few_files(table, temporary):
    with ExternalShuffle(0, enough=20) as shuffle:
        shuffle.add(table)
        assert 20 <= shuffle.kept <= 40
        assert len(list(temporary.rglob("*.arrow"))) <= shuffle.stop < 20
