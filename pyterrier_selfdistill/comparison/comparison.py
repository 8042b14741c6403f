"""Compare systems: run them once, measure them, and make one page of what came of it.

:func:`compare` takes what :func:`pyterrier.Experiment` takes, and returns a :class:`Comparison`, whose numbers are
those of an experiment.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import pandas as pd
from pyterrier.measures import RR, nDCG

from ..data.corpus import Corpus, Documents
from ..io import atomic_file
from ..options import Expected, FieldNames, FilePath, Measures, checked
from ..validate import require_integer_labels, require_judged
from .differences import describe_change, largest_changes, rankings
from .models import ModelDescription, TrainedEncoder, describe_models
from .page import SystemChanges, render_page
from .statistics import experiment, values_by_query, with_intervals
from .systems import Systems, baseline_name, named_systems, run_system, texts_in

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
