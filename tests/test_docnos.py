"""The identifiers of the documents of an index: any strings, found again, and no others."""

import npids
import numpy as np
import pandas as pd
import pytest

from pyterrier_selfdistill.index import files as docnos_module
from pyterrier_selfdistill.index import files as module
from pyterrier_selfdistill.index.files import open_docnos, write_docnos


def fails(function, *errors):
    """Whether a function raises one of the errors."""
    try:
        function()
    except errors:
        return True
    return False


DOCNOS = [["d0"], ["d\u00e9", "d\u00e8"], ["e8c5d3", "2301"], ["007", "008"]]
"""Identifiers that npids does not store, or does not find again."""


def positions(lookup, docnos):
    return [int(position) for position in lookup.inv[list(docnos)]]


def stores(docnos, path):
    npids.Lookup.build(docnos, path, return_self=False)
    lookup = npids.Lookup(path)
    assert list(lookup) == docnos
    assert positions(lookup, docnos) == list(range(len(docnos)))


@pytest.mark.parametrize("docnos", DOCNOS)
def test_write_docnos_is_needed(docnos, tmp_path):
    is_stored = not fails(lambda: stores(docnos, tmp_path / "docnos"), Exception)
    assert not is_stored, "npids stores them; see write_docnos"


@pytest.mark.parametrize(
    "docnos",
    [
        *DOCNOS,
        ["a", "b" * 100_000],
        [" 1", "1", "01", "+1", "-1", "1_0", "\u0661"],
        ["\u65e5\u672c", "\U0001f600", "a\nb", "a\tb", "ab" * 16, "550e8400-e29b-41d4-a716-446655440000"],
        [f"d{number}" for number in range(1001)],
        [str(number) for number in range(300)] + ["x"],
    ],
)
def test_write_docnos_stores_any_strings(docnos, tmp_path):
    write_docnos(tmp_path / "docnos", docnos)
    for lookup in (open_docnos(tmp_path / "docnos"), npids.Lookup(tmp_path / "docnos")):
        assert list(lookup) == docnos
        assert lookup.fwd[list(range(len(docnos)))] == docnos
        assert positions(lookup, docnos) == list(range(len(docnos)))


def test_write_docnos_makes_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(docnos_module, "DOCNOS_OF_A_BLOCK", 2)
    docnos = ["a", "b", "cc", "d", "eee", "f"]
    write_docnos(tmp_path / "docnos", docnos)
    lookup = open_docnos(tmp_path / "docnos")
    assert len(lookup.fwd.codecs) > 1
    assert list(lookup) == docnos
    assert positions(lookup, docnos) == list(range(len(docnos)))


def test_open_docnos_is_needed(tmp_path):
    npids.Lookup.build(["a", "b"], tmp_path / "docnos", return_self=False)
    lookup = npids.Lookup(tmp_path / "docnos")
    is_known = not fails(lambda: lookup.inv[["nobody"]], LookupError)
    takes_objects = not fails(lambda: lookup.inv[np.array(["\u00e9"], dtype=object)], UnicodeEncodeError)
    assert is_known or not takes_objects, "npids knows what it has; see open_docnos"


@pytest.mark.parametrize("kind", [list, np.array, pd.Series, lambda docnos: np.array(docnos, dtype=object)])
def test_open_docnos_knows_what_it_has(tmp_path, kind):
    write_docnos(tmp_path / "docnos", ["a", "\u00e9", "\u65e5\u672c"])
    lookup = open_docnos(tmp_path / "docnos")
    assert list(lookup.inv[kind(["\u65e5\u672c", "a"])]) == [2, 0]
    assert lookup.inv["\u00e9"] == 1
    assert "a" in lookup.inv
    assert "nobody" not in lookup.inv
    with pytest.raises(LookupError, match="1 of 2 documents are not in the index, such as the docno 'nobody'"):
        lookup.inv[kind(["a", "nobody"])]


@pytest.mark.parametrize("place", [0, 1, 999, 1500])
def test_docnos_that_are_the_same_are_named(tmp_path, place, monkeypatch):
    """Wherever they are, and however few are compared at once."""
    monkeypatch.setattr(module, "DOCNOS_OF_A_BLOCK", 700)
    monkeypatch.setattr(module, "CHECKSUMS", 7)
    docnos = [f"d{number}" for number in range(2000)]
    assert write_docnos(tmp_path / "distinct", iter(docnos)) == 2000
    with pytest.raises(ValueError, match=f"duplicate docno '{docnos[place]}'; each document needs"):
        write_docnos(tmp_path / "docnos", [*docnos, docnos[place]])


def test_docnos_that_are_all_the_same(tmp_path):
    with pytest.raises(ValueError, match="duplicate docno 'é'"):
        write_docnos(tmp_path / "docnos", ["é", "é", "é"])
