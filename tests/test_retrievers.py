"""The retrievers and re-rankers of an index, with every backend that is installed."""

import inspect
import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier_dr import FlexIndex

from pyterrier_selfdistill import SelfDistillIndex
from pyterrier_selfdistill.retrievers import IndexTransformer

EXACT = ["retriever", "torch_retriever", "faiss_flat_retriever"]
APPROXIMATE = ["faiss_hnsw_retriever", "faiss_ivf_retriever", "voyager_retriever"]
RERANKERS = ["scorer", "torch_scorer", "gar", "ladr_proactive", "ladr_adaptive"]
ALIASES = {
    "np_retriever": "retriever",
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


@pytest.mark.parametrize("method", APPROXIMATE)
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


@pytest.mark.parametrize("method", EXACT + APPROXIMATE)
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


# --- IndexTransformer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*EXACT, *APPROXIMATE, *RERANKERS])
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
    shown = f"{index!r}.np_retriever(num_results=5, drop_query_vec=True)"
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


@pytest.mark.parametrize("method", [*EXACT, *APPROXIMATE, "scorer", "torch_scorer"])
def test_retrievers_and_scorers_conform_to_pyterrier(index, conforms, method):
    conforms(getattr(index, method)())


def test_vec_loader_takes_empty_frames(index):
    assert list(index.vec_loader()(pd.DataFrame({"docno": []})).columns) == ["docno", "doc_vec"]
