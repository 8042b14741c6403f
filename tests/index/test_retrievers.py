"""The retrievers, scorers and re-rankers of an index, with every backend that is installed."""

import inspect
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch

from pyterrier_selfdistill import SelfDistillIndex, ShardedIndex

EXACT = ["retriever", "np_retriever", "torch_retriever", "faiss_flat_retriever"]
APPROXIMATE = ["faiss_hnsw_retriever", "faiss_ivf_retriever", "voyager_retriever"]
SMALL = ["int8_retriever", "binary_retriever"]
RETRIEVERS = [*EXACT, *APPROXIMATE, *SMALL]
SCORERS = ["scorer", "torch_scorer"]
WITH_NEIGHBOURS = ["gar", "ladr_proactive", "ladr_adaptive"]
RERANKERS = [*SCORERS, *WITH_NEIGHBOURS]
DIMENSION = 20  # bits of which do not fill whole bytes
ROWS = 40


def unit_vectors(number, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(number, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def records(vectors, prefix="d"):
    return [{"docno": f"{prefix}{row}", "doc_vec": vector} for row, vector in enumerate(vectors)]


def queries_of(vectors):
    qids = [f"q{row:02}" for row in range(len(vectors))]
    return pd.DataFrame({"qid": qids, "query": "sort", "query_vec": list(vectors)})


def build(path, vectors):
    return SelfDistillIndex(path, verbose=False).index(records(vectors))


def make(index, method, **options):
    """Make a transformer, which searches all clusters if it has such."""
    if method == "faiss_ivf_retriever":
        options = {"n_probe": 100, **options}
    return getattr(index, method)(**options)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An index of 40 unit vectors, which no test changes."""
    return build(tmp_path_factory.mktemp("small") / "index.flex", unit_vectors(ROWS))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An index of 2,000 unit vectors, which no test changes."""
    return build(tmp_path_factory.mktemp("large") / "index.flex", unit_vectors(2000))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """An index of four vectors, each 25 times."""
    return build(tmp_path_factory.mktemp("tied") / "index.flex", np.tile(unit_vectors(4, seed=3), (25, 1)))


@pytest.fixture
def queries():
    return queries_of(unit_vectors(6, seed=1))


@pytest.fixture
def candidates(queries):
    """All pairs of queries and documents of the small index, scored equal."""
    return queries.merge(pd.DataFrame({"docno": [f"d{row}" for row in range(ROWS)]}), how="cross").assign(score=1.0)


# --- the methods of the index ---------------------------------------------------------------------------------------


def test_indexes_conform_to_pyterrier(index, encoder, conforms):
    conforms(encoder >> index)


COUNTED = [method for method in [*RETRIEVERS, *RERANKERS] if method != "faiss_flat_retriever"]


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        *((method, "num_results", 0) for method in COUNTED),
        *(("retriever", "num_results", value) for value in (None, -1, 2.5, True, "3")),
        ("retriever", "batch_size", 0),
        ("torch_retriever", "fp16", "no"),
        ("faiss_hnsw_retriever", "neighbours", 1),
        ("voyager_retriever", "storage_data_type", "float64"),
        ("voyager_retriever", "random_seed", -1),
        ("ladr_proactive", "budget", 0),
    ],
)
def test_options_are_checked(small, method, option, value):
    with pytest.raises(ValueError, match=f"{option} must be .*got {value!r}"):
        getattr(small, method)(**{option: value})


def test_options_that_do_not_fit_the_index(small, queries):
    with pytest.raises(ValueError, match="n_list=41 .*40 documents"):
        small.faiss_ivf_retriever(n_list=41)
    with pytest.raises(ValueError, match="n_list=9 .*8 documents"):
        small.faiss_ivf_retriever(n_list=9, train_sample=8)
    cosines = SelfDistillIndex(small.index_path, sim_fn="cos", verbose=False)
    for method in SMALL:
        with pytest.raises(ValueError, match="np_retriever"):
            getattr(cosines, method)()
    assert len(cosines.retriever(num_results=np.int64(3), batch_size=np.int32(7))(queries)) == 3 * len(queries)


# --- searching ------------------------------------------------------------------------------------------------------


def assert_sorted(found, each):
    for _, group in found.groupby("qid"):
        assert group["rank"].tolist() == list(range(each))
        assert (np.diff(group["score"]) <= 0).all()


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}])
def test_exact_retrievers_find_the_neighbours(small, queries, method, options):
    if options and "batch_size" not in inspect.signature(getattr(small, method)).parameters:
        return
    found = getattr(small, method)(**options)(queries)
    assert_sorted(found, ROWS)
    scores = np.stack(queries["query_vec"]) @ unit_vectors(ROWS).T
    order = np.argsort(-scores, axis=1)
    assert found["docno"].tolist() == [f"d{row}" for row in order.ravel()]
    np.testing.assert_allclose(found["score"], np.take_along_axis(scores, order, axis=1).ravel(), atol=1e-6)


@pytest.mark.parametrize(
    ("method", "options", "more"),
    [
        ("faiss_hnsw_retriever", {"num_results": 10}, {"num_results": 10, "ef_search": 200}),
        ("faiss_ivf_retriever", {"n_list": 16, "n_probe": 1}, {"n_list": 16, "n_probe": 8}),
        ("voyager_retriever", {"num_results": 10, "query_ef": 10}, {"num_results": 10, "query_ef": 200}),
        ("int8_retriever", {"num_results": 10, "rescore": 1}, {"num_results": 10, "rescore": 200}),
        ("binary_retriever", {"num_results": 10, "rescore": 4}, {"num_results": 10, "rescore": 200}),
    ],
)
def test_approximate_retrievers_find_most_and_more_if_more_is_searched(large, method, options, more):
    queries = queries_of(unit_vectors(20, seed=1))
    exact = large.retriever()(queries)
    recall = []
    for chosen in (options, more):
        found = (getattr(large, method)(**chosen) >> pt.RankCutoff(10))(queries)
        assert_sorted(found, 10)
        both = found.merge(exact, on=["qid", "docno"])
        np.testing.assert_allclose(both["score_x"], both["score_y"], atol=1e-5)
        recall.append((both["rank_y"] < 10).sum() / 200)
    assert 0.6 < recall[1] >= recall[0]
    assert recall[1] == 1 or "rescore" not in more


@pytest.mark.parametrize("method", RETRIEVERS)
def test_rank_cutoffs_find_the_same_compiled(small, queries, method, ranking):
    for k in (1, 3, 1000):
        pipeline = make(small, method) % k
        expected = pipeline(queries)
        assert expected.groupby("qid").size().unique().tolist() == [min(k, ROWS)]
        assert ranking(pipeline.compile()(queries)) == ranking(expected)


def test_graphs_are_searched_as_far_as_results_are_asked_for(large, queries, caplog):
    assert len(large.faiss_hnsw_retriever(num_results=1500)(queries)) == 1500 * len(queries)
    assert "fewer" not in caplog.text
    large.faiss_ivf_retriever(n_list=16, n_probe=1)(queries)
    assert "fewer than 1000" in caplog.text


def test_rank_cutoffs_ask_the_index_for_less(small):
    assert (small.retriever() % 10).compile() == small.retriever(num_results=10)


@pytest.mark.parametrize("depth", [1, 3, 26, 100])
@pytest.mark.parametrize("method", [*RETRIEVERS, *RERANKERS, "sharded"])
def test_equal_documents_are_in_the_order_of_the_index_at_every_depth(tied, method, depth):
    queries = queries_of(unit_vectors(5, seed=4))
    scores = np.tile(np.stack(queries["query_vec"]) @ tied.np_vecs()[:4].T, 25)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    if method in RERANKERS:
        queries = queries.merge(pd.DataFrame({"docno": list(tied.docnos())[::-1]}), how="cross").assign(score=1.0)
    index = ShardedIndex([tied.index_path]) if method == "sharded" else tied
    chosen = {} if method in ("faiss_flat_retriever", "gar") else {"num_results": depth}
    method = method.replace("sharded", "retriever")
    pipeline = make(index, method) % depth
    for transformer in (pipeline, pipeline.compile(), make(index, method, **chosen) % depth):
        found = transformer(queries).sort_values(["qid", "rank"])
        assert found["docno"].tolist() == [f"d{row}" for row in expected.ravel()]
        np.testing.assert_allclose(found["score"], np.take_along_axis(scores, expected, axis=1).ravel(), atol=1e-6)
        assert found["score"].nunique() == 5 * math.ceil(depth / 25)


@pytest.mark.parametrize("documents", [1, 17])
@pytest.mark.parametrize("method", [*RETRIEVERS, *RERANKERS])
def test_small_corpora_are_searched_whole(tmp_path, method, documents):
    vectors = unit_vectors(documents)
    index = build(tmp_path / "index.flex", vectors)
    if method in WITH_NEIGHBOURS and documents == 1:
        with pytest.raises(ValueError, match="one document"):
            getattr(index, method)()
        return
    queries = queries_of([vectors[0], -vectors[0]])
    if method in RERANKERS:
        queries = queries.merge(pd.DataFrame({"docno": list(index.docnos())}), how="cross").assign(score=1.0)
    # more neighbours and more clusters than there are documents, unless they are fitted
    found = make(index, method)(queries)
    assert_sorted(found.sort_values(["qid", "rank"]), documents)
    for qid, query in {"q00": vectors[0], "q01": -vectors[0]}.items():
        expected = np.sort(vectors @ query)[::-1]
        scores = found[found["qid"] == qid].sort_values("rank")["score"]
        np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("method", SCORERS)
def test_scorers_keep_the_best(small, candidates, method, ranking):
    everything = getattr(small, method)()(candidates)
    vectors = unit_vectors(ROWS)[everything["docno"].str[1:].astype(int)]
    expected = (np.stack(everything["query_vec"]) * vectors).sum(axis=1)
    np.testing.assert_allclose(everything["score"], expected, atol=1e-6)
    best = getattr(small, method)(num_results=3)(candidates)
    assert ranking(best) == ranking(everything[everything["rank"] < 3])


@pytest.mark.parametrize("method", ["retriever", "torch_retriever", "torch_scorer"])
def test_searching_under_autocast_finds_the_same(small, queries, candidates, method):
    searching = getattr(small, method)()
    inp = candidates if method == "torch_scorer" else queries
    with torch.autocast("cpu", torch.bfloat16):
        found = searching(inp)
    pd.testing.assert_frame_equal(found, searching(inp))


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["retriever", "np_retriever", "torch_retriever"])
def test_masks_leave_the_given_documents_only(small, queries, method, ranking):
    chosen = [f"d{number}" for number in range(0, ROWS, 3)]
    masked = getattr(small, method)(mask=small.mask(chosen), num_results=len(chosen))
    everything = small(queries)
    expected = everything[everything["docno"].isin(chosen)]
    # where documents with a score of 0 would be above them
    assert expected["score"].min() < 0
    assert ranking(masked(queries)) == ranking(expected)
    assert ranking((masked % 2).compile()(queries)) == ranking(expected.groupby("qid").head(2))
    assert masked != getattr(small, method)(mask=small.mask(chosen[1:]), num_results=len(chosen))


def test_masks_that_are_none(small):
    with pytest.raises(KeyError, match="'nobody'"):
        small.mask(["nobody"])
    for mask, message in [(np.ones(3), r"\(3,\)"), (np.full(ROWS, 2), "0 or 1")]:
        with pytest.raises(ValueError, match=message):
            small.retriever(mask=mask)


# --- documents ------------------------------------------------------------------------------------------------------

DOCNOS = ["d\u00e91", "d\u00e82", "\u65e5\u672c", "007", "008", "7", "a b", "e8c5d3"]


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory):
    """An index whose documents have identifiers of all kinds, and candidates of one query, the best first."""
    index = SelfDistillIndex(tmp_path_factory.mktemp("multilingual") / "index.flex", verbose=False)
    index.index({"docno": d, "doc_vec": v} for d, v in zip(DOCNOS, np.eye(8, dtype=np.float32), strict=True))
    frame = pd.DataFrame({"qid": "q", "query": "sort", "docno": DOCNOS, "score": 1.0})
    return index, frame.assign(query_vec=[np.arange(8, 0, -1, dtype=np.float32)] * 8)


@pytest.mark.parametrize("method", [*RERANKERS, "vec_loader"])
def test_rerankers_find_their_documents(multilingual, method):
    index, candidates = multilingual
    transformer = getattr(index, method)()
    with pytest.raises(TypeError, match="docno .*7.* in 1 of 9"):
        transformer(pd.concat([candidates, candidates[:1].assign(docno=7)]))
    with pytest.raises(LookupError, match="1 of 9 .*'0007'"):
        transformer(pd.concat([candidates, candidates[:1].assign(docno="0007")]))
    # the positions that a first stage gives documents do not count
    inputs = [candidates, candidates.assign(docid=7)][: 1 if method in WITH_NEIGHBOURS else 2]
    for inp in inputs:
        found = transformer(inp.iloc[::-1])
        if method == "vec_loader":
            np.testing.assert_array_equal(np.stack(found["doc_vec"]), np.eye(8)[::-1])
            continue
        found = found.sort_values("rank")
        assert found["docno"].tolist() == DOCNOS
        assert found["score"].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]
        assert "docid" not in inp or found["docid"].tolist() == list(range(8))


# --- an index that is replaced --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RETRIEVERS)
def test_retrievers_search_the_index_that_replaced_theirs(tmp_path, queries, method):
    index = build(tmp_path / "index.flex", unit_vectors(ROWS))
    retriever = make(index, method)
    assert retriever(queries)["docno"].str.startswith("d").all()
    again = SelfDistillIndex(index.index_path, verbose=False)
    again.indexer(mode="overwrite").index(records(unit_vectors(30, seed=2), "new"))
    found = retriever(queries)
    assert found["docno"].str.startswith("new").all()
    pd.testing.assert_frame_equal(found, make(again, method)(queries))
    best = found[found["rank"] == 0]
    vectors = unit_vectors(30, seed=2)[best["docno"].str[3:].astype(int)]
    np.testing.assert_allclose(best["score"], (np.stack(best["query_vec"]) * vectors).sum(axis=1), atol=1e-5)


@pytest.mark.parametrize(("kind", "each"), [("int8", DIMENSION), ("binary", 3)])
def test_small_vectors_are_kept_in_the_folder(tmp_path, queries, kind, each):
    index = build(tmp_path / "index.flex", unit_vectors(500))
    expected = getattr(index, f"{kind}_retriever")()(queries)
    path = index.index_path / f"{kind}.faiss"
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert 0 <= len(content) - each * 500 < 500
    pd.testing.assert_frame_equal(getattr(index, f"{kind}_retriever")()(queries), expected)
    assert path.stat().st_mtime_ns == written


KEPT = {**dict.fromkeys([*APPROXIMATE, *SMALL], "*.[fv]*a*"), "ladr_proactive": "corpusgraph_k16/edges.u32.np"}


@pytest.mark.parametrize("method", KEPT)
def test_graphs_that_are_damaged_or_of_another_index_are_computed_again(tmp_path, queries, method, caplog):
    index, other = (build(tmp_path / name, unit_vectors(200, seed)) for seed, name in enumerate(["a.flex", "b.flex"]))
    for each in (other, index):
        make(each, method)
        (path,) = each.index_path.glob(KEPT[method])
    content = path.read_bytes()
    half = len(content) // 2
    foreign = (other.index_path / path.relative_to(index.index_path)).read_bytes()
    for damaged in (foreign, content[:half] + bytes(half), content[:half], b"{}"):
        path.write_bytes(damaged)
        make(SelfDistillIndex(index.index_path, verbose=False), method)
        # those of Voyager differ each time
        assert len(path.read_bytes()) == len(content)
        assert path.read_bytes() != damaged
        assert f"{index.index_path}/" in caplog.text
        caplog.clear()
    made = path.stat().st_mtime_ns
    make(SelfDistillIndex(index.index_path, verbose=False), method)
    assert path.stat().st_mtime_ns == made
    path.unlink()
    graph = index.index_path / path.relative_to(index.index_path).parts[0]
    (graph / "pt_meta.json").unlink(missing_ok=True)
    graph.mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=f"{graph}' is not a graph, but a folder"):
        make(SelfDistillIndex(index.index_path, verbose=False), method)


def test_graphs_are_computed_once(tmp_path):
    index = build(tmp_path / "index.flex", unit_vectors(ROWS))
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda _: index.faiss_hnsw_retriever(), range(2)))
    assert len(list(index.index_path.glob("*.faiss"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["index.flex"]


# --- as PyTerrier uses them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*RETRIEVERS, *RERANKERS, "vec_loader"])
def test_transformers_are_those_of_pyterrier(small, queries, candidates, conforms, method):
    options = {"k": 4} if method in WITH_NEIGHBOURS else {}
    transformer = make(small, method, **options)
    conforms(transformer)
    inp = queries if method in RETRIEVERS else candidates
    found, none = transformer(inp), transformer(inp[:0])
    assert not len(none)
    assert set(none.columns) == set(found.columns)
    assert none["qid"].dtype == inp["qid"].dtype
    if method != "vec_loader":
        assert transformer == make(SelfDistillIndex(small.index_path, verbose=False), method, **options)
        unpickled = pickle.loads(pickle.dumps(transformer))
        assert unpickled == transformer
        assert hash(unpickled) == hash(transformer)
        pd.testing.assert_frame_equal(unpickled(inp), found)
    if method in COUNTED:
        assert transformer != make(small, method, **options, num_results=7)


def test_parameters_change_as_a_grid_search_does(small, queries):
    retriever = small.retriever()
    before = hash(retriever)
    retriever.set_parameter("num_results", 2)
    assert retriever.get_parameter("num_results") == 2
    # a grid search holds it as a key
    assert hash(retriever) == before
    assert len(retriever(queries)) == 2 * len(queries)
    with pytest.raises(ValueError, match="num_results must be .*got 0"):
        retriever.set_parameter("num_results", 0)
    assert retriever.get_parameter("num_results") == 2
    with pytest.raises(ValueError, match="'ef_search'"):
        retriever.set_parameter("ef_search", 2)
