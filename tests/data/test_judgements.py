"""Judgements: positives by query, every other judgement with its reason, and what matches nothing."""

import logging

import pandas as pd
import pytest

from pyterrier_selfdistill.data.judgements import Judgements

COLUMNS = ["qid", "docno", "label"]


@pytest.fixture
def many():
    """Twenty queries."""
    qids = [str(number) for number in range(20)]
    return pd.DataFrame({"qid": qids, "query": "sort"})


def qrels_of(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def test_judgements_are_positives_or_dropped_for_a_reason(topics):
    qrels = qrels_of(("2", "d4", 1), ("1", "d1", 2), ("1", "d1", 1), ("1", "d2", 0), ("3", "d1", 1))
    judgements = Judgements(topics, qrels, min_label=1)
    assert judgements.positives == {"1": ["d1"], "2": ["d4"]}
    assert list(judgements.positives) == ["1", "2"]
    assert judgements.read == 5
    assert judgements.dropped == {
        "judgement of an unknown query": 1,
        "judgement with a label below 1": 1,
        "duplicate judgement": 1,
    }


def test_judgements_tell_relevant_documents_from_positives(topics):
    judgements = Judgements(topics, qrels_of(("1", "d1", 2), ("1", "d2", 1)), min_label=2)
    assert judgements.positives == {"1": ["d1"]}
    assert judgements.relevant_documents() == {"d1", "d2"}


def test_judgements_need_a_positive(topics):
    with pytest.raises(
        ValueError, match="label of 2 or more, got none among the 1 of these topics, with the labels .1."
    ):
        Judgements(topics, qrels_of(("1", "d1", 1), ("3", "d1", 2)), min_label=2)


def test_judgements_warn_where_more_than_a_tenth_is_unmatched(many, caplog):
    qrels = qrels_of(*[(qid, "d1", 1) for qid in many["qid"][:17]], ("x", "d1", 1))
    unmatched = Judgements(many, qrels, min_label=1).unmatched
    assert unmatched == {"queries": {"number": 3, "share": 0.15}, "judgements": {"number": 1, "share": 0.0556}}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "15 % of the queries are left out (3 of 20), since their qid is in one only" in record.getMessage()


def test_judgements_do_not_warn_of_a_tenth(many, caplog):
    qrels = qrels_of(*[(qid, "d1", 1) for qid in many["qid"][:18]])
    assert Judgements(many, qrels, min_label=1).unmatched["queries"] == {"number": 2, "share": 0.1}
    assert not caplog.records


def test_judgements_of_results_count_rows_and_queries(many):
    results = many.merge(pd.DataFrame({"docno": ["d1", "d2", "d3"]}), how="cross")
    qrels = qrels_of(*[(qid, "d1", 1) for qid in many["qid"][:19]])
    assert Judgements(results, qrels, min_label=1).unmatched == {
        "queries": {"number": 1, "share": 0.05},
        "judgements": {"number": 0, "share": 0.0},
        "results": {"number": 3, "share": 0.05},
    }
