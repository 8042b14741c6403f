"""Small valid collections: queries, documents, judgements and results, of distinct identifiers and texts."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pandas as pd

IDENTIFIERS = ["1", "2", "10", "01", "q1", "Q1", "nan", "None", "a b", "é"]

TEXTS = [
    "sort the rows",
    "sort the rows of a table",
    "plot a matrix",
    "plot the matrix by column",
    "read a file",
    "write a file",
    "mean value of the array",
    "return the mean",
    "query",
    "the table of the query by row",
    "write the matrix",
    "column",
]
"""Texts of which each has a vector of its own."""

OTHER_TEXTS = [
    "42",
    "nan",
    "naïve Zürich",
    "表 を 並べる",
    'say "sort", then plot',
    "e\u0301",
    "🙂 rows",
    "a\u00a0b",
    "0",
]
"""Texts that are easily taken for something else."""


def some_of(pool: list[Any], number: int) -> st.SearchStrategy[list[Any]]:
    """Draw some of a pool, in any order."""
    places = st.lists(st.integers(0, len(pool) - 1), min_size=number, max_size=number, unique=True)
    return places.map(lambda drawn: [pool[place] for place in drawn])


def identifiers(number: int) -> st.SearchStrategy[list[str]]:
    """Make distinct identifiers."""
    return some_of(IDENTIFIERS, number)


def texts(number: int, pool: list[str] = TEXTS + OTHER_TEXTS) -> st.SearchStrategy[list[str]]:
    """Make distinct texts."""
    return some_of(pool, number)


@st.composite
def topics(draw: st.DrawFn, pool: list[str] = TEXTS + OTHER_TEXTS) -> pd.DataFrame:
    """Make one to three queries."""
    number = draw(st.integers(1, 3))
    return pd.DataFrame({"qid": draw(identifiers(number)), "query": draw(texts(number, pool))})


@st.composite
def corpus(draw: st.DrawFn, pool: list[str] = TEXTS + OTHER_TEXTS) -> list[dict[str, str]]:
    """Make three to six documents."""
    number = draw(st.integers(3, 6))
    names, contents = draw(identifiers(number)), draw(texts(number, pool))
    return [{"docno": docno, "text": text} for docno, text in zip(names, contents, strict=True)]


@st.composite
def judgements(draw: st.DrawFn, topics: pd.DataFrame, documents: list[dict[str, str]]) -> pd.DataFrame:
    """Make judgements of each query, the first one relevant and the last one not."""
    rows = []
    for qid in topics["qid"]:
        others = draw(st.lists(st.integers(0, 2), max_size=len(documents) - 2))
        labels = [draw(st.integers(1, 2)), *others, 0]
        docnos = draw(some_of([document["docno"] for document in documents], len(labels)))
        rows += [(qid, docno, label) for docno, label in zip(docnos, labels, strict=True)]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


@st.composite
def results(draw: st.DrawFn, topics: pd.DataFrame, documents: list[dict[str, str]]) -> pd.DataFrame:
    """Make results of each query, at least two, in the order of their ranks."""
    rows = []
    for qid, query in zip(topics["qid"], topics["query"], strict=True):
        found = draw(some_of(documents, draw(st.integers(2, len(documents)))))
        for rank, document in enumerate(found):
            rows.append({"qid": qid, "query": query, **document, "rank": 7 + rank, "score": 9.0 - rank})
    return pd.DataFrame(rows)


INDEXED = {f"d{number}": text for number, text in enumerate(TEXTS)}
"""The texts of the index that examples search, by identifier."""
