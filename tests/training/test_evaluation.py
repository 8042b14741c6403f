"""Evaluation while training: what it ranks, when, and what it decides."""

import logging

import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import AP, RR, Judged, NumRet, P, R, Rprec, Success, nDCG

from pyterrier_selfdistill import RetrievalEvaluator
from pyterrier_selfdistill.training.evaluation import search_depth


def test_the_best_checkpoint_becomes_the_encoder(make, collection):
    """A learning rate that destroys the model: the encoder is the best of what is left, not the last one."""
    results, qrels = collection.results, collection.qrels
    destructive = {"learning_rate": 0.3, "warmup_steps": 0, "max_grad_norm": 1e9}
    # without the encoder before training, which is better than all
    trainer = make(num_train_epochs=4, eval_steps=2, eval_on_start=False, bf16=False, **destructive)
    trainer.fit(results, qrels, results, qrels)
    measured = trainer.history.set_index("step")["nDCG@10"].dropna()
    best = trainer.encoder.training_summary["best_step"]
    assert measured[best] == measured.max()
    found = trainer.encoder(results)
    assert pt.Evaluate(found, qrels, [nDCG @ 10])["nDCG@10"] == pytest.approx(measured[best], abs=1e-6)


def test_evaluation_once_an_epoch(make, collection):
    results, qrels = collection.results, collection.qrels
    trainer = make(num_train_epochs=2, eval_strategy="epoch").fit(results, qrels, results, qrels)
    evaluated = trainer.history["nDCG@10"].notna()
    assert trainer.history["step"][evaluated].tolist() == [0, 5, 10]


def test_vectors_of_a_dense_retriever_are_not_evaluated_with(make, encoder, collection):
    results, qrels = collection.results, collection.qrels
    with_vectors = encoder.doc_encoder()(encoder.query_encoder()(results))
    clean = make("clean").fit(results, qrels, results, qrels)
    stale = make("stale").fit(results, qrels, with_vectors, qrels)
    assert clean.history.equals(stale.history)


def test_labels_may_be_floats_that_are_integers(make, collection):
    results, floats = collection.results, collection.qrels.astype({"label": float})
    assert make("a").fit(results, floats, results, floats).history["nDCG@10"].notna().any()
    with pytest.raises(ValueError, match="labels of the validation qrels must be integers"):
        make("b").fit(results, floats, results, floats.assign(label=0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, q: (r, None), "topics .* and qrels"),
        (lambda r, q: (None, q), "topics .* and qrels"),
        (lambda r, q: (r[["qid", "query"]], q), "no candidates.*corpus="),
        (lambda r, q: (r.drop(columns="text"), q), "expected a column 'text'"),
        (lambda r, q: (r, q.assign(qid=7)), "got none: 8 topics"),
    ],
)
def test_fit_says_what_cannot_be_evaluated_with(make, collection, change, message, tmp_path):
    results, qrels = collection.results, collection.qrels
    with pytest.raises(ValueError, match=message):
        make().fit(results, qrels, *change(results, qrels))
    assert not (tmp_path / "run").exists()


# --- the same numbers as an experiment ------------------------------------------------------------------------------

MEASURES = [nDCG @ 3, nDCG, RR, RR @ 2, RR(rel=2) @ 5, R @ 5, R @ 100, P @ 5, AP @ 10, Rprec, Success @ 1, Judged @ 10]


@pytest.fixture
def half_found(collection):
    """Candidates of half of the queries only, some of whose relevant documents are missing."""
    results = collection.results
    found = results["qid"].isin(["q0", "q1", "q2", "q3"]) & ~results["docno"].str.startswith("sort")
    return results[found]


def test_candidates_give_the_numbers_of_an_experiment(collection, encoder, half_found):
    """Queries without candidates count, as they do where a retriever finds nothing for them."""
    topics, qrels = collection.topics, collection.qrels
    first_stage = pt.Transformer.from_df(half_found.assign(score=0.0, rank=0))
    expected = pt.Experiment([first_stage >> encoder], topics, qrels, MEASURES).iloc[0]
    evaluator = RetrievalEvaluator(half_found, qrels, MEASURES)
    measured = evaluator(encoder.model)
    assert measured == {str(measure): expected[str(measure)] for measure in MEASURES}
    assert (
        measured["nDCG@3"]
        < RetrievalEvaluator(half_found, qrels[qrels["qid"] < "q4"], MEASURES)(encoder.model)["nDCG@3"]
    )
    assert evaluator.coverage == {"queries": 8, "without_candidates": 4, "others": 0, "without_judgements": 0}


def test_searching_gives_the_numbers_of_an_experiment(collection, encoder, tmp_path):
    """Judgements of other queries do not count, nor do queries without judgements."""
    topics, qrels = collection.topics, collection.qrels
    asked = topics[topics["qid"] < "q6"]
    judged = qrels[qrels["qid"] > "q0"]
    retriever = encoder.build_retriever(collection.records, tmp_path / "index.flex")
    expected = pt.Experiment([retriever], asked, judged, MEASURES).iloc[0]
    evaluator = RetrievalEvaluator(asked, judged, MEASURES, corpus=collection.corpus)
    assert evaluator(encoder.model) == pytest.approx({str(measure): expected[str(measure)] for measure in MEASURES})
    assert evaluator.coverage == {"queries": 5, "without_candidates": 0, "others": 2, "without_judgements": 1}


def test_depth_of_search_is_that_of_the_measures(collection, encoder, monkeypatch):
    assert search_depth([nDCG @ 10, R @ 100]) == 100
    assert search_depth([nDCG @ 10, AP]) == 1000
    assert search_depth([nDCG(judged_only=True) @ 10]) == 1000
    corpus = [{"docno": f"d{number}", "text": f"sort the table {number}"} for number in range(50)]
    topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
    qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
    for options, found in [({}, 50), ({"num_results": 7}, 7)]:
        assert RetrievalEvaluator(topics, qrels, [NumRet], corpus=corpus, **options)(encoder.model)["NumRet"] == found


def test_gaps_of_more_than_a_tenth_are_warned_of(collection, half_found, caplog):
    qrels = collection.qrels
    RetrievalEvaluator(collection.results, qrels, [RR])
    assert not caplog.records
    RetrievalEvaluator(half_found, qrels, [RR])
    assert "4 of 8 judged validation queries have no candidates and count as 0" in caplog.text
    RetrievalEvaluator(collection.results, qrels[qrels["qid"] < "q6"], [RR])
    assert "2 of 8 validation queries have no judgements and are left out" in caplog.text


def test_judgements_of_many_other_queries_do_not_count(collection, encoder, caplog):
    """As where validation topics are a sample, and the judgements are of all."""
    results, qrels = collection.results, collection.qrels
    sample = results[results["qid"] < "q3"]
    expected = pt.Experiment([encoder], sample, qrels, MEASURES).iloc[0]
    evaluator = RetrievalEvaluator(sample, qrels, MEASURES)
    assert evaluator(encoder.model) == {str(measure): expected[str(measure)] for measure in MEASURES}
    assert evaluator.coverage == {"queries": 3, "without_candidates": 0, "others": 5, "without_judgements": 0}
    assert "5 judged validation queries have no candidates, and 3 have" in caplog.text


def test_judgements_of_the_training_queries_do_not_count(make, collection, caplog):
    """The judgements of all queries are often given for both."""
    results, qrels = collection.results, collection.qrels
    training, validation = results[results["qid"] < "q5"], results[results["qid"] >= "q5"]
    options = {"max_steps": 1}
    all_given = make("all", **options).fit(training, qrels, validation, qrels)
    split = make("split", **options).fit(training, qrels, validation, qrels[qrels["qid"] >= "q5"])
    pd.testing.assert_series_equal(all_given.history["nDCG@10"], split.history["nDCG@10"])


def test_measures_where_less_is_better(make, collection, caplog):
    """The rank of the first relevant document, say: here the number of results, which training cannot change."""
    results, qrels = collection.results, collection.qrels
    trainer = make(measures=[NumRet(rel=1)], greater_is_better=False, eval_steps=2)
    with caplog.at_level(logging.WARNING):
        trainer.fit(results, qrels, results, qrels)
    assert trainer.encoder.training_summary["best_measure"] == {"name": "NumRet(rel=1)", "value": 5.0}
    assert "did not improve NumRet(rel=1)" in caplog.text


def test_without_loading_the_best_model_no_best_step_is_claimed(make, collection):
    results, qrels = collection.results, collection.qrels
    trainer = make(load_best_model_at_end=False, eval_steps=2, num_train_epochs=2).fit(results, qrels, results, qrels)
    summary = trainer.encoder.training_summary
    assert (summary["best_step"], summary["best_measure"]) == (None, None)
    table = (trainer.encoder.path / "README.md").read_text().partition("## Measures while training")[2]
    assert "| best |" not in table
    last = trainer.history.set_index("step")["nDCG@10"].dropna().iloc[-1]
    assert pt.Evaluate(trainer.encoder(results), qrels, [nDCG @ 10])["nDCG@10"] == last


def test_no_evaluation_if_it_is_switched_off(make, collection):
    results, qrels = collection.results, collection.qrels
    trainer = make(eval_strategy="no").fit(results, qrels, results, qrels)
    assert trainer.history["nDCG@10"].isna().all()
    with pytest.raises(ValueError, match="eval_strategy='steps' evaluates, and there is nothing to evaluate with"):
        make("other", eval_strategy="steps").fit(results, qrels)


def test_a_batch_larger_than_the_data_is_an_error_where_it_would_be_dropped(make, collection):
    with pytest.raises(ValueError, match="leaves nothing of 40 triples.*a batch has 64"):
        make(dataloader_drop_last=True, per_device_train_batch_size=64).fit(collection.results, collection.qrels)
