"""The benchmark of precisions: a row for each, with what it costs."""

import pytest

from benchmarks import precision
from benchmarks.study.collection import Collection


def test_a_row_for_each_precision(language_model, collection, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(precision, "TURNS", 1)
    monkeypatch.setattr(precision, "LENGTHS", {"document_length": 20})
    small = Collection(collection.corpus, {"test": (collection.topics, collection.qrels)})
    rows = precision.measure(language_model, {"things": precision.part_of(small, 40, 3)})
    assert [row["precision"] for row in rows] == list(precision.PRECISIONS)
    assert rows[0]["lowest cosine"] == 1
    for row in rows:
        assert abs(row["things nDCG@10"] - rows[0]["things nDCG@10"]) < 0.1


def test_a_part_is_as_large_as_asked_and_has_what_its_queries_look_for(collection):
    small = Collection(collection.corpus, {"test": (collection.topics, collection.qrels)})
    part = precision.part_of(small, documents=20, queries=2)
    topics, qrels = part.splits["test"]
    assert topics["qid"].tolist() == ["q0", "q1"]
    relevant = collection.qrels.query("qid in ('q0', 'q1') and label > 0")["docno"]
    assert set(relevant) == set(part.documents["docno"][:10])
    assert part.documents["docno"].nunique() == 20
    assert set(qrels["docno"]) == set(part.documents["docno"])
