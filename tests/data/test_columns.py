"""Columns of triples: found by their names, put in order, and checked."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pyterrier_selfdistill.data.triples import (
    IDENTIFIER_QUERY,
    add_label,
    column_names,
    is_missing,
    select_columns,
    string_table,
)


def table_with(names):
    """One row, whose texts are the names of their columns."""
    return pa.table({name: [name] for name in names})


def test_column_names_of_one_and_of_several_negatives():
    assert column_names(3) == ["query", "positive", "negative"]
    assert column_names(4) == ["query", "positive", "negative_1", "negative_2"]
    with pytest.raises(ValueError, match="rows of 2 texts"):
        column_names(2)


def test_select_columns_sorts_negatives_by_number():
    names = ["negative_10", "negative_2", "positive", "query"]
    table = table_with(names)
    assert select_columns(table).column_names == ["query", "positive", "negative_2", "negative_10"]


def test_select_columns_names_numbered_columns():
    table = pa.table({"0": ["sort"], "1": ["sort rows"], "2": ["plot"], "3": ["read"]})
    assert select_columns(table).column_names == ["query", "positive", "negative_1", "negative_2"]


@pytest.mark.parametrize(
    ("present", "query_names", "expected"),
    [
        (["query", "anchor", "qid"], ("query", "anchor"), "query"),
        (["anchor", "qid"], ("query", "anchor"), "anchor"),
        (["query", "qid"], IDENTIFIER_QUERY, "qid"),
        (["query", "anchor"], IDENTIFIER_QUERY, "query"),
    ],
)
def test_select_columns_takes_the_first_name_of_the_query(present, query_names, expected):
    names = [*present, "positive", "negative"]
    table = table_with(names)
    assert select_columns(table, query_names).to_pylist() == [
        {"query": expected, "positive": "positive", "negative": "negative"}
    ]


def test_select_columns_makes_strings_of_large_and_of_missing_ones():
    table = pa.table({"query": pa.array(["a"], pa.large_string()), "positive": ["b"], "negative": pa.nulls(1)})
    selected = select_columns(table)
    assert selected.schema.types == [pa.string()] * 3
    assert selected.to_pylist() == [{"query": "a", "positive": "b", "negative": None}]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_select_columns_takes_each_type_of_strings(kind):
    """Such as categories of pandas."""
    table = pa.table({name: pa.array(["a"]).cast(kind) for name in ["query", "positive", "negative"]})
    assert select_columns(table).schema.types == [pa.string()] * 3


def test_select_columns_rejects_two_of_a_name():
    table = pa.table([["a"], ["b"], ["c"], ["d"]], names=["query", "positive", "negative", "negative"])
    with pytest.raises(ValueError, match=r"distinct columns, got \['negative'\] more than once"):
        select_columns(table)


def test_string_table_rejects_half_a_character():
    with pytest.raises(ValueError, match="column query must hold whole characters, got half of one in 'sort.ud800'"):
        string_table({"query": ["sort\ud800"]})


@pytest.mark.parametrize("missing", ["query", "positive", "negative"])
def test_select_columns_rejects_a_table_without_a_column(missing):
    columns = {"query": ["a"], "positive": ["b"], "negative": ["c"]}
    del columns[missing]
    with pytest.raises(ValueError, match=f"must have the columns 'query' .*got .*{'.*'.join(columns)}"):
        select_columns(pa.table(columns))


def test_select_columns_rejects_numbers():
    table = pa.table({"query": ["a"], "positive": ["b"], "negative": [3]})
    with pytest.raises(TypeError, match="column 'negative' must hold texts, got int64"):
        select_columns(table)


def test_add_label_adds_numbers_as_float32():
    texts = pa.table({"query": ["a", "b"]})
    labelled = add_label(texts, texts.append_column("label", pa.array([1, 2])))
    assert labelled["label"].type == pa.float32()
    assert labelled["label"].to_pylist() == [1.0, 2.0]
    assert add_label(texts, texts) is texts


@pytest.mark.parametrize(
    "labels",
    [[1.0, None], [1.0, np.nan], [1.0, np.inf], [1.0, 1e300], ["high", "low"], [[1.0], [2.0]], [True, False]],
    ids=str,
)
def test_add_label_rejects_what_is_not_a_number(labels):
    texts = pa.table({"query": ["a", "b"]})
    with pytest.raises(TypeError, match="column 'label' must hold a number in every row"):
        add_label(texts, texts.append_column("label", pa.array(labels)))


@pytest.mark.parametrize(("value", "expected"), [(None, True), (np.nan, True), (pd.NA, True), ("", False), ([], False)])
def test_is_missing(value, expected):
    assert is_missing(value) is expected
