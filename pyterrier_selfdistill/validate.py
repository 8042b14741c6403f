"""Check the frames that users give: columns, texts, identifiers, topics and judgements.

Frames are checked once, where they enter the package, with :mod:`pyterrier.validate` and the functions below; code
further in trusts them. Each check returns nothing, or raises an error that says what was given, what was expected and
what to do. Options are checked by :mod:`.options`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyterrier as pt


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
    try:
        pt.validate.columns(frame, includes=list(columns))
    except pt.validate.InputValidationError as error:
        missing = error.modes[0].missing_columns
        raise ValueError(
            f"{name} must have the columns {list(columns)}, got {list(frame.columns)}: {missing} missing"
        ) from None


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


def require_column_names(frame: pd.DataFrame, name: str) -> None:
    """Check that the columns of a frame are distinct strings, as what makes frames anew needs.

    Args:
        frame: The frame.
        name: What to call it in the error.

    Raises:
        TypeError: If a column has another name.
        ValueError: If two columns have the same.
    """
    wrong = [column for column in frame.columns if not isinstance(column, str)]
    if wrong:
        raise TypeError(f"the columns of {name} must have strings as names, got {wrong[:3]}; rename or drop these")
    require_distinct_columns(frame, name)


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
        ValueError: If the column is missing, a text is empty though it may not be, or has half a character in it.

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
    # what Arrow's columns map to has no all(), where they are empty
    texts = frame[column].astype(object)
    is_text = texts.map(lambda text: isinstance(text, str))
    allowed = is_text | texts.isna() if missing else is_text
    if not allowed.all():
        faults = f"hold a string, got another type in {_examples(frame, ~allowed, column, identifier)}"
        raise TypeError(f"column {column!r} must {faults}; add the text with pt.text.get_text(dataset), or drop these")
    is_broken = texts.map(has_half_a_character)
    if is_broken.any():
        faults = f"hold text, got half a character in {_examples(frame, is_broken, column, identifier)}"
        raise ValueError(f"column {column!r} must {faults}; decode the bytes again with errors='replace'")
    is_empty = texts.map(lambda text: isinstance(text, str) and not text.strip())
    if is_empty.any() and not empty:
        faults = f"hold a text, got an empty one in {_examples(frame, is_empty, column, identifier)}"
        raise ValueError(f"column {column!r} must {faults}; add the text with pt.text.get_text(dataset), or drop these")


def require_strings(values: Iterable[str], name: str) -> list[str]:
    """Check that something is a list of strings, as text is made of.

    Args:
        values: What was given.
        name: What to call it in the error.

    Returns:
        The strings.

    Raises:
        TypeError: If it is something else, or one of them is.
        ValueError: If a string has half a character in it.

    Example:
        >>> require_strings(["sort", 7], "texts")
        Traceback (most recent call last):
        TypeError: texts[1] is 7, of type int; give strings
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of strings, got {reprlib.repr(values)}, a {type(values).__name__}")
    strings = list(values)
    for position, value in enumerate(strings):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{position}] is {value!r}, of type {type(value).__name__}; give strings")
        if has_half_a_character(value):
            raise ValueError(
                f"{name}[{position}] is {value!r}, with half a character in it; decode the bytes again with "
                "errors='replace'"
            )
    return strings


def has_half_a_character(text: Any) -> bool:
    """Tell whether a string has a surrogate in it, as undecodable bytes become, which no tokenizer takes."""
    # at once for most texts, since strings know whether they are ASCII
    if not isinstance(text, str) or text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _examples(frame: pd.DataFrame, chosen: pd.Series, column: str, identifier: str) -> str:
    """Count the chosen rows and show the first three."""
    rows = frame[chosen]
    names = rows[identifier] if identifier in frame else rows.index
    shown = [f"{name!r}: {value!r}" for name, value in zip(names[:3], rows[column][:3], strict=True)]
    return f"{len(rows)} of {len(frame)} rows ({', '.join(shown)})"


def require_topics(topics: pd.DataFrame, *, empty: bool = False) -> None:
    """Check topics, or the queries of results: each has an identifier, and one text.

    Args:
        topics: ``qid`` and ``query``, in as many rows as may be.
        empty: Whether a text may be empty.

    Raises:
        TypeError: If an identifier or a text is not a string.
        ValueError: If a column is missing, a text is empty, or a query has two texts.

    Example:
        >>> require_topics(pd.DataFrame([["1", "sort"], ["1", "plot"]], columns=["qid", "query"]))
        Traceback (most recent call last):
        ValueError: a query must have one text in all rows, got {'1': ['sort', 'plot']}; give each query its own qid
    """
    require_columns(topics, ["qid", "query"], "topics")
    require_identifiers(topics, "qid", "topics")
    require_texts(topics, "query", "qid", empty=empty)
    distinct = topics[["qid", "query"]].drop_duplicates()
    repeated = distinct[distinct["qid"].duplicated(keep=False)]
    if len(repeated):
        examples = repeated.groupby("qid")["query"].agg(list)[:3].to_dict()
        raise ValueError(f"a query must have one text in all rows, got {examples}; give each query its own qid")


def has_candidates(frame: pd.DataFrame, name: str) -> bool:
    """Tell results from topics by their ``docno``.

    Args:
        frame: The frame.
        name: What to call it in the error.

    Returns:
        Whether it has results.

    Raises:
        ValueError: If it has ranks or scores, and no documents that they are of.

    Example:
        >>> has_candidates(pd.DataFrame(columns=["qid", "query"]), "topics")
        False
    """
    require_distinct_columns(frame, name)
    if "docno" in frame:
        return True
    of_results = sorted({"rank", "score"} & set(frame.columns))
    if of_results:
        raise ValueError(
            f"{name} must have 'docno' beside {of_results}, got {list(frame.columns)}; give results with their "
            "documents, or topics with 'qid' and 'query' only"
        )
    return False


def require_judged(topics: pd.DataFrame, qrels: pd.DataFrame, *, empty: bool = False) -> None:
    """Check that some of the topics (or of the queries of results) have judgements.

    Args:
        topics: ``qid`` and ``query``.
        qrels: ``qid``, ``docno`` and ``label``.
        empty: Whether a query may be empty.

    Raises:
        ValueError: If none has, usually since one frame has integers and the other strings; or as
            :func:`require_topics`.
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
    require_topics(topics, empty=empty)
    require_identifiers(qrels, "qid", "qrels")
    require_identifiers(qrels, "docno", "qrels")
    if "docno" in topics:
        require_identifiers(topics, "docno", "topics")
    missing = int(qrels["label"].isna().sum())
    if missing or not pd.api.types.is_numeric_dtype(qrels["label"]):
        raise TypeError(
            f"the labels of qrels must be numbers, 1 or more for relevant documents, got {qrels['label'].dtype}, "
            f"{missing} of {len(qrels)} missing"
        )


def require_integer_labels(qrels: pd.DataFrame, name: str) -> None:
    """Check that labels are integers, as measures need them.

    Args:
        qrels: The judgements, whose labels are numbers.
        name: What to call them in the error.

    Raises:
        ValueError: If a label is not.

    Example:
        >>> require_integer_labels(pd.DataFrame({"label": [1.0, 0.5]}), "qrels")
        Traceback (most recent call last):
        ValueError: the labels of qrels must be integers, as measures need them, got 0.5; round them
    """
    fractions = qrels["label"][qrels["label"] % 1 != 0]
    if len(fractions):
        raise ValueError(
            f"the labels of {name} must be integers, as measures need them, got {fractions.iloc[0]}; round them"
        )


def _some(identifiers: pd.Series) -> str:
    """Show three identifiers and their type."""
    shown = ", ".join(map(repr, identifiers.unique()[:3].tolist()))
    return f"{shown} ({identifiers.dtype})"
