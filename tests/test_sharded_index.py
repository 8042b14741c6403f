import itertools
import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillIndex, ShardedIndex
from pyterrier_selfdistill.index.shards import best_columns, search_vectors


@pytest.fixture
def paths(encoder, collection, tmp_path):
    """The small collection in two shards, of 25 and 15 documents."""
    paths = [tmp_path / "first.flex", tmp_path / "second.flex"]
    (encoder >> SelfDistillIndex(paths[0], verbose=False)).index(collection.records[:25])
    (encoder >> SelfDistillIndex(paths[1], verbose=False)).index(collection.records[25:])
    return paths


def assert_equal(found, expected):
    """The results are the same, but for the order of documents whose scores are equal."""
    for results in (found, expected):
        assert results.groupby("qid", sort=False)["score"].apply(lambda scores: scores.is_monotonic_decreasing).all()
    assert list(found.columns) == list(expected.columns)
    columns = [column for column in found.columns if column != "rank"]
    ordered = []
    for results in (found, expected):
        ordered.append(results.sort_values(["qid", "docno"])[columns].reset_index(drop=True))
    pd.testing.assert_frame_equal(*ordered, atol=1e-6, check_dtype=False)
    assert list(found["rank"]) == list(expected["rank"])


@pytest.mark.parametrize("number", [7, 1000])
def test_shards_find_what_one_index_finds(encoder, index, paths, names, number):
    shards = ShardedIndex(paths)
    assert len(shards) == 40
    expected = (encoder >> index.retriever(num_results=number))(names["topics"])
    assert_equal((encoder >> shards.retriever(num_results=number))(names["topics"]), expected)


def test_ties_are_in_the_order_of_documents_however_they_are_sharded(tmp_path):
    generator = np.random.default_rng(0)
    vectors = generator.integers(-1, 2, size=(300, 4)).astype(np.float32)
    documents = [{"docno": f"d{row}", "doc_vec": vector} for row, vector in enumerate(vectors)]
    queries = pd.DataFrame({"qid": ["1", "2"], "query_vec": [vectors[0], -vectors[1]]})
    scores = np.stack(queries["query_vec"]) @ vectors.T
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    for number, cuts in enumerate([[0, 300], [0, 1, 120, 300], [0, 100, 200, 300]]):
        paths = []
        for start, end in itertools.pairwise(cuts):
            paths.append(tmp_path / f"{number}-{start}.flex")
            SelfDistillIndex(paths[-1], verbose=False).index(documents[start:end])
        found = ShardedIndex(paths).retriever(num_results=100)(queries)
        assert found["docid"].to_numpy().reshape(2, 100).tolist() == expected.tolist()
        assert found["docno"].tolist() == [f"d{row}" for row in expected.ravel()]


@pytest.mark.parametrize("number", [1, 3, 50, 5000])
def test_searching_in_parts_is_sorting(number, monkeypatch):
    monkeypatch.setattr("pyterrier_selfdistill.index.shards.DOCUMENTS", 64)
    monkeypatch.setattr("pyterrier_selfdistill.index.shards.QUERIES", 2)
    generator = np.random.default_rng(1)
    documents = generator.integers(-2, 3, size=(500, 3)).astype(np.float32)
    queries = generator.integers(-2, 3, size=(5, 3)).astype(np.float32)
    scores, positions = search_vectors(documents, queries, number)
    every = queries @ documents.T
    order = np.argsort(-every, axis=1, kind="stable")[:, :number]
    assert positions.tolist() == order.tolist()
    assert scores.tolist() == np.take_along_axis(every, order, axis=1).tolist()


def test_the_order_of_scores_is_that_of_floats():
    scores = np.array([[-0.0, 0.0, -1e-30, 1e-30, -1, 1, -np.inf, np.inf, 3e38]], dtype=np.float32)
    best = best_columns(scores, np.arange(9)[None], 9)
    assert best.tolist() == [[7, 8, 5, 3, 0, 1, 2, 4, 6]]


def test_it_conforms(paths, conforms, encoder):
    retriever = ShardedIndex(paths).retriever(num_results=5)
    conforms(retriever)
    conforms(encoder >> retriever)


def test_retrievers_as_pyterrier_uses_them(encoder, index, paths, names):
    shards = ShardedIndex(paths)
    retriever = shards.retriever(num_results=10)
    topics = names["topics"]
    assert retriever == ShardedIndex(paths).retriever(num_results=10) != shards.retriever(num_results=9)
    assert retriever != ShardedIndex(paths[::-1]).retriever(num_results=10)
    assert_equal(pickle.loads(pickle.dumps(encoder >> retriever))(topics), (encoder >> retriever)(topics))
    assert ((encoder >> retriever) % 3).compile()[-1] == shards.retriever(num_results=3)
    assert retriever.fuse_rank_cutoff(20) is None
    without = shards.retriever(num_results=2, drop_query_vec=True)(encoder.query_encoder()(topics))
    assert list(without.columns) == ["qid", "query", "docno", "docid", "score", "rank"]
    retriever.set_parameter("num_results", 4)
    assert len(retriever(encoder.query_encoder()(topics))) == 4 * len(topics)
    assert pt.inspect.transformer_outputs(retriever, ["qid", "query", "query_vec"])[-1] == "rank"


def test_other_encoders_are_refused(encoder, other, paths, names, collection, tmp_path):
    with pytest.raises(EncoderMismatchError, match="the queries were encoded by"):
        (other >> ShardedIndex(paths).retriever())(names["topics"])
    assert len((other >> ShardedIndex(paths, any_encoder=True).retriever())(names["topics"]))
    foreign = tmp_path / "foreign.flex"
    (other >> SelfDistillIndex(foreign, verbose=False)).index(collection.records[:3])
    with pytest.raises(EncoderMismatchError, match="encode all documents with one encoder"):
        ShardedIndex([*paths, foreign])
    assert ShardedIndex(paths).encoder.checksum == encoder.identity.checksum


def test_what_there_is_not(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no shards\.json"):
        ShardedIndex(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no index"):
        ShardedIndex([tmp_path / "nothing"])
    with pytest.raises(ValueError, match="of each of 2 shards, got 1"):
        ShardedIndex([tmp_path, tmp_path], actors=[{}])
    with pytest.raises(ValueError, match="shards must be the path of a folder of shards, or a list"):
        ShardedIndex([])
