"""The table of texts: each is looked up once, whatever the order in which they are asked for."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_selfdistill.data import text_table as module
from pyterrier_selfdistill.data.text_table import TextTable

TEXTS = {"a": "sort", "b": " sort\n", "c": "", "d": "  ", "e": "été", "f": "x" * 1000}


def checksums_of(identifiers):
    """Another order than that of the identifiers."""
    return np.array([7 * ord(identifier) % 31 for identifier in identifiers], dtype=np.uint64)


def find(table, identifiers):
    return table.find(pa.array(identifiers, pa.string()), checksums_of(identifiers))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=6), st.sampled_from([1, 2, 100]))
def test_text_table_gives_each_text_and_looks_it_up_once(parts, size):
    looked_up = []

    def read(identifiers):
        looked_up.extend(identifiers)
        return TEXTS

    with pytest.MonkeyPatch.context() as patch, TextTable(read) as table:
        patch.setattr(module, "LOOKUPS", size)
        for part in parts:
            texts = table.take(find(table, part))
            assert texts.type == pa.string()
            assert texts.to_pylist() == [TEXTS.get(identifier, "") for identifier in part]
        assert len(table) == len(looked_up)
    assert sorted(looked_up) == sorted({identifier for part in parts for identifier in part})


def test_text_table_knows_texts_that_are_the_same_and_those_that_are_empty():
    with TextTable(lambda identifiers: TEXTS) as table:
        rows = find(table, list("abcdeg"))
        trimmed = table.trimmed[rows].tolist()
        checksums = table.checksums[rows].tolist()
    assert trimmed[0] == trimmed[1] != trimmed[4]
    assert checksums[0] != checksums[1]
    assert [trimmed[place] for place in (2, 3, 5)] == [0, 0, 0]


def test_text_table_removes_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with TextTable(lambda identifiers: TEXTS) as table:
        find(table, ["a"])
        assert list(tmp_path.rglob("*"))
    assert not list(tmp_path.rglob("*"))
