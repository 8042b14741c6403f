"""Names and types of the columns of triples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

LABEL = "label"
"""The column of numbers that may stand beside texts, as sentence-transformers names what it gives to losses."""


def column_names(number: int) -> list[str]:
    """Names columns that come without names."""
    if number < 3:
        raise ValueError(f"rows of {number} texts; triples are a query, a positive and one or more negatives")
    return ["query", "positive", *(["negative"] if number == 3 else [f"negative_{i}" for i in range(1, number - 1)])]


def named_columns(table: pa.Table, query: Sequence[str] = ("query", "anchor")) -> pa.Table:
    """Brings columns of strings into the order that losses expect; ``query`` are names of the first, best first."""
    if all(name.isdecimal() for name in table.column_names):
        table = table.rename_columns(column_names(table.num_columns))
    if present := [name for name in query if name in table.column_names]:
        others = [name for name in table.column_names if name != "query" or present[0] == "query"]
        table = table.select(others).rename_columns(["query" if name == present[0] else name for name in others])
    negatives = [name for name in table.column_names if re.fullmatch(r"negative(_\d+)?", name)]
    columns = ["query", "positive", *sorted(negatives, key=lambda name: int(name.partition("_")[2] or 0))]
    if not negatives or not set(columns) <= set(table.column_names):
        raise ValueError(
            f"triples have the columns {table.column_names}; they need 'query' (or 'anchor'; 'qid' for identifiers), "
            "'positive', and 'negative' or 'negative_1', 'negative_2', ..."
        )
    table = table.select(columns)
    for name in columns:
        kind = table.column(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise TypeError(f"column {name!r} holds {kind}; training needs texts in {columns}")
    return table.cast(pa.schema([(name, pa.string()) for name in columns]))


def with_label(texts: pa.Table, table: pa.Table) -> pa.Table:
    """Puts the labels of a table beside its texts, if it has some."""
    if LABEL not in table.column_names:
        return texts
    labels = table.column(LABEL)
    try:
        numbers = labels.cast(pa.float32())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = None
    if numbers is None or numbers.null_count or pc.any(pc.is_nan(numbers)).as_py():
        raise TypeError(
            f"column {LABEL!r} holds {labels.type}, {labels.null_count} missing; a loss needs a number in every row: "
            "drop the rows without one, or the column if the loss needs none"
        )
    return texts.append_column(LABEL, numbers)


def string_table(columns: Mapping[str, Sequence[str | None]]) -> pa.Table:
    """Make a table of columns of strings."""
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
