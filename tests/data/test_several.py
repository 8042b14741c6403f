"""Triples of several collections: an account of each and of all, and errors that name the collection."""

import pytest
from datasets import Dataset, DatasetDict

from pyterrier_selfdistill.data.triples import from_texts, parts_of, read_collections

ONE = [("sort", "sort the rows", "plot a file"), ("", "sort", "read")]
TWO = [("plot", "plot a matrix", "sort", "read"), ("read", "read a file", "sort", "plot")]


def test_all_rows_are_accounted_for_by_collection_and_in_sum():
    triples = read_collections({"one": ONE, "two": TWO}, from_texts)
    summary = triples.summary
    assert {name: part["read"] for name, part in summary["collections"].items()} == {"one": 2, "two": 2}
    assert summary["collections"]["one"] == from_texts(ONE).summary
    assert (summary["read"], summary["triples"], summary["queries"]) == (4, 3, 3)
    assert summary["dropped"] == {"no text in 'query'": 1}
    assert triples.dataset["two"].column_names == ["query", "positive", "negative_1", "negative_2"]
    assert [len(part) for part in parts_of(triples.dataset)] == [1, 2]


def test_the_fingerprint_is_of_names_texts_and_their_order():
    sources = [
        {"one": ONE, "two": TWO},
        {"two": TWO, "one": ONE},
        {"one": ONE, "2": TWO},
        {"one": ONE, "two": TWO[::-1]},
        {"one": ONE},
    ]
    fingerprints = [read_collections(source, from_texts).summary["fingerprint"] for source in sources]
    assert len(set(fingerprints)) == len(sources)
    assert read_collections(sources[0], from_texts).summary["fingerprint"] == fingerprints[0]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "source must name at least one collection"),
        ({1: ONE}, r"names of collections in source must be strings such as 'a', got \[1\]"),
        ({"": ONE}, "names of collections"),
        (DatasetDict(train=Dataset.from_list([])), r"DatasetDict may hold splits.*source\['train'\].*dict\(source\)"),
        ({"one": ONE, "two": []}, "(?s)no triples are there.*in the collection 'two'"),
        ({"one": ONE, "two": [("sort", "plot")]}, "(?s)expected rows of a query.*in the collection 'two'"),
        (
            {"one": ONE, "two": [{"query": "a", "positive": "b", "negative": "c", "label": 0.5}]},
            r"'label' must be in all collections or in none, got it in \['two'\] and not in \['one'\]",
        ),
    ],
)
def test_bad_collections_are_errors(sources, message):
    with pytest.raises(ValueError, match=message):
        read_collections(sources, from_texts)
