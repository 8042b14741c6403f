"""Pairs of identifiers: sampled and shuffled by what they are, with as many of a query as can be trained with."""

import copy
import json

import dill
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_selfdistill.data import pairs as module
from pyterrier_selfdistill.data.corpus import Documents
from pyterrier_selfdistill.data.pairs import PairOptions, TextLookup, triples_of_pairs
from pyterrier_selfdistill.data.triples import from_identifiers


@pytest.fixture(scope="module")
def topics_of_two():
    """Two queries, for tests of many examples."""
    return pd.DataFrame({"qid": ["1", "2"], "query": ["sort", "plot"]})


@pytest.fixture
def many_pairs():
    """Rows of identifiers: 250 for each of the two queries, of seven positives in all."""
    return [(str(1 + row % 2), f"d{row % 7}", f"d{10 + row % 83}") for row in range(500)]


def test_pairs_in_parts_of_any_size(many_pairs, topics, corpus, monkeypatch, texts_of, is_accounted):
    options = PairOptions(max_pairs_per_query=100, limit=150)
    whole = from_identifiers(many_pairs, topics, corpus, options)
    monkeypatch.setattr(module, "TEXTS", 3)
    monkeypatch.setattr("pyterrier_selfdistill.data.readers.ROWS", 11)
    parts = from_identifiers(many_pairs, topics, corpus, options)
    assert texts_of(parts) == texts_of(whole)
    assert parts.summary == whole.summary
    assert whole.summary["triples"] == 150
    assert is_accounted(whole.summary)


identifiers = st.integers(0, 5).map("d{}".format)


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(st.tuples(st.sampled_from("12"), identifiers, identifiers), min_size=1, max_size=60),
    number=st.integers(1, 4),
    limit=st.none() | st.integers(1, 10),
    size=st.sampled_from([1, 3, 20_000]),
    store_texts=st.booleans(),
)
def test_pairs_of_a_query_are_the_first_that_can_be_trained_with(
    topics_of_two, texts_of, is_accounted, rows, number, limit, size, store_texts
):
    """Neither those without a text nor those of two equal texts count; however many are looked up at once."""
    corpus = [{"docno": f"d{number}", "text": text} for number, text in enumerate(["a", "b", "b", "", "c"])]
    try:
        everything = texts_of(from_identifiers(rows, topics_of_two, corpus))
    except ValueError:
        return  # none can be trained with
    expected = []
    for row in everything:
        if sum(other[0] == row[0] for other in expected) < number:
            expected.append(row)
    options = PairOptions(max_pairs_per_query=number, limit=limit, store_texts=store_texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TEXTS", size)
        triples = from_identifiers(rows, topics_of_two, corpus, options)
    assert texts_of(triples) == expected[:limit]
    assert is_accounted(triples.summary)
    assert triples.summary["read"] == len(rows)


def test_pairs_without_a_text_do_not_count_as_pairs_of_their_query(topics, corpus):
    unknown = [("1", "d1", f"x{number}") for number in range(20)]
    same = [("1", "d1", "d1")]
    known = [("1", "d1", f"d{number}") for number in range(2, 12)]
    summary = from_identifiers([*unknown, *same, *known], topics, corpus, PairOptions(max_pairs_per_query=10)).summary
    assert summary["triples"] == 10
    assert sum(summary["dropped"].values()) == 21


def test_pairs_of_a_query_that_has_enough_are_not_looked_up(topics, corpus, many_pairs, monkeypatch):
    monkeypatch.setattr(module, "TEXTS", 5)
    looked_up = []
    texts = Documents.texts
    monkeypatch.setattr(Documents, "texts", lambda self, docnos: looked_up.extend(docnos) or texts(self, docnos))
    from_identifiers(many_pairs, topics, corpus, PairOptions(max_pairs_per_query=1))
    assert 4 <= len(looked_up) <= 20


@pytest.mark.parametrize("number", [None, 1, 3])
@pytest.mark.parametrize("limit", [1, 2, 20, 70])
def test_pairs_that_can_be_read_again_give_the_same(many_pairs, topics, corpus, number, limit, texts_of):
    """Only the first are shuffled then, and more if they do not do."""
    options = PairOptions(max_pairs_per_query=number, limit=limit)
    columns = dict(zip(["query", "positive", "negative"], zip(*many_pairs, strict=True), strict=True))
    table = pa.table(columns)
    found = []
    for tables in ([table[:100], table[100:]], iter([table])):
        lookup = TextLookup(topics, Documents(corpus, ["text"]))
        triples = triples_of_pairs(tables, None, lookup, options, {})
        found.append((texts_of(triples), triples.summary))
    assert found[0] == found[1]


def test_pairs_give_what_is_known(many_pairs, topics, corpus, texts_of):
    """The same on every machine and with every release."""
    triples = from_identifiers(many_pairs, topics, corpus, PairOptions(max_pairs_per_query=2))
    assert texts_of(triples) == [
        ("sort", "text 5", "text 81"),
        ("sort", "text 1", "text 61"),
        ("plot", "text 5", "text 87"),
        ("plot", "text 4", "text 25"),
    ]


@pytest.mark.parametrize("name", ["max_pairs_per_query", "limit"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "2", True])
def test_pair_options_reject_what_is_not_a_positive_integer(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {value!r}"):
        PairOptions(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be an integer from 0 to 4294967295, got -1"),
        ({"seed": 1.5}, "seed must be an integer from 0 to 4294967295, got 1.5"),
        ({"fields": "text"}, "fields must be a list of field names .*, got 'text'"),
        ({"fields": 0}, "fields must be a list of field names .*, got 0"),
        ({"fields": ""}, "fields must be a list of field names .*, got ''"),
        ({"fields": []}, r"fields must be a list of field names .*, got \[\]"),
        ({"store_texts": "no"}, "store_texts must be a valid boolean, got 'no'"),
        ({"verbose": 1}, "verbose must be a valid boolean, got 1"),
    ],
)
def test_pair_options_reject_what_is_of_another_type(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PairOptions(**options)


def test_pair_options_take_numbers_of_numpy():
    options = PairOptions(max_pairs_per_query=np.int64(2), limit=np.int32(3), seed=np.uint8(7), verbose=np.bool_(False))
    assert options == PairOptions(max_pairs_per_query=2, limit=3, seed=7)
    assert json.dumps(options.settings())


def test_pair_options_join_fields(topics, corpus, pairs, texts_of):
    options = PairOptions(fields=["docno", "text"], max_pairs_per_query=1)
    triples = from_identifiers(pairs, topics, corpus, options)
    assert ("plot", "d4 text 4", "d5 text 5") in texts_of(triples)
    assert triples.summary["fields"] == ["docno", "text"]


def test_text_lookup_can_be_copied_and_pickled(dataset, topics):
    """Datasets do both; a copy shares the documents in memory."""
    batch = {"query": ["1", "9"], "positive": ["d1", "d2"], "negative": ["d9", "d1"]}
    expected = {"query": ["sort", None], "positive": ["text 1", "text 2"], "negative": [None, "text 1"]}
    for queries in (dataset, topics):
        lookup = TextLookup(queries, Documents(dataset, ["text"]))
        assert lookup(batch) == expected
        assert copy.deepcopy(lookup).documents is lookup.documents
        assert dill.loads(dill.dumps(lookup))(batch) == expected
