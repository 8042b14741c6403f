"""Errors about input say what was given, what was expected, and what to do."""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from pyterrier_selfdistill.utils import checks

TOPICS = pd.DataFrame({"qid": ["1", "2"], "query": ["sort", "plot"]})
QRELS = pd.DataFrame({"qid": ["1"], "docno": ["d1"], "label": [1]})


@checks.checked
@dataclass(frozen=True)
class Depth:
    count: checks.PositiveInteger = 10


@checks.checked
def search(
    count: checks.PositiveInteger = 10,
    share: checks.Share | None = None,
    mode: Literal["exact", "fast"] = "exact",
    *,
    fields: checks.FieldNames | None = None,
    depth: "Depth | Later" = Depth(5),
    **others: Any,
) -> tuple[Any, ...]:
    return count, share, mode, fields, depth, others


class Later:
    """A class that is defined after the function that takes it."""


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"count": 0}, ValueError, "count must be a positive integer, got 0"),
        ({"count": True}, ValueError, "count must be a positive integer, got True"),
        ({"share": float("nan")}, ValueError, "share .* got nan"),
        ({"mode": "slow"}, ValueError, "mode must be 'exact' or 'fast', got 'slow'"),
        ({"fields": "text"}, ValueError, r"fields must be a list of field names such as \['title', 'text'\], got"),
        ({"depth": 3}, TypeError, "depth .* Depth or .* Later, got 3, a int"),
        ({"count": 3, "share": 7, "mode": "slow"}, ValueError, "share .* got 7"),
    ],
)
def test_options_are_checked_by_their_types(wrong, error, message):
    with pytest.raises(error, match=message):
        search(**wrong)


def test_positional_options_and_classes_are_checked_and_an_error_of_the_function_itself_is_not_explained():
    for target, arguments in ((search, (3, 7)), (Depth, (0,))):
        with pytest.raises(ValueError, match=f"must be a .*, got {arguments[-1]}"):
            target(*arguments)

    @checks.checked
    def fail(count: checks.PositiveInteger) -> None:
        TypeAdapter(list[int]).validate_python(count)

    with pytest.raises(ValidationError, match="list"):
        fail(3)


def test_options_take_scalars_of_numpy_and_leave_others_unchanged():
    options = {"fields": ("title",), "depth": Depth(np.int64(7)), "others": np.array([1])}
    found = search(np.int64(3), np.float32(0.5), **options)
    assert found[:-1] == (3, 0.5, "exact", ("title",), Depth(7))
    assert found[-1]["others"] is options["others"]
    assert type(found[0]) is int


def test_a_missing_module_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"openvino.*pip install 'pyterrier-selfdistill\[openvino\]'"):
        checks.load_extra("openvino")


def judge(qrels):
    checks.judged(TOPICS, qrels, to_measure=True)


def require_text(text):
    frame = pd.DataFrame({"qid": ["1", "2"], "query": ["sort", text]}, dtype=object)
    checks.require_texts(frame, "query", "qid", missing=True)


def require_two_dimensions(vector):
    vectors = pd.Series([np.array([0.6, 0.8]), vector], dtype=object)
    checks.require_vectors(pd.DataFrame({"query_vec": vectors}), "query_vec", 2, "the vectors of the index")


# the fuzz tries more
@pytest.mark.parametrize(
    ("check", "wrong", "error", "message"),
    [
        (checks.require_topics, TOPICS[["qid"]], ValueError, r"got \['qid'\]: \['query'\] missing"),
        (checks.require_topics, TOPICS.assign(qid="1"), ValueError, "got {'1': .'sort', 'plot'.}"),
        (checks.require_topics, TOPICS.assign(qid=["1", None]), TypeError, "qid of topics"),
        (judge, QRELS.assign(qid="7"), ValueError, r"got none: .*\['1', '2'\].*\['7'\]"),
        (judge, QRELS.assign(label=0.5), ValueError, "got 0.5"),
        (judge, QRELS.assign(label=2**40), ValueError, "at most 32768, got 1099511627776"),
        (judge, pd.concat([QRELS, QRELS, QRELS.assign(label=0)]), ValueError, r"got \[1, 0\] for '1' and 'd1'"),
        (require_text, 7, TypeError, "'query' .* in 1 of 2 rows .'2': 7"),
        (require_text, "sort \ud800", ValueError, "'query' .* in 1 of 2 rows .'2'.*errors='replace'"),
        (require_text, " ", ValueError, "'query'.*empty.*1 of 2 rows .'2': ' '"),
        (lambda values: checks.require_strings(values, "texts"), "sort", TypeError, "texts .* got 'sort', a str"),
        (lambda values: checks.require_strings(values, "texts"), ["\ud800"], ValueError, r"texts\[0\] .* '.ud800'"),
        (require_two_dimensions, np.array([1e300]), ValueError, "must hold finite numbers"),
        (require_two_dimensions, np.ones(3), ValueError, "query_vec has 3 dimensions, and the vectors of the index"),
    ],
)
def test_wrong_frames_and_lists(check, wrong, error, message):
    with pytest.raises(error, match=message):
        check(wrong)


def test_right_frames_and_lists():
    checks.require_topics(TOPICS.assign(query=["naïve Zürich 🙂", " "]), empty=True)
    checks.judged(TOPICS, QRELS.assign(label=1.5))
    require_text(float("nan"))
    checks.require_texts(TOPICS[:0].astype("string[pyarrow]"), "query", "qid")
    assert checks.require_strings(iter(["sort", "é"]), "texts") == ["sort", "é"]
    empty = checks.without_rows(pd.DataFrame({"qid": [], "docid": [], "score": []}), TOPICS.head(0))
    assert empty.dtypes.astype(str).tolist() == [str(TOPICS["qid"].dtype), "int64", "float32"]
