"""Compare systems on judged queries."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd
import pyterrier as pt
from pydantic import Field
from pyterrier.measures import RR, nDCG

from ..data.corpus import Corpus, Documents, join_texts
from ..utils.checks import (
    Expected,
    FieldNames,
    FilePath,
    Measures,
    checked,
    judged,
    require_columns,
    require_identifiers,
)
from ..utils.folders import atomic_file
from .page import CONFIDENCE, TrainedEncoder, describe_model, query_changes, render_page

System: TypeAlias = pt.Transformer | pd.DataFrame
Systems: TypeAlias = Annotated[
    Annotated[Mapping[str, System], Field(min_length=2)] | Annotated[Sequence[System], Field(min_length=2)],
    Expected("a dictionary of two or more systems by name, or a list of them: transformers, or frames of results"),
]
Baseline: TypeAlias = Annotated[int | str, Expected("the position of a system, or its name")]
Encoders: TypeAlias = Annotated[Mapping[str, TrainedEncoder], Expected("a dictionary of encoders or trainers by name")]
RESAMPLES = 2000  # how often queries are drawn for an interval
DEFAULT_MEASURES = (nDCG @ 10, RR @ 10)


@checked
def compare(
    systems: Systems,
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    measures: Measures = DEFAULT_MEASURES,
    *,
    names: Sequence[str] | None = None,
    baseline: Baseline = 0,
    corpus: Corpus | None = None,
    fields: FieldNames = ("text",),
    encoders: Encoders | None = None,
    title: str = "",
    focus: str | None = None,
) -> Comparison:
    """Compare systems on the same queries.

    Each system runs once, on the queries that have judgements. As in ``pt.Experiment``, queries without results count.

    Args:
        systems: Two or more systems, as a dictionary by name or as a list. Each is a transformer, or a frame of results
            (``qid``, ``docno``, ``score``).
        topics: The queries (``qid`` and ``query``), or results if your systems re-rank.
        qrels: The judgements (``qid``, ``docno`` and ``label``).
        measures: The measures. The page compares individual queries by the first one.
        names: The names of the systems, if you pass a list. Defaults to the ``str`` of each system.
        baseline: The position or name of the system with which to compare the others.
        corpus: The documents, to supply texts that results lack.
        fields: The document fields, or the columns of results, to join into a text.
        encoders: Encoders to describe on the page, by name. Pass a trainer to show its full history.
        title: The title of the page, such as the name of the data set.
        focus: The name of the system whose queries you want to see first. Defaults to the best one except the baseline.

    Returns:
        The comparison, with tables and a page that you can save.

    Raises:
        ValueError: If there are fewer than two systems, names are missing or repeated, the baseline is unknown, no
            query has judgements, or results are empty, lack a column or repeat a document.
        TypeError: If identifiers are not strings, or labels or scores not numbers.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"], ["2", "plot"]], columns=["qid", "query"])
        >>> qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["d1", "d2"], "label": 1})
        >>> columns = ["qid", "docno", "score"]
        >>> rows = [["1", "d1", 0.1], ["1", "d2", 0.2], ["2", "d2", 0.3]]
        >>> first = pd.DataFrame(rows, columns=columns)
        >>> second = pd.DataFrame([["1", "d1", 0.9], ["2", "d2", 0.3]], columns=columns)
        >>> comparison = compare({"first": first, "second": second}, topics, qrels, [RR @ 10])
        >>> comparison.table[["name", "RR@10", "RR@10 difference"]]
             name  RR@10  RR@10 difference
        0   first   0.75               NaN
        1  second   1.00              0.25
    """
    by_name = _named(systems, names)
    if isinstance(baseline, int):
        if not 0 <= baseline < len(by_name):
            raise ValueError(f"baseline must be a position from 0 to {len(by_name) - 1}, or a name, got {baseline}")
        baseline = list(by_name)[baseline]
    if baseline not in by_name:
        raise ValueError(f"baseline must be one of the systems {list(by_name)}, got {baseline!r}")
    others = [name for name in by_name if name != baseline]
    if focus not in (None, *others):
        raise ValueError(f"focus must be one of the systems {others} (not the baseline), got {focus!r}")
    topics, qrels = judged(topics, qrels, to_measure=True)
    topics = topics[topics["qid"].isin(qrels["qid"])]
    results = {name: _run(name, system, topics) for name, system in by_name.items()}
    frames = list(results.values())
    means = pt.Experiment(
        frames,
        topics,
        qrels,
        measures,
        names=list(results),
        baseline=list(results).index(baseline),
        correction="holm",
        correction_alpha=1 - CONFIDENCE,
        validate="ignore",
    )
    per_query = pt.Experiment(frames, topics, qrels, measures, names=list(results), perquery=True, validate="ignore")
    measure_names = [str(measure) for measure in measures]
    return Comparison(
        table=_with_intervals(means, per_query, measure_names, baseline),
        per_query=per_query,
        results=results,
        topics=topics[["qid", "query"]].drop_duplicates("qid"),
        qrels=qrels,
        measures=measure_names,
        baseline=baseline,
        encoders=encoders or {},
        documents=None if corpus is None else Documents(corpus, fields),
        fields=list(fields),
        title=title or f"Comparison with {baseline}",
        focus=focus,
    )


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """The result of :func:`compare`. In a notebook, you see the page that :meth:`save` writes.

    Attributes:
        table: One row per system: the columns of ``pt.Experiment`` with Holm's correction (each measure; the number of
            better, ``+``, and worse queries, ``-``; ``p-value``, ``reject`` and ``p-value corrected`` of paired
            t-tests), 95 % bootstrap intervals over queries (``low``, ``high``), and the difference to the baseline with
            its interval (``difference``, ``difference low``, ``difference high``).
        per_query: One row per system, query and measure: ``name``, ``qid``, ``measure`` and ``value``.
        results: The results of each system by name.
        topics: The queries that have judgements.
        qrels: The judgements.
        measures: The names of the measures.
        baseline: The name of the baseline.
        encoders: The encoders or trainers to describe on the page, by name.
        documents: The corpus that supplies texts that results lack.
        fields: The fields or columns that are joined into the text of a document.
        title: The title of the page.
        focus: The system whose queries the page shows first, or None for the best one.
    """

    table: pd.DataFrame
    per_query: pd.DataFrame
    results: Mapping[str, pd.DataFrame]
    topics: pd.DataFrame
    qrels: pd.DataFrame
    measures: list[str]
    baseline: str
    encoders: Mapping[str, TrainedEncoder]
    documents: Documents | None
    fields: list[str]
    title: str
    focus: str | None

    def to_html(self) -> str:
        """Make the page, a self-contained HTML document.

        You get the table (also as CSV and LaTeX), a plot of all queries by the first measure, both rankings of the
        queries that gained and lost most, side by side, and a description of the encoders.
        """
        values = _by_query(self.per_query, self.measures[0], list(self.results))
        queries = dict(zip(self.topics["qid"], self.topics["query"], strict=True))
        before = self.results[self.baseline]
        changes = {}
        for name, after in self.results.items():
            if name != self.baseline:
                changes[name] = query_changes(before, after, values[[self.baseline, name]], queries, self.qrels)
        return render_page(
            title=self.title,
            focus=self.focus,
            table=self.table,
            measures=self.measures,
            baseline=self.baseline,
            values=values,
            queries=queries,
            changes=changes,
            texts=self._texts(changes),
            models=[describe_model(name, model) for name, model in self.encoders.items()],
        )

    @checked
    def save(self, path: FilePath, *, overwrite: bool = False) -> Path:
        """Write the page atomically.

        Args:
            path: The file to write, such as ``"report.html"``. Missing parent folders are created.
            overwrite: Whether to replace an existing file.

        Returns:
            The path of the file.

        Raises:
            FileExistsError: If the file exists and ``overwrite`` is not set, or the path is a folder.
            OSError: If the file cannot be written, for example because the disk is full.
        """
        path = Path(path).expanduser()
        page = self.to_html()
        with atomic_file(path, overwrite=overwrite) as file:
            # identifiers may contain unpaired surrogates, which cannot be encoded
            file.write_text(page, encoding="utf-8", errors="replace")
        return path

    def _repr_html_(self) -> str:
        # in a frame, to isolate its styles and scripts from the notebook
        page = html.escape(self.to_html())
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="Comparison" width="100%" height="800"></iframe>'

    def __repr__(self) -> str:
        return f"Comparison({', '.join(map(repr, self.results))} on {len(self.topics)} queries)"

    def _texts(self, changes: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> dict[str, str]:
        """Look up the texts of the documents that the page shows."""
        queries = [query for change in changes.values() for query in change["gained"] + change["lost"]]
        shown = {document["docno"] for query in queries for document in query["before"] + query["after"]}
        texts: dict[str, str] = {}
        for results in self.results.values():
            if set(self.fields) <= set(results.columns):
                found = results[results["docno"].isin(shown - texts.keys())].drop_duplicates("docno")
                for docno, *values in found[["docno", *self.fields]].itertuples(index=False, name=None):
                    texts[docno] = join_texts(values)
        if self.documents is not None:
            texts |= self.documents.texts(shown - texts.keys())
        return texts


def _named(systems: Mapping[str, System] | Sequence[System], names: Sequence[str] | None) -> dict[str, System]:
    if isinstance(systems, Mapping):
        if names is not None:
            raise ValueError(f"systems already have the names {list(systems)}, got names={list(names)}; omit names")
        return dict(systems)
    if names is None:
        if any(isinstance(system, pd.DataFrame) for system in systems):
            raise ValueError("frames of results need names; give names=")
        names = [str(system) for system in systems]
    if len(names) != len(systems):
        raise ValueError(f"expected a name for each of {len(systems)} systems, got {len(names)}: {list(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"systems must have distinct names, got {list(names)}; give others with names=")
    return dict(zip(names, systems, strict=True))


def _run(name: str, system: System, topics: pd.DataFrame) -> pd.DataFrame:
    """Run a system on queries and check its results."""
    results: pd.DataFrame = system if isinstance(system, pd.DataFrame) else system.transform(topics)
    called = f"the results of {name!r}"
    require_columns(results, ["qid", "docno", "score"], called)
    results = results[results["qid"].isin(topics["qid"])].reset_index(drop=True)
    if results.empty:
        raise ValueError(f"{called} must have rows for the {topics['qid'].nunique()} judged queries, got none")
    require_identifiers(results, "docno", called)
    if not pd.api.types.is_numeric_dtype(results["score"]) or results["score"].isna().any():
        raise TypeError(f"{called} must have numbers as scores, got {results['score'].dtype} or missing ones")
    # Arrow and categorical columns cannot be compared with each other
    results = results.astype({"qid": object, "docno": object, "score": float})
    repeated = results[results.duplicated(["qid", "docno"])]
    if len(repeated):
        qid, docno = repeated[["qid", "docno"]].iloc[0]
        raise ValueError(
            f"{called} must list a document only once per query, got {docno!r} twice for {qid!r}; keep its best score"
        )
    return results


def _by_query(per_query: pd.DataFrame, measure: str, names: Sequence[str]) -> pd.DataFrame:
    """Make a frame of one measure, with one row per query and one column per system."""
    of_measure = per_query[per_query["measure"] == measure]
    return of_measure.pivot(index="qid", columns="name", values="value")[list(names)]


def _with_intervals(
    means: pd.DataFrame, per_query: pd.DataFrame, measures: Sequence[str], baseline: str
) -> pd.DataFrame:
    """Add the interval of the mean and the difference to the baseline with its interval (NaN if undefined)."""
    table = means.copy()
    for measure in measures:
        values = _by_query(per_query, measure, list(means["name"]))
        # paired by query, so that the interval is narrower than for independent means
        differences = values.sub(values[baseline], axis=0)
        columns = {
            **dict(zip(["low", "high"], _interval(values), strict=True)),
            "difference": differences.mean().where(differences.columns != baseline),
            **dict(zip(["difference low", "difference high"], _interval(differences), strict=True)),
        }
        position = table.columns.get_loc(measure)
        for offset, (column, added) in enumerate(columns.items(), start=1):
            table.insert(position + offset, f"{measure} {column}", np.asarray(added))
    return table


def _interval(values: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Compute the bootstrap interval of the mean of each column, or NaN if all its values are equal."""
    queries = len(values)
    # how often each query is drawn, which is the same for all systems
    draws = np.random.default_rng(0).multinomial(queries, np.full(queries, 1 / queries), size=RESAMPLES)
    means = draws @ values.to_numpy() / queries
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    differ = values.nunique() > 1
    return np.where(differ, low, np.nan), np.where(differ, high, np.nan)
