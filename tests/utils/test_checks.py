"""Errors about input say what was given, what was expected, and what to do."""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from pyterrier_selfdistill.utils.checks import (
    FieldNames,
    FolderPath,
    PositiveInteger,
    Share,
    checked,
    load_extra,
    require_column_names,
    require_judged,
    require_strings,
    require_texts,
    require_topics,
    require_vectors,
    without_rows,
)

TOPICS = pd.DataFrame({"qid": ["1", "2"], "query": ["sort", "plot"]})
QRELS = pd.DataFrame({"qid": ["1"], "docno": ["d1"], "label": [1]})


@checked
@dataclass(frozen=True)
class Depth:
    count: PositiveInteger = 10


@checked
def search(
    count: PositiveInteger = 10,
    share: Share | None = None,
    mode: Literal["exact", "fast"] = "exact",
    *,
    verbose: bool = False,
    fields: FieldNames | None = None,
    folder: FolderPath = "index",
    frame: pd.DataFrame | None = None,
    depth: "Depth | Later" = Depth(5),
    **others: Any,
) -> tuple[Any, ...]:
    return count, share, mode, verbose, fields, folder, depth, others


class Later:
    """A class that is defined after the function that takes it."""


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"count": 0}, ValueError, "count must be a positive integer, got 0"),
        ({"count": 1.0}, ValueError, "count must be a positive integer, got 1.0"),
        ({"count": True}, ValueError, "count must be a positive integer, got True"),
        ({"share": 1.5}, ValueError, "share must be a number from 0 to 1, got 1.5"),
        ({"share": float("nan")}, ValueError, "share .* got nan"),
        ({"mode": "slow"}, ValueError, "mode must be 'exact' or 'fast', got 'slow'"),
        ({"verbose": 1}, ValueError, "verbose .* got 1"),
        ({"fields": "text"}, ValueError, r"fields must be a list of field names such as \['title', 'text'\], got"),
        ({"fields": []}, ValueError, r"fields .* got \[\]"),
        ({"folder": ""}, ValueError, "folder must be the path of a folder, got ''"),
        ({"frame": [1]}, TypeError, r"frame .* DataFrame, got \[1\], a list"),
        ({"depth": 3}, TypeError, "depth .* Depth or .* Later, got 3, a int"),
        ({"count": 3, "share": 7, "mode": "slow"}, ValueError, "share .* got 7"),
    ],
)
def test_options_are_checked_by_their_types(wrong, error, message):
    with pytest.raises(error, match=message):
        search(**wrong)


def test_positional_options_and_classes_are_checked():
    with pytest.raises(ValueError, match="share .* got 7"):
        search(3, 7)
    with pytest.raises(ValueError, match="count must be a positive integer, got 0"):
        Depth(0)


def test_options_take_scalars_of_numpy_and_leave_others_unchanged():
    options = {"verbose": np.bool_(True), "fields": ("title",), "depth": Depth(np.int64(7)), "others": np.array([1])}
    found = search(np.int64(3), np.float32(0.5), **options)
    assert found[:-1] == (3, 0.5, "exact", True, ("title",), "index", Depth(7))
    assert found[-1]["others"] is options["others"]
    assert type(found[0]) is int
    assert search()[-2] == Depth(5)


def test_an_error_of_the_function_itself_is_not_explained():
    @checked
    def fail(count: PositiveInteger) -> None:
        TypeAdapter(list[int]).validate_python(count)

    with pytest.raises(ValidationError, match="list"):
        fail(3)


def test_a_missing_module_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"openvino.*pip install 'pyterrier-selfdistill\[int8\]'"):
        load_extra("openvino")


# --- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        ([("1", "sort")], TypeError, "topics .* got a list"),
        (TOPICS[["qid"]], ValueError, r"got \['qid'\]: \['query'\] missing"),
        (TOPICS[["qid", "query", "qid"]], ValueError, r"distinct .* got \['qid'\]"),
        (TOPICS.assign(qid="1"), ValueError, "got {'1': .'sort', 'plot'.}"),
        (TOPICS.assign(qid=[1, 2]), TypeError, "qid of topics"),
        (TOPICS.assign(qid=["1", None]), TypeError, "qid of topics"),
        (TOPICS.assign(query=["sort", None]), TypeError, "'query'.*1 of 2 rows .'2'"),
        (TOPICS.assign(query=["sort", " "]), ValueError, "'query'.*empty.*1 of 2 rows .'2': ' '"),
    ],
)
def test_topics(frame, error, message):
    require_topics(pd.concat([TOPICS, TOPICS]))
    require_topics(TOPICS.assign(query=["sort", ""]), empty=True)
    with pytest.raises(error, match=message):
        require_topics(frame)


@pytest.mark.parametrize(
    ("qrels", "error", "message"),
    [
        (QRELS.drop(columns="label"), ValueError, r"qrels .* \['label'\] missing"),
        (QRELS.assign(qid=1), TypeError, "qid of qrels .*astype"),
        (QRELS.assign(qid="7"), ValueError, r"got none: .*\['1', '2'\].*\['7'\]"),
        (QRELS.assign(docno=7), TypeError, "docno of qrels"),
        (QRELS.assign(label="1"), TypeError, "labels of qrels .*0 of 1 missing"),
        (QRELS.assign(label=np.nan), TypeError, "labels of qrels .*1 of 1 missing"),
        (QRELS.assign(label=0.5), ValueError, "got 0.5"),
    ],
)
def test_judgements(qrels, error, message):
    require_judged(TOPICS, QRELS.assign(label=1.5))
    with pytest.raises(error, match=message):
        require_judged(TOPICS, qrels, to_measure=True)
    with pytest.raises(ValueError, match=r"'docno' .*\['rank', 'score'\]"):
        require_judged(TOPICS.assign(score=1.0, rank=0), QRELS)


def test_names_of_columns():
    require_column_names(TOPICS, "topics")
    with pytest.raises(TypeError, match=r"got \[7, None\]"):
        require_column_names(pd.DataFrame([["1", 2, 3]], columns=["qid", 7, None]), "topics")
    with pytest.raises(ValueError, match="distinct"):
        require_column_names(TOPICS[["qid", "qid"]], "topics")


def test_columns_of_an_empty_frame_merge_with_those_of_others():
    empty = without_rows(pd.DataFrame({"qid": [], "docid": [], "score": []}), TOPICS.head(0))
    assert empty.dtypes.astype(str).tolist() == [str(TOPICS["qid"].dtype), "int64", "float32"]


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "options", "error"),
    [
        (None, {}, TypeError),
        (float("nan"), {}, TypeError),
        (float("nan"), {"missing": True}, None),
        (7, {"missing": True}, TypeError),
        (["sort"], {}, TypeError),
        (b"sort", {}, TypeError),
        ("sort \ud800", {}, ValueError),
        ("naïve Zürich 🙂", {}, None),
        (" ", {"missing": True}, ValueError),
        (" ", {"empty": True}, None),
    ],
)
def test_texts(value, options, error):
    frame = TOPICS.astype(object)
    frame.at[1, "query"] = value
    if error is None:
        require_texts(frame, "query", "qid", **options)
        return
    with pytest.raises(error, match="'query' .* in 1 of 2 rows .'2'"):
        require_texts(frame, "query", "qid", **options)


def test_texts_of_a_missing_or_an_empty_column():
    require_texts(TOPICS[:0].astype("string[pyarrow]"), "query", "qid")
    with pytest.raises(ValueError, match=r"'text', got \['qid', 'query'\]; put pt.text.get_text"):
        require_texts(TOPICS, "text", "qid")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (None, TypeError, "texts .* got None, a NoneType"),
        ("sort", TypeError, "texts .* got 'sort', a str"),
        (b"sort", TypeError, "texts .* got b'sort', a bytes"),
        ({"sort": 1}, TypeError, "texts .* got .*, a dict"),
        (["sort", None], TypeError, r"texts\[1\] .* got None, a NoneType"),
        (["sort", "\ud800"], ValueError, r"texts\[1\] .* '.ud800'.*errors='replace'"),
    ],
)
def test_lists_of_strings(values, error, message):
    assert require_strings(iter(["sort", "é"]), "texts") == ["sort", "é"]
    with pytest.raises(error, match=message):
        require_strings(values, "texts")


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (None, "None, a NoneType"),
        ([0.6, 0.8], "a list"),
        (np.array([1, 0]), "an? ndarray"),
        (np.ones((1, 2)), "an? ndarray"),
        (np.ones(0), "an? ndarray"),
        (np.array([0.6, np.nan]), "must hold finite numbers"),
        (np.array([1e300]), "must hold finite numbers"),
        (np.ones(3), "query_vec has 3 dimensions, and the vectors of the index have 2"),
    ],
)
def test_vectors_are_finite_and_of_one_length(vector, message):
    vectors = pd.Series([np.array([0.6, 0.8]), vector], dtype=object)
    with pytest.raises(ValueError, match=message):
        require_vectors(pd.DataFrame({"query_vec": vectors}), "query_vec", 2, "the vectors of the index")
