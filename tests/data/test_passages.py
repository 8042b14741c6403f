"""Documents of triples become their best passages: which, their counts, and the cache."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_selfdistill.data import passages
from pyterrier_selfdistill.data.triples import read_triples

PASSAGES = pt.text.sliding("text", length=3, stride=3, prepend_attr=None)
ROWS = [
    ("sort rows", "read a file sort the rows", "plot a matrix write a file"),
    ("write file", "write it", "plot a matrix write a file"),
    ("read", "a file", "a matrix"),
]


class Counting:
    """An encoder of one dimension a word, that counts what it encodes."""

    text_field = "text"
    precision = "float32"
    words = ("sort", "read", "write", "plot", "table", "file", "matrix", "rows")

    def __init__(self, model_name="0123"):
        self.model_name = model_name
        self.encoded = 0

    def encode_queries(self, texts):
        return np.array([[word in text.split() for word in self.words] for text in texts], dtype=np.float32)

    def encode_docs(self, texts):
        self.encoded += len(texts)
        return self.encode_queries(texts)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of PyTerrier where nothing is found again from other tests."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))


def test_each_document_becomes_its_best_passage_for_the_query(home):
    encoder = Counting()
    triples = passages.choose_passages(read_triples(ROWS), PASSAGES, encoder)
    assert triples.dataset[:] == {
        "query": ["sort rows", "write file", "read"],
        "positive": ["sort the rows", "write it", "a file"],
        # the first of two that score the same, and the one with both words
        "negative": ["plot a matrix", "write a file", "a matrix"],
    }
    assert triples.summary["passages"] == {"documents": 5, "divided": 2, "rows": 2}
    assert encoder.encoded == 4


def test_rows_are_counted_as_before(home):
    """Also one whose best passages are the same; and more rows than are divided at once."""
    rows = [("", "sort", "read"), *ROWS, ("sort", "sort the rows now read a table", "sort the rows plot a file")]
    before = read_triples(rows * 1000)
    chosen = passages.choose_passages(before, PASSAGES, Counting())
    after = chosen.summary
    assert (after["source"], after["read"], after["triples"], after["dropped"]) == ("list", 5000, 3000, 2000)
    assert after["passages"] == {"documents": 7, "divided": 4, "rows": 3000}
    assert after["fingerprint"] != before.summary["fingerprint"]
    assert chosen.dataset[-3:] == passages.choose_passages(read_triples(ROWS), PASSAGES, Counting()).dataset[:]
    assert "passages" not in before.summary


def test_passages_are_found_again_until_something_changes(home):
    first = passages.choose_passages(read_triples(ROWS), PASSAGES, Counting())
    again = Counting()
    assert passages.choose_passages(read_triples(ROWS), PASSAGES, again).summary == first.summary
    assert again.encoded == 0
    shorter = pt.text.sliding("text", length=2, stride=2, prepend_attr=None)
    for rows, transformer, name in ((ROWS[:2], PASSAGES, "0123"), (ROWS, shorter, "0123"), (ROWS, PASSAGES, "ab")):
        other = Counting(name)
        passages.choose_passages(read_triples(rows), transformer, other)
        assert other.encoded > 0


def test_labels_several_negatives_and_texts_that_are_looked_up_go_along(home, names):
    rows = [
        {"query": "sort", "positive": "plot", "negative_1": "read the x sort it now", "negative_2": "a", "label": 0.5}
    ]
    chosen = passages.choose_passages(read_triples(rows), PASSAGES, Counting()).dataset[0]
    assert chosen == {"query": "sort", "positive": "plot", "negative_1": "sort it now", "negative_2": "a", "label": 0.5}
    looked_up = read_triples(names["dataset"], store_texts=False)
    chosen = passages.choose_passages(looked_up, PASSAGES, Counting())
    assert len(chosen.dataset) == 8
    assert {len(text.split()) for text in chosen.dataset["positive"]} <= {2, 3}


def test_a_document_of_which_nothing_is_left_stays():
    nothing = pt.apply.generic(lambda frame: frame.assign(text=" "), transform_outputs=lambda columns: columns)
    assert passages.divide(["sort", "read"], nothing, "text") == {"sort": ["sort"], "read": ["read"]}


@pytest.mark.parametrize("name", ["document-{}_8", "{}", "document-9%p{}"])
def test_passages_must_say_which_document_they_are_of(name):
    def divide(frame):
        return frame.assign(docno=[name.format(row) for row in range(len(frame))])

    with pytest.raises(ValueError, match=f"'document-0%p1'; got 'sort' with the docno '{name.format(0)}'"):
        passages.divide(["sort", "read"], pt.apply.generic(divide, transform_outputs=list), "text")


def test_a_transformer_that_needs_more_than_a_text_is_an_error():
    with pytest.raises(ValueError, match=r"columns \['docno', 'text'\].*sliding"):
        passages.divide(["sort"], pt.text.sliding("text"), "text")


def test_results_and_corpora_are_divided_and_documents_score_as_their_best_passage():
    text = "sort the rows now read it"
    results = pd.DataFrame([["1", "d1", text], ["1", "d2", "read"]], columns=["qid", "docno", "text"])
    divided = passages.divide_results(results, PASSAGES, "text")
    assert divided[["docno", "text"]].to_numpy().tolist() == [
        ["d1", "sort the rows"],
        ["d1", "now read it"],
        ["d2", "read"],
    ]
    best = passages.best_of_documents(divided.assign(score=[0.5, 0.9, 0.7]))
    assert best[["docno", "score", "rank"]].to_numpy().tolist() == [["d1", 0.9, 0], ["d2", 0.7, 1]]
    records = list(passages.passage_records([{"docno": "d1%p", "text": text}], PASSAGES, "text"))
    assert records == [{"docno": "d1%p%p0", "text": "sort the rows"}, {"docno": "d1%p%p1", "text": "now read it"}]
    assert [passages.document_of(name) for name in ("d1%p%p1", "d1")] == ["d1%p", "d1"]
