"""Small valid collections, and changes of options, frames and documents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from .engine import Change, Changes

NOT_NUMBERS = [None, "3", "", [1], {}, b"3", math.nan, math.inf, True, object()]
MISSING = [None, math.nan, pd.NA, pd.NaT]
HALF_A_CHARACTER = "\ud800"  # a string, but no text: undecodable bytes may become one
OF_ANOTHER_TYPE = [3, 2.5, True, b"sort", ["sort"], {"text": "sort"}]
NOT_TEXTS = [*MISSING, *OF_ANOTHER_TYPE]
NOT_ENCODED = [*NOT_TEXTS, HALF_A_CHARACTER]
IDENTIFIERS = ["1", "2", "10", "01", "q1", "Q1", "nan", "None", "a b", "é"]
TEXTS = ["sort the rows", "sort the rows of a table", "plot a matrix", "plot the matrix by column", "read a file"]
TEXTS += ["write a file", "mean value of the array", "return the mean", "query", "the table of the query by row"]
TEXTS += ["write the matrix", "column"]  # the tiny encoder has a vector for each of these, but not for other words
ALL_TEXTS = [
    *TEXTS,
    "42",
    "nan",
    "naïve Zürich",
    "表 を 並べる",
    'say "sort", then plot',
    "e\u0301",
    "🙂",
    "0",
    "a\u00a0b",
]


def some_topics(rng: Random, pool: Sequence[str] = ALL_TEXTS) -> pd.DataFrame:
    number = rng.randint(1, 3)
    return pd.DataFrame({"qid": rng.sample(IDENTIFIERS, number), "query": rng.sample(pool, number)})


def some_documents(rng: Random, pool: Sequence[str] = ALL_TEXTS) -> list[dict[str, str]]:
    docnos = rng.sample(IDENTIFIERS, rng.randint(3, 6))
    return [{"docno": docno, "text": text} for docno, text in zip(docnos, rng.sample(pool, len(docnos)), strict=True)]


def some_qrels(rng: Random, topics: pd.DataFrame, documents: Sequence[dict[str, str]]) -> pd.DataFrame:
    """Judge documents for each query, the first one relevant and the last one not."""
    rows = []
    for qid in topics["qid"]:
        labels = [rng.randint(1, 2), *[rng.randint(0, 2) for _ in range(rng.randint(0, len(documents) - 2))], 0]
        judged = rng.sample(documents, len(labels))
        rows += [(qid, document["docno"], label) for document, label in zip(judged, labels, strict=True)]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


def some_results(rng: Random, topics: pd.DataFrame, documents: Sequence[dict[str, str]]) -> pd.DataFrame:
    """Rank at least two documents for each query."""
    rows = []
    for qid, query in topics[["qid", "query"]].itertuples(index=False):
        for rank, document in enumerate(rng.sample(documents, rng.randint(2, len(documents)))):
            rows.append({"qid": qid, "query": query, **document, "rank": 7 + rank, "score": 9.0 - rank})
    return pd.DataFrame(rows)


def change(argument: str, text: str, function: Callable[[Any], Any], *names: str) -> Change:
    """Change one argument."""
    return Change(
        f"{argument}: {text}", lambda given: {**given, argument: function(given[argument])}, names or (argument,)
    )


def replace(argument: str, values: Sequence[Any], *names: str) -> list[Change]:
    """Give another value for an argument, which may not have been given."""

    def give(value: Any) -> Change:
        shown = " ".join(repr(value).split())[:60]
        return Change(f"{argument} = {shown}", lambda given: {**given, argument: value}, names or (argument,))

    return list(map(give, values))


class Kind(NamedTuple):
    """A kind of option: valid and malformed values."""

    valid: Sequence[Any]
    malformed: Sequence[Any]

    def or_none(self) -> Kind:
        return Kind([None, *self.valid], [value for value in self.malformed if value is not None])


POSITIVE = Kind(range(1, 51), [0, -1, 1.5, *NOT_NUMBERS])
SEED = Kind([0, 7, 2**32 - 1], [-1, 2**32, 1.5, *NOT_NUMBERS])
FLAG = Kind([True, False], [None, "no", "True", 2, [], math.nan])
FIELDS = Kind([["text"], ("title", "text")], ["text", "", [], (), [3], [None], ["text", 3], 3, True])


def choice(*names: str) -> Kind:
    return Kind(names, [None, "", names[0].upper(), 3, True, [names[0]], names[0].encode()])


def kinds(**kinds: Kind) -> dict[str, Kind]:
    return kinds


def some_options(rng: Random, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    return {name: rng.choice(kind.valid) for name, kind in kinds.items() if rng.random() < 0.5}


OTHER_TYPES: dict[type, Callable[[Any], Any]] = {bool: np.bool_, int: np.int64, float: np.float64, list: tuple}
OTHER_TYPES[type(Path())] = str


def in_other_types(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: OTHER_TYPES.get(type(value), lambda same: same)(value) for name, value in options.items()}


def options(**kinds: Kind) -> Changes:
    """Give options in other types, or malformed ones."""
    others = Change("options of other types", in_other_types, ("got np.", "got ("))
    return Changes([[others]], malformed=[replace(name, kind.malformed) for name, kind in kinds.items()])


TEXT_TYPES: dict[str, Callable[[pd.Series], Any]] = {
    "category": lambda column: column.astype("category"),
    "category with more": lambda column: pd.Categorical(column, categories=[*column.unique(), "never there"]),
    "Arrow dictionary": lambda column: column.astype(pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))),
    "Arrow large_string": lambda column: column.astype(pd.ArrowDtype(pa.large_string())),
    "numpy.str_": lambda column: pd.Series(list(map(np.str_, column)), index=column.index, dtype=object),
    "object": lambda column: column.astype(object),
    "string[python]": lambda column: column.astype("string[python]"),
    "string[pyarrow]": lambda column: column.astype("string[pyarrow]"),
}
INDEXES: dict[str, Callable[[int], Any]] = {
    "all zero": lambda length: [0] * length,
    "reversed": lambda length: range(length)[::-1],
    "strings": lambda length: [f"row {row}" for row in range(length)],
    "named qid": lambda length: pd.Index(range(length), name="qid"),
    "levels": lambda length: pd.MultiIndex.from_product([["a"], range(length)], names=["docno", None]),
}
NUMBER_TYPES: list[Any] = ["float", "Int64", "str", "category", "object", "int16", pd.ArrowDtype(pa.int64())]
NO_FRAMES = [None, 3, "sort", {}, [("1", "sort")], pd.Series(["1"], name="qid"), np.eye(2), object()]


def on_frame(argument: str, text: str, function: Callable[[pd.DataFrame], Any], *names: str) -> Change:
    """Change a frame, or the frame of rows in another form."""

    def apply(rows: Any) -> Any:
        if isinstance(rows, pa.Table):
            rows = rows.to_pandas(ignore_metadata=True)
        return function(rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows)))

    return change(argument, text, apply, *names)


def each(
    argument: str,
    text: str,
    values: Iterable[Any],
    function: Callable[[Any, Any], Any],
    *names: str,
    on: Callable[..., Change] = on_frame,
) -> list[Change]:
    """Make a change of each value; without names, errors must name the value."""
    return [on(argument, text.format(value), partial(function, value), *(names or (str(value),))) for value in values]


def cell(argument: str, column: str, values: Sequence[Any]) -> list[Change]:
    """Put a value into the first or the last row of a frame."""

    def put(place: tuple[int, Any], frame: pd.DataFrame) -> pd.DataFrame:
        cells = frame[column].astype(object).tolist() if column in frame else [0.0] * len(frame)
        cells[place[0]] = place[1]
        return frame.assign(**{column: pd.Series(cells, index=frame.index, dtype=object)})

    return each(argument, f"{column} at {{}}", itertools.product((0, -1), values), put, column)


def column(argument: str, name: str, text: str, convert: Callable[[pd.Series], Any]) -> list[Change]:
    """Change a column of a frame, or add one."""

    def function(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{name: convert(frame.get(name, frame.iloc[:, 0]))})

    return [on_frame(argument, f"{name} as {text}", function, name)]


def numbers(argument: str, name: str) -> list[Change]:
    """Give the integers of a column as another type."""

    def convert(kind: Any, frame: pd.DataFrame) -> pd.DataFrame:
        integers = pd.Series([int(float(number)) for number in frame[name]], index=frame.index)
        return frame.assign(**{name: integers.astype(kind)})

    return each(argument, f"{name} as {{}}", NUMBER_TYPES, convert, name)


def equivalent_frame(argument: str, columns: Sequence[str], any_order: bool = False) -> Changes:
    """Change the types of texts, the index, other columns, the order of columns, and perhaps the rows."""

    def wider(name: Any, frame: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([pd.DataFrame({name: range(len(frame))}, index=frame.index), frame], axis="columns")

    groups = [
        *[column(argument, name, kind, TEXT_TYPES[kind]) for name in columns for kind in TEXT_TYPES],
        each(argument, "index {}", INDEXES, lambda kind, frame: frame.set_axis(INDEXES[kind](len(frame))), ""),
        each(argument, "another column {}", ["more", 7, None], wider, "column"),
        [on_frame(argument, "columns reversed", lambda frame: frame[frame.columns[::-1]], "column")],
    ]
    if any_order:
        groups.append([on_frame(argument, "rows twice", lambda frame: pd.concat([frame, frame]), "uplicate")])
        groups.append([on_frame(argument, "shuffled", lambda frame: frame.sample(frac=1, random_state=3), "")])
    return Changes(groups)


def without(argument: str, *columns: str) -> list[Change]:
    """Leave a column out, or write its name in another way."""
    capitals = each(argument, "capital {}", columns, lambda name, frame: frame.rename(columns={name: name.upper()}))
    return [*capitals, *each(argument, "no {}", columns, lambda name, frame: frame.drop(columns=name))]


def twice(argument: str, *columns: str) -> list[Change]:
    return each(argument, "{} twice", columns, lambda name, frame: pd.concat([frame, frame[[name]]], axis=1))


def no_rows(argument: str, *names: str) -> list[Change]:
    return [on_frame(argument, "no rows", lambda frame: frame[:0], argument, "no ", "empty", *names)]


def frame(
    argument: str, columns: str, *names: str, any_order: bool = False, more: str = "", may_be_empty: bool = False
) -> Changes:
    """Change a frame whose columns hold identifiers and texts; errors may name these instead of the column, too."""
    required = columns.split()
    malformed = [
        replace(argument, NO_FRAMES, argument, "DataFrame", *required),
        without(argument, *required),
        twice(argument, *required),
        *([] if may_be_empty else [no_rows(argument)]),
        *[cell(argument, name, NOT_TEXTS) for name in required],
        *[column(argument, name, "numbers", lambda values: range(len(values))) for name in required],
    ]
    malformed = [[one._replace(names=[*one.names, *names]) for one in group] for group in malformed]
    return Changes(equivalent_frame(argument, [*required, *more.split()], any_order).equivalent, malformed=malformed)


def qrels(argument: str) -> Changes:
    """Change judgements."""
    changes = frame(argument, "qid docno", "judgements", any_order=True)
    malformed = [
        cell(argument, "label", [None, math.nan, "relevant", "", [1], pd.NA]),
        column(argument, "label", "names", lambda labels: "relevant"),
        column(argument, "qid", "of other queries", lambda qids: [f"of {qid}" for qid in qids]),
    ]
    return Changes([*changes.equivalent, numbers(argument, "label")], malformed=[*changes.malformed, *malformed])


def records_of(corpus: Any) -> list[Any]:
    return corpus.to_dict(orient="records") if isinstance(corpus, pd.DataFrame) else list(corpus)


def last_record(argument: str, text: str, function: Callable[[Any], Any], *names: str) -> Change:
    def apply(corpus: Any) -> list[Any]:
        *others, last = records_of(corpus)
        return [*others, function(last)]

    return change(argument, text, apply, *names)


FORMS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "an iterator": iter,
    "a frame": pd.DataFrame,
    "records with more": lambda records: [{"more": 3, **record} for record in records],
    "in the other order": lambda records: records[::-1],
}


def records(argument: str, **fields: Sequence[Any]) -> Changes:
    """Change documents: their form, or one of the fields, which may not have these values."""
    puts = [{name: value} for name, values in fields.items() for value in values]
    others = [None, 3, "sort", ("d1", "sort"), []]

    def drop(name: str, record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key != name}

    def repeat(corpus: Any) -> list[Any]:
        rows = records_of(corpus)
        return [*rows, {**rows[0], "text": "return the value"}]

    malformed = [
        replace(argument, [3, "docs.tsv", b"docs", True, [], {}], argument, "document", "no text", "record"),
        [last_record(argument, f"{put}", lambda record, put=put: {**record, **put}, *put) for put in puts],
        each(argument, "no {} in a record", fields, drop, on=last_record),
        each(argument, "a record {}", others, lambda value, _: value, "document", "record", argument, on=last_record),
        [change(argument, "a docno twice", repeat, "docno", "uplicate", "one text")],
    ]
    forms = each(argument, "{}", FORMS, lambda form, rows: FORMS[form](records_of(rows)), argument, on=change)
    return Changes([forms], malformed=malformed)
