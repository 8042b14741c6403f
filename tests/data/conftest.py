"""What the tests of training data share: queries, documents, and pairs of their identifiers."""

from collections.abc import Callable
from pathlib import Path
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
    documents = pd.DataFrame(corpus[:6]).to_numpy()
    return register("tiny/pairs", docs=documents, queries=topics.to_numpy(), docpairs=pairs)


@pytest.fixture(scope="session")
def texts_of() -> Callable[[Triples], list[tuple[Any, ...]]]:
    """The texts of triples, row by row."""

    def texts_of(triples: Triples) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in triples.dataset]

    return texts_of


@pytest.fixture(scope="session")
def is_accounted() -> Callable[[dict[str, Any]], bool]:
    """Whether every row that was read is either a triple or dropped."""

    def is_accounted(summary: dict[str, Any]) -> bool:
        return summary["triples"] + sum(summary["dropped"].values()) == summary["read"]

    return is_accounted


@pytest.fixture
def write_frame() -> Callable[[pd.DataFrame, Path], None]:
    """Write a frame to a file of the kind that its name says."""

    def write(frame: pd.DataFrame, path: Path) -> None:
        if path.name.endswith(".parquet"):
            frame.to_parquet(path)
        elif path.name.endswith(".jsonl"):
            frame.to_json(path, orient="records", lines=True)
        elif ".csv" in path.name:
            frame.to_csv(path, index=False)
        else:
            frame.to_csv(path, index=False, sep="\t")

    return write
