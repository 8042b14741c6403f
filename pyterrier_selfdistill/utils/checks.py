"""Validate input at the public interface: options, frames, identifiers, texts and vectors.

Each error names the given and the expected value, and suggests a solution.
"""

from __future__ import annotations

import importlib
import inspect
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import Measure, parse_measure
from more_itertools import duplicates_everseen
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator, validate_call
from pydantic_core import ErrorDetails, PydanticCustomError

Checked = TypeVar("Checked", bound=Callable[..., Any])


def Expected(description: str) -> WrapValidator:  # noqa: N802 - it reads as a type
    """Describe the values of a type in errors, instead of pydantic's message: ``Expected("a positive integer")``."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            kind = "is_instance_of" if _are_of_class(error.errors()) else "value_error"
            # a template, since the description may contain braces
            raise PydanticCustomError(kind, "{expected}", {"expected": description}) from None

    return WrapValidator(validate)


PositiveInteger = Annotated[int, Field(ge=1), Expected("a positive integer")]
Count = Annotated[int, Field(ge=0), Expected("0 or a positive integer")]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False), Expected("a positive number")]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Expected("0 or a positive number")]
Seed = Annotated[int, Field(ge=0, lt=2**32), Expected("an integer from 0 to 4294967295")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Expected("a number from 0 to 1")]
ShareBetween = Annotated[float, Field(gt=0, lt=1), Expected("a number between 0 and 1, such as 0.1")]
FieldNames = Annotated[Sequence[str], Field(min_length=1), Expected("a list of field names such as ['title', 'text']")]


def _measure(given: Any) -> Any:
    try:
        return parse_measure(given) if isinstance(given, str) else given
    except NameError as error:
        raise ValueError(error) from None


Measures = Annotated[
    Sequence[Annotated[Measure, BeforeValidator(_measure)]],
    Field(min_length=1),
    Expected("a list of measures such as ['nDCG@10', 'RR']"),
]
FolderPath = Annotated[Annotated[str, Field(min_length=1)] | Path, Expected("the path of a folder")]
FilePath = Annotated[Annotated[str, Field(min_length=1)] | Path, Expected("the path of a file")]
STRICT: ConfigDict = {"strict": True, "arbitrary_types_allowed": True}  # how arguments are checked


# the names of arguments in other libraries, and our names for them, or advice
OTHER_NAMES = {
    **dict.fromkeys(["k", "top_k"], "num_results"),
    "model": "encoder",
    "lr": "learning_rate",
    **dict.fromkeys(["epochs", "num_epochs"], "num_train_epochs"),
    **dict.fromkeys(["batch_size", "train_batch_size"], "per_device_train_batch_size"),
    "num_negatives": "negatives",
    **dict.fromkeys(["dataset", "documents"], "corpus"),
    **dict.fromkeys(["max_length", "max_seq_length"], "give document_length to SelfDistillBiEncoder.from_pretrained"),
    "args": "give each training argument by its name, such as learning_rate=1e-5",
    "train_dataset": "call fit_triples(dataset)",
    **dict.fromkeys(["eval_dataset", "evaluator"], "give validation topics and qrels to fit or fit_triples"),
    "prompt_name": "queries and documents have a prompt each: query_prompt and document_prompt of from_pretrained",
    "truncate_dim": "call encoder.truncate(dimension)",
    "resume_from_checkpoint": "resume",
}


def unknown_argument(name: str, known: Collection[str]) -> TypeError:
    """Return the error for an unknown argument, with a similar known name."""
    advice = OTHER_NAMES.get(name, "")
    if " " not in advice:
        similar = advice if advice in known else "".join(get_close_matches(name, list(known), n=1))
        advice = f"did you mean {similar!r}?" if similar else "see help() for the known ones"
    return TypeError(f"unknown argument {name!r}; {advice}")


def bind(signature: inspect.Signature, *arguments: Any, **options: Any) -> inspect.BoundArguments:
    """Bind arguments to a signature, and suggest a known name for an unknown one."""
    try:
        return signature.bind(*arguments, **options)
    except TypeError:
        known = signature.parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        if unknown := [name for name in options if name not in known and not takes_any]:
            raise unknown_argument(unknown[0], known) from None
        raise


class WithHints:
    """Suggest an alternative if you call a method by the name that another library gives it."""

    HINTS: ClassVar[Mapping[str, str]] = {}

    def __getattr__(self, name: str) -> Any:
        if name in self.HINTS:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}; {self.HINTS[name]}")
        # keep the error that a property raised
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.HINTS:
            # otherwise, encoder.max_seq_length = 64 would have no effect
            self.__getattr__(name)
        super().__setattr__(name, value)


def checked(target: Checked) -> Checked:
    """Check the arguments of a function or class against their types, and convert NumPy scalars to Python scalars."""
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    signature = inspect.signature(target)
    names = list(signature.parameters)

    # validate only the arguments, so that a pydantic error inside the function is not caught; defer, since a class in
    # an annotation may be defined later
    @validate_call(config=ConfigDict(defer_build=True, **STRICT))
    @wraps(target)
    def validated(*arguments: Any, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments, options

    @wraps(target)
    def check_and_call(*arguments: Any, **options: Any) -> Any:
        arguments = tuple(map(plain, arguments))
        options = {name: plain(value) for name, value in options.items()}
        bound = bind(signature, *arguments, **options)
        try:
            arguments, options = validated(*arguments, **options)
        except ValidationError as error:
            faults = error.errors()
            place = faults[0]["loc"][0]
            name = names[place] if isinstance(place, int) else place
            value = bound.arguments.get(name, options.get(name))
            # each type of a union, such as a path or None, reports a fault
            raise _fault_error(name, value, [fault for fault in faults if fault["loc"][0] == place]) from None
        return target(*arguments, **options)

    return check_and_call  # type: ignore[return-value]


def require_type(name: str, value: Any, annotation: Any) -> None:
    """Check a value against an annotation like :func:`checked`, and allow only finite numbers."""
    try:
        TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False, **STRICT)).validate_python(value)
    except ValidationError as error:
        raise _fault_error(name, value, error.errors()) from None


def _fault_error(name: Any, value: Any, faults: Sequence[ErrorDetails]) -> Exception:
    expected = dict.fromkeys(fault["msg"].removeprefix("Input should be ") for fault in faults)
    message = f"{name} must be {' or '.join(expected)}, got {reprlib.repr(value)}"
    return TypeError(f"{message}, a {type(value).__name__}") if _are_of_class(faults) else ValueError(message)


def _are_of_class(faults: Sequence[ErrorDetails]) -> bool:
    return all(fault["type"] in ("is_instance_of", "dataclass_exact_type") for fault in faults)


def plain(value: Any) -> Any:
    """Convert a NumPy scalar to a Python scalar, and return other values unchanged."""
    return value.item() if isinstance(value, np.generic) else value


# the extra of this package that installs a module
EXTRAS = {"openvino": "openvino", "peft": "adapters", "ray": "ray", "ray.data": "ray"}


def load_extra(module: str) -> Any:
    """Import a module that an extra of this package installs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs {module}, which is not installed: pip install 'pyterrier-selfdistill[{EXTRAS[module]}]' "
            f"({error})"
        ) from error


@contextmanager
def explained_columns(reader: str, frame: pd.DataFrame) -> Iterator[None]:
    """Name the missing column in a sentence, before PyTerrier's list of all accepted columns."""
    try:
        yield
    except pt.validate.InputValidationError as error:
        nearest = min(error.modes, key=lambda mode: len(mode.missing_columns) + len(mode.extra_columns))
        read = " and ".join(map(repr, nearest.missing_columns))
        given = "queries" if "docno" not in frame else "results" if {"qid", "query"} & set(frame) else "documents"
        sentence = f"{reader} reads {read}; your {given} have {list(frame.columns)}. {error.args[0]}"
        raise pt.validate.InputValidationError(sentence, error.modes) from None


def require_columns(frame: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Check that a frame has the given columns, once each."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{name} must be a DataFrame with the columns {list(columns)}, got a {type(frame).__name__}")
    require_distinct_columns(frame, name)
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{name} must have the columns {list(columns)}, got {list(frame.columns)}: {missing} missing")


def require_distinct_columns(columns: Iterable[Any], name: str) -> None:
    """Check that the column names of a frame, or a list of names, are distinct."""
    if repeated := list(dict.fromkeys(duplicates_everseen(columns))):
        raise ValueError(f"{name} must have distinct columns, got {repeated} more than once; rename or drop some")


def require_column_names(frame: pd.DataFrame, name: str) -> None:
    """Check that the names of columns are distinct strings."""
    wrong = [column for column in frame.columns if not isinstance(column, str)]
    if wrong:
        raise TypeError(f"the columns of {name} must have strings as names, got {wrong[:3]}; rename or drop these")
    require_distinct_columns(frame, name)


def require_identifiers(frame: pd.DataFrame, column: str, name: str) -> None:
    """Check that a column of identifiers, such as ``qid``, holds strings only."""
    wrong = [value for value in frame[column] if not isinstance(value, str)]
    if wrong:
        raise TypeError(
            f"the {column} of {name} must be a string, got {wrong[:3]} in {len(wrong)} of {len(frame)} rows; "
            f'convert with frame.astype({{"{column}": str}})'
        )


# the types of columns that encoders, retrievers and scorers add
TYPES = {"docno": str, "docid": int, "score": np.float32, "rank": int, "query_vec": object, "doc_vec": object}


def without_rows(frame: pd.DataFrame, given: pd.DataFrame) -> pd.DataFrame:
    """Set the column types of an empty frame to the types of the given frame and of :data:`TYPES`."""
    types = {**given.dtypes, **TYPES}
    return frame.astype({name: types[name] for name in frame.columns if name in types})


# --- texts -----------------------------------------------------------------------------------------------------------


def require_texts(
    frame: pd.DataFrame, column: str, identifier: str, *, empty: bool = False, missing: bool = False
) -> None:
    """Check that a column holds a text in every row. Errors name rows by the column ``identifier``."""
    if column not in frame:
        raise ValueError(
            f"expected a column {column!r}, got {list(frame.columns)}; pass corpus= to the trainer, put "
            "pt.text.get_text(dataset) before it, or name the column with text_field= at the encoder"
        )
    # empty Arrow columns have no map()
    texts = frame[column].astype(object)
    faults = texts.map(_fault_of).astype(object)
    faults[(texts.isna() & missing) | ((faults == EMPTY) & empty)] = None
    if faults.isna().all():
        return
    given = faults.dropna().iloc[0]
    wrong = frame[faults == given]
    names = wrong[identifier] if identifier in frame else wrong.index
    shown = ", ".join(f"{name!r}: {value!r}" for name, value in zip(names[:3], wrong[column][:3], strict=True))
    add = "pass pt.new.queries(['first', 'second'])" if column == "query" else "add it with pt.text.get_text(dataset)"
    advice = DECODE if given == HALF else f"{add}, or drop these rows"
    raise (TypeError if given == OTHER else ValueError)(
        f"column {column!r} must hold text, got {given} in {len(wrong)} of {len(frame)} rows ({shown}); {advice}"
    )


def require_strings(values: Iterable[str], name: str) -> list[str]:
    """Check that values are strings without half characters, and return them as a list."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of strings, got {reprlib.repr(values)}, a {type(values).__name__}")
    strings = list(values)
    for position, value in enumerate(strings):
        fault = _fault_of(value)
        if fault == OTHER:
            raise TypeError(f"{name}[{position}] must be a string, got {value!r}, a {type(value).__name__}")
        if fault == HALF:
            raise ValueError(f"{name}[{position}] must hold text, got {HALF} in {value!r}; {DECODE}")
    return strings


LARGEST_LABEL = 2**15  # pytrec_eval allocates memory for each label up to the largest, and crashes if it is too large
# the faults of texts
OTHER, HALF, EMPTY = "another type", "half a character", "an empty text"
HALVES = re.compile("[\ud800-\udfff]")
DECODE = "decode the bytes again with errors='replace'"


def _fault_of(text: Any) -> str | None:
    if not isinstance(text, str):
        return OTHER
    # undecodable bytes become surrogates, which tokenizers reject
    if HALVES.search(text):
        return HALF
    return None if text.strip() else EMPTY


def require_topics(topics: pd.DataFrame, *, empty: bool = False) -> None:
    """Check that each ``qid`` of topics or results has one ``query``, which may be empty if ``empty`` is set."""
    require_columns(topics, ["qid", "query"], "topics")
    require_identifiers(topics, "qid", "topics")
    require_texts(topics, "query", "qid", empty=empty)
    distinct = topics[["qid", "query"]].drop_duplicates()
    repeated = distinct[distinct["qid"].duplicated(keep=False)]
    if len(repeated):
        examples = repeated.groupby("qid")["query"].agg(list)[:3].to_dict()
        raise ValueError(f"a query must have one text in all rows, got {examples}; give each query its own qid")


def judged(topics: pd.DataFrame, qrels: pd.DataFrame, *, to_measure: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Check topics (or results) and qrels, and return both with plain types, a new index and no labels below 0."""
    require_topics(topics, empty=to_measure)
    require_columns(qrels, ["qid", "docno", "label"], "qrels")
    of_results = sorted({"rank", "score"} & set(topics.columns))
    if "docno" not in topics and of_results:
        raise ValueError(
            f"topics must have 'docno' in addition to {of_results}, got {list(topics.columns)}; give results with "
            "their documents, or topics with 'qid' and 'query' only"
        )
    require_identifiers(qrels, "qid", "qrels")
    require_identifiers(qrels, "docno", "qrels")
    if "docno" in topics:
        require_identifiers(topics, "docno", "topics")
    if not set(topics["qid"]) & set(qrels["qid"]):
        given, judged = (frame["qid"].unique()[:3].tolist() for frame in (topics, qrels))
        raise ValueError(f"expected judgements of the topics, got none: topics have the qid {given}, qrels {judged}")
    missing = int(qrels["label"].isna().sum())
    if missing or not pd.api.types.is_numeric_dtype(qrels["label"]):
        raise TypeError(
            f"the labels of qrels must be numbers, 1 or more for relevant documents, got {qrels['label'].dtype}, "
            f"{missing} of {len(qrels)} missing"
        )
    # Arrow columns and categories cannot be compared with each other
    topics = topics.astype({name: object for name in ("qid", "query", "docno") if name in topics})
    used = qrels[["qid", "docno", "label"]].astype({"qid": object, "docno": object, "label": float})
    labels = used["label"].clip(lower=0)
    if labels.max() > LARGEST_LABEL:
        raise ValueError(f"the labels of qrels must be at most {LARGEST_LABEL}, got {labels.max():.0f}; use grades")
    fractions = labels[labels % 1 != 0].tolist()
    if to_measure and fractions:
        raise ValueError(f"the labels of qrels must be integers, as measures need them, got {fractions[0]}; round them")
    used["label"] = labels if fractions else labels.astype(int)
    distinct = used.drop_duplicates()
    twice = distinct[distinct.duplicated(["qid", "docno"], keep=False)].sort_values(["qid", "docno"])
    if len(twice):
        qid, docno, _ = twice.iloc[0]
        both = twice["label"].tolist()[:2]
        raise ValueError(
            f"qrels must have one label for a query and a document, got {both} for {qid!r} and {docno!r}; keep one"
        )
    return topics.reset_index(drop=True), used.reset_index(drop=True)


def require_vector(name: str, vector: object) -> None:
    """Check that a value is a vector of floats that are finite in float32."""
    if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype.kind != "f" or not vector.size:
        raise ValueError(
            f"{name} must be an array of floats of shape (dimension,), got {reprlib.repr(vector)}, a "
            f"{type(vector).__name__}; encode it first"
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(vector.astype(np.float32)).all():
            raise ValueError(
                f"{name} must hold finite numbers, got NaN or infinite ones; check the encoder, for example "
                "for weights that diverged in training"
            )


def require_vectors(frame: pd.DataFrame, column: str, dimension: int, others: str) -> None:
    """Check that a column holds finite vectors of the same dimension as ``others``."""
    # results repeat the vector of their query
    for vector in {id(vector): vector for vector in frame[column]}.values():
        require_vector(column, vector)
        if len(vector) != dimension:
            raise ValueError(
                f"{column} has {len(vector)} dimensions, and {others} have {dimension}; encode both with one encoder"
            )
