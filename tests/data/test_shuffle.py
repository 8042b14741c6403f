"""The external shuffle: an order of seed and rows alone, and no file left behind."""

import tempfile

import pandas as pd
import pyarrow as pa
import pytest

from pyterrier_selfdistill.data.shuffle import ExternalShuffle


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


def shuffled(seed, *tables):
    with ExternalShuffle(seed) as shuffle:
        for table in tables:
            shuffle.add(table)
        return pd.concat(shuffle.parts()).to_numpy().tolist()


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
        distinct = [len(part.drop_duplicates()) for part in shuffle.parts()]
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
