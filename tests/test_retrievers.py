"""The retrievers and re-rankers of an index, with every backend that is installed."""

import inspect
import pickle
import threading
import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from pyterrier_dr import FlexIndex

from pyterrier_selfdistill import SelfDistillIndex
from pyterrier_selfdistill.index import index as retrievers
from pyterrier_selfdistill.index.index import IndexTransformer
from pyterrier_selfdistill.utils.folders import folder_lock

EXACT = ["retriever", "np_retriever", "torch_retriever", "faiss_flat_retriever"]
APPROXIMATE = ["faiss_hnsw_retriever", "faiss_ivf_retriever", "voyager_retriever"]
SMALL = ["int8_retriever", "binary_retriever"]
RERANKERS = ["scorer", "torch_scorer", "gar", "ladr_proactive", "ladr_adaptive"]
COUNTED = [method for method in [*EXACT, *APPROXIMATE, *SMALL, *RERANKERS] if method != "faiss_flat_retriever"]
ALIASES = {
    "np_scorer": "scorer",
    "np_vec_loader": "vec_loader",
    "ladr": "ladr_proactive",
    "pre_ladr": "ladr_proactive",
    "ada_ladr": "ladr_adaptive",
}
UNTESTED = {"flatnav_retriever", "kannolo_hnsw_retriever", "scann_retriever"}


# --- the methods of the index ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*EXACT, *APPROXIMATE, *RERANKERS, "vec_loader"])
def test_methods_have_the_signatures_of_flexindex(method):
    own = inspect.signature(getattr(SelfDistillIndex, method)).parameters.values()
    theirs = inspect.signature(getattr(FlexIndex, method)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in own] == [(p.name, p.kind, p.default) for p in theirs]
    assert getattr(SelfDistillIndex, method).__doc__


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_are_those_of_flexindex(alias):
    assert getattr(SelfDistillIndex, alias) is getattr(SelfDistillIndex, ALIASES[alias])
    assert getattr(FlexIndex, alias) is getattr(FlexIndex, ALIASES[alias])


def test_all_methods_of_flexindex_are_known():
    """A new one is either written in the class body, or inherited without a promise."""
    endings = ("retriever", "scorer", "ladr", "gar")
    theirs = {name for name in vars(FlexIndex) if name.endswith(endings) or name.startswith("ladr_")}
    assert theirs == {*EXACT, *APPROXIMATE, *RERANKERS, *ALIASES, *UNTESTED} - {"np_vec_loader"}


# --- searching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
def test_exact_retrievers_agree(encoder, index, collection, method):
    scored = encoder(collection.results)
    found = (encoder >> getattr(index, method)())(collection.topics)
    assert len(found) == len(scored)
    merged = found.merge(scored, on=["qid", "docno"])
    np.testing.assert_allclose(merged["score_x"], merged["score_y"], atol=1e-6)
    for _, group in found.groupby("qid"):
        assert group["rank"].tolist() == list(range(len(collection.corpus)))
        assert (np.diff(group["score"]) <= 0).all()


@pytest.mark.parametrize("method", [*APPROXIMATE, *SMALL])
def test_approximate_retrievers_find_most(encoder, index, collection, method):
    exact = (encoder >> index)(collection.topics)
    options = {"n_probe": 4} if method == "faiss_ivf_retriever" else {}
    found = (encoder >> getattr(index, method)(**options) >> pt.RankCutoff(5))(collection.topics)
    both = found.merge(exact, on=["qid", "docno"])
    assert len(both) == len(found)
    assert (both["rank_y"] < 5).mean() > 0.5
    np.testing.assert_allclose(both["score_x"], both["score_y"], atol=1e-5)


def test_voyager_retriever_searches_as_widely_as_asked(index, encoder, collection):
    retriever = index.voyager_retriever(num_results=20, query_ef=25)
    adapter = retriever.inner.voyager_index.index
    voyager = adapter.index
    asked = []

    class Spy:
        def __len__(self):
            return len(voyager)

        def query(self, vectors, k, **options):
            asked.append((k, options))
            return voyager.query(vectors, k, **options)

    adapter.index = Spy()
    assert (encoder >> retriever)(collection.topics).groupby("qid").size().unique().tolist() == [20]
    assert asked == [(20, {"query_ef": 25})]


@pytest.mark.parametrize("method", EXACT + APPROXIMATE + SMALL)
@pytest.mark.parametrize("k", [1, 3, 1000])
def test_rank_cutoff_finds_the_same_compiled(encoder, index, collection, method, k, ranking):
    options = {"n_probe": 8} if method == "faiss_ivf_retriever" else {}
    pipeline = (encoder >> getattr(index, method)(**options)) % k
    expected = pipeline(collection.topics)
    assert expected.groupby("qid").size().max() == min(k, len(index))
    assert ranking(pipeline.compile()(collection.topics)) == ranking(expected)


@pytest.mark.parametrize("method", ["retriever", "torch_retriever"])
def test_rank_cutoff_asks_the_index_for_less(index, method):
    fused = (getattr(index, method)() % 10).compile()
    assert fused == getattr(index, method)(num_results=10)
    assert fused.num_results == 10
    assert (getattr(index, method)(num_results=5) % 10).compile()[0].num_results == 5


@pytest.mark.parametrize(
    ("device", "options", "backend"),
    [
        ("cpu", {}, "TorchRetriever"),
        ("cpu", {"batch_size": 3}, "NumpyRetriever"),
        (None, {}, "NumpyRetriever"),
    ],
)
def test_retriever_takes_the_fastest_backend(
    encoder, index, collection, monkeypatch, device, options, backend, ranking
):
    """With the same results, and no warning."""
    monkeypatch.setattr(retrievers, "fastest_device", lambda size: device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retriever = index.retriever(**options)
    assert type(retriever.inner).__name__ == backend
    queries = encoder.query_encoder()(collection.topics)
    assert ranking(retriever(queries)) == ranking(index.np_retriever()(queries))


def test_retriever_searches_for_fewer_queries_at_once_in_a_large_index(index, monkeypatch):
    assert index.retriever().qbatch == 64
    monkeypatch.setattr(retrievers, "SCORES", 3 * len(index))
    assert index.retriever().qbatch == 3
    monkeypatch.setattr(retrievers, "SCORES", 1)
    assert index.retriever().qbatch == 1


def test_retriever_of_cosines_is_that_of_numpy(index):
    cosines = SelfDistillIndex(index.index_path, sim_fn="cos", verbose=False)
    assert type(cosines.retriever().inner).__name__ == "NumpyRetriever"


def test_fastest_device_has_room_for_the_vectors(monkeypatch):
    assert retrievers.fastest_device(2**60) is None
    monkeypatch.setattr(retrievers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(retrievers.torch.cuda, "mem_get_info", lambda: (2**20, 2**20))
    assert retrievers.fastest_device(2**10) == "cuda"
    assert retrievers.fastest_device(2**20) == "cpu"


def test_one_result_a_query_is_a_value_not_an_array(encoder, index, collection):
    found = (encoder >> index.retriever(num_results=1))(collection.topics)
    assert found["rank"].tolist() == [0] * len(collection.topics)
    assert all(isinstance(docno, str) for docno in found["docno"])


@pytest.mark.parametrize("method", ["scorer", "torch_scorer"])
def test_scorers_keep_the_best(encoder, index, collection, method, ranking):
    candidates = encoder.query_encoder()(collection.results)
    everything = getattr(index, method)()(candidates)
    np.testing.assert_allclose(everything.sort_index()["score"], encoder(collection.results)["score"], atol=1e-6)
    best = getattr(index, method)(num_results=3)(candidates)
    assert ranking(best) == ranking(everything[everything["rank"] < 3])
    assert best.groupby("qid")["rank"].apply(list).tolist() == [[0, 1, 2]] * len(collection.topics)


@pytest.mark.parametrize("method", EXACT + APPROXIMATE)
def test_retrievers_run_in_parallel(encoder, index, collection, method, ranking):
    pipeline = encoder >> getattr(index, method)()
    with pytest.warns(UserWarning, match="experimental"):
        parallel = pipeline.parallel(2)
    assert ranking(parallel(collection.topics)) == ranking(pipeline(collection.topics))


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        *((method, {"num_results": -1}, "num_results must be a positive integer, got -1") for method in COUNTED),
        *((method, {"num_results": 0}, "num_results must be a positive integer, got 0") for method in COUNTED),
        ("retriever", {"num_results": 2.5}, "num_results must be a positive integer, got 2.5"),
        ("retriever", {"num_results": True}, "num_results must be a positive integer, got True"),
        ("retriever", {"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ("torch_retriever", {"qbatch": 0}, "qbatch must be a positive integer, got 0"),
        ("torch_retriever", {"fp16": "no"}, "fp16 must be a valid boolean, got 'no'"),
        ("faiss_hnsw_retriever", {"neighbours": 1}, "neighbours must be 2 or a greater integer, got 1"),
        ("faiss_hnsw_retriever", {"ef_search": 0}, "ef_search must be a positive integer, got 0"),
        ("faiss_ivf_retriever", {"n_probe": 0}, "n_probe must be a positive integer, got 0"),
        ("faiss_ivf_retriever", {"n_list": 41}, "n_list=41 clusters cannot be learned from 40 documents"),
        ("faiss_ivf_retriever", {"n_list": 9, "train_sample": 8}, "n_list=9 clusters .* from 8 documents"),
        ("voyager_retriever", {"storage_data_type": "float64"}, "storage_data_type must be 'float32', 'float8' or"),
        ("voyager_retriever", {"random_seed": -1}, "random_seed must be an integer from 0"),
        ("gar", {"k": 0}, "k must be a positive integer, got 0"),
        ("gar", {"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ("ladr_proactive", {"hops": -1}, "hops must be 0 or a positive integer, got -1"),
        ("ladr_proactive", {"budget": 0}, "budget must be .*a positive integer, got 0"),
        ("ladr_adaptive", {"depth": 0}, "depth must be a positive integer, got 0"),
    ],
)
def test_options_are_checked(index, method, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(index, method)(**options)


def test_options_may_be_numpy_integers(index, encoder, collection):
    found = (encoder >> index.retriever(num_results=np.int64(3), batch_size=np.int32(7)))(collection.topics)
    assert len(found) == 3 * len(collection.topics)
    candidates = encoder.query_encoder()(collection.results)
    assert len(index.ladr_proactive(np.int64(4))(candidates.assign(score=1.0)))


@pytest.mark.parametrize("documents", [1, 2, 5, 17])
@pytest.mark.parametrize("method", [*EXACT, *APPROXIMATE, *SMALL, *RERANKERS])
def test_small_corpora_are_searched_whole(tmp_path, method, documents):
    vectors = np.random.default_rng(0).normal(size=(documents, 8)).astype(np.float32)
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    index.index([{"docno": f"d{number}", "doc_vec": vector} for number, vector in enumerate(vectors)])
    queries = pd.DataFrame({"qid": ["a", "b"], "query": "sort", "query_vec": [vectors[0], -vectors[0]]})
    has_graph = method in ("gar", "ladr_proactive", "ladr_adaptive")
    if has_graph and documents == 1:
        with pytest.raises(ValueError, match="has one document, which has no neighbours"):
            getattr(index, method)()
        return
    # more neighbours and more clusters than there are documents, unless they are fitted
    options = {"n_probe": 100} if method == "faiss_ivf_retriever" else {}
    if method in RERANKERS:
        queries = queries.merge(pd.DataFrame({"docno": list(index.docnos())}), how="cross").assign(score=1.0)
    found = getattr(index, method)(**options)(queries)
    assert found.groupby("qid").size().tolist() == [documents] * 2
    for qid, query in {"a": vectors[0], "b": -vectors[0]}.items():
        expected = np.sort(vectors @ query)[::-1]
        np.testing.assert_allclose(found[found["qid"] == qid]["score"], expected, atol=1e-5)


# --- documents ------------------------------------------------------------------------------------------------------


@pytest.fixture
def multilingual(tmp_path):
    """An index whose documents have identifiers of all kinds, and candidates of one query."""
    docnos = ["d\u00e91", "d\u00e82", "\u65e5\u672c", "007", "008", "7", "a b", "e8c5d3"]
    vectors = np.eye(8, dtype=np.float32)
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    index.index([{"docno": docno, "doc_vec": vector} for docno, vector in zip(docnos, vectors, strict=True)])
    query = np.arange(8, 0, -1, dtype=np.float32)
    candidates = pd.DataFrame({"qid": "q", "query": "sort", "docno": docnos, "score": 1.0})
    return index, candidates.assign(query_vec=[query] * 8)


@pytest.mark.parametrize("method", RERANKERS)
def test_rerankers_know_identifiers_of_all_kinds(multilingual, method):
    index, candidates = multilingual
    found = getattr(index, method)()(candidates.iloc[::-1])
    assert found.sort_values("rank")["docno"].tolist() == candidates["docno"].tolist()
    assert found.sort_values("rank")["score"].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("method", [*RERANKERS, "vec_loader"])
def test_rerankers_name_identifiers_that_are_no_strings(multilingual, method):
    index, candidates = multilingual
    with pytest.raises(TypeError, match="the docno of the documents must be a string, got .7. in 1 of 9 rows"):
        getattr(index, method)()(pd.concat([candidates, candidates[:1].assign(docno=7)]))


@pytest.mark.parametrize("method", ["scorer", "torch_scorer"])
def test_scorers_name_the_column_that_is_missing(multilingual, method):
    index, candidates = multilingual
    with pytest.raises(pt.validate.InputValidationError, match="qid"):
        getattr(index, method)()(candidates.drop(columns="qid"))


@pytest.mark.parametrize("method", [*EXACT, *RERANKERS])
def test_columns_are_named_by_strings(multilingual, method):
    index, candidates = multilingual
    more = pd.concat([candidates, pd.DataFrame({7: candidates["score"]})], axis="columns")
    with pytest.raises(TypeError, match="columns of the queries must have strings as names, got .7.; rename"):
        getattr(index, method)()(more)


@pytest.mark.parametrize("method", [*RERANKERS, "vec_loader"])
def test_rerankers_refuse_documents_that_are_not_in_the_index(multilingual, method):
    index, candidates = multilingual
    with pytest.raises(LookupError, match="1 of 9 documents are not in the index, such as the docno '0007'"):
        getattr(index, method)()(pd.concat([candidates, candidates[:1].assign(docno="0007")]))


@pytest.mark.parametrize("method", ["scorer", "torch_scorer", "vec_loader"])
def test_the_positions_that_a_first_stage_gives_documents_do_not_count(multilingual, method):
    index, candidates = multilingual
    found = getattr(index, method)()(candidates.assign(docid=7))
    assert found["docid"].tolist() == list(range(8))
    if method == "vec_loader":
        np.testing.assert_array_equal(np.stack(found["doc_vec"]), np.eye(8))
    else:
        assert found["score"].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]


# --- an index that is replaced --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT + APPROXIMATE)
def test_retrievers_search_the_index_that_replaced_theirs(encoder, index, collection, method):
    options = {"n_probe": 8} if method == "faiss_ivf_retriever" else {}
    pipeline = encoder >> getattr(index, method)(**options)
    assert set(pipeline(collection.topics)["docno"]) <= set(collection.corpus["docno"])
    documents = [
        {"docno": f"new-{number}", "text": text} for number, text in enumerate(collection.corpus["text"][::-1])
    ]
    another = SelfDistillIndex(index.index_path, verbose=False)
    (encoder >> another.indexer(mode="overwrite")).index(documents[:20])
    found = pipeline(collection.topics)
    expected = (encoder >> getattr(another, method)(**options))(collection.topics)
    assert set(found["docno"]) <= {document["docno"] for document in documents[:20]}
    pd.testing.assert_frame_equal(found[["qid", "docno", "score"]], expected[["qid", "docno", "score"]])


def test_retrievers_may_be_made_before_the_index_is_built(encoder, collection, tmp_path):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    pipeline = encoder >> index.retriever()
    with pytest.raises(FileNotFoundError, match="there is no index"):
        pipeline(collection.topics)
    (encoder >> index).index(collection.records)
    assert len(pipeline(collection.topics)) == len(collection.results)


@pytest.mark.parametrize("method", APPROXIMATE)
def test_no_graph_of_an_index_is_left_in_the_one_that_replaced_it(encoder, index, collection, method, monkeypatch):
    make = getattr(FlexIndex, method)
    documents = list(reversed(collection.records[:20]))

    def make_slowly(self, **options):
        if documents:
            # the vectors are read before another index is there, and the graph is written after
            self.payload()
            taken, documents[:] = list(documents), []
            (encoder >> SelfDistillIndex(index.index_path, verbose=False).indexer(mode="overwrite")).index(taken)
        return make(self, **options)

    monkeypatch.setattr(FlexIndex, method, make_slowly)
    options = {"n_probe": 8} if method == "faiss_ivf_retriever" else {}
    found = (encoder >> getattr(index, method)(**options))(collection.topics)
    monkeypatch.undo()
    again = SelfDistillIndex(index.index_path, verbose=False)
    expected = (encoder >> again.retriever())(collection.topics)
    best = found[found["rank"] == 0].merge(expected, on=["qid", "docno"])
    assert len(best) == len(collection.topics)
    np.testing.assert_allclose(best["score_x"], best["score_y"], atol=1e-5)
    pd.testing.assert_frame_equal((encoder >> getattr(again, method)(**options))(collection.topics), found)


def test_graphs_are_computed_by_one_at_a_time(index):
    graphs = index.index_path.with_name("index.flex.graphs")
    with folder_lock(graphs, "computing a graph"):
        thread = threading.Thread(target=index.faiss_hnsw_retriever)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert not list(index.index_path.glob("*.faiss"))
    thread.join()
    assert len(list(index.index_path.glob("*.faiss"))) == 1
    assert [path.name for path in index.index_path.parent.iterdir()] == ["index.flex"]


@pytest.mark.parametrize("method", ["gar", "ladr_proactive", "ladr_adaptive"])
def test_graphs_are_no_other_artifacts(index, encoder, method):
    encoder.save(index.index_path / "corpusgraph_k4")
    with pytest.raises(ValueError, match="corpusgraph_k4' is no corpus graph, but has the kind .*biencoder"):
        getattr(index, method)(4)


# --- IndexTransformer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*EXACT, *APPROXIMATE, *SMALL, *RERANKERS])
def test_transformers_are_equal_if_made_of_the_same(index, method):
    options = {"k": 4} if method in ("gar", "ladr_proactive", "ladr_adaptive") else {}
    transformer = getattr(index, method)(**options)
    again = getattr(SelfDistillIndex(index.index_path, verbose=False), method)(**options)
    assert isinstance(transformer, IndexTransformer)
    assert transformer == again
    assert hash(transformer) == hash(again)
    if "flat" not in method:
        assert transformer != getattr(index, method)(**options, num_results=7)
    assert pickle.loads(pickle.dumps(transformer)) == transformer
    assert "index.flex" in repr(transformer)


def test_repr_shows_the_options_that_were_given(index):
    shown = f"{index!r}.retriever(num_results=5, drop_query_vec=True)"
    assert repr(index.retriever(num_results=5, drop_query_vec=True)) == shown
    assert repr(index.scorer()) == f"{index!r}.np_scorer()"


def test_set_parameter_changes_an_option(encoder, index, collection):
    retriever = index.retriever()
    before = hash(retriever)
    retriever.set_parameter("num_results", 2)
    assert retriever.get_parameter("num_results") == 2
    # a grid search holds it as a key
    assert hash(retriever) == before
    assert len((encoder >> retriever)(collection.topics)) == 2 * len(collection.topics)
    with pytest.raises(ValueError, match="num_results must be a positive integer, got 0"):
        retriever.set_parameter("num_results", 0)
    assert retriever.get_parameter("num_results") == 2
    with pytest.raises(ValueError, match="no option 'ef_search'"):
        retriever.set_parameter("ef_search", 2)


ROLES = {
    "encoder": lambda encoder, index: encoder >> index,
    "index": lambda encoder, index: index,
    "vector loader": lambda encoder, index: index.vec_loader(),
    "gar": lambda encoder, index: index.gar(4),
    "ladr": lambda encoder, index: index.ladr_proactive(4),
}


@pytest.mark.parametrize("role", ROLES)
def test_roles_conform_to_pyterrier(encoder, index, conforms, role):
    conforms(ROLES[role](encoder, index))


@pytest.mark.parametrize("method", [*EXACT, *APPROXIMATE, *SMALL, "scorer", "torch_scorer"])
def test_retrievers_and_scorers_conform_to_pyterrier(index, conforms, method):
    conforms(getattr(index, method)())


@pytest.mark.parametrize("method", ["retriever", "torch_retriever", "torch_scorer"])
def test_searching_under_autocast_finds_the_same(encoder, index, collection, method, ranking):
    searching = getattr(index, method)()
    queries = encoder.query_encoder()(collection.topics)
    if method == "torch_scorer":
        queries = queries.merge(collection.corpus[["docno"]].head(5), how="cross")
    with torch.autocast("cpu", torch.bfloat16):
        found = searching(queries)
    assert ranking(found) == ranking(searching(queries))
    assert found["score"].dtype == np.float32 or found["score"].dtype == np.float64
