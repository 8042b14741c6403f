"""Systems are named, run and checked."""

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_selfdistill.report.comparison import baseline_name, named_systems, run_system, texts_in

IDENTITY = pt.Transformer.identity()
RESULTS = pd.DataFrame([["q0", "d1", 0.5]], columns=["qid", "docno", "score"])


@pytest.mark.parametrize(
    ("systems", "names", "message"),
    [
        ([IDENTITY, IDENTITY], ["a"], "a name for each of 2 systems, got 1"),
        ([IDENTITY, IDENTITY], None, "distinct names"),
        ([IDENTITY, RESULTS], None, "no names of their own; give names="),
        ({"a": IDENTITY}, ["a"], "already"),
    ],
)
def test_named_systems_refuses(systems, names, message):
    with pytest.raises(ValueError, match=message):
        named_systems(systems, names)


@pytest.mark.parametrize("baseline", ["other", 2, -1])
def test_baseline_must_be_there(baseline):
    with pytest.raises(ValueError, match="baseline must be"):
        baseline_name(baseline, ["a", "b"])


@pytest.mark.parametrize(
    ("results", "error", "message"),
    [
        (RESULTS.drop(columns="score"), ValueError, r"results of 'x' must have .*'score'.* missing"),
        (RESULTS.drop(columns="docno"), ValueError, r"'docno'.* missing"),
        (RESULTS[:0], ValueError, "none for the 8 judged queries"),
        (RESULTS.assign(docno=1), TypeError, "docno of the results of 'x' must be a string"),
        (RESULTS.assign(score="high"), TypeError, "numbers as scores"),
        (RESULTS.assign(score=float("nan")), TypeError, "numbers as scores"),
        (pd.concat([RESULTS, RESULTS]), ValueError, "'d1' twice for 'q0'"),
    ],
)
def test_run_system_refuses(collection, results, error, message):
    for system in (results, pt.Transformer.from_df(results, uniform=True)):
        with pytest.raises(error, match=message):
            run_system("x", system, collection.topics)


def test_run_system_runs_and_keeps_what_is_asked(collection):
    more = pd.concat([RESULTS, RESULTS.assign(qid="another")])
    assert run_system("x", more, collection.topics)["qid"].tolist() == ["q0"]
    bm25 = pt.apply.generic(lambda topics: topics.assign(docno="d1", score=1.0))
    assert len(run_system("x", bm25, collection.topics)) == len(collection.topics)


def test_texts_in_joins_fields():
    results = pd.DataFrame([["d1", "Plots", "draw"], ["d2", None, "read"]], columns=["docno", "title", "text"])
    assert texts_in(results, ["d1", "d2"], ["title", "text"]) == {"d1": "Plots draw", "d2": "read"}
    assert texts_in(results, ["d1"], ["body"]) == {}
