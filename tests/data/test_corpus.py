"""Documents: the same ones whatever holds them, with their texts."""

from typing import NamedTuple

import dill
import ir_datasets
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_datasets.formats import BaseDocs
from ir_datasets.indices import PickleLz4FullStore

from pyterrier_selfdistill.data.corpus import Documents, reusable

RECORDS = [
    {"docno": "d2", "title": "Rows", "text": "sort rows"},
    {"docno": "d1", "title": "Plots", "text": "draw a file"},
]
COLUMNS = ["docno", "title", "text"]


class Doc(NamedTuple):
    doc_id: str
    title: str | None
    text: str | None


class Docs(BaseDocs):
    """Documents in a docstore of ir_datasets, whatever their fields hold."""

    def __init__(self, rows, folder):
        self.rows = rows
        self.folder = folder

    def docs_iter(self):
        return iter([Doc(*row) for row in self.rows])

    def docs_cls(self):
        return Doc

    def docs_store(self):
        return PickleLz4FullStore(str(self.folder / "docs.pklz4"), self.docs_iter, Doc, "doc_id", ["doc_id"])


class DocsDataset(pt.datasets.Dataset):
    """A PyTerrier dataset of rows of an identifier, a title and a text."""

    def __init__(self, rows, folder):
        self.reference = ir_datasets.Dataset(Docs(rows, folder))

    def irds_ref(self):
        return self.reference


MAKERS = {
    "records": lambda rows, _: [dict(zip(COLUMNS, row, strict=True)) for row in rows],
    "frame": lambda rows, _: pd.DataFrame(rows, columns=COLUMNS, dtype=object),
    "docstore": DocsDataset,
}


@pytest.fixture(params=MAKERS)
def documents_of(request, tmp_path):
    """Make documents of rows, in each form."""
    return lambda rows, fields: Documents(MAKERS[request.param](rows, tmp_path), fields)


class CorpusWithALength:
    """As PyTerrier's datasets return their corpus: with a length, and the same iterator each time."""

    def __init__(self, records):
        self.records = iter(records)

    def __iter__(self):
        return self.records

    def __len__(self):
        return len(RECORDS)


def tqdm_over(records):
    return pt.tqdm(iter(records), total=len(records), disable=True)


@pytest.mark.parametrize(
    "form",
    [list, tuple, iter, pd.DataFrame, CorpusWithALength, tqdm_over, lambda records: dict(enumerate(records)).values()],
)
def test_documents_are_read_more_than_once_whatever_holds_them(form):
    documents = Documents(form(RECORDS), ["text"])
    for _ in range(2):
        assert list(documents) == [("d2", "sort rows"), ("d1", "draw a file")]
        assert documents.docnos() == ["d1", "d2"]
        assert documents.texts(["d1", "d3"]) == {"d1": "draw a file"}


def test_datasets_frames_and_sequences_are_not_copied(dataset):
    for corpus in (dataset, pd.DataFrame(RECORDS), RECORDS, tuple(RECORDS), []):
        assert reusable(corpus) is corpus


def test_documents_of_a_dataset_come_from_its_docstore(dataset):
    """Also after they were pickled with an open docstore; dill does it as datasets does."""
    for corpus in (dataset, dataset.get_corpus_iter(verbose=False)):
        documents = Documents(corpus, ["text"])
        assert documents.docnos() == documents.docnos() == ["d0", "d1", "d2", "d3", "d4", "d5"]
        assert documents.texts(["d1", "d7"]) == {"d1": "text 1"}
        assert dill.loads(dill.dumps(documents)).texts(["d1"]) == {"d1": "text 1"}


def test_the_fingerprint_is_of_documents_and_fields(dataset):
    sources = [(RECORDS, ["text"]), (RECORDS[::-1], ["text"]), (RECORDS, ["title"]), (dataset, ["text"])]
    fingerprints = {Documents(*source).fingerprint() for source in sources}
    assert len(fingerprints) == 4
    assert Documents(pd.DataFrame(RECORDS), ["text"]).fingerprint() in fingerprints
    published = Documents(pt.get_dataset("irds:msmarco-passage/train"), ["text"])
    assert published.fingerprint() != Documents(pt.get_dataset("irds:msmarco-document/train"), ["text"]).fingerprint()


def test_fields_that_hold_a_text_are_joined(documents_of):
    rows = [("d1", None, "sort"), ("d2", "Rows", np.nan), ("d3", "Rows", ""), ("d4", "Rows", "sort"), ("d5", "", "")]
    expected = {"d1": "sort", "d2": "Rows", "d3": "Rows", "d4": "Rows sort", "d5": ""}
    assert documents_of(rows, ["title", "text"]).texts(list(expected)) == expected
    assert documents_of(rows[-1:], ["text"]).texts(["d5"]) == {"d5": ""}


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, 7, ["sort"], b"sort"], ids=repr)
def test_texts_must_be_strings(documents_of, value):
    with pytest.raises(TypeError, match="document 'd2' must have a string in 'text'"):
        documents_of([("d1", "", "plot"), ("d2", "", value)], ["text"]).texts(["d1", "d2"])
    if isinstance(value, int | list | bytes):
        with pytest.raises(TypeError, match="'title' and 'text'"):
            documents_of([("d2", value, "sort")], ["title", "text"]).texts(["d2"])


@pytest.mark.parametrize("docno", [1, None, np.nan, b"d1"])
def test_docnos_must_be_strings(docno):
    for corpus in ([{"docno": docno, "text": "sort"}], pd.DataFrame({"docno": [docno], "text": ["sort"]})):
        with pytest.raises(TypeError, match="docno must be a string"):
            Documents(corpus, ["text"]).docnos()


@pytest.mark.parametrize("corpus", [7, None, "d1", b"d1", RECORDS[0], ["d1"], [("d1", "sort")], np.ones(3)], ids=repr)
def test_other_objects_are_no_corpus(corpus):
    with pytest.raises(TypeError, match="corpus must be a PyTerrier dataset"):
        Documents(corpus, ["text"])


@pytest.mark.parametrize(
    ("corpus", "fields", "error", "message"),
    [
        (pd.DataFrame([("d1", "a", "b")], columns=["docno", "text", "text"]), ["text"], ValueError, r"\['text'\]"),
        ([*RECORDS, "d2"], ["text"], TypeError, "got 'd2' among them"),
        ([{"docno": "d1", "text": "a"}, {"docno": "d1", "text": "b"}], ["text"], ValueError, "'a' and 'b' of 'd1'"),
        (RECORDS, ["body"], ValueError, "'body' missing"),
        ([{"text": "a"}], ["text"], ValueError, "'docno' missing"),
        (pt.datasets.Dataset(), ["text"], ValueError, "must have documents"),
        *((RECORDS, fields, (TypeError, ValueError), "fields must be") for fields in ("text", "", [], 0, None, [0])),
    ],
    ids=str,
)  # fmt: skip
def test_faulty_documents_are_errors(corpus, fields, error, message):
    with pytest.raises(error, match=message):
        Documents(corpus, fields).texts(["d1"])


def test_a_dataset_without_documents_or_fields_is_an_error(dataset, register, topics):
    with pytest.raises(ValueError, match=r"\['doc_id', 'text'\], not 'title'"):
        Documents(dataset, ["title", "text"]).texts(["d1"])
    with pytest.raises(ValueError, match="must have documents"):
        Documents(register("queries", queries=topics.to_numpy()), ["text"]).texts(["d1"])
