"""Checks of input: options, frames, identifiers, texts and vectors."""

from __future__ import annotations

import importlib
import inspect
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import Measure
from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, WrapValidator

Checked = TypeVar("Checked", bound=Callable[..., Any])


def Expected(description: str) -> WrapValidator:  # noqa: N802 - it reads as a type
    """Say in the error of a type what it expects, in place of pydantic's words.

    Args:
        description: What the option must be.

    Returns:
        What ``Annotated`` takes.
    """

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValueError(f"be {description}") from error

    return WrapValidator(validate)


PositiveInteger = Annotated[int, Field(ge=1), Expected("a positive integer")]
Count = Annotated[int, Field(ge=0), Expected("0 or a positive integer")]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False), Expected("a positive number")]
Seed = Annotated[int, Field(ge=0, lt=2**32), Expected("an integer from 0 to 4294967295")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Expected("a number from 0 to 1")]
ShareBetween = Annotated[
    float, Field(gt=0, lt=1, allow_inf_nan=False), Expected("a number between 0 and 1, such as 0.1")
]
FieldNames = Annotated[Sequence[str], Field(min_length=1), Expected("a list of field names such as ['title', 'text']")]
Measures = Annotated[
    Sequence[Measure],
    Field(min_length=1),
    Expected("a list of measures such as [nDCG @ 10], imported from pyterrier.measures"),
]
FolderPath = Annotated[Annotated[str, Field(min_length=1)] | Path, Expected("the path of a folder")]
FilePath = Annotated[Annotated[str, Field(min_length=1)] | Path, Expected("the path of a file")]

STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""The kinds of parameters that are checked; those of ``**arguments`` belong to somebody else."""


def checked(target: Checked) -> Checked:
    """Check the arguments of a function, or of a class, against their types.

    Args:
        target: The function, all of whose annotations name types that pydantic or ``isinstance`` can check; or the
            class.

    Returns:
        The function that checks and calls; or the class.

    Raises:
        ValueError: When called, if an option has a value that its type does not allow.
        TypeError: When called, if an argument is not of the class that it must be.

    Example:
        >>> @checked
        ... def search(num_results: PositiveInteger = 1000, fast: bool = False) -> int:
        ...     return num_results
        >>> search(np.int64(10))
        10
        >>> search(0)
        Traceback (most recent call last):
        ValueError: num_results must be a positive integer, got 0
        >>> search(fast="no")
        Traceback (most recent call last):
        ValueError: fast must be a valid boolean, got 'no'
    """
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    signature = inspect.signature(target)

    # when it is called first: a class that an annotation names may not be defined yet
    @cache
    def types() -> dict[str, TypeAdapter[Any]]:
        hints = get_type_hints(target, include_extras=True)
        named = [name for name, parameter in signature.parameters.items() if parameter.kind in NAMED]
        return {name: _adapter(hints[name]) for name in named if name in hints}

    @wraps(target)
    def check_and_call(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        for name, adapter in types().items():
            if name in bound.arguments:
                bound.arguments[name] = _validated(name, bound.arguments[name], adapter)
        return target(*bound.args, **bound.kwargs)

    return check_and_call  # type: ignore[return-value]


def _adapter(hint: Any) -> TypeAdapter[Any]:
    # pydantic takes no configuration beside a dataclass, which checks its own fields
    if is_dataclass(hint):
        return TypeAdapter(InstanceOf[hint])
    # annotated, since pydantic takes no configuration beside a class that may have one of its own
    return TypeAdapter(Annotated[hint, "an option"], config=STRICT)


def _validated(name: str, value: Any, adapter: TypeAdapter[Any]) -> Any:
    """Check one argument."""
    try:
        return adapter.validate_python(plain(value))
    except ValidationError as error:
        faults = error.errors()
    expected = dict.fromkeys(re.sub("^(Input should|Value error,) ", "", fault["msg"]) for fault in faults)
    message = f"{name} must {' or '.join(expected)}, got {reprlib.repr(value)}"
    if all(map(_is_of_class, faults)):
        raise TypeError(f"{message}, a {type(value).__name__}")
    raise ValueError(message) from None


def plain(value: Any) -> Any:
    """Return the scalar of Python that a scalar of NumPy stands for, and anything else as it is.

    Args:
        value: A value.

    Returns:
        The value.

    Example:
        >>> plain(np.float64(0.5)), plain("l2")
        (0.5, 'l2')
    """
    if isinstance(value, np.generic):
        return value.item()
    return value


def _is_of_class(fault: Mapping[str, Any]) -> bool:
    """Tell whether a fault is that a value is not of the class that it must be, as pydantic or ``Expected`` says it."""
    replaced = fault.get("ctx", {}).get("error")
    if replaced is None:
        return fault["type"] == "is_instance_of"
    cause = replaced.__cause__
    return isinstance(cause, ValidationError) and all(map(_is_of_class, cause.errors()))


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


TYPES = {"docno": str, "docid": int, "score": np.float32, "rank": int, "query_vec": object, "doc_vec": object}
"""The types of what encoders, retrievers and scorers add to frames."""


def without_rows(frame: pd.DataFrame, given: pd.DataFrame) -> pd.DataFrame:
    """Give the columns of a frame without rows the types that they have where there are rows.

    Libraries make columns of floats of nothing, which pandas does not merge with identifiers.

    Args:
        frame: What became of a frame without rows.
        given: That frame.

    Returns:
        The frame, with the types of the given columns and of :data:`TYPES`.

    Example:
        >>> nothing = pd.DataFrame({"qid": [], "score": []})
        >>> without_rows(nothing, pd.DataFrame({"qid": ["1"]}).head(0)).dtypes.astype(str).to_dict()["score"]
        'float32'
    """
    types = {**given.dtypes, **TYPES}
    return frame.astype({name: types[name] for name in frame.columns if name in types})


def require_vector(name: str, vector: object) -> None:
    """Check that something is a vector that compares with others.

    Args:
        name: What to call it in the error.
        vector: What was given.

    Raises:
        ValueError: If it is not an array of floats of one dimension, or a number is not finite in float32.

    Example:
        >>> require_vector("query_vec", np.array([0.6, np.nan]))
        Traceback (most recent call last):
        ValueError: query_vec must hold finite numbers, got NaN or infinite ones; look for the fault in the encoder, ...
    """
    is_vector = isinstance(vector, np.ndarray) and vector.ndim == 1 and vector.dtype.kind == "f" and vector.size
    if not is_vector:
        got = f"a {type(vector).__name__}"
        if isinstance(vector, np.ndarray):
            got = f"{vector.dtype} of shape {vector.shape}"
        raise ValueError(f"{name} must be an array of floats of shape (dimension,), got {got}; encode it first")
    # what float32 cannot hold becomes infinite
    with np.errstate(over="ignore"):
        stored = cast(np.ndarray, vector).astype(np.float32)
    if not np.isfinite(stored).all():
        raise ValueError(
            f"{name} must hold finite numbers, got NaN or infinite ones; look for the fault in the encoder, such as "
            "weights that diverged in training"
        )


def require_vectors(frame: pd.DataFrame, column: str, dimension: int, others: str) -> None:
    """Check that a column holds a vector in every row, as :func:`require_vector` does, and that it fits others.

    Args:
        frame: The frame.
        column: The column.
        dimension: The length of the others.
        others: What to call the others in the error.

    Raises:
        ValueError: If a row holds something else, or a vector of another length.
    """
    # results repeat the vector of their query
    distinct = {id(vector): vector for vector in frame[column]}
    for vector in distinct.values():
        require_vector(column, vector)
        if len(vector) != dimension:
            raise ValueError(
                f"{column} has {len(vector)} dimensions, and {others} have {dimension}; encode both with one encoder"
            )


EXTRAS = {"openvino": "int8", "peft": "adapters", "ray": "ray", "ray.data": "ray"}
"""The extra of this package that brings a module."""


def load_extra(module: str) -> Any:
    """Import a module that an extra brings.

    Args:
        module: The name of the module.

    Returns:
        The module.

    Raises:
        ImportError: If it, or what it needs itself, is not installed.

    Example:
        >>> load_extra("openvino").__name__
        'openvino'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs {module}, which is not installed: pip install 'pyterrier-selfdistill[{EXTRAS[module]}]' "
            f"({error})"
        ) from error


def is_missing(value: object) -> bool:
    """Say whether a value stands for none: None, NaN, or what else pandas takes for it."""
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))
