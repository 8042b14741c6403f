"""One HTML page of a comparison, with all that it needs in it.

The page is a Jinja template that escapes whatever it is given. It loads nothing: its policy allows the browser no
request, and no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from .differences import QueryChange, cut, matching_pieces
from .models import ModelDescription
from .statistics import CONFIDENCE

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
        loader=PackageLoader("pyterrier_selfdistill.comparison"),
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
