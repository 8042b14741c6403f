"""Changes of options, frames and records: what means the same, and what means nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa

from .exploring import Mutation

Mutations = st.SearchStrategy[Mutation]

NOT_NUMBERS = [None, "3", "", [1], {}, b"3", math.nan, math.inf, True, object()]
MISSING = [None, math.nan, pd.NA, pd.NaT]
OF_ANOTHER_TYPE = [3, 2.5, True, b"sort", ["sort"], {"text": "sort"}]

NOT_TEXTS = [*MISSING, *OF_ANOTHER_TYPE]

HALF_A_CHARACTER = ["\ud800"]
"""A string, but no text: what undecodable bytes may become."""


def shown(value: Any) -> str:
    """Show a value in a description."""
    return " ".join(repr(value).split())[:60]


def mutation(argument: str, description: str, change: Callable[[Any], Any], *names: str) -> Mutation:
    """Change one argument."""

    def change_one(arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {**arguments, argument: change(arguments[argument])}

    return Mutation(f"{argument}: {description}", change_one, names or (argument,))


def replace(argument: str, values: Sequence[Any], *names: str) -> Mutations:
    """Give something else for an argument."""
    names = names or (argument,)
    return st.sampled_from(values).map(
        lambda value: Mutation(f"{argument} = {shown(value)}", _give(argument, value), names)
    )


def _give(argument: str, value: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda arguments: {**arguments, argument: value}


# ----------------------------------------------------------------------------------------------------------- options


class Kind(NamedTuple):
    """A kind of option.

    Attributes:
        valid: What it may be.
        malformed: What it may not be.
    """

    valid: st.SearchStrategy[Any]
    malformed: Sequence[Any]

    def or_none(self) -> Kind:
        """Return the kind that may be None too."""
        return Kind(st.none() | self.valid, [value for value in self.malformed if value is not None])


POSITIVE = Kind(st.integers(1, 50), [0, -1, 1.5, *NOT_NUMBERS])
SEED = Kind(st.integers(0, 2**32 - 1), [-1, 2**32, 1.5, *NOT_NUMBERS])
FLAG = Kind(st.booleans(), [None, "no", "True", 2, [], math.nan])
SHARE = Kind(st.sampled_from([0.0, 0.05, 0.5, 1.0]), [-0.1, 1.5, *NOT_NUMBERS])
FIELDS = Kind(st.sampled_from([["text"], ("title", "text")]), ["text", "", [], (), [3], [None], ["text", 3], 3, True])


def choice(*names: str) -> Kind:
    """Return the kind of an option that is one of some names."""
    return Kind(st.sampled_from(names), [None, "", names[0].upper(), 3, True, [names[0]], names[0].encode()])


def valid_options(kinds: Mapping[str, Kind]) -> st.SearchStrategy[dict[str, Any]]:
    """Make options, each of them or not."""
    return st.fixed_dictionaries({}, optional={name: kind.valid for name, kind in kinds.items()})


def malformed_options(kinds: Mapping[str, Kind]) -> Mutations:
    """Give one option what it may not be."""
    return st.one_of([replace(name, kind.malformed) for name, kind in kinds.items()])


def other_types() -> Mutations:
    """Give options as NumPy's scalars, tuples for lists and paths for strings of paths."""

    def convert(arguments: Mapping[str, Any]) -> dict[str, Any]:
        converted = {}
        for name, value in arguments.items():
            convert_value = OTHER_TYPES.get(type(value), lambda same: same)
            converted[name] = convert_value(value)
        return converted

    return st.just(Mutation("options of other types", convert, ("got np.", "got (")))


OTHER_TYPES: dict[type, Callable[[Any], Any]] = {
    bool: np.bool_,
    int: np.int64,
    float: np.float64,
    list: tuple,
    type(Path()): str,
}

# ------------------------------------------------------------------------------------------------------------ frames

TEXT_TYPES: dict[str, Callable[[pd.Series], Any]] = {
    "object": lambda column: column.astype(object),
    "category": lambda column: column.astype("category"),
    "category with more": lambda column: pd.Categorical(column, categories=[*column.unique(), "never there"]),
    "string[python]": lambda column: column.astype("string[python]"),
    "string[pyarrow]": lambda column: column.astype("string[pyarrow]"),
    "Arrow string": lambda column: column.astype(pd.ArrowDtype(pa.string())),
    "Arrow large_string": lambda column: column.astype(pd.ArrowDtype(pa.large_string())),
    "Arrow dictionary": lambda column: column.astype(pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))),
    "numpy.str_": lambda column: pd.Series(list(map(np.str_, column)), index=column.index, dtype=object),
}
"""Types of columns that hold the same texts."""

INDEXES: dict[str, Callable[[int], Any]] = {
    "all zero": lambda length: [0] * length,
    "reversed": lambda length: range(length)[::-1],
    "strings": lambda length: [f"row {row}" for row in range(length)],
    "named qid": lambda length: pd.Index(range(length), name="qid"),
    "levels": lambda length: pd.MultiIndex.from_product([["a"], range(length)], names=["docno", None]),
    "times": lambda length: pd.date_range("2025-01-01", periods=length),
}


NUMBER_TYPES: dict[str, Callable[[pd.Series], Any]] = {
    "floats": lambda numbers: numbers.astype(float),
    "Int64": lambda numbers: numbers.astype("Int64"),
    "strings": lambda numbers: numbers.astype(str),
    "categories": lambda numbers: numbers.astype("category"),
    "objects": lambda numbers: numbers.astype(object),
    "int16": lambda numbers: numbers.astype("int16"),
    "Arrow int64": lambda numbers: numbers.astype(pd.ArrowDtype(pa.int64())),
}
"""Types of columns that hold the same integers."""


def frame_mutation(
    argument: str, description: str, change: Callable[[pd.DataFrame], pd.DataFrame], *names: str
) -> Mutation:
    """Change a frame, or make one of rows that another mutation made of it."""

    def change_frame(rows: Any) -> pd.DataFrame:
        return change(as_frame(rows))

    return mutation(argument, description, change_frame, *names)


def as_frame(rows: Any) -> pd.DataFrame:
    """Make a frame of rows in any form."""
    if isinstance(rows, pd.DataFrame):
        return rows
    if isinstance(rows, pa.Table):
        return rows.to_pandas(ignore_metadata=True)
    return pd.DataFrame(list(rows))


def equivalent_frame(argument: str, texts: Sequence[str], *, any_order: bool = False) -> Mutations:
    """Change what a frame does not mean: its index, types of texts, other columns and their order, perhaps its rows."""

    def set_type(column: str, name: str) -> Mutation:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            return frame.assign(**{column: TEXT_TYPES[name](frame[column])})

        return frame_mutation(argument, f"{column} as {name}", change, column)

    def set_index(name: str) -> Mutation:
        return frame_mutation(argument, f"index {name}", lambda frame: frame.set_axis(INDEXES[name](len(frame))), "")

    def add_column(name: Any) -> Mutation:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            more = pd.DataFrame({name: range(len(frame))}, index=frame.index)
            return pd.concat([more, frame], axis="columns")

        return frame_mutation(argument, f"another column {name!r}", change, "column")

    def reverse_columns() -> Mutation:
        return frame_mutation(argument, "columns reversed", lambda frame: frame[frame.columns[::-1]], "column")

    def repeat_rows() -> Mutation:
        return frame_mutation(argument, "rows twice", lambda frame: pd.concat([frame, frame]), "uplicate")

    def shuffle_rows(seed: int) -> Mutation:
        return frame_mutation(
            argument, f"rows shuffled ({seed})", lambda frame: frame.sample(frac=1, random_state=seed), ""
        )

    changes: list[Mutations] = [
        st.builds(set_type, st.sampled_from(texts), st.sampled_from(list(TEXT_TYPES))),
        st.builds(set_index, st.sampled_from(list(INDEXES))),
        st.builds(add_column, st.sampled_from(["more", 7, None])),
        st.builds(reverse_columns),
    ]
    if any_order:
        changes += [st.builds(repeat_rows), st.builds(shuffle_rows, st.integers(0, 9))]
    return st.one_of(changes)


def cell(argument: str, column: str, values: Sequence[Any]) -> Mutations:
    """Put a value into one row of a frame."""

    def put(value: Any, row: int) -> Mutation:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            cells = frame[column].astype(object).tolist()
            cells[row % len(cells)] = value
            return frame.assign(**{column: pd.Series(cells, index=frame.index, dtype=object)})

        return frame_mutation(argument, f"{column} = {shown(value)} in a row", change, column)

    return st.builds(put, st.sampled_from(values), st.integers(0, 5))


def column(argument: str, name: str, description: str, convert: Callable[[pd.Series], Any]) -> Mutations:
    """Change a column of a frame, or add one."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        # the column may be a new one
        values = frame.get(name, frame.iloc[:, 0])
        return frame.assign(**{name: convert(values)})

    return st.just(frame_mutation(argument, f"{name} as {description}", change, name))


def number_types(argument: str, name: str) -> Mutations:
    """Give the integers of a column as another type."""

    def set_type(kind: str) -> Mutation:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            numbers = [int(float(number)) for number in frame[name]]
            return frame.assign(**{name: NUMBER_TYPES[kind](pd.Series(numbers, index=frame.index))})

        return frame_mutation(argument, f"{name} as {kind}", change, name)

    return st.sampled_from(list(NUMBER_TYPES)).map(set_type)


def without(argument: str, columns: Sequence[str]) -> Mutations:
    """Leave out a column of a frame, or write its name in another way."""

    def drop(name: str) -> Mutation:
        return frame_mutation(argument, f"no {name}", lambda frame: frame.drop(columns=name), name)

    def rename(name: str) -> Mutation:
        return frame_mutation(
            argument, f"{name} in capitals", lambda frame: frame.rename(columns={name: name.upper()}), name
        )

    return st.one_of(st.sampled_from(columns).map(drop), st.sampled_from(columns).map(rename))


def column_twice(argument: str, columns: Sequence[str]) -> Mutations:
    """Give two columns of a frame the same name."""

    def repeat(name: str) -> Mutation:
        return frame_mutation(
            argument, f"{name} twice", lambda frame: pd.concat([frame, frame[[name]]], axis="columns"), name
        )

    return st.sampled_from(columns).map(repeat)


def no_rows(argument: str, *names: str) -> Mutations:
    """Leave no rows."""
    return st.just(frame_mutation(argument, "no rows", lambda frame: frame[:0], argument, "no ", "empty", *names))


def no_frame(argument: str, *names: str) -> Mutations:
    """Give something else than a frame."""
    others = [None, 3, "sort", {}, [("1", "sort")], pd.Series(["1"], name="qid"), np.eye(2), object()]
    return replace(argument, others, argument, "DataFrame", *names)


def malformed_frame(argument: str, identifiers: Sequence[str], texts: Sequence[str] = ()) -> Mutations:
    """Give no frame, one without a column or with one twice, or one with something else than strings in them."""
    columns = [*identifiers, *texts]
    changes = [no_frame(argument, *columns), without(argument, columns), column_twice(argument, columns)]
    for name in identifiers:
        numbers = column(argument, name, "numbers", lambda values: range(len(values)))
        changes += [cell(argument, name, NOT_TEXTS), numbers]
    for name in texts:
        nothing = column(argument, name, "nothing", lambda values: math.nan)
        changes += [cell(argument, name, NOT_TEXTS), nothing]
    return st.one_of(changes)


# ----------------------------------------------------------------------------------------------------------- records


def equivalent_corpus(argument: str) -> Mutations:
    """Give documents as something else that holds them, or with other fields too."""
    forms: dict[str, Callable[[list[dict[str, str]]], Any]] = {
        "a tuple": tuple,
        "an iterator": iter,
        "a frame": pd.DataFrame,
        "records with more": lambda records: [{"more": 3, **record} for record in records],
        "in the other order": lambda records: records[::-1],
    }
    # a form may come after another one
    return st.sampled_from(list(forms)).map(
        lambda name: mutation(argument, name, lambda corpus: forms[name](_records(corpus)), argument)
    )


def malformed_corpus(argument: str, *, texts: Sequence[Any] = NOT_TEXTS) -> Mutations:
    """Give no documents, or one without a field or with something else than strings in it."""

    def change_one(row: int, description: str, change: Callable[[dict[str, Any]], Any], *names: str) -> Mutation:
        def change_corpus(corpus: Any) -> list[Any]:
            records = _records(corpus)
            row_changed = row % len(records)
            return [*records[:row_changed], change(records[row_changed]), *records[row_changed + 1 :]]

        return mutation(argument, description, change_corpus, *names)

    def put(row: int, name: str, value: Any) -> Mutation:
        return change_one(row, f"{name} = {value!r} in a record", lambda record: {**record, name: value}, name)

    def drop(row: int, name: str) -> Mutation:
        def change(record: dict[str, Any]) -> dict[str, Any]:
            return {other: value for other, value in record.items() if other != name}

        return change_one(row, f"no {name} in a record", change, name)

    def give(row: int, value: Any) -> Mutation:
        return change_one(row, f"a record is {value!r}", lambda record: value, "document", "record", argument)

    def repeat(row: int) -> Mutation:
        def change(corpus: Any) -> list[Any]:
            records = _records(corpus)
            return [*records, {**records[row % len(records)], "text": "return the value"}]

        return mutation(argument, "a docno with two texts", change, "docno", "uplicate", "one text")

    rows = st.integers(0, 5)
    return st.one_of(
        replace(argument, [3, "docs.tsv", b"docs", True, [], {}], argument, "documents", "no text"),
        st.builds(put, rows, st.just("docno"), st.sampled_from(NOT_TEXTS)),
        st.builds(put, rows, st.just("text"), st.sampled_from(texts)),
        st.builds(drop, rows, st.sampled_from(["docno", "text"])),
        st.builds(give, rows, st.sampled_from([None, 3, "sort", ("d1", "sort"), []])),
        st.builds(repeat, rows),
    )


def _records(corpus: Any) -> list[dict[str, Any]]:
    if isinstance(corpus, pd.DataFrame):
        return corpus.to_dict(orient="records")
    return list(corpus)
