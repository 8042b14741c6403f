"""Names and types of the columns of triples.

Losses take texts by position: ``query``, ``positive``, then ``negative`` (or ``negative_1`` to ``negative_K`` for
several). A column ``label`` of numbers may follow.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from more_itertools import duplicates_everseen

LABEL = "label"
"""The column of numbers beside the texts, as sentence-transformers names what it gives to losses."""

TEXT_QUERY = ("query", "anchor")
"""How the first column of texts may be called, best first."""

IDENTIFIER_QUERY = ("qid", "query")
"""How the first column of identifiers may be called, best first."""

NEGATIVE = r"negative(_\d+)?"
"""How columns of negatives are called."""


def column_names(number: int) -> list[str]:
    """Name the columns of triples.

    Args:
        number: How many columns there are: 2 + K, for K negatives.

    Returns:
        The names.

    Raises:
        ValueError: If there are fewer than three.

    Example:
        >>> column_names(4)
        ['query', 'positive', 'negative_1', 'negative_2']
    """
    if number < 3:
        raise ValueError(
            f"expected rows of a query, a positive and one or more negatives, got rows of {number} texts; "
            "check what separates the columns, or name them"
        )
    if number == 3:
        return ["query", "positive", "negative"]
    negatives = [f"negative_{position}" for position in range(1, number - 1)]
    return ["query", "positive", *negatives]


def select_columns(table: pa.Table, query_names: Sequence[str] = TEXT_QUERY) -> pa.Table:
    """Select the columns of triples, in the order that losses expect, as strings.

    Args:
        table: Columns with names of triples, or numbered ones (``"0"``, ``"1"``, ...) in the order of triples.
        query_names: How the first column may be called; the first of these that the table has is taken.

    Returns:
        A table with the columns ``query``, ``positive`` and those of negatives.

    Raises:
        ValueError: If a column is missing, or two have the same name.
        TypeError: If a column holds something else than strings.

    Example:
        >>> table = pa.table({"negative": ["plot"], "anchor": ["sort"], "positive": ["sort rows"], "score": [0.5]})
        >>> select_columns(table).to_pylist()
        [{'query': 'sort', 'positive': 'sort rows', 'negative': 'plot'}]
    """
    repeated = sorted(duplicates_everseen(table.column_names))
    if repeated:
        raise ValueError(f"triples must have distinct columns, got {repeated} more than once; rename or drop some")
    # readers number the columns of files and tuples without names
    if all(name.isdecimal() for name in table.column_names):
        table = table.rename_columns(column_names(table.num_columns))
    queries = [name for name in query_names if name in table.column_names]
    negatives = [name for name in table.column_names if re.fullmatch(NEGATIVE, name)]
    if not queries or not negatives or "positive" not in table.column_names:
        raise ValueError(
            "triples must have the columns 'query' (or 'anchor'; 'qid' for identifiers), 'positive', and 'negative' or "
            f"'negative_1', 'negative_2', ..., got {table.column_names}"
        )
    # not as strings, where negative_10 is before negative_2
    negatives.sort(key=_negative_number)
    names = ["query", "positive", *negatives]
    table = table.select([queries[0], "positive", *negatives]).rename_columns(names)
    for field in table.schema:
        if not _holds_strings(field.type):
            raise TypeError(f"column {field.name!r} must hold texts, got {field.type}; training needs texts in {names}")
    # readers and fingerprints know one type of strings only
    return table.cast(pa.schema(dict.fromkeys(names, pa.string())))


def add_label(texts: pa.Table, table: pa.Table) -> pa.Table:
    """Add the labels of a table to its texts, if it has some.

    Args:
        texts: The texts.
        table: The table that they were selected from, perhaps with labels.

    Returns:
        The texts, with a column :data:`LABEL` of float32 if there are labels.

    Raises:
        TypeError: If a label is not a finite number, or missing.
    """
    if LABEL not in table.column_names:
        return texts
    labels = table.column(LABEL)
    try:
        numbers = labels.cast(pa.float32())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = pa.nulls(len(labels), pa.float32())
    is_number = pc.fill_null(pc.is_finite(numbers), False)
    if pa.types.is_boolean(labels.type) or not pc.all(is_number).as_py():
        raise label_error(f"{labels.type}, {labels.null_count} missing")
    return texts.append_column(LABEL, numbers)


def label_error(got: str, where: str = "") -> TypeError:
    """Make the error of a label that is not a number."""
    return TypeError(
        f"{where}column {LABEL!r} must hold a number in every row, got {got}; drop the rows without one, or the column "
        "if the loss needs none"
    )


def is_missing(value: object) -> bool:
    """Say whether a value stands for none: None, NaN, or what else pandas takes for it."""
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))


def text_columns(table: pa.Table) -> list[str]:
    """List the columns of a table of triples, without the label."""
    return [name for name in table.column_names if name != LABEL]


def string_table(columns: Mapping[str, Sequence[str | float | None]]) -> pa.Table:
    """Make a table of columns of strings, with the label as numbers."""
    types = dict.fromkeys(columns, pa.string())
    if LABEL in types:
        types[LABEL] = pa.float64()
    try:
        return pa.table(dict(columns), schema=pa.schema(types))
    except UnicodeEncodeError as error:
        half = error.object
    names = [name for name, texts in columns.items() if half in texts]
    raise ValueError(
        f"column {', '.join(names)} must hold whole characters, got half of one in {reprlib.repr(half)}; read texts as "
        "UTF-8"
    )


def _negative_number(name: str) -> int:
    """Return K of ``negative_K``, and 0 of ``negative``."""
    number = name.partition("_")[2]
    return int(number or 0)


def _holds_strings(kind: pa.DataType) -> bool:
    """Say whether a type is of strings; a column without any value has the type null."""
    if pa.types.is_dictionary(kind):
        # how pandas writes categories
        kind = kind.value_type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in kinds)
