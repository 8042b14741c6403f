"""Documents: the same ones whatever holds them, with their texts."""

import dill
import pandas as pd
import pytest

from pyterrier_selfdistill.data.corpus import Documents

RECORDS = [
    {"docno": "d2", "title": "Rows", "text": "sort rows"},
    {"docno": "d1", "title": "Plots", "text": "draw a file"},
]


@pytest.mark.parametrize("form", [list, tuple, iter, pd.DataFrame])
def test_documents_of_each_form_of_a_corpus(form):
    """More than once: an iterator is read into memory."""
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


def test_documents_can_be_pickled_while_a_docstore_is_open(dataset):
    """By dill, as datasets does it: PyTerrier's datasets cannot be pickled otherwise."""
    documents = Documents(dataset, ["text"])
    expected = documents.texts(["d1"])
    copy = dill.loads(dill.dumps(documents))
    assert copy.texts(["d1"]) == expected


@pytest.mark.parametrize("fields", ["text", [], ()])
def test_documents_reject_fields_that_are_not_a_list_of_names(fields):
    with pytest.raises(ValueError, match="fields must be a list of field names"):
        Documents(RECORDS, fields)


def test_documents_reject_records_without_a_field():
    with pytest.raises(ValueError, match="'docno' and 'body'.*got .*'body' missing"):
        Documents(RECORDS, ["body"]).texts(["d1"])
    with pytest.raises(ValueError, match="'docno' missing"):
        list(Documents([{"text": "a"}], ["text"]))


def test_documents_reject_a_dataset_without_a_field(dataset):
    with pytest.raises(ValueError, match=r"fields \['doc_id', 'text'\], not 'title'; choose .* fields="):
        Documents(dataset, ["title", "text"]).texts(["d1"])
