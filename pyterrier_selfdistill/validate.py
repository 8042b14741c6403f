"""Check what users give: options, frames, texts, identifiers and judgements.

Each check returns nothing, or raises an error that says what was given, what was expected and what to do. Frames are
checked once, where they enter the package; code further in trusts them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from ir_measures import Measure


def require_positive_integer(name: str, value: object, *, at_most: int | None = None) -> None:
    """Check that an option is a positive integer.

    Args:
        name: The option.
        value: What was given.
        at_most: The largest integer that is allowed.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> require_positive_integer("batch_size", 0)
        Traceback (most recent call last):
        ValueError: batch_size must be a positive integer, got 0
    """
    expected = "a positive integer" if at_most is None else f"an integer from 1 to {at_most}"
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or value < 1 or (at_most is not None and value > at_most):  # type: ignore[operator]
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def require_measures(measures: Sequence[object]) -> None:
    """Check that there are measures of ir_measures.

    Args:
        measures: What was given.

    Raises:
        ValueError: If there is none.
        TypeError: If one is something else, such as a name.

    Example:
        >>> require_measures(["ndcg_cut_10"])
        Traceback (most recent call last):
        TypeError: expected an ir_measures.Measure, got 'ndcg_cut_10'; import some such as nDCG @ 10 from ...
    """
    if isinstance(measures, str | Measure) or not len(measures):
        raise ValueError(f"measures must be a list of measures such as [nDCG @ 10], got {measures!r}")
    for measure in measures:
        if not isinstance(measure, Measure):
            raise TypeError(
                f"expected an ir_measures.Measure, got {measure!r}; import some such as nDCG @ 10 from "
                "pyterrier.measures"
            )


def require_columns(frame: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Check that a frame has columns, once each.

    Args:
        frame: The frame.
        columns: The columns that it needs.
        name: What to call the frame in the error.

    Raises:
        TypeError: If it is not a frame.
        ValueError: If a column is missing or duplicate.

    Example:
        >>> require_columns(pd.DataFrame(columns=["qid", "text"]), ["qid", "query"], "topics")
        Traceback (most recent call last):
        ValueError: topics must have the columns ['qid', 'query'], got ['qid', 'text']: ['query'] missing
    """
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{name} must be a DataFrame with the columns {list(columns)}, got a {type(frame).__name__}")
    require_distinct_columns(frame, name)
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{name} must have the columns {list(columns)}, got {list(frame.columns)}: {missing} missing")


def require_distinct_columns(frame: pd.DataFrame, name: str) -> None:
    """Check that no two columns have the same name.

    Args:
        frame: The frame.
        name: What to call it in the error.

    Raises:
        ValueError: If two do.
    """
    repeated = frame.columns[frame.columns.duplicated()].unique().tolist()
    if repeated:
        raise ValueError(f"{name} must have distinct columns, got {repeated} more than once; rename or drop some")


def require_identifiers(frame: pd.DataFrame, column: str, name: str) -> None:
    """Check that a column of identifiers holds strings only.

    Args:
        frame: The frame.
        column: The column, such as ``qid``.
        name: What to call the frame in the error.

    Raises:
        TypeError: If it holds something else.

    Example:
        >>> require_identifiers(pd.DataFrame({"qid": [1, 2]}), "qid", "topics")
        Traceback (most recent call last):
        TypeError: the qid of topics must be a string, got [1, 2] in 2 of 2 rows; ...
    """
    wrong = [value for value in frame[column] if not isinstance(value, str)]
    if wrong:
        raise TypeError(
            f"the {column} of {name} must be a string, got {wrong[:3]} in {len(wrong)} of {len(frame)} rows; "
            f'convert with frame.astype({{"{column}": str}})'
        )


def require_texts(
    frame: pd.DataFrame, column: str, identifier: str, *, empty: bool = False, missing: bool = False
) -> None:
    """Check that a column holds a string in every row.

    Args:
        frame: The frame.
        column: The column with texts.
        identifier: The column that names a row in the error, if the frame has it.
        empty: Whether a text may be empty.
        missing: Whether a text may be missing: None or NaN.

    Raises:
        TypeError: If a row has something else, such as NaN.
        ValueError: If the column is missing, or a text is empty though it may not be.

    Example:
        >>> require_texts(pd.DataFrame({"docno": ["d1", "d2"], "text": ["plot", 7]}), "text", "docno")
        Traceback (most recent call last):
        TypeError: column 'text' must hold a string, got another type in 1 of 2 rows ('d2': 7); ...
    """
    if column not in frame:
        raise ValueError(
            f"expected a column {column!r}, got {list(frame.columns)}; put pt.text.get_text(dataset) before the "
            "trainer, or name the column with text_field= at the encoder"
        )
    texts = frame[column]
    is_text = texts.map(lambda text: isinstance(text, str))
    allowed = is_text | texts.isna() if missing else is_text
    if not allowed.all():
        faults = f"hold a string, got another type in {_examples(frame, ~allowed, column, identifier)}"
        raise TypeError(f"column {column!r} must {faults}; add the text with pt.text.get_text(dataset), or drop these")
    is_empty = texts.map(lambda text: isinstance(text, str) and not text.strip())
    if is_empty.any() and not empty:
        faults = f"hold a text, got an empty one in {_examples(frame, is_empty, column, identifier)}"
        raise ValueError(f"column {column!r} must {faults}; add the text with pt.text.get_text(dataset), or drop these")


def _examples(frame: pd.DataFrame, chosen: pd.Series, column: str, identifier: str) -> str:
    """Count the chosen rows and show the first three."""
    rows = frame[chosen]
    names = rows[identifier] if identifier in frame else rows.index
    shown = [f"{name!r}: {value!r}" for name, value in zip(names[:3], rows[column][:3], strict=True)]
    return f"{len(rows)} of {len(frame)} rows ({', '.join(shown)})"


def require_judged(topics: pd.DataFrame, qrels: pd.DataFrame) -> None:
    """Check that some of the topics (or of the queries of results) have judgements.

    Args:
        topics: ``qid`` and ``query``.
        qrels: ``qid``, ``docno`` and ``label``.

    Raises:
        ValueError: If none has, usually since one frame has integers and the other strings.
        TypeError: If identifiers are not strings, or labels not numbers.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> require_judged(topics, pd.DataFrame([[1, "d1", 1]], columns=["qid", "docno", "label"]))
        Traceback (most recent call last):
        ValueError: expected judgements of the topics, got none: 1 topics with the qid '1' (...), 1 judged queries with
        1 (int64); ...
    """
    require_columns(topics, ["qid", "query"], "topics")
    require_columns(qrels, ["qid", "docno", "label"], "qrels")
    if not set(topics["qid"]) & set(qrels["qid"]):
        raise ValueError(
            f"expected judgements of the topics, got none: {topics['qid'].nunique()} topics with the qid "
            f"{_some(topics['qid'])}, {qrels['qid'].nunique()} judged queries with {_some(qrels['qid'])}; identifiers "
            'are strings in both, convert with frame.astype({"qid": str})'
        )
    for name, frame in {"topics": topics, "qrels": qrels}.items():
        for column in {"qid", "docno"} & set(frame.columns):
            require_identifiers(frame, column, name)
    missing = int(qrels["label"].isna().sum())
    if missing or not pd.api.types.is_numeric_dtype(qrels["label"]):
        raise TypeError(
            f"the labels of qrels must be numbers, 1 or more for relevant documents, got {qrels['label'].dtype}, "
            f"{missing} of {len(qrels)} missing"
        )


def _some(identifiers: pd.Series) -> str:
    """Show three identifiers and their type."""
    shown = ", ".join(map(repr, identifiers.unique()[:3].tolist()))
    return f"{shown} ({identifiers.dtype})"
