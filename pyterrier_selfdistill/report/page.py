"""The HTML page of a comparison."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeAlias

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..encoder.biencoder import SelfDistillBiEncoder
from ..encoder.card import description_rows, training_rows
from ..encoder.storage import metadata
from ..training.history import PROGRESS, plot_history
from ..training.trainer import SelfDistillTrainer
from ..utils.folders import portable_name

CONFIDENCE = 0.95
"""How often an interval covers what it is of."""

RESULT_DEPTH = 10
"""How many documents of a ranking are shown."""

QUERIES_EACH_WAY = 10
"""How many queries that gained, and how many that lost, are shown."""

WORD = re.compile(r"\w+")

FUNCTION_WORDS = (
    "a an and are as at be by can do does for from has have how if in into is it its not of on or so than that the "
    "then there these they this to was were what when where which who why will with you your"
)
"""English words that say nothing where they match."""


@dataclass(frozen=True)
class RankedDocument:
    """A document in one of two rankings.

    Attributes:
        docno: Its identifier.
        rank: Its rank, from 1; None where it was not found.
        other_rank: Its rank in the other ranking, likewise.
        label: How relevant it was judged; None if it was not.
    """

    docno: str
    rank: int | None
    other_rank: int | None
    label: int | None

    @property
    def is_relevant(self) -> bool:
        """Whether it was judged relevant."""
        return self.label is not None and self.label > 0


@dataclass(frozen=True)
class QueryChange:
    """A query in the rankings of two systems.

    Attributes:
        qid: Its identifier.
        query: Its text.
        value_before: What the measure says of the ranking of the baseline.
        value_after: What it says of that of the system.
        before: The first documents of the baseline.
        after: The first documents of the system.
        relevant: The documents that were judged relevant, with their ranks in ``after`` and, as the other, ``before``.
    """

    qid: str
    query: str
    value_before: float
    value_after: float
    before: list[RankedDocument]
    after: list[RankedDocument]
    relevant: list[RankedDocument]

    @property
    def difference(self) -> float:
        """How much the query gained."""
        return self.value_after - self.value_before


def largest_changes(before: pd.Series, after: pd.Series, count: int = QUERIES_EACH_WAY) -> tuple[list[str], list[str]]:
    """Find the queries that gained most and those that lost most.

    Args:
        before: The values of the baseline by query.
        after: The values of the system by query.
        count: How many to find each way, at most.

    Returns:
        Those that gained and those that lost, the largest change first.

    Example:
        >>> before = pd.Series({"q1": 0.5, "q2": 0.5, "q3": 0.5})
        >>> largest_changes(before, pd.Series({"q1": 0.6, "q2": 0.1, "q3": 1.0}))
        (['q3', 'q1'], ['q2'])
    """
    differences = (after - before).sort_values(kind="stable")
    lost = differences[differences < 0].head(count)
    gained = differences[differences > 0].tail(count)
    return list(gained.index[::-1]), list(lost.index)


def rankings(results: pd.DataFrame, qids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rank the results of some queries.

    Args:
        results: ``qid``, ``docno`` and ``score``.
        qids: The queries.

    Returns:
        For each query the ranks by document, from 1 and in their order; none where nothing was found.

    Example:
        >>> results = pd.DataFrame([["q1", "d1", 0.5], ["q1", "d2", 0.7]], columns=["qid", "docno", "score"])
        >>> rankings(results, ["q1", "q2"])
        {'q1': {'d2': 1, 'd1': 2}, 'q2': {}}
    """
    of_queries = results[results["qid"].isin(qids)]
    ordered = of_queries.sort_values(["score", "docno"], ascending=False)
    found: dict[str, dict[str, int]] = {qid: {} for qid in qids}
    for qid, docno in zip(ordered["qid"], ordered["docno"], strict=True):
        found[qid][docno] = len(found[qid]) + 1
    return found


def describe_change(
    qid: str,
    query: str,
    values: tuple[float, float],
    *,
    before: Mapping[str, int],
    after: Mapping[str, int],
    labels: Mapping[str, int],
) -> QueryChange:
    """Put two rankings of a query side by side.

    Args:
        qid: The identifier of the query.
        query: Its text.
        values: The measures of the baseline and the system.
        before: The ranks of the baseline by document, in their order.
        after: The ranks of the system.
        labels: The labels of judged documents.

    Returns:
        The query with both.

    Example:
        >>> ranks = {"before": {"d1": 1, "d2": 2}, "after": {"d2": 1}}
        >>> describe_change("q1", "sort", (0.5, 1.0), **ranks, labels={"d2": 3}).after
        [RankedDocument(docno='d2', rank=1, other_rank=2, label=3)]
    """

    def place(docno: str, own: Mapping[str, int], other: Mapping[str, int]) -> RankedDocument:
        return RankedDocument(docno, own.get(docno), other.get(docno), labels.get(docno))

    relevant = [place(docno, after, before) for docno, label in labels.items() if label > 0]
    relevant.sort(key=lambda document: (-(document.label or 0), document.docno))
    return QueryChange(
        qid=qid,
        query=query,
        value_before=values[0],
        value_after=values[1],
        before=[place(docno, before, after) for docno in list(before)[:RESULT_DEPTH]],
        after=[place(docno, after, before) for docno in list(after)[:RESULT_DEPTH]],
        relevant=relevant[:RESULT_DEPTH],
    )


def matching_pieces(text: str, query: str) -> list[tuple[str, bool]]:
    """Divide a text at the words that it shares with a query.

    Args:
        text: The text.
        query: The query.

    Returns:
        The pieces, and whether each is such a word. Case does not matter; words such as "the" do not count.

    Example:
        >>> matching_pieces("Sort the rows", "how to sort the columns")
        [('Sort', True), (' the rows', False)]
    """
    words = {word.casefold() for word in WORD.findall(query)}.difference(FUNCTION_WORDS.split())
    pieces = []
    end = 0
    for match in WORD.finditer(text):
        if match[0].casefold() in words:
            pieces += [(text[end : match.start()], False), (match[0], True)]
            end = match.end()
    pieces.append((text[end:], False))
    return [(piece, is_match) for piece, is_match in pieces if piece]


def cut(text: str, length: int) -> tuple[str, str]:
    """Divide a text after a number of characters, between two words if there are any.

    Args:
        text: The text.
        length: How many characters there may be before.

    Returns:
        What is before and what is after, without the space between them.

    Example:
        >>> cut("sort the rows", 10), cut("sort", 10)
        (('sort the', 'rows'), ('sort', ''))
    """
    if len(text) <= length:
        return text, ""
    space = text.rfind(" ", 0, length + 1)
    if space <= 0:
        return text[:length], text[length:]
    return text[:space], text[space + 1 :]


TrainedEncoder: TypeAlias = SelfDistillBiEncoder | SelfDistillTrainer
"""An encoder, or the trainer that has made one and knows the whole course of its training."""


@dataclass(frozen=True)
class ModelDescription:
    """What a page says of an encoder.

    Attributes:
        name: What it is called.
        facts: What it is and how it was trained, as titles and texts, which have names between backticks.
        history: One row a step that something was logged for, without columns that have no values; empty if it was not
            trained here.
        picture: The course of training, as the address of an image that is part of it; empty if there is none.
    """

    name: str
    facts: list[tuple[str, str]]
    history: pd.DataFrame
    picture: str


def describe_model(name: str, model: TrainedEncoder) -> ModelDescription:
    """Describe an encoder.

    Args:
        name: What to call it.
        model: The encoder, or its trainer.

    Returns:
        The description.

    Example:
        >>> describe_model("mine", encoder).facts[1]
        ('Architecture', 'BertModel, ... parameters')
    """
    if isinstance(model, SelfDistillTrainer):
        encoder = model.encoder
        history = model.history
    else:
        encoder = model
        history = milestone_frame(encoder)
    described = metadata(encoder.model, encoder.model_name, encoder.training_summary)
    facts = [("Name", f"`{portable_name(encoder.name) or 'unknown'}`"), *description_rows(described["model"])]
    if described["training"]:
        facts += training_rows(described["training"])
    return ModelDescription(name, facts, history.dropna(axis="columns", how="all"), draw(history))


def milestone_frame(encoder: SelfDistillBiEncoder) -> pd.DataFrame:
    """Make a frame of what an encoder knows of its training: when something was measured.

    Args:
        encoder: The encoder.

    Returns:
        One row a step, in the columns of a history; no rows if it was not trained here.
    """
    milestones = pd.DataFrame(encoder.training_summary.get("history", []))
    measures = [column for column in milestones if column not in PROGRESS]
    return milestones.reindex(columns=[*PROGRESS, *measures])


def draw(history: pd.DataFrame) -> str:
    """Draw the course of a training.

    Args:
        history: Its history.

    Returns:
        The address of an SVG image, which is in it; empty if there is no course, but a single point.
    """
    if len(history) < 2:
        return ""
    buffer = BytesIO()
    plot_history(history).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def describe_models(models: Mapping[str, TrainedEncoder]) -> list[ModelDescription]:
    """Describe encoders by their names, as :func:`describe_model` does."""
    return [describe_model(name, model) for name, model in models.items()]


TEXT_START = 180
"""How many characters of a text are seen before it is opened."""

TEXT_LENGTH = 1000
"""How many characters of a text are in the page, at most."""

TEXT_BUDGET = 1_000_000
"""How many characters the texts of all documents have in the page, together."""

QUERY_LENGTH = 80
"""How many characters of its query a point of the plot tells."""

NONE = "\N{EN DASH}"
"""What stands where there is no figure."""


@dataclass(frozen=True)
class SystemChanges:
    """The queries that a system changed most.

    Attributes:
        system: The name of the system.
        gained: Those that gained, the largest change first.
        lost: Those that lost.
    """

    system: str
    gained: list[QueryChange]
    lost: list[QueryChange]


def render_page(
    *,
    title: str,
    table: pd.DataFrame,
    measures: Sequence[str],
    baseline: str,
    values: pd.DataFrame,
    queries: Mapping[str, str],
    changes: Sequence[SystemChanges],
    texts: Mapping[str, str],
    models: Sequence[ModelDescription],
) -> str:
    """Write the page.

    Args:
        title: Its title.
        table: The measures of the systems, with their intervals.
        measures: The names of the measures.
        baseline: The name of the system that the others are compared with.
        values: The first measure of each query (rows) and system (columns).
        queries: The texts of the queries by identifier.
        changes: The queries that each system but the baseline changed most.
        texts: The texts of documents by identifier.
        models: What to say of encoders.

    Returns:
        HTML.
    """
    environment = Environment(
        loader=PackageLoader("pyterrier_selfdistill.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # jinja escapes what could end a script; other characters stay what they are, which takes less
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    formats = (figure, signed, p_value, logged, code_pieces)
    environment.filters |= {function.__name__: function for function in formats}
    script = environment.get_template("page.js").render()
    entries = entry_count(changes)
    length = text_length(entries)
    others = [name for name in values.columns if name != baseline]
    template = environment.get_template("page.html.j2")
    return template.render(
        title=title,
        tables={measure: measure_rows(table, measure) for measure in measures},
        baseline=baseline,
        others=others,
        best=values[others].mean().idxmax(),
        confidence=f"{CONFIDENCE:.0%}",
        primary=measures[0],
        count=len(values),
        changes=changes,
        lacks_texts=entries > 0 and not texts,
        text_pieces=lambda docno, query: text_pieces(texts.get(docno, ""), query, length),
        models=models,
        style=environment.get_template("page.css").render(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=scatter_data(values, queries, baseline),
    )


def scatter_data(values: pd.DataFrame, queries: Mapping[str, str], baseline: str) -> dict[str, Any]:
    """Collect what the script draws: the values of each query.

    Args:
        values: The measure of each query (rows) and system (columns).
        queries: The texts of the queries by identifier.
        baseline: The name of the baseline.

    Returns:
        What becomes JSON.

    Example:
        >>> scatter_data(pd.DataFrame({"a": [0.12345], "b": [1.0]}, index=["q1"]), {"q1": "sort"}, "a")["values"]
        [[0.123], [1.0]]
    """
    rounded = values.round(3)
    return {
        "baseline": list(values.columns).index(baseline),
        "systems": list(values.columns),
        "qids": list(values.index),
        "queries": [cut(queries[qid], QUERY_LENGTH)[0] for qid in values.index],
        "values": [rounded[name].tolist() for name in rounded],
    }


def measure_rows(table: pd.DataFrame, measure: str) -> list[dict[str, Any]]:
    """Collect what the page says of one measure, system by system.

    Args:
        table: The measures of the systems, with their intervals.
        measure: The name of the measure.

    Returns:
        A dictionary for each system. ``bar`` has where the interval of its difference is, between 0 and 100, where 50
        is no difference; it is None where there is none.
    """
    bounds = table[[f"{measure} difference low", f"{measure} difference high"]]
    extent = bounds.abs().max().max()
    best = table[measure].max()
    rows = []
    for record in table.to_dict(orient="records"):
        low, high = record[f"{measure} difference low"], record[f"{measure} difference high"]
        row = {
            "name": record["name"],
            "mean": record[measure],
            "is_best": record[measure] == best,
            "interval": interval(record[f"{measure} low"], record[f"{measure} high"], figure),
            "difference": record[f"{measure} difference"],
            "difference_interval": interval(low, high, signed),
            "better": record[f"{measure} +"],
            "worse": record[f"{measure} -"],
            "p": record[f"{measure} p-value"],
            "p_corrected": record[f"{measure} p-value corrected"],
            "is_significant": bool(record[f"{measure} reject"]),
            "bar": None,
        }
        if not math.isnan(low):
            row["bar"] = [round(50 + 48 * end / extent, 1) for end in (low, row["difference"], high)]
        rows.append(row)
    return rows


def entry_count(changes: Sequence[SystemChanges]) -> int:
    """Count the documents that are shown, each time that they are."""
    entries = 0
    for change in changes:
        for query in [*change.gained, *change.lost]:
            entries += len(query.before) + len(query.after)
    return entries


def text_length(entries: int) -> int:
    """Choose how many characters each text may have, so that all of them keep to :data:`TEXT_BUDGET`."""
    return min(TEXT_LENGTH, TEXT_BUDGET // max(entries, 1))


def text_pieces(text: str, query: str, length: int) -> dict[str, Any]:
    """Prepare a text to be shown.

    Args:
        text: The text.
        query: The query whose words are marked.
        length: After how many characters to cut it.

    Returns:
        The pieces of its ``start`` and of its ``rest``, and whether it ``is_cut``.

    Example:
        >>> text_pieces("sort the rows", "sort", 8)
        {'start': [('sort', True), (' the', False)], 'rest': [], 'is_cut': True}
    """
    shown, beyond = cut(" ".join(text.split()), length)
    start, rest = cut(shown, TEXT_START)
    return {"start": matching_pieces(start, query), "rest": matching_pieces(rest, query), "is_cut": bool(beyond)}


def figure(value: float) -> str:
    """Format a measure."""
    return NONE if pd.isna(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """Format a difference."""
    return NONE if pd.isna(value) else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float, form: Callable[[float], str]) -> str:
    """Format the ends of an interval, if there is one."""
    return NONE if pd.isna(low) else f"{form(low)} to {form(high)}"


def p_value(value: float) -> str:
    """Format a p-value."""
    if pd.isna(value):
        return NONE
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}"


def logged(value: float) -> str:
    """Format a value of a history; what was not logged is empty."""
    return "" if pd.isna(value) else f"{value:.4g}"


def code_pieces(text: str) -> list[tuple[str, bool]]:
    """Divide a text at its backticks, which stand around names."""
    pieces = [(piece, position % 2 == 1) for position, piece in enumerate(text.split("`"))]
    return [(piece, is_code) for piece, is_code in pieces if piece]
