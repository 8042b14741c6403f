"""The encoder among other transformers: re-ranking, fusion, experiments, caches, processes, inspection."""

import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from pyterrier.measures import RR, nDCG
from pyterrier_caching import RetrieverCache, ScorerCache
from pyterrier_dr import AveragePrf, VectorPrf

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer


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


@pytest.fixture
def transformers(encoder, index, tmp_path):
    return {
        "encoder": encoder,
        "query encoder": encoder.query_encoder(),
        "document encoder": encoder.doc_encoder(),
        "scorer": encoder.scorer(),
        "trainer": SelfDistillTrainer(encoder, tmp_path / "run", target="adaptive", num_train_epochs=2),
        "index": index,
        "retriever": index.retriever(num_results=5),
        "re-ranker": index.gar(4),
        "vector loader": index.vec_loader(),
    }


# --- re-ranking, fusion, feedback -----------------------------------------------------------------------------------


def test_candidates_are_reranked(encoder, names, conforms, ranking):
    pipeline = names["bm25"] % 10 >> pt.text.get_text(names["dataset"]) >> encoder
    candidates = (names["bm25"] % 10)(names["topics"])
    found = pipeline(names["topics"])
    assert set(zip(found["qid"], found["docno"], strict=True)) == set(
        zip(candidates["qid"], candidates["docno"], strict=True)
    )
    texts = {document["docno"]: document["text"] for document in names["dataset"].get_corpus_iter()}
    expected = encoder(found[["qid", "query", "docno"]].assign(text=found["docno"].map(texts)))
    assert ranking(found) == ranking(expected)
    conforms(pipeline)


def test_retrieval_and_reranking_are_fused(encoder, index, names):
    dense = encoder >> index
    lexical = names["bm25"]
    fused = (0.3 * lexical + dense)(names["topics"]).set_index(["qid", "docno"])["score"]
    scores = [system(names["topics"]).set_index(["qid", "docno"])["score"] for system in (lexical, dense)]
    expected = scores[1].add(0.3 * scores[0], fill_value=0)
    np.testing.assert_allclose(fused, expected[fused.index], atol=1e-5)
    assert set(((lexical % 3) | (dense % 3))(names["topics"])["docno"])


def test_feedback_asks_the_index_for_what_it_needs(encoder, index, names):
    for prf in (VectorPrf(k=3), AveragePrf(k=3)):
        retriever = index.retriever()
        pipeline = encoder >> retriever >> index.vec_loader() >> prf >> (retriever % 2)
        compiled = pipeline.compile()
        assert [t.num_results for t in compiled if hasattr(t, "num_results")] == [3, 2]
        pd.testing.assert_frame_equal(compiled(names["topics"]), pipeline(names["topics"]))


# --- pt.Experiment and pt.GridSearch --------------------------------------------------------------------------------


def test_experiment_runs_once_what_systems_share(encoder, index, names, calls):
    systems = [
        encoder >> index,
        encoder >> index.retriever(num_results=5),
        encoder >> index >> index.vec_loader() >> VectorPrf() >> index,
    ]
    arguments = names["topics"], names["qrels"], [nDCG @ 10]
    with pytest.warns(UserWarning, match="plan='tree'"):
        apart = pt.Experiment(systems, *arguments)
    assert calls == {encoder.model_name: 3 * 8}
    calls.clear()
    together = pt.Experiment(systems, *arguments, plan="tree")
    assert calls == {encoder.model_name: 8}
    assert together["nDCG@10"].tolist() == apart["nDCG@10"].tolist()


def test_experiment_never_shares_two_models(encoder, other, names, calls):
    candidates = names["bm25"] >> pt.text.get_text(names["dataset"])
    systems = [candidates >> encoder, candidates >> other, candidates >> encoder.copy() >> pt.RankCutoff(5)]
    together = pt.Experiment(systems, names["topics"], names["qrels"], [RR], plan="tree")
    assert calls == {encoder.model_name: 8 + 320, other.model_name: 8 + 320}
    apart = [pt.Experiment([system], names["topics"], names["qrels"], [RR])["RR"].item() for system in systems]
    assert together["RR"].tolist() == apart


def test_grid_search_finds_the_best_weight_and_number_of_results(encoder, index, names):
    good = pt.Transformer.from_df(names["qrels"].rename(columns={"label": "score"}).merge(names["topics"], on="qid"))
    weighted, retriever = good * 0.5, index.retriever(num_results=1)
    searches = [
        (weighted + (encoder >> index), weighted[-1], "scalar", [-1.0, 0.0, 1.0], "ndcg_cut_10"),
        (encoder >> retriever, retriever, "num_results", [1, 40], "recall_100"),
    ]
    for pipeline, step, option, values, metric in searches:
        best, settings = pt.GridSearch(
            pipeline,
            {step: {option: values}},
            names["topics"],
            names["qrels"],
            metric=metric,
            return_type="best_setting",
        )
        assert best == pytest.approx(1)
        assert [(name, value) for _, name, value in settings] == [(option, values[-1])]


# --- pyterrier_caching ----------------------------------------------------------------------------------------------


def test_caches_notice_that_a_model_changed(encoder, other, index, names, calls, folder):
    candidates = (names["bm25"] >> pt.text.get_text(names["dataset"]))(names["topics"])
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


# --- processes ------------------------------------------------------------------------------------------------------


def test_transformers_are_equal_after_pickling(transformers, collection):
    for name, transformer in transformers.items():
        again = pickle.loads(pickle.dumps(transformer))
        assert name == "trainer" or again == transformer
    pipeline = transformers["encoder"] >> transformers["index"]
    pd.testing.assert_series_equal(
        pickle.loads(pickle.dumps(pipeline))(collection.topics)["docno"], pipeline(collection.topics)["docno"]
    )


# --- pt.inspect and pt.schematic ------------------------------------------------------------------------------------


def test_attributes_make_the_same_transformer(transformers):
    for name, transformer in transformers.items():
        same = pt.inspect.transformer_apply_attributes(transformer)
        attributes = [{a.name for a in pt.inspect.transformer_attributes(each)} for each in (transformer, same)]
        assert attributes[0] == attributes[1]
        assert name == "trainer" or same == transformer
    encoder = transformers["encoder"]
    encoder.training_summary = {"steps": 5}
    changed = pt.inspect.transformer_apply_attributes(encoder, batch_size=7)
    assert (changed.batch_size, encoder.batch_size) == (7, 32)
    assert (changed.name, changed.training_summary) == (encoder.name, {"steps": 5})
    trainer = pt.inspect.transformer_apply_attributes(transformers["trainer"], seed=7)
    assert (trainer.seed, trainer.target, trainer.arguments) == (7, "adaptive", {"num_train_epochs": 2})


def test_inputs_and_outputs_are_known(transformers):
    queries, candidates = ["qid", "query"], ["qid", "query", "docno", "text"]
    outputs = pt.inspect.transformer_outputs
    assert queries in pt.inspect.transformer_inputs(transformers["encoder"])
    assert outputs(transformers["encoder"], queries) == [*queries, "query_vec"]
    for name in ("encoder", "trainer"):
        assert outputs(transformers[name], candidates) == [*candidates, "score", "rank"]
    pipeline = transformers["encoder"] >> transformers["retriever"]
    assert pt.inspect.transformer_inputs(pipeline)[0] == queries
    assert set(outputs(pipeline, queries)) == {*queries, "query_vec", "docno", "docid", "score", "rank"}


@pytest.mark.parametrize("network", ["a network", "no network"])
def test_schematics_are_drawn(transformers, network, request):
    if network == "no network":
        request.getfixturevalue("no_network")
    for transformer in [*transformers.values(), transformers["index"].indexer()]:
        assert len(pt.schematic.transformer_schematic(transformer)["label"]) <= 20
        assert "<div" in pt.schematic.draw(transformer)
    encoder, retriever = transformers["encoder"], transformers["retriever"]
    for pipeline in (encoder >> transformers["index"], encoder >> retriever >> transformers["re-ranker"]):
        assert pipeline._repr_html_().count("pts-transformer-title") >= len(pipeline)
