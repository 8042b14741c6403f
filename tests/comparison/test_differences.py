"""What became of queries: the largest changes, ranks, labels, and words that match."""

import ir_measures
import pandas as pd
import pytest
from pyterrier.measures import RR

from pyterrier_selfdistill.comparison.differences import (
    cut,
    describe_change,
    largest_changes,
    matching_pieces,
    rankings,
)


def test_largest_changes_leaves_out_what_did_not_change():
    before = pd.Series({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5, "e": 0.5})
    after = pd.Series({"a": 0.7, "b": 0.5, "c": 0.6, "d": 0.1, "e": 0.9})
    assert largest_changes(before, after, count=2) == (["e", "a"], ["d"])


def test_rankings_order_ties_as_measures_do():
    """The rank of the only relevant document is the one that its reciprocal rank tells."""
    results = pd.DataFrame([["q", f"d{n}", 1.0] for n in range(5)], columns=["qid", "docno", "score"])
    ranks = rankings(results, ["q"])["q"]
    for docno, rank in ranks.items():
        run = results.set_axis(["query_id", "doc_id", "score"], axis=1)
        measured = ir_measures.calc_aggregate([RR], [ir_measures.Qrel("q", docno, 1)], run)
        assert measured[RR] == pytest.approx(1 / rank)


def test_rankings_of_a_query_without_results_are_empty():
    results = pd.DataFrame([["q", "d", 1.0]], columns=["qid", "docno", "score"])
    assert rankings(results, ["other"]) == {"other": {}}


def test_a_change_shows_where_documents_went():
    change = describe_change(
        "q", "sort", (0.2, 0.7), before={"a": 1, "b": 2}, after={"b": 1, "c": 2}, labels={"b": 1, "a": 0, "x": 2}
    )
    assert change.difference == pytest.approx(0.5)
    assert [(d.docno, d.rank, d.other_rank, d.label) for d in change.before] == [("a", 1, None, 0), ("b", 2, 1, 1)]
    assert [(d.docno, d.rank, d.other_rank, d.label) for d in change.after] == [("b", 1, 2, 1), ("c", 2, None, None)]
    assert [(d.docno, d.rank, d.other_rank) for d in change.relevant] == [("x", None, None), ("b", 1, 2)]
    assert [d.is_relevant for d in change.before] == [False, True]


@pytest.mark.parametrize("text", ["Sort THE rows, sorted; sort.", "", "Straße <b>sort</b>"])
def test_matching_pieces_are_the_text(text):
    pieces = matching_pieces(text, "how to SORT the strasse")
    assert "".join(piece for piece, _ in pieces) == text
    assert {piece.casefold() for piece, is_match in pieces if is_match} <= {"sort", "strasse", "straße"}
    assert any(is_match for _, is_match in pieces) == ("sort" in text.casefold())


@pytest.mark.parametrize(
    ("text", "length", "parts"),
    [("ab cd", 5, ("ab cd", "")), ("ab cd", 4, ("ab", "cd")), ("ab cd", 2, ("ab", "cd")), ("abcd", 3, ("abc", "d"))],
)
def test_cut(text, length, parts):
    assert cut(text, length) == parts
