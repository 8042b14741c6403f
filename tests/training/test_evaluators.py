"""Evaluators of a run: of several collections, and by passages as an index of passages is searched."""

import numpy as np
import pyterrier as pt
import pytest
from pyterrier.measures import RR, nDCG

from pyterrier_selfdistill import RetrievalEvaluator, SelfDistillIndex
from pyterrier_selfdistill.training.evaluation import CollectionsEvaluator, make_evaluator

PASSAGES = pt.text.sliding("text", length=2, stride=1, prepend_attr=None)
MEASURES = [nDCG @ 10, RR]


def test_candidates_are_scored_by_their_best_passages(encoder, collection):
    topics, qrels, results = collection.topics, collection.qrels, collection.results
    measured = RetrievalEvaluator(results, qrels, MEASURES, passages=PASSAGES)(encoder.model)
    pipeline = pt.Transformer.from_df(results.assign(score=0.0)) >> PASSAGES >> encoder >> pt.text.max_passage()
    expected = pt.Experiment([pipeline], topics, qrels, MEASURES)
    np.testing.assert_allclose(list(measured.values()), expected[list(measured)].to_numpy()[0])
    whole = RetrievalEvaluator(results, qrels, MEASURES)(encoder.model)
    assert measured != whole


def test_a_corpus_is_searched_by_passages(encoder, collection, tmp_path):
    topics, qrels = collection.topics, collection.qrels
    evaluator = RetrievalEvaluator(topics, qrels, MEASURES, corpus=collection.corpus, passages=PASSAGES)
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (PASSAGES >> encoder >> index).index(collection.records)
    expected = pt.Experiment([encoder >> index >> pt.text.max_passage()], topics, qrels, MEASURES)
    measured = evaluator(encoder.model)
    np.testing.assert_allclose(list(measured.values()), expected[list(measured)].to_numpy()[0])


@pytest.mark.parametrize("kind", ["results", "topics"])
def test_a_trainer_evaluates_by_the_passages_that_it_trains_with(make, encoder, collection, kind):
    frame, qrels = getattr(collection, kind), collection.qrels
    trainer = make(passages=PASSAGES, corpus=collection.corpus, max_steps=1).fit(frame, qrels, frame, qrels)
    evaluator = RetrievalEvaluator(frame, qrels, [nDCG @ 10], corpus=collection.corpus, passages=PASSAGES)
    assert trainer.history["nDCG@10"].iloc[0] == pytest.approx(evaluator(encoder.model)["nDCG@10"], abs=1e-9)


def test_collections_have_their_own_measures_and_queries(encoder, collection):
    results, qrels = collection.results, collection.qrels
    half = results[results["qid"] < "q4"]
    frames = {"all": results, "half": half}, {"all": qrels, "half": qrels[qrels["qid"] < "q4"]}
    evaluator = make_evaluator(encoder, *frames, None, measures=MEASURES, corpus=None, fields=None)
    assert isinstance(evaluator, CollectionsEvaluator)
    described = evaluator.describe()
    assert described["measures"] == ["nDCG@10", "RR"]
    assert {name: part["queries"] for name, part in described["collections"].items()} == {"all": 8, "half": 4}
    measured = evaluator(encoder.model)
    assert list(measured) == ["nDCG@10", "RR", "nDCG@10 (all)", "nDCG@10 (half)", "RR (all)", "RR (half)"]
    alone = RetrievalEvaluator(*(frame["half"] for frame in frames), MEASURES)(encoder.model)
    assert measured["RR (half)"] == alone["RR"] != measured["RR (all)"]
