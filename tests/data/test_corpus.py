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


def from_records(rows, _):
    return [dict(zip(["docno", "title", "text"], row, strict=True)) for row in rows]


def from_frame(rows, _):
    return pd.DataFrame(rows, columns=["docno", "title", "text"], dtype=object)


SOURCES = pytest.mark.parametrize("make", [from_records, from_frame, DocsDataset])


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


FORMS = [
    list,
    tuple,
    iter,
    pd.DataFrame,
    CorpusWithALength,
    tqdm_over,
    lambda records: dict(enumerate(records)).values(),
]


@pytest.mark.parametrize("form", FORMS)
def test_documents_of_each_form_of_a_corpus(form):
    """More than once: what is empty after one pass is read into memory."""
    documents = Documents(form(RECORDS), ["text"])
    for _ in range(2):
        assert list(documents) == [("d2", "sort rows"), ("d1", "draw a file")]
        assert documents.docnos() == ["d1", "d2"]
        assert documents.texts(["d1", "d3"]) == {"d1": "draw a file"}


def test_documents_of_a_dataset_come_from_its_docstore(dataset):
    documents = Documents(dataset, ["text"])
    assert documents.docnos() == ["d0", "d1", "d2", "d3", "d4", "d5"]
    assert documents.texts(["d1", "d7"]) == {"d1": "text 1"}


def test_documents_join_the_fields_that_hold_a_text():
    corpus = [{"docno": "d1", "title": "", "text": "a"}, {"docno": "d2", "title": "b", "text": None}]
    documents = Documents(corpus, ["title", "text"])
    assert documents.texts(["d1", "d2"]) == {"d1": "a", "d2": "b"}


def test_documents_of_a_corpus_iterator_of_a_dataset(dataset):
    documents = Documents(dataset.get_corpus_iter(verbose=False), ["text"])
    for _ in range(2):
        assert documents.docnos() == ["d0", "d1", "d2", "d3", "d4", "d5"]


def test_reusable_leaves_alone_what_can_be_read_again(dataset):
    for corpus in (dataset, pd.DataFrame(RECORDS), RECORDS, tuple(RECORDS), []):
        assert reusable(corpus) is corpus


@pytest.mark.parametrize(
    "corpus", [7, None, "d1", b"d1", RECORDS[0], ["d1", "d2"], [("d1", "sort")], np.ones(3)], ids=repr
)
def test_documents_reject_what_is_no_corpus(corpus):
    with pytest.raises(
        TypeError, match="corpus must be a PyTerrier dataset, a frame, or an iterable of records .* got"
    ):
        Documents(corpus, ["text"])


def test_documents_reject_a_dataset_without_documents(register, topics):
    for dataset in (pt.datasets.Dataset(), register("queries", queries=topics.to_numpy())):
        with pytest.raises(ValueError, match="corpus must have documents, got .* without; give another one"):
            Documents(dataset, ["text"]).texts(["d1"])


def test_documents_reject_a_frame_with_two_columns_of_a_name():
    twice = pd.DataFrame([("d1", "a", "b")], columns=["docno", "text", "text"])
    with pytest.raises(ValueError, match=r"corpus must have distinct columns, got \['text'\]"):
        Documents(twice, ["text"])


def test_documents_reject_a_record_that_is_none():
    with pytest.raises(TypeError, match="documents must be records with a 'docno', got 'd2' among them"):
        Documents([*RECORDS, "d2"], ["text"]).texts(["d1"])


@SOURCES
@pytest.mark.parametrize("value", [None, np.nan, pd.NA, 7, ["sort"], b"sort"], ids=repr)
def test_documents_reject_a_text_that_is_not_a_string(make, value, tmp_path):
    documents = Documents(make([("d1", "", "plot"), ("d2", "", value)], tmp_path), ["text"])
    with pytest.raises(TypeError, match="document 'd2' must have a string in 'text', got .*; convert"):
        documents.texts(["d1", "d2"])


@SOURCES
def test_documents_may_have_an_empty_text(make, tmp_path):
    documents = Documents(make([("d1", "", "")], tmp_path), ["text"])
    assert documents.texts(["d1"]) == {"d1": ""}


@SOURCES
@pytest.mark.parametrize("missing", [None, np.nan])
def test_documents_may_lack_some_of_their_fields(make, missing, tmp_path):
    rows = [("d1", missing, "sort"), ("d2", "Rows", missing), ("d3", "Rows", ""), ("d4", "Rows", "sort")]
    documents = Documents(make(rows, tmp_path), ["title", "text"])
    assert documents.texts(["d1", "d2", "d3", "d4"]) == {"d1": "sort", "d2": "Rows", "d3": "Rows", "d4": "Rows sort"}


@SOURCES
@pytest.mark.parametrize("row", [("d1", None, np.nan), ("d1", 7, "sort"), ("d1", ["Rows"], "sort")], ids=repr)
def test_documents_reject_fields_that_hold_no_text_or_something_else(make, row, tmp_path):
    documents = Documents(make([row], tmp_path), ["title", "text"])
    with pytest.raises(TypeError, match="document 'd1' must have a string in 'title' and 'text', got .*; convert"):
        documents.texts(["d1"])


@pytest.mark.parametrize("docno", [1, None, np.nan, b"d1"])
def test_documents_reject_a_docno_that_is_not_a_string(docno):
    for corpus in ([{"docno": docno, "text": "sort"}], pd.DataFrame({"docno": [docno], "text": ["sort"]})):
        with pytest.raises(TypeError, match="docno must be a string, got .*; convert"):
            Documents(corpus, ["text"]).docnos()


def test_documents_can_be_pickled_while_a_docstore_is_open(dataset):
    """By dill, as datasets does it: PyTerrier's datasets cannot be pickled otherwise."""
    documents = Documents(dataset, ["text"])
    expected = documents.texts(["d1"])
    copy = dill.loads(dill.dumps(documents))
    assert copy.texts(["d1"]) == expected


@pytest.mark.parametrize("fields", ["text", "", [], (), 0, None, [0]])
def test_documents_reject_fields_that_are_not_a_list_of_names(fields):
    with pytest.raises((TypeError, ValueError), match="fields must be a list of field names"):
        Documents(RECORDS, fields)


def test_documents_reject_records_without_a_field():
    with pytest.raises(ValueError, match="'docno' and 'body'.*got .*'body' missing"):
        Documents(RECORDS, ["body"]).texts(["d1"])
    with pytest.raises(ValueError, match="'docno' missing"):
        list(Documents([{"text": "a"}], ["text"]))


def test_documents_reject_a_dataset_without_a_field(dataset):
    with pytest.raises(ValueError, match=r"fields \['doc_id', 'text'\], not 'title'; choose .* fields="):
        Documents(dataset, ["title", "text"]).texts(["d1"])
