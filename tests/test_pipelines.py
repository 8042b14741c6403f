"""The encoder among other transformers: what pyterrier-dr and PyTerrier promise of a biencoder holds for ours."""

import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from pyterrier.measures import RR, nDCG
from pyterrier_caching import RetrieverCache, ScorerCache
from pyterrier_dr import AveragePrf, VectorPrf

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer, ShardedIndex


@pytest.fixture
def index(encoder, names, folder):
    encoder.build_retriever(names["dataset"], folder / "index.flex")
    return SelfDistillIndex(folder / "index.flex", verbose=False)


@pytest.fixture
def other(encoder):
    other = encoder.copy()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return other


@pytest.fixture
def calls(monkeypatch):
    """Counts the texts that are encoded, by encoder."""
    counted = {}

    def counting(encode):
        def count(self, texts, batch_size=None):
            texts = list(texts)
            counted[self.model_name] = counted.get(self.model_name, 0) + len(texts)
            return encode(self, texts, batch_size)

        return count

    for name in ("encode_queries", "encode_docs"):
        monkeypatch.setattr(SelfDistillBiEncoder, name, counting(getattr(SelfDistillBiEncoder, name)))
    return counted


# --- frames without rows --------------------------------------------------------------------------------------------

OF_QUERIES = [
    *("retriever", "np_retriever", "torch_retriever", "faiss_flat_retriever", "faiss_hnsw_retriever"),
    *("faiss_ivf_retriever", "voyager_retriever", "masked", "np_masked", "sharded", "query_encoder"),
]
OF_RESULTS = [
    "scorer",
    "torch_scorer",
    "gar",
    "ladr_proactive",
    "ladr_adaptive",
    "vec_loader",
    "doc_encoder",
    "encoder",
]


def transformer_of(name, encoder, index):
    """Make what a name of the lists above stands for."""
    if "masked" in name:
        method = name.replace("masked", "retriever")
        return getattr(index, method)(mask=index.mask(["sort-table", "plot-row"]))
    if name == "sharded":
        return ShardedIndex([index.index_path]).retriever()
    if name == "encoder":
        return encoder.scorer()
    owner = encoder if "encoder" in name else index
    return getattr(owner, name)()


def kinds(frame):
    """Say what the columns of a frame hold, in their order: text or arrays, integers, or floats."""
    return [(name, dtype.kind.replace("u", "i")) for name, dtype in frame.dtypes.items()]


@pytest.mark.parametrize("name", [*OF_QUERIES, *OF_RESULTS])
def test_frames_without_rows_keep_their_columns(encoder, index, names, collection, name):
    given = encoder.query_encoder()(names["topics"]).assign(note=1)
    if name in OF_RESULTS:
        given = given.merge(collection.corpus, how="cross").assign(score=0.5, rank=0)
    transformer = transformer_of(name, encoder, index)
    nothing = transformer(given.head(0))
    assert len(nothing) == 0
    assert kinds(nothing) == kinds(transformer(given))
    # pandas merges columns of one type only
    assert nothing.merge(names["topics"][["qid"]], on="qid", how="right")["qid"].tolist() == list(
        names["topics"]["qid"]
    )


# --- feedback -------------------------------------------------------------------------------------------------------


def test_feedback_asks_the_index_for_what_it_needs(encoder, index, names):
    for prf in (VectorPrf(k=3), AveragePrf(k=3)):
        retriever = index.retriever()
        pipeline = encoder >> retriever >> index.vec_loader() >> prf >> (retriever % 2)
        compiled = pipeline.compile()
        assert [t.num_results for t in compiled if hasattr(t, "num_results")] == [3, 2]
        pd.testing.assert_frame_equal(compiled(names["topics"]), pipeline(names["topics"]))


# --- pt.Experiment --------------------------------------------------------------------------------------------------


def test_experiment_runs_once_what_systems_share(encoder, index, names, calls):
    systems = [
        encoder >> index,
        encoder >> index.retriever(num_results=5),
        encoder >> index >> index.vec_loader() >> VectorPrf() >> index,
    ]
    arguments = names["topics"], names["qrels"], [nDCG @ 10]
    with pytest.warns(UserWarning, match="Consider setting plan='tree'"):
        apart = pt.Experiment(systems, *arguments)
    assert calls == {encoder.model_name: 3 * 8}
    calls.clear()
    together = pt.Experiment(systems, *arguments, plan="tree")
    assert calls == {encoder.model_name: 8}
    assert together["nDCG@10"].tolist() == apart["nDCG@10"].tolist()


def test_experiment_never_shares_two_models(encoder, other, names, calls):
    text = pt.text.get_text(names["dataset"])
    candidates = names["bm25"] >> text
    systems = [candidates >> encoder, candidates >> other, candidates >> encoder.copy() >> pt.RankCutoff(5)]
    together = pt.Experiment(systems, names["topics"], names["qrels"], [RR], plan="tree")
    assert calls == {encoder.model_name: 8 + 320, other.model_name: 8 + 320}
    apart = [pt.Experiment([s], names["topics"], names["qrels"], [RR])["RR"].item() for s in systems]
    assert together["RR"].tolist() == apart


def test_experiment_does_not_share_masks(encoder, index, names):
    docnos = [doc["docno"] for doc in names["dataset"].get_corpus_iter()]
    systems = [encoder >> index.retriever(mask=index.mask(part)) for part in (docnos[:12], docnos[12:])]
    systems = [system >> pt.Transformer.identity() for system in systems]
    table = pt.Experiment(systems, names["topics"], names["qrels"], [nDCG @ 10], plan="tree")
    apart = [pt.Experiment([s], names["topics"], names["qrels"], [nDCG @ 10])["nDCG@10"].item() for s in systems]
    assert table["nDCG@10"].tolist() == apart


# --- pyterrier_caching ----------------------------------------------------------------------------------------------


def test_caches_notice_that_a_model_changed(encoder, other, index, names, calls):
    text = pt.text.get_text(names["dataset"])
    candidates = (names["bm25"] >> text)(names["topics"])
    expected = {model: model(candidates)["score"].to_numpy() for model in (encoder, other)}
    calls.clear()
    for model, encodes in [(encoder, True), (other, True), (encoder, False), (encoder.copy(), False)]:
        before = dict(calls)
        with ScorerCache(model.cache_path("caches/scores"), model) as cached:
            scored = candidates.drop(columns=["score", "rank"]).merge(cached(candidates), on=["qid", "docno"])
        np.testing.assert_allclose(scored["score"], expected[model], atol=1e-5)
        assert (calls != before) == encodes

    before = RetrieverCache(encoder.cache_path("caches/results"), encoder >> index)(names["topics"])
    willing = SelfDistillIndex(index.index_path, verbose=False, any_encoder=True)
    after = RetrieverCache(other.cache_path("caches/results"), other >> willing)(names["topics"])
    assert before["score"].tolist() != after["score"].tolist()


# --- pt.GridSearch --------------------------------------------------------------------------------------------------


def test_grid_search_finds_the_weight_that_is_best(encoder, index, names):
    dense = encoder >> index
    good = pt.Transformer.from_df(names["qrels"].rename(columns={"label": "score"}).merge(names["topics"], on="qid"))
    weighted = good * 0.5
    pipeline = weighted + dense
    grid = {weighted[-1]: {"scalar": [-1.0, 0.0, 1.0]}}
    best, settings = pt.GridSearch(
        pipeline, grid, names["topics"], names["qrels"], metric="ndcg_cut_10", return_type="best_setting"
    )
    assert best == pytest.approx(1)
    assert [(name, value) for _, name, value in settings] == [("scalar", 1.0)]


def test_grid_search_over_options_of_the_index(encoder, index, names):
    retriever = index.retriever(num_results=1)
    best, settings = pt.GridSearch(
        encoder >> retriever,
        {retriever: {"num_results": [1, 40]}},
        names["topics"],
        names["qrels"],
        metric="recall_100",
        return_type="best_setting",
    )
    assert [(name, value) for _, name, value in settings] == [("num_results", 40)]
    assert best == 1


# --- parallel -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("backend", ["joblib", pytest.param("ray", marks=pytest.mark.ray)])
def test_parallel_finds_the_same(encoder, index, names, backend, request):
    if backend == "ray":
        request.getfixturevalue("ray_cluster")
    pipeline = encoder >> index
    expected = pipeline(names["topics"])
    with pytest.warns(UserWarning, match="experimental"):
        parallel = pipeline.parallel(2, backend=backend)(names["topics"])
    columns = ["qid", "docno", "score", "rank"]
    pd.testing.assert_frame_equal(
        parallel[columns].reset_index(drop=True), expected[columns].reset_index(drop=True), atol=1e-6
    )


# --- pt.inspect, pt.schematic, pickle -------------------------------------------------------------------------------


@pytest.fixture
def transformers(encoder, index, folder):
    return {
        "encoder": encoder,
        "query encoder": encoder.query_encoder(),
        "document encoder": encoder.doc_encoder(),
        "scorer": encoder.scorer(),
        "trainer": SelfDistillTrainer(encoder, folder / "run", target="adaptive", num_train_epochs=2),
        "index": index,
        "retriever": index.retriever(num_results=5),
        "re-ranker": index.gar(4),
    }


def test_transformer_attributes_make_the_same_transformer(transformers):
    for name, transformer in transformers.items():
        attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(transformer)}
        same = pt.inspect.transformer_apply_attributes(transformer)
        again = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(same)}
        assert again.keys() == attributes.keys()
        assert name == "trainer" or same == transformer
    encoder = transformers["encoder"]
    encoder.training_summary = {"steps": 5}
    changed = pt.inspect.transformer_apply_attributes(encoder, batch_size=7)
    assert (changed.batch_size, encoder.batch_size) == (7, 32)
    assert (changed.name, changed.training_summary) == (encoder.name, {"steps": 5})
    trainer = pt.inspect.transformer_apply_attributes(transformers["trainer"], seed=7)
    assert (trainer.seed, trainer.target, trainer.arguments) == (7, "adaptive", {"num_train_epochs": 2})


def test_transformer_inputs_and_outputs(transformers):
    queries, candidates = ["qid", "query"], ["qid", "query", "docno", "text"]
    outputs = pt.inspect.transformer_outputs
    assert queries in pt.inspect.transformer_inputs(transformers["encoder"])
    assert outputs(transformers["encoder"], queries) == [*queries, "query_vec"]
    assert outputs(transformers["encoder"], candidates) == [*candidates, "score", "rank"]
    assert outputs(transformers["trainer"], candidates) == [*candidates, "score", "rank"]
    pipeline = transformers["encoder"] >> transformers["retriever"]
    assert pt.inspect.transformer_inputs(pipeline)[0] == queries
    assert set(outputs(pipeline, queries)) == {*queries, "query_vec", "docno", "docid", "score", "rank"}


def test_schematics_are_drawn(transformers, names):
    for transformer in transformers.values():
        assert len(pt.schematic.transformer_schematic(transformer)["label"]) <= 20
        assert "<div" in pt.schematic.draw(transformer)
    encoder, index = transformers["encoder"], transformers["index"]
    pipeline = names["bm25"] % 10 >> pt.text.get_text(names["dataset"]) >> encoder
    for drawn in (encoder >> index, pipeline, encoder >> transformers["retriever"] >> transformers["re-ranker"]):
        html = drawn._repr_html_()
        assert html.count("pts-transformer-title") >= len(drawn)
    assert "TorchRetriever" in (encoder >> transformers["retriever"])._repr_html_()


def test_schematics_are_drawn_without_a_network(transformers, encoder, index, no_network):
    for transformer in [*transformers.values(), index.indexer(), index.vec_loader()]:
        assert "<div" in pt.schematic.draw(transformer)
    for pipeline in (encoder >> index, encoder >> transformers["retriever"] >> transformers["re-ranker"]):
        assert "<div" in pt.schematic.draw(pipeline)


def test_transformers_are_equal_after_pickling(transformers, names, encoder, index):
    for name, transformer in transformers.items():
        again = pickle.loads(pickle.dumps(transformer))
        assert name == "trainer" or again == transformer
    pipeline = pickle.loads(pickle.dumps(encoder >> index))
    pd.testing.assert_series_equal(pipeline(names["topics"])["docno"], (encoder >> index)(names["topics"])["docno"])
