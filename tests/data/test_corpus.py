"""Documents: the same ones whatever holds them, with their texts."""

import dill
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_selfdistill.data.corpus import Documents

RECORDS = [
    {"docno": "d2", "title": "Rows", "text": "sort rows"},
    {"docno": "d1", "title": "Plots", "text": "draw a file"},
]
COLUMNS = ["docno", "title", "text"]


def tqdm_over(records):
    return pt.tqdm(iter(records), total=len(records), disable=True)


@pytest.mark.parametrize(
    "form",
    [list, iter, pd.DataFrame, tqdm_over, lambda records: dict(enumerate(records)).values()],
)
def test_documents_are_read_more_than_once_whatever_holds_them(form):
    documents = Documents(form(RECORDS), ["text"])
    for _ in range(2):
        assert list(documents) == [("d2", "sort rows"), ("d1", "draw a file")]
        assert documents.docnos() == ["d1", "d2"]
        assert documents.texts(["d1", "d3"]) == {"d1": "draw a file"}


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


@pytest.mark.parametrize("form", [list, lambda rows: pd.DataFrame(rows, dtype=object)])
def test_fields_that_hold_a_text_are_joined(form):
    rows = [("d1", None, "sort"), ("d2", "Rows", np.nan), ("d3", "Rows", ""), ("d4", "Rows", "sort"), ("d5", "", "")]
    corpus = form([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    expected = {"d1": "sort", "d2": "Rows", "d3": "Rows", "d4": "Rows sort", "d5": ""}
    assert Documents(corpus, ["title", "text"]).texts(list(expected)) == expected


@pytest.mark.parametrize("value", [None, np.nan, 7, b"sort"], ids=repr)
def test_texts_must_be_strings(value):
    with pytest.raises(TypeError, match="document 'd2' must have a string in 'text'"):
        Documents([{"docno": "d1", "text": "plot"}, {"docno": "d2", "text": value}], ["text"]).texts(["d1", "d2"])


@pytest.mark.parametrize(
    ("corpus", "fields", "error", "message"),
    [
        (pd.DataFrame([("d1", "a", "b")], columns=["docno", "text", "text"]), ["text"], ValueError, r"\['text'\]"),
        ([*RECORDS, "d2"], ["text"], TypeError, "got 'd2' among them"),
        ([{"docno": "d1", "text": "a"}, {"docno": "d1", "text": "b"}], ["text"], ValueError, "'a' and 'b' of 'd1'"),
        (RECORDS, ["body"], ValueError, "'body' missing"),
        ([("d1", "sort")], ["text"], TypeError, "corpus must be a PyTerrier dataset"),
        (pt.datasets.Dataset(), ["text"], ValueError, "must have documents"),
        ([{"docno": 1, "text": "sort"}], ["text"], TypeError, "docno must be a string"),
        (RECORDS, "text", ValueError, "fields must be"),
    ],
)  # fmt: skip
def test_faulty_documents_are_errors(corpus, fields, error, message):
    with pytest.raises(error, match=message):
        Documents(corpus, fields).texts(["d1"])


def test_a_dataset_without_documents_or_fields_is_an_error(dataset, register, topics):
    with pytest.raises(ValueError, match=r"\['doc_id', 'text'\], not 'title'"):
        Documents(dataset, ["title", "text"]).texts(["d1"])
    with pytest.raises(ValueError, match="must have documents"):
        Documents(register("queries", queries=topics.to_numpy()), ["text"]).texts(["d1"])
