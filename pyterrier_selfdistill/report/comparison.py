"""Compare systems on judged queries."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import Measure
from pydantic import Field
from pyterrier.measures import RR, nDCG
from scipy import stats

from ..data.corpus import Corpus, Documents, join_texts
from ..utils.checks import (
    Expected,
    FieldNames,
    FilePath,
    Measures,
    checked,
    require_columns,
    require_identifiers,
    require_integer_labels,
    require_judged,
)
from ..utils.folders import atomic_file
from .page import (
    CONFIDENCE,
    ModelDescription,
    SystemChanges,
    TrainedEncoder,
    describe_change,
    describe_models,
    largest_changes,
    rankings,
    render_page,
)

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


System: TypeAlias = pt.Transformer | pd.DataFrame
"""A pipeline, or the results of one."""

Systems: TypeAlias = Annotated[
    Annotated[Mapping[str, System], Field(min_length=2)] | Annotated[Sequence[System], Field(min_length=2)],
    Expected("a dictionary of two or more systems by name, or a list of them: transformers, or frames of results"),
]


def named_systems(
    systems: Mapping[str, System] | Sequence[System], names: Sequence[str] | None = None
) -> dict[str, System]:
    """Give each system its name.

    Args:
        systems: The systems, by name or in a list.
        names: The names of those of a list; by default what ``str`` says of a transformer.

    Returns:
        The systems by name, in their order.

    Raises:
        ValueError: If names are not as many as systems, not distinct, or given twice; or if results have none.

    Example:
        >>> list(named_systems([pt.Transformer.identity(), pd.DataFrame()], ["first", "second"]))
        ['first', 'second']
    """
    if isinstance(systems, Mapping):
        if names is not None:
            raise ValueError(
                f"systems have the names {list(systems)} already, got names={list(names)}; leave these out"
            )
        return dict(systems)
    if names is None:
        if any(isinstance(system, pd.DataFrame) for system in systems):
            raise ValueError("systems that are frames of results have no names of their own; give names=")
        names = [str(system) for system in systems]
    if len(names) != len(systems):
        raise ValueError(f"expected a name for each of {len(systems)} systems, got {len(names)}: {list(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"systems must have distinct names, got {list(names)}; give others with names=")
    return dict(zip(names, systems, strict=True))


def baseline_name(baseline: int | str, names: Sequence[str]) -> str:
    """Find the name of the baseline.

    Args:
        baseline: Its position or its name.
        names: The names of the systems.

    Returns:
        The name.

    Raises:
        ValueError: If there is no such system.

    Example:
        >>> baseline_name(0, ["bm25", "mine"]), baseline_name("mine", ["bm25", "mine"])
        ('bm25', 'mine')
    """
    if isinstance(baseline, str):
        if baseline not in names:
            raise ValueError(f"baseline must be one of the systems {list(names)}, got {baseline!r}")
        return baseline
    if not 0 <= baseline < len(names):
        raise ValueError(f"baseline must be a position from 0 to {len(names) - 1}, or a name, got {baseline}")
    return names[baseline]


def run_system(name: str, system: System, topics: pd.DataFrame) -> pd.DataFrame:
    """Run a system on queries, and check what it returns.

    Args:
        name: The name of the system.
        system: The transformer, or its results.
        topics: The queries.

    Returns:
        The results for these queries.

    Raises:
        ValueError: If results lack a column, are empty, or have a document twice for a query.
        TypeError: If identifiers are not strings, or scores not numbers.
    """
    if isinstance(system, pd.DataFrame):
        results = system
    else:
        results = system(topics)
    of_system = f"the results of {name!r}"
    require_columns(results, ["qid", "docno", "score"], of_system)
    results = results[results["qid"].isin(topics["qid"])].reset_index(drop=True)
    if results.empty:
        raise ValueError(f"{of_system} have none for the {len(topics)} judged queries; look at what the system returns")
    require_identifiers(results, "docno", of_system)
    if not pd.api.types.is_numeric_dtype(results["score"]) or results["score"].isna().any():
        raise TypeError(f"{of_system} must have numbers as scores, got {results['score'].dtype} or missing ones")
    repeated = results[results.duplicated(["qid", "docno"])]
    if len(repeated):
        qid, docno = repeated[["qid", "docno"]].iloc[0]
        raise ValueError(
            f"{of_system} must have a document once for a query, got {docno!r} twice for {qid!r}; keep its best score"
        )
    return results


def texts_in(results: pd.DataFrame, docnos: Collection[str], fields: Sequence[str]) -> dict[str, str]:
    """Find the texts of documents in results.

    Args:
        results: Results, which may have texts.
        docnos: The documents.
        fields: The columns that make a text.

    Returns:
        The texts by identifier, of the documents that have one there.

    Example:
        >>> texts_in(pd.DataFrame([["d1", "sort"]], columns=["docno", "text"]), ["d1", "d2"], ["text"])
        {'d1': 'sort'}
    """
    if not set(fields) <= set(results.columns):
        return {}
    found = results[results["docno"].isin(docnos)].drop_duplicates("docno")
    texts = {}
    for docno, *values in found[["docno", *fields]].itertuples(index=False, name=None):
        texts[docno] = join_texts(values)
    return texts


Baseline: TypeAlias = Annotated[int | str, Expected("the position of a system, or its name")]
Encoders: TypeAlias = Annotated[Mapping[str, TrainedEncoder], Expected("a dictionary of encoders or trainers by name")]

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
) -> Comparison:
    """Compare systems on the same queries.

    Each system is run once, on the queries that have judgements; a query for which it finds nothing counts, as in
    ``pt.Experiment``.

    Args:
        systems: What to compare: two or more transformers, or frames of results (``qid``, ``docno``, ``score``), by
            name or in a list.
        topics: The queries, ``qid`` and ``query``, or results for systems that rank these again.
        qrels: The judgements: ``qid``, ``docno`` and ``label``.
        measures: What to measure. The first one is that by which queries are compared.
        names: What to call the systems of a list; by default what ``str`` says of them.
        baseline: The system that the others are compared with, by its position or its name.
        corpus: Where to find the texts of documents that results have none of.
        fields: The fields of documents, or the columns of results, that make a text.
        encoders: Encoders to describe, by what to call them. A trainer in place of its encoder shows the whole course
            of training.

    Returns:
        The comparison, which has tables and a page to save.

    Raises:
        ValueError: If there are fewer than two systems, names are not as many as systems or not distinct, the baseline
            is unknown, no query has judgements, or results lack a column, are empty or have a document twice.
        TypeError: If identifiers are not strings, or labels or scores not numbers.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"], ["2", "plot"]], columns=["qid", "query"])
        >>> qrels = pd.DataFrame([["1", "d1", 1], ["2", "d2", 1]], columns=["qid", "docno", "label"])
        >>> columns = ["qid", "docno", "score"]
        >>> first = pd.DataFrame([["1", "d1", 0.1], ["1", "d2", 0.2], ["2", "d2", 0.3]], columns=columns)
        >>> second = pd.DataFrame([["1", "d1", 0.9], ["2", "d2", 0.3]], columns=columns)
        >>> comparison = compare({"first": first, "second": second}, topics, qrels, [RR @ 10])
        >>> comparison.table[["name", "RR@10", "RR@10 difference"]]
             name  RR@10  RR@10 difference
        0   first   0.75               NaN
        1  second   1.00              0.25
    """
    by_name = named_systems(systems, names)
    chosen = baseline_name(baseline, list(by_name))
    # an index may be named like a column
    topics = topics.reset_index(drop=True)
    require_judged(topics, qrels, empty=True)
    require_integer_labels(qrels, "qrels")
    qrels = qrels[["qid", "docno", "label"]].astype({"label": int}).reset_index(drop=True)
    # all rows of a query: topics may be results, for systems that rank these again
    judged = topics[topics["qid"].isin(qrels["qid"])]
    results = {name: run_system(name, system, judged) for name, system in by_name.items()}
    means, per_query = experiment(results, judged, qrels, measures, chosen)
    measure_names = [str(measure) for measure in measures]
    documents = None
    if corpus is not None:
        documents = Documents(corpus, fields)
    return Comparison(
        table=with_intervals(means, per_query, measure_names, chosen),
        per_query=per_query,
        results=results,
        topics=judged[["qid", "query"]].drop_duplicates("qid"),
        qrels=qrels,
        measures=measure_names,
        baseline=chosen,
        fields=list(fields),
        documents=documents,
        models=describe_models(encoders or {}),
    )


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """What :func:`compare` found; notebooks show it as the page that :meth:`save` writes.

    Attributes:
        table: A row for each system: what ``pt.Experiment`` returns with this baseline and Holm's correction (each
            measure; how many queries were better, ``+``, and worse, ``-``; ``p-value``, ``reject`` and ``p-value
            corrected`` of paired t-tests), and 95 % t intervals over queries (``low`` and ``high``), of the difference
            to the baseline too (``difference``, ``difference low`` and ``difference high``).
        per_query: A row for each system, query and measure: ``name``, ``qid``, ``measure`` and ``value``.
        results: The results of each system by its name.
        topics: The queries that have judgements.
        qrels: The judgements.
        measures: The names of the measures.
        baseline: The name of the baseline.
        fields: The fields or columns that make the text of a document.
        documents: Where texts are found that results have none of.
        models: Descriptions of encoders.
    """

    table: pd.DataFrame
    per_query: pd.DataFrame
    results: Mapping[str, pd.DataFrame]
    topics: pd.DataFrame
    qrels: pd.DataFrame
    measures: list[str]
    baseline: str
    fields: list[str]
    documents: Documents | None
    models: list[ModelDescription]

    def to_html(self) -> str:
        """Make the page: one HTML document that needs no other file, and no network.

        It shows the table, each query by the first measure, the queries that gained and lost most with their rankings
        side by side, and the encoders.

        Returns:
            HTML.
        """
        values = values_by_query(self.per_query, self.measures[0], list(self.results))
        changes = [self._changes(name, values) for name in self.results if name != self.baseline]
        return render_page(
            title=f"Comparison with {self.baseline}",
            table=self.table,
            measures=self.measures,
            baseline=self.baseline,
            values=values,
            queries=self._queries,
            changes=changes,
            texts=self._texts(changes),
            models=self.models,
        )

    @checked
    def save(self, path: FilePath, *, overwrite: bool = False) -> Path:
        """Write the page, atomically.

        Args:
            path: The file to write, such as ``"report.html"``. Folders above it are made.
            overwrite: Whether to replace a file that is there.

        Returns:
            The file.

        Raises:
            FileExistsError: If the file is there and ``overwrite`` is not set, or it is a folder.
            OSError: If it may not be written, or the disk is full.
        """
        path = Path(path).expanduser()
        page = self.to_html()
        with atomic_file(path, overwrite=overwrite) as file:
            # identifiers may have halves of characters, which no file can hold
            file.write_text(page, encoding="utf-8", errors="replace")
        return path

    def _repr_html_(self) -> str:
        # a document of its own, so that neither styles nor scripts meet those of the notebook
        page = html.escape(self.to_html())
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="Comparison" width="100%" height="800"></iframe>'

    def __repr__(self) -> str:
        return f"Comparison({', '.join(map(repr, self.results))} on {len(self.topics)} queries)"

    @property
    def _queries(self) -> dict[str, str]:
        return dict(zip(self.topics["qid"], self.topics["query"], strict=True))

    def _changes(self, name: str, values: pd.DataFrame) -> SystemChanges:
        """Find the queries that a system changed most, with their rankings."""
        gained, lost = largest_changes(values[self.baseline], values[name])
        qids = gained + lost
        before = rankings(self.results[self.baseline], qids)
        after = rankings(self.results[name], qids)
        judgements = self.qrels[self.qrels["qid"].isin(qids)]
        labels: dict[str, dict[str, int]] = {qid: {} for qid in qids}
        for qid, docno, label in judgements.itertuples(index=False, name=None):
            labels[qid][docno] = label
        queries = self._queries
        described = {}
        for qid in qids:
            pair = (values.loc[qid, self.baseline], values.loc[qid, name])
            ranks = {"before": before[qid], "after": after[qid], "labels": labels[qid]}
            described[qid] = describe_change(qid, queries[qid], pair, **ranks)
        return SystemChanges(name, [described[qid] for qid in gained], [described[qid] for qid in lost])

    def _texts(self, changes: Sequence[SystemChanges]) -> dict[str, str]:
        """Find the texts of the documents that are shown."""
        docnos: set[str] = set()
        for change in changes:
            for query in [*change.gained, *change.lost]:
                docnos.update(document.docno for document in query.before + query.after)
        texts: dict[str, str] = {}
        for results in self.results.values():
            texts |= texts_in(results, docnos - texts.keys(), self.fields)
        if self.documents is not None:
            texts |= self.documents.texts(docnos - texts.keys())
        return texts
