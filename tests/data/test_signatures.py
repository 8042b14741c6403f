"""Signatures: others when the content is another, and none where nothing says what it is."""

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_selfdistill.data import signatures as module
from pyterrier_selfdistill.data.corpus import Documents
from pyterrier_selfdistill.data.signatures import file_signature, part_signature, texts_signature


def test_file_signature_changes_with_the_file(tmp_path):
    path = tmp_path / "triples.tsv"
    assert file_signature(path) == []
    path.write_text("a")
    first = file_signature(path)
    assert file_signature(path) == first
    path.write_text("ab")
    assert file_signature(path) != first
    assert file_signature(tmp_path) == []


def test_file_signature_has_a_checksum_of_a_small_file(tmp_path, monkeypatch):
    """Which may be written again at once, with the same size."""
    path = tmp_path / "triples.tsv"
    path.write_text("a")
    first = file_signature(path)
    path.write_text("b")
    assert file_signature(path)[3] != first[3]
    monkeypatch.setattr(module, "SMALL_FILE", 0)
    assert len(file_signature(path)) == 3


def test_texts_signature_tells_texts_apart():
    texts = [
        {"1": "ab"},
        {"1a": "b"},
        {"1": "a", "b": ""},
        {"1": "ab", "2": ""},
        {"2": "", "1": "ab"},
        {"1": "\ud800"},
        {},
    ]
    assert len({tuple(texts_signature(some)) for some in texts}) == len(texts)


@pytest.mark.parametrize("part", ["docs", "queries", "docpairs"])
def test_part_signature_changes_with_the_files_of_the_part(part, register, topics, corpus, pairs):
    parts = {"docs": pd.DataFrame(corpus).to_numpy(), "queries": topics.to_numpy(), "docpairs": pairs}
    signatures = []
    for number in (2, 2, 1):
        dataset = register("tiny/signed", **{name: rows[:number] for name, rows in parts.items()})
        dataset.irds_ref().docs_store().clear_cache()
        Documents(dataset, ["text"]).texts([])
        signatures.append(part_signature(dataset, part))
    assert signatures[0][0] == "IRDSDataset('tiny/signed')"
    assert len({str(signature[3][0][3:]) for signature in signatures}) == 2


def test_part_signature_of_documents_is_that_of_their_docstore(dataset):
    """Which texts are read from; before it is built, nothing says what they are."""
    assert part_signature(dataset, "docs") is None
    Documents(dataset, ["text"]).texts([])
    names = [signature[0].rpartition("/")[2] for signature in part_signature(dataset, "docs")[3]]
    assert "bin" in names


def test_part_signature_of_what_ir_datasets_distributes_needs_no_file():
    """Nor a download, to say what was made of documents that are gone."""
    counts = {"docs": 8841823, "queries": 808731, "docpairs": 269919004}
    for part, count in counts.items():
        name, _, metadata, files = part_signature(pt.get_dataset("irds:msmarco-passage/train"), part)
        assert name == "IRDSDataset('msmarco-passage/train')"
        assert metadata["count"] == count
        assert part == "docs" or files == []


@pytest.mark.parametrize("part", ["docs", "queries", "docpairs"])
def test_part_signature_of_what_is_not_of_ir_datasets_is_none(part, register, topics, corpus):
    for source in (topics, corpus, pt.datasets.Dataset(), register("tiny/qrels", qrels=[("1", 0, "d1", 1)])):
        assert part_signature(source, part) is None
