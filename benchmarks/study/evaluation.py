"""What is measured of an encoder: rankings of the queries of a split, and how the vectors of documents are spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import RR, Measure, R, nDCG

from pyterrier_selfdistill.training.similarity import mean_cosine, representational_similarity

TEST = {100: [nDCG @ 10, RR @ 10, R @ 100], 1000: [R @ 1000]}
MEASURES: dict[str, dict[int, list[Measure]]] = {"dev": {10: [nDCG @ 10, RR @ 10]}, "test": TEST, "all": TEST}
"""What is measured of how many results: dev is for choosing only, and test for the report."""

DEPTH = max(TEST)
"""How many documents to find for a query."""

SAVED = 100
"""How many results of a query the TREC runs have at most; a thousand take most of the time of an evaluation."""

SAMPLE = 1000
"""How many documents the spread is measured of, at most."""


def evaluate(
    retriever: pt.Transformer, split: str, topics: pd.DataFrame, qrels: pd.DataFrame, *, trec: Path, name: str
) -> pd.DataFrame:
    """Measure how a retriever ranks the documents for the queries of a split.

    Args:
        retriever: From queries to ranked documents.
        split: The name of the split, which says what is measured.
        topics: Its queries.
        qrels: Its judgements.
        trec: The folder for the TREC run. PyTerrier keeps a table there, so no two processes may share it.
        name: The name of the TREC run.

    Returns:
        A row a query, a column a measure.
    """
    trec.mkdir(parents=True, exist_ok=True)
    measures_of = MEASURES[split]
    results = (retriever % max(measures_of))(topics)
    ranked = pt.Transformer.from_df(results)
    tables = []
    for depth, measures in measures_of.items():
        options: dict[str, Any] = {"names": [name], "perquery": True, "validate": "ignore"}
        if depth <= SAVED:
            options |= {"save_dir": str(trec), "save_mode": "overwrite"}
        tables.append(pt.Experiment([ranked % depth], topics, qrels, measures, **options))
    values = pd.concat(tables)
    return values.pivot(index="qid", columns="measure", values="value").sort_index()


def sample_rows(number: int) -> np.ndarray:
    """Draw at most :data:`SAMPLE` of so many rows, always the same."""
    rows = np.random.default_rng(0).permutation(number)
    return np.sort(rows[:SAMPLE])


def describe_space(vectors: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """Describe how the vectors of documents are spread.

    Args:
        vectors: Those of the trained encoder, ``(documents, dimensions)``.
        before: Those of the untouched encoder, of the same documents.

    Returns:
        ``similarity``, the mean cosine of two documents, 1 where all are the same; ``dimensions``, the participation
        ratio of the eigenvalues of their covariance: how many directions they really use; and
        ``representational_similarity``, how much of the similarity of documents is what it was.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T))
    dimensions = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    return {
        "similarity": round(mean_cosine(vectors), 4),
        "dimensions": round(float(dimensions), 1),
        "representational_similarity": round(representational_similarity(before, vectors), 4),
    }
