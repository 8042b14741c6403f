"""What is measured of an encoder: how it ranks the documents for the queries of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
from ir_measures import RR, Measure, R, nDCG

TEST = {100: [nDCG @ 10, RR @ 10, R @ 100], 1000: [R @ 1000]}
MEASURES: dict[str, dict[int, list[Measure]]] = {"dev": {10: [nDCG @ 10, RR @ 10]}, "test": TEST, "all": TEST}
"""What is measured of how many results: dev is for choosing only, and test for the report."""

DEPTH = max(TEST)
"""How many documents to find for a query."""

SAVED = 100
"""How many results of a query the TREC runs have at most; a thousand take most of the time of an evaluation."""


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
