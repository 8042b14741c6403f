"""Docpairs: the same from their file as from the iterator of ir_datasets, and from the file only where that is sure."""

import gzip

import ir_datasets
import pyarrow as pa
import pytest
from ir_datasets.datasets.base import FilteredDocPairs
from ir_datasets.formats import TsvDocPairs
from ir_datasets.util import GzipExtract, LocalDownload

from pyterrier_selfdistill.data import docpairs as module
from pyterrier_selfdistill.data.docpairs import Docpairs, has_own_file

LINES = '1\td1\td2\n\n007\t"d1\tNA\n2\t\td5 \né\td1\td2'


@pytest.fixture
def path(tmp_path):
    """A file of four pairs and an empty line."""
    path = tmp_path / "docpairs"
    path.write_text(LINES)
    return path


def dataset_of(handler):
    return ir_datasets.Dataset(handler)


def pairs_of(handler):
    tables = list(Docpairs(dataset_of(handler)))
    return list(zip(*pa.concat_tables(tables).to_pydict().values(), strict=True))


def test_docpairs_of_a_file_are_those_of_the_iterator(path, monkeypatch):
    """Quotes, spaces, zeros and what looks like a missing value are parts of identifiers."""
    handler = TsvDocPairs(LocalDownload(path))
    expected = [tuple(pair) for pair in handler.docpairs_iter()]
    assert len(expected) == 4
    assert has_own_file(dataset_of(handler))
    assert pairs_of(handler) == expected
    monkeypatch.setattr(module, "has_own_file", lambda reference: False)
    assert pairs_of(handler) == expected


def test_docpairs_of_a_compressed_file(path):
    """Whatever its name is."""
    lines = path.read_text()
    path.write_bytes(gzip.compress(lines.encode()))
    handler = TsvDocPairs(GzipExtract(LocalDownload(path)))
    assert pairs_of(handler) == [tuple(pair) for pair in handler.docpairs_iter()]


def test_docpairs_can_be_read_again(path):
    docpairs = Docpairs(dataset_of(TsvDocPairs(LocalDownload(path))))
    assert list(docpairs) == list(docpairs)


def test_docpairs_that_are_chosen_do_not_come_from_the_file(path):
    handler = FilteredDocPairs(TsvDocPairs(LocalDownload(path)), lambda: {"2"})
    assert not has_own_file(dataset_of(handler))
    assert pairs_of(handler) == [("2", "", "d5 ")]


@pytest.mark.parametrize("name", ["train", "train/triples-v2", "train/triples-small", "train/judged"])
def test_docpairs_of_ms_marco_have_a_file(name):
    assert has_own_file(ir_datasets.load(f"msmarco-passage/{name}"))


@pytest.mark.parametrize("name", ["train/medical", "train/split200-train", "train/split200-valid"])
def test_docpairs_of_a_part_of_ms_marco_have_none(name):
    assert not has_own_file(ir_datasets.load(f"msmarco-passage/{name}"))


def test_docpairs_of_an_empty_file(path):
    path.write_text("")
    assert list(Docpairs(dataset_of(TsvDocPairs(LocalDownload(path))))) == []


@pytest.mark.parametrize("content", [b"1\td1\n", b"1\td1\td2\td3\n", b"1\td1\t\xff\n", b"\x1f\x8b\x08cut off"])
def test_docpairs_name_a_file_that_is_damaged(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} cannot be read as lines of query, positive and negative"):
        list(Docpairs(dataset_of(TsvDocPairs(LocalDownload(path)))))
