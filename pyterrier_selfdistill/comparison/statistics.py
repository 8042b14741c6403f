"""Measures of systems, with intervals, and with p-values of their differences to a baseline.

The numbers are those of :func:`pyterrier.Experiment`, which tests and corrects too; the intervals are added here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import Measure
from scipy import stats

CONFIDENCE = 0.95
"""How often an interval covers what it is of."""

CORRECTION = "holm"
"""How p-values are corrected for the number of systems that are compared with the baseline."""


def experiment(
    results: Mapping[str, pd.DataFrame],
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    measures: Sequence[Measure],
    baseline: str,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the results of systems.

    Args:
        results: The results of each system by its name: ``qid``, ``docno`` and ``score``.
        topics: The queries: ``qid`` and ``query``.
        qrels: The judgements: ``qid``, ``docno`` and ``label``.
        measures: What to measure.
        baseline: The name of the system that the others are compared with.

    Returns:
        What ``pt.Experiment`` returns of the means, and of single queries.
    """
    frames = list(results.values())
    names = list(results)
    means = pt.Experiment(
        frames,
        topics,
        qrels,
        measures,
        names=names,
        baseline=names.index(baseline),
        correction=CORRECTION,
        correction_alpha=1 - CONFIDENCE,
        validate="ignore",
    )
    per_query = pt.Experiment(frames, topics, qrels, measures, names=names, perquery=True, validate="ignore")
    return means, per_query


def values_by_query(per_query: pd.DataFrame, measure: str, names: Sequence[str]) -> pd.DataFrame:
    """Put the values of one measure side by side.

    Args:
        per_query: A row for each system, query and measure: ``name``, ``qid``, ``measure`` and ``value``.
        measure: The name of the measure.
        names: The names of the systems.

    Returns:
        A row for each query, by its identifier, and a column for each system.

    Example:
        >>> rows = [["a", "q1", "RR", 0.5], ["b", "q1", "RR", 1.0]]
        >>> per_query = pd.DataFrame(rows, columns=["name", "qid", "measure", "value"])
        >>> values_by_query(per_query, "RR", ["b", "a"]).loc["q1"].tolist()
        [1.0, 0.5]
    """
    of_measure = per_query[per_query["measure"] == measure]
    return of_measure.pivot(index="qid", columns="name", values="value")[list(names)]


def mean_interval(values: pd.Series) -> tuple[float, float]:
    """Compute the t interval of a mean.

    Args:
        values: One value a query.

    Returns:
        The ends of the interval; NaN if there is one query only, or all values are equal.

    Example:
        >>> low, high = mean_interval(pd.Series([0.4, 0.5, 0.6]))
        >>> round(low, 3), round(high, 3)
        (0.252, 0.748)
    """
    if values.nunique() < 2:
        return np.nan, np.nan
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return float(low), float(high)


def with_intervals(
    means: pd.DataFrame, per_query: pd.DataFrame, measures: Sequence[str], baseline: str
) -> pd.DataFrame:
    """Add intervals to the means of an experiment, and differences to the baseline with theirs.

    Args:
        means: A row for each system, with the measures in columns.
        per_query: The values that they are means of.
        measures: The names of the measures.
        baseline: The name of the system that the others are compared with.

    Returns:
        The frame with more columns after those of each measure, such as ``RR low`` and ``RR high``, ``RR difference``,
        ``RR difference low`` and ``RR difference high``; NaN where there is none.
    """
    table = means.copy()
    for measure in measures:
        values = values_by_query(per_query, measure, list(means["name"]))
        # those of a query go together, so the interval of a difference is narrower than those of two means tell
        differences = values.sub(values[baseline], axis=0)
        intervals = [mean_interval(values[name]) for name in values]
        of_differences = [mean_interval(differences[name]) for name in values]
        columns = {
            "low": [low for low, _ in intervals],
            "high": [high for _, high in intervals],
            "difference": differences.mean().to_numpy(),
            "difference low": [low for low, _ in of_differences],
            "difference high": [high for _, high in of_differences],
        }
        position = table.columns.get_loc(measure)
        for offset, (column, added) in enumerate(columns.items(), start=1):
            table.insert(position + offset, f"{measure} {column}", added)
        table.loc[table["name"] == baseline, f"{measure} difference"] = np.nan
    return table
