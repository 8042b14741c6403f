"""Checks of what users give: options that are numbers, texts that are texts, topics that have judgements.

Each returns nothing, or raises an error that says what was given, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from ir_measures import Measure


def require_count(name: str, value: object, *, at_most: int | None = None) -> None:
    """Checks that an option is a whole number, 1 or more.

    Args:
        name: The option.
        value: What was given.
        at_most: The largest number that it may be.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> require_count("batch_size", 0)
        Traceback (most recent call last):
        ValueError: batch_size=0 is not a whole number, 1 or more
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (at_most is not None and value > at_most):
        raise ValueError(f"{name}={value!r} is not a whole number, {f'1 to {at_most}' if at_most else '1 or more'}")


def require_measures(measures: Sequence[object]) -> None:
    """Checks that there are measures of ir-measures.

    Raises:
        ValueError: If there is none.
        TypeError: If one is something else, such as a name.

    Example:
        >>> require_measures(["ndcg_cut_10"])
        Traceback (most recent call last):
        TypeError: 'ndcg_cut_10' is no measure; give some such as [nDCG @ 10], from pyterrier.measures
    """
    if isinstance(measures, str | Measure) or not len(measures):
        raise ValueError(f"measures={measures!r} is no list of measures; give some such as [nDCG @ 10]")
    for measure in measures:
        if not isinstance(measure, Measure):
            raise TypeError(f"{measure!r} is no measure; give some such as [nDCG @ 10], from pyterrier.measures")


def require_columns(frame: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Checks that the columns are there, once each.

    Args:
        frame: The frame.
        columns: The columns that it needs.
        name: What to call the frame in the error.

    Raises:
        TypeError: If it is no frame.
        ValueError: If a column is missing or stands twice.

    Example:
        >>> require_columns(pd.DataFrame(columns=["qid", "text"]), ["qid", "query"], "topics")
        Traceback (most recent call last):
        ValueError: topics need the columns ['qid', 'query'] and have ['qid', 'text']: ['query'] missing
    """
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{name} are a {type(frame).__name__}; give a DataFrame with the columns {list(columns)}")
    require_distinct_columns(frame, name)
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"{name} need the columns {list(columns)} and have {list(frame.columns)}: {missing} missing")


def require_distinct_columns(frame: pd.DataFrame, name: str) -> None:
    """Checks that no two columns have the same name.

    Raises:
        ValueError: If two do.
    """
    if repeated := frame.columns[frame.columns.duplicated()].unique().tolist():
        raise ValueError(f"more than one column of {name} is named {repeated}; rename or drop the others")


def require_texts(
    frame: pd.DataFrame, column: str, identifier: str, *, empty: bool = False, missing: bool = False
) -> None:
    """Checks that a column holds a string in every row.

    Args:
        frame: The frame.
        column: The column with texts.
        identifier: The column that names a row in the error, if the frame has it.
        empty: Whether a text may be empty.
        missing: Whether a text may be missing: None or NaN.

    Raises:
        TypeError: If a row has something else, such as NaN.
        ValueError: If there is no such column, or a text is empty though it may not be.

    Example:
        >>> require_texts(pd.DataFrame({"docno": ["d1", "d2"], "text": ["plot", 7]}), "text", "docno")
        Traceback (most recent call last):
        TypeError: column 'text' has no string in 1 of 2 rows ('d2': 7); ...
    """
    if column not in frame:
        raise ValueError(
            f"there is no column {column!r} among {list(frame.columns)}; put pt.text.get_text(dataset) before the "
            "trainer, or name the column with text_field= at the encoder"
        )
    wrong = [not (isinstance(text, str) or (missing and pd.isna(text))) for text in frame[column]]
    error: type[Exception] = TypeError
    fault = "no string"
    if not any(wrong) and not empty:
        wrong = [not text.strip() for text in frame[column]]
        error, fault = ValueError, "an empty text"
    if any(wrong):
        rows = frame[wrong]
        names = rows[identifier] if identifier in frame else rows.index
        examples = ", ".join(f"{name!r}: {text!r}" for name, text in list(zip(names, rows[column], strict=True))[:3])
        raise error(
            f"column {column!r} has {fault} in {len(rows)} of {len(frame)} rows ({examples}); add the text, for "
            "instance with pt.text.get_text(dataset), or drop these rows"
        )


def require_judged(topics: pd.DataFrame, qrels: pd.DataFrame) -> None:
    """Checks that some of the topics (or of the queries of results) have judgements.

    Args:
        topics: ``qid`` and ``query``.
        qrels: ``qid``, ``docno`` and ``label``.

    Raises:
        ValueError: If none has, usually since one frame has integers and the other strings.
        TypeError: If identifiers are no strings, or labels no numbers.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> require_judged(topics, pd.DataFrame([[1, "d1", 1]], columns=["qid", "docno", "label"]))
        Traceback (most recent call last):
        ValueError: none of the 1 topics has judgements among the 1 judged queries: topics have '1' (...), qrels
        have 1 (int64); ...
    """
    require_columns(topics, ["qid", "query"], "topics")
    require_columns(qrels, ["qid", "docno", "label"], "qrels")
    if not set(topics["qid"]) & set(qrels["qid"]):
        forms = [
            ", ".join(map(repr, ids.unique()[:3].tolist())) + f" ({ids.dtype})" for ids in (topics["qid"], qrels["qid"])
        ]
        raise ValueError(
            f"none of the {topics['qid'].nunique()} topics has judgements among the {qrels['qid'].nunique()} judged "
            f"queries: topics have {forms[0]}, qrels have {forms[1]}; identifiers are strings in both, and "
            'frame.astype({"qid": str}) makes them so'
        )
    for name, frame in {"topics": topics, "qrels": qrels}.items():
        for column in {"qid", "docno"} & set(frame.columns):
            if wrong := [value for value in frame[column] if not isinstance(value, str)]:
                raise TypeError(
                    f"the {column} of {name} is no string in {len(wrong)} of {len(frame)} rows ({wrong[:3]}); "
                    f'identifiers are strings in PyTerrier, and frame.astype({{"{column}": str}}) makes them so'
                )
    if not pd.api.types.is_numeric_dtype(qrels["label"]) or qrels["label"].isna().any():
        raise TypeError(
            f"the labels of qrels are {qrels['label'].dtype}, {qrels['label'].isna().sum()} of {len(qrels)} missing; "
            "they are numbers, 1 or more for relevant documents"
        )
