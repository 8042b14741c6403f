import numpy as np
import pandas as pd
import pytest

from benchmarks.study.changes import choose_positives, describe_margins, describe_space, sample_rows


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


def test_choose_positives_takes_the_highest_label():
    topics = pd.DataFrame({"qid": ["2", "1", "3"], "query": ["plot", "sort", "join"]})
    documents = pd.DataFrame({"docno": list("abc"), "text": list("xyz")})
    qrels = pd.DataFrame({"qid": ["1", "1", "2", "3"], "docno": ["a", "b", "c", "c"], "label": [1, 2, 1, 0]})
    rows = choose_positives(topics, qrels, documents)
    assert rows.to_numpy().tolist() == [["1", "sort", "y"], ["2", "plot", "z"]]


def test_describe_margins_by_their_definition():
    """The first query finds its positive; the second one finds the other's, which its own positive is opposite to."""
    queries = np.array([[1.0, 0.0], [1.0, 0.0]])
    positives = np.array([[1.0, 0.0], [-1.0, 0.0]])
    documents = np.array([[0.0, 1.0], [1.0, 0.0]])
    described = describe_margins(queries, positives, documents)
    assert described["margin"] == [0.5, -1.5]
    assert described["target"] == [0.75, 0.25]
    assert described["above"] == [0.5, 0]
