import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from benchmarks.study.evaluation import describe_space, evaluate, sample_rows


@pytest.fixture
def vectors():
    """A thousand unit vectors of any direction."""
    return to_unit_length(np.random.default_rng(0).normal(size=(1000, 64)))


def to_unit_length(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_describe_space_of_the_same_vectors(vectors):
    space = describe_space(vectors, vectors)
    assert space["representational_similarity"] == 1
    assert abs(space["similarity"]) < 0.01
    assert space["dimensions"] > 50


def test_describe_space_of_collapsed_vectors(vectors):
    collapsed = to_unit_length(vectors * 0.01 + np.eye(64)[0])
    assert describe_space(collapsed, vectors)["similarity"] > 0.99


def test_describe_space_of_unrelated_vectors(vectors):
    assert abs(describe_space(vectors[::-1], vectors)["representational_similarity"]) < 0.01


def test_sample_rows_is_always_the_same():
    assert sample_rows(5).tolist() == [0, 1, 2, 3, 4]
    rows = sample_rows(5000)
    assert len(set(rows)) == 1000
    assert rows.tolist() == sorted(sample_rows(5000))


def test_evaluate_measures_each_query_and_saves_a_trec_run(collection, tmp_path):
    scored = collection.results.merge(collection.qrels, on=["qid", "docno"])
    retriever = pt.Transformer.from_df(pt.model.add_ranks(scored.assign(score=scored["label"])))
    topics, qrels = collection.topics, collection.qrels
    values = evaluate(retriever, "test", topics, qrels, trec=tmp_path / "trec", name="perfect")
    assert values.index.tolist() == topics["qid"].tolist()
    assert set(values.columns) == {"nDCG@10", "RR@10", "R@100", "R@1000"}
    assert (values == 1).all(axis=None)
    assert (tmp_path / "trec" / "perfect.res.gz").exists()
    on_dev = evaluate(retriever, "dev", topics, qrels, trec=tmp_path / "trec-dev", name="perfect")
    assert set(on_dev.columns) == {"nDCG@10", "RR@10"}
    assert isinstance(on_dev, pd.DataFrame)
