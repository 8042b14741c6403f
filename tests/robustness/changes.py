"""Small valid collections, and the shared table of changes: of options, frames and documents."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from .engine import Change, Effect

NONE, SAME, UNSURE = Effect.NONE, Effect.SAME, Effect.UNSURE
MISSING = [None, math.nan, pd.NA, pd.NaT]
HALF_A_CHARACTER = "\ud800"  # a string, but no text: undecodable bytes may become one
OF_ANOTHER_TYPE = [3, 2.5, True, b"sort", ["sort"], {"text": "sort"}]
NOT_TEXTS = [*MISSING, *OF_ANOTHER_TYPE]
NOT_ENCODED = [*NOT_TEXTS, HALF_A_CHARACTER]
IDENTIFIERS = ["1", "2", "10", "01", "q1", "Q1", "nan", "None", "a b", "é"]
TEXTS = ["sort the rows", "sort the rows of a table", "plot a matrix", "plot the matrix by column", "read a file"]
TEXTS += ["write a file", "mean value of the array", "return the mean", "query", "the table of the query by row"]
TEXTS += ["write the matrix", "column"]  # the tiny encoder has a vector for each of these, but not for other words
ALL_TEXTS = [*TEXTS, "42", "nan", "naïve Zürich", "表 を 並べる", 'say "sort", then plot', "e\u0301", "🙂", "a\u00a0b"]


def some_topics(rng, pool=ALL_TEXTS):
    number = rng.randint(1, 3)
    return pd.DataFrame({"qid": rng.sample(IDENTIFIERS, number), "query": rng.sample(pool, number)})


def some_documents(rng, pool=ALL_TEXTS):
    number = rng.randint(3, 6)
    return pd.DataFrame({"docno": rng.sample(IDENTIFIERS, number), "text": rng.sample(pool, number)})


def some_results(rng, pool=ALL_TEXTS):
    results = some_topics(rng, pool).merge(some_documents(rng, pool), how="cross").sample(frac=1, random_state=1)
    return results.assign(rank=results.groupby("qid").cumcount() + 7, score=lambda results: 9.0 - results["rank"])


def some_qrels(rng, topics, documents):
    """Judge documents for each query, the first one relevant and the last one not."""
    qids, docnos = topics["qid"].unique(), sorted(set(documents["docno"]))
    judged = [(qid, docno) for qid in qids for docno in rng.sample(docnos, 3)]
    return pd.DataFrame(judged, columns=["qid", "docno"]).assign(label=[2, rng.randint(0, 2), 0] * len(qids))


def each(argument, cases, *names, effect=SAME):
    """Make a change of an argument by each of the named functions."""

    def apply(function, given):
        return {**given, argument: function(given.get(argument))}

    names = names or (argument,)
    return [Change(f"{argument}: {text}", partial(apply, case), names, effect) for text, case in cases.items()]


def replace(argument, values, *names):
    """Give a malformed value for an argument, which may not have been given."""
    return each(argument, {repr(value): lambda _, value=value: value for value in values}, *names, effect=NONE)


UNFIT = [b"3", object(), {1: 2}, -1.5, math.nan, [b"3"]]  # for any option
OTHER_TYPES = {bool: np.bool_, int: np.int64, float: np.float64, list: tuple, type(Path()): str}


def options(*names, **malformed):
    """Give options in other types, or values that fit no option or not this one."""

    def in_other_types(given):
        return {name: OTHER_TYPES.get(type(value), lambda same: same)(value) for name, value in given.items()}

    others = Change("options of other types", in_other_types, ("got np.", "got ("), SAME)
    return [[others], *[replace(name, [*UNFIT, *malformed.get(name, [])]) for name in (*names, *malformed)]]


TEXT_TYPES = {
    "category": lambda column: column.astype("category"),
    "category with more": lambda column: pd.Categorical(column, categories=[*column.unique(), "never there"]),
    "Arrow dictionary": lambda column: column.astype(pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))),
    "Arrow large_string": lambda column: column.astype(pd.ArrowDtype(pa.large_string())),
    "numpy.str_": lambda column: pd.Series(list(map(np.str_, column)), index=column.index, dtype=object),
    "object": lambda column: column.astype(object),
    "string[python]": lambda column: column.astype("string[python]"),
    "string[pyarrow]": lambda column: column.astype("string[pyarrow]"),
}
NUMBER_TYPES = ["float", "Int64", "str", "category", "object", "int16", pd.ArrowDtype(pa.int64())]
LEVELS = ["docno", None]
SAME_FRAMES = {
    "index all zero": lambda frame: frame.set_axis([0] * len(frame)),
    "index reversed": lambda frame: frame.set_axis(range(len(frame))[::-1]),
    "index named qid": lambda frame: frame.set_axis(pd.Index(range(len(frame)), name="qid")),
    "levels": lambda frame: frame.set_axis(pd.MultiIndex.from_product([["a"], range(len(frame))], names=LEVELS)),
    "columns reversed": lambda frame: frame[frame.columns[::-1]],
    "another column": lambda frame: frame.assign(more=1),
    "another column 7": lambda frame: frame.assign(more=1).rename(columns={"more": 7}),
}
SAME_ROWS = {
    "rows twice": lambda frame: pd.concat([frame, frame]),
    "shuffled": lambda frame: frame.sample(frac=1, random_state=3),
}


def on_frame(argument, cases, *names, effect=SAME):
    """Change a frame, or the frame of rows in another form."""

    def apply(function, rows):
        if isinstance(rows, pa.Table):
            rows = rows.to_pandas(ignore_metadata=True)
        return function(rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows)))

    return each(argument, {text: partial(apply, case) for text, case in cases.items()}, *names, effect=effect)


def column(argument, name, cases, effect=SAME):
    """Change a column of a frame, or add one."""

    def apply(convert, frame):
        return frame.assign(**{name: convert(frame.get(name, frame.iloc[:, 0]))})

    cases = {f"{name} as {text}": partial(apply, convert) for text, convert in cases.items()}
    return on_frame(argument, cases, name, effect=effect)


def cell(argument, name, values, effect=NONE):
    """Put a value into the first or the last row of a frame."""

    def put(place, value, column):
        cells = column.astype(object).tolist()
        cells[place] = value
        return pd.Series(cells, index=column.index, dtype=object)

    cases = {f"{value!r} at {place}": partial(put, place, value) for place in (0, -1) for value in values}
    return column(argument, name, cases, effect)


def numbers(argument, name):
    """Give the integers of a column as another type."""

    def convert(kind, column):
        return pd.Series([int(float(number)) for number in column], index=column.index).astype(kind)

    return column(argument, name, {str(kind): partial(convert, kind) for kind in NUMBER_TYPES})


def same_frame(argument, *columns, any_order=False):
    """Change the types of texts, the index, other columns, the order of columns, and perhaps the rows."""
    groups = [
        *[column(argument, name, TEXT_TYPES) for name in columns],
        on_frame(argument, SAME_FRAMES, "column", "index"),
    ]
    return [*groups, on_frame(argument, SAME_ROWS, "")] if any_order else groups


def without(argument, *columns):
    """Leave a column out, write its name in another way, or have it twice."""
    groups = []
    for name in columns:
        cases = {
            f"no {name}": lambda frame, name=name: frame.drop(columns=name),
            f"capital {name}": lambda frame, name=name: frame.rename(columns={name: name.upper()}),
            f"{name} twice": lambda frame, name=name: pd.concat([frame, frame[[name]]], axis=1),
        }
        groups.append(on_frame(argument, cases, name, effect=NONE))
    return groups


def no_rows(argument, *names):
    return on_frame(argument, {"no rows": lambda frame: frame[:0]}, argument, "no ", "none", *names, effect=NONE)


def frame(argument, columns, *names, any_order=False):
    """Change a frame whose columns hold identifiers and texts; errors may name these instead of the column, too."""
    others = [None, "sort", 3, pd.Series(["1"], name="qid"), np.eye(2), [("1", "sort")]]
    malformed = [
        replace(argument, [*UNFIT, *others], argument, "DataFrame", *columns),
        *without(argument, *columns),
        *[cell(argument, name, NOT_TEXTS) for name in columns],
        *[column(argument, name, {"numbers": lambda values: range(len(values))}, NONE) for name in columns],
    ]
    malformed = [[one._replace(names=[*one.names, *names]) for one in group] for group in malformed]
    return [*same_frame(argument, *columns, any_order=any_order), *malformed]


def qrels(argument):
    """Change judgements."""
    others = {"of other queries": lambda qids: [f"of {qid}" for qid in qids]}
    return [
        *frame(argument, ["qid", "docno"], "judgements", any_order=True),
        no_rows(argument),
        numbers(argument, "label"),
        cell(argument, "label", [None, math.nan, "relevant", "", [1], pd.NA]),
        column(argument, "qid", others, NONE),
    ]


FORMS = {
    "an iterator": lambda corpus: iter(corpus.to_dict(orient="records")),
    "records": lambda corpus: corpus.to_dict(orient="records"),
    "more": lambda corpus: corpus.assign(more=3),
    "in the other order": lambda corpus: corpus[::-1],
}


def records(argument, **fields):
    """Change documents: their form, or one of the fields, which may not have these values."""

    def last(row, corpus):
        return [*pd.DataFrame(corpus).to_dict(orient="records")[:-1], row]

    others = {f"and {row!r}": partial(last, row) for row in [None, 3, "sort", ("d1", "sort"), [], {}]}
    repeat = {"a docno twice": lambda rows: pd.concat([rows, rows[:1].assign(text="return the value")])}
    return [
        on_frame(argument, FORMS),
        replace(argument, [3, "docs.tsv", b"docs", True, [], {}], argument, "document", "no text", "record"),
        each(argument, others, "document", "record", argument, *fields, effect=NONE),
        on_frame(argument, repeat, "docno", "uplicate", "one text", effect=NONE),
        *[cell(argument, name, values) for name, values in fields.items()],
        *[without(argument, name)[0][:2] for name in fields],
    ]
