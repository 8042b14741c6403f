"""Documents of triples become their best passages: which, what is counted, and what is found again."""

import numpy as np
import pyterrier as pt
import pytest

from pyterrier_selfdistill.data import passages as module
from pyterrier_selfdistill.data.passages import best_passages, choose_passages, divide
from pyterrier_selfdistill.data.triples import PairOptions, from_docpairs, from_texts

PASSAGES = pt.text.sliding("text", length=3, stride=3, prepend_attr=None)


class Counting:
    """An encoder of one dimension a word, that counts what it encodes."""

    text_field = "text"
    precision = "float32"
    model_name = "0123"
    words = ("sort", "read", "write", "plot", "table", "file", "matrix", "rows")

    def __init__(self):
        self.encoded = 0

    def encode_queries(self, texts):
        return np.array([[word in text.split() for word in self.words] for text in texts], dtype=np.float32)

    def encode_docs(self, texts):
        self.encoded += len(texts)
        return self.encode_queries(texts)


@pytest.fixture
def counting():
    return Counting()


ROWS = [
    ("sort rows", "read a file sort the rows", "plot a matrix write a file"),
    ("write file", "write it", "plot a matrix write a file"),
    ("read", "a file", "a matrix"),
]


def test_each_document_becomes_its_best_passage_for_the_query(counting):
    triples = choose_passages(from_texts(ROWS), PASSAGES, counting)
    assert triples.dataset[:] == {
        "query": ["sort rows", "write file", "read"],
        "positive": ["sort the rows", "write it", "a file"],
        # the first of two that score the same, and the one with both words
        "negative": ["plot a matrix", "write a file", "a matrix"],
    }
    assert triples.summary["passages"] == {"documents": 5, "divided": 2, "rows": 2}
    assert counting.encoded == 4


def test_rows_are_accounted_for_as_before(counting):
    """Also one whose best passages are the same."""
    rows = [("", "sort", "read"), *ROWS, ("sort", "sort the rows now read a table", "sort the rows plot a file")]
    before = from_texts(rows)
    after = choose_passages(before, PASSAGES, counting).summary
    assert (after["source"], after["read"], after["triples"]) == ("list", 5, 3)
    assert after["dropped"] == {"no text in 'query'": 1, "negative with the text of the positive": 1}
    assert after["fingerprint"] != before.summary["fingerprint"]
    assert "passages" not in before.summary


def test_blocks_change_nothing(counting, monkeypatch):
    whole = choose_passages(from_texts(ROWS), PASSAGES, counting)
    monkeypatch.setattr(module, "ROWS", 1)
    counting.model_name = "4567"
    parts = choose_passages(from_texts(ROWS), PASSAGES, counting)
    assert parts.dataset[:] == whole.dataset[:]
    assert parts.summary == whole.summary


def test_passages_are_found_again_until_something_changes(counting):
    counting.model_name = "89"
    first = choose_passages(from_texts(ROWS), PASSAGES, counting)
    before = counting.encoded
    assert choose_passages(from_texts(ROWS), PASSAGES, counting).summary == first.summary
    assert counting.encoded == before
    for rows, size, name in ((ROWS[:2], 3, "89"), (ROWS, 2, "89"), (ROWS, 3, "ab")):
        counting.model_name, counting.encoded = name, 0
        choose_passages(
            from_texts(rows), pt.text.sliding("text", length=size, stride=size, prepend_attr=None), counting
        )
        assert counting.encoded > 0


def test_labels_and_texts_that_are_looked_up_go_along(counting, names):
    row = dict(zip(("query", "positive", "negative"), ROWS[0], strict=True))
    labelled = choose_passages(from_texts([{**row, "label": 0.5}]), PASSAGES, counting)
    assert labelled.dataset[0]["label"] == 0.5
    looked_up = from_docpairs(names["dataset"], PairOptions(store_texts=False))
    chosen = choose_passages(looked_up, PASSAGES, counting)
    assert len(chosen.dataset) == 8
    assert {len(text.split()) for text in chosen.dataset["positive"]} <= {2, 3}


def test_negatives_in_several_columns_are_divided(counting):
    columns = {"query": ["sort"], "positive": ["plot"], "negative_1": ["read x sort"], "negative_2": ["a"]}
    passages_of = {"plot": ["plot"], "read x sort": ["read", "x", "sort"], "a": ["a"]}
    assert best_passages(columns, passages_of, counting) == {**columns, "negative_1": ["sort"]}


def test_a_document_of_which_nothing_is_left_stays(counting):
    nothing = pt.apply.generic(lambda frame: frame.assign(text=" "), transform_outputs=lambda columns: columns)
    assert divide(["sort", "read"], nothing, "text") == {"sort": ["sort"], "read": ["read"]}


WITHOUT_TEXT = pt.apply.generic(lambda frame: frame[["docno"]], transform_outputs=lambda columns: ["docno"])


@pytest.mark.parametrize(
    "passages", [pt.text.sliding("text"), pt.text.sliding("body", prepend_attr=None), WITHOUT_TEXT]
)
def test_what_needs_more_than_a_text_is_an_error(passages):
    with pytest.raises(ValueError, match=r"cannot divide documents with the columns \['docno', 'text'\].*sliding"):
        divide(["sort"], passages, "text")
