"""The queries, the documents and the pairs of their identifiers that the tests of training data share."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_selfdistill.data.triples import Triples


@pytest.fixture
def topics() -> pd.DataFrame:
    """Two queries."""
    return pd.DataFrame({"qid": ["1", "2"], "query": ["sort", "plot"]})


@pytest.fixture
def corpus() -> list[dict[str, str]]:
    """A hundred documents, ``d0`` with ``text 0`` and so on."""
    return [{"docno": f"d{number}", "text": f"text {number}"} for number in range(100)]


@pytest.fixture
def pairs() -> list[tuple[str, str, str]]:
    """Five pairs of identifiers; the query of the last one is unknown."""
    return [("1", "d1", "d2"), ("1", "d1", "d3"), ("2", "d4", "d5"), ("1", "d1", "d0"), ("3", "d1", "d2")]


@pytest.fixture
def dataset(register, topics, corpus, pairs) -> pt.datasets.Dataset:
    """The first six documents, the queries and the pairs as a dataset of ir_datasets with docpairs."""
    return register("tiny/pairs", docs=pd.DataFrame(corpus[:6]).to_numpy(), queries=topics.to_numpy(), docpairs=pairs)


@pytest.fixture(scope="session")
def texts_of() -> Callable[[Triples], list[tuple[Any, ...]]]:
    """The texts of triples, row by row."""
    return lambda triples: [tuple(row.values()) for row in triples.dataset]
