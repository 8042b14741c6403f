"""Small vectors: what they find, what scores they give, and how they are kept."""

import numpy as np
import pandas as pd
import pytest

from pyterrier_selfdistill import SelfDistillIndex
from pyterrier_selfdistill.index.small_vectors import RescoredSearch, make_small_vectors

KINDS = ["int8", "binary"]
BYTES_PER_DOCUMENT = {"int8": 20, "binary": 3}
DIMENSION = 20


def unit_vectors(number, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(number, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def large(tmp_path):
    """An index of 2,000 vectors of 20 dimensions, which do not fill whole bytes."""
    index = SelfDistillIndex(tmp_path / "large.flex", verbose=False)
    index.index([{"docno": f"d{row}", "doc_vec": vector} for row, vector in enumerate(unit_vectors(2000))])
    return index


@pytest.fixture
def queries():
    return pd.DataFrame({"qid": map(str, range(20)), "query_vec": list(unit_vectors(20, seed=1))})


@pytest.mark.parametrize("kind", KINDS)
def test_the_more_is_scored_again_the_more_is_found(large, queries, kind):
    make = getattr(large, f"{kind}_retriever")
    exact = large.retriever(num_results=10)(queries)
    found = []
    for rescore in (1, 4, 200):
        results = make(num_results=10, rescore=rescore)(queries)
        both = results.merge(exact, on=["qid", "docno"])
        np.testing.assert_allclose(both["score_x"], both["score_y"], atol=1e-6)
        assert results.groupby("qid")["score"].is_monotonic_decreasing.all()
        found.append(len(both) / len(exact))
    assert found[0] < found[1] <= found[2] == 1
    # bits are few here: 20 of them
    least = {"int8": (0.9, 1), "binary": (0.05, 0.2)}[kind]
    assert found[0] >= least[0]
    assert found[1] >= least[1]


@pytest.mark.parametrize("kind", KINDS)
def test_small_vectors_are_kept_in_the_folder(large, queries, kind, tmp_path):
    make = getattr(large, f"{kind}_retriever")
    expected = make()(queries)
    path = large.index_path / f"{kind}.faiss"
    size = path.stat().st_size
    assert 0 <= size - BYTES_PER_DOCUMENT[kind] * len(large) < 500
    written = path.stat().st_mtime_ns
    pd.testing.assert_frame_equal(make()(queries), expected)
    assert path.stat().st_mtime_ns == written
    other = SelfDistillIndex(tmp_path / "other.flex", verbose=False)
    other.index([{"docno": "d1", "doc_vec": unit_vectors(1)[0]}])
    getattr(other, f"{kind}_retriever")()
    # cut off, of other vectors, or something else
    for content in (path.read_bytes()[: size // 2], (other.index_path / path.name).read_bytes(), b"{}"):
        path.write_bytes(content)
        pd.testing.assert_frame_equal(make()(queries), expected)
        assert path.stat().st_size == size
    assert [file.name for file in large.index_path.glob("*.faiss")] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_was_replaced_has_small_vectors_of_its_own(large, queries, kind):
    retriever = getattr(large, f"{kind}_retriever")(num_results=5, rescore=4)
    retriever(queries)
    other = unit_vectors(300, seed=2)
    large.indexer(mode="overwrite").index([{"docno": f"e{row}", "doc_vec": vec} for row, vec in enumerate(other)])
    found = retriever(queries)
    assert found["docno"].str.startswith("e").all()
    for row in found.head(3).itertuples():
        assert row.score == pytest.approx(other[int(row.docno[1:])] @ row.query_vec, abs=1e-6)


def test_candidates_are_documents_with_most_signs_of_the_query():
    vectors = np.array([[0.1, 0.1, -0.1], [3.0, -0.1, -0.1], [0.1, 0.1, 0.1]], dtype=np.float32)
    search = RescoredSearch(make_small_vectors(vectors, "binary"), "binary", vectors, rescore=2)
    scores, found = search.search(np.ones((1, 3), dtype=np.float32), 1)
    # the second document scores best, and has fewer signs of the query than two others
    assert found[0].tolist() == [2]
    assert scores[0] == pytest.approx([0.3])


@pytest.mark.parametrize("kind", KINDS)
def test_other_similarities_are_refused(large, kind):
    index = SelfDistillIndex(large.index_path, sim_fn="cos", verbose=False)
    with pytest.raises(ValueError, match="searched by their dot product.*or use np_retriever"):
        getattr(index, f"{kind}_retriever")()
