"""Validation: the numbers of an experiment, which queries count, and which checkpoint becomes the encoder."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import AP, RR, Judged, NumRet, P, R, Rprec, Success, nDCG
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import RetrievalEvaluator, SelfDistillBiEncoder, SelfDistillIndex
from pyterrier_selfdistill.training.evaluation import search_depth
from tests.training.together import PAIRS, QRELS, ROWS

MEASURES = [nDCG @ 3, nDCG, RR, RR @ 2, RR(rel=2) @ 5, R @ 5, R @ 100, P @ 5, AP @ 10, Rprec, Success @ 1, Judged @ 10]


def experiment(pipeline, topics, qrels):
    measured = pt.Experiment([pipeline], topics, qrels, MEASURES).iloc[0]
    return pytest.approx({str(measure): measured[str(measure)] for measure in MEASURES}, abs=1e-9)


@pytest.fixture
def half_found(collection):
    """Candidates of half of the queries only, and not of all their relevant documents."""
    results = collection.results
    return results[results["qid"].isin(["q0", "q1", "q2", "q3"]) & ~results["docno"].str.startswith("sort")]


def test_queries_without_candidates_count_as_in_an_experiment(collection, encoder, half_found, caplog):
    topics, qrels = collection.topics, collection.qrels
    first_stage = pt.Transformer.from_df(half_found.assign(score=0.0, rank=0))
    evaluator = RetrievalEvaluator(half_found, qrels, MEASURES)
    assert evaluator(encoder.model) == experiment(first_stage >> encoder, topics, qrels)
    assert evaluator.coverage == {"queries": 8, "without_candidates": 4, "others": 0, "without_judgements": 0}
    assert "4 of 8 judged validation queries have no candidates" in caplog.text
    caplog.clear()
    RetrievalEvaluator(collection.results, qrels, [RR])
    assert not caplog.records
    RetrievalEvaluator(collection.results, qrels[qrels["qid"] < "q6"], [RR])
    assert "2 of 8 validation queries have no judgements" in caplog.text


def test_judgements_of_many_other_queries_do_not_count(collection, encoder, caplog):
    """For example, the topics are a sample, and the judgements are those of all topics."""
    results, qrels = collection.results, collection.qrels
    sample = results[results["qid"] < "q3"]
    evaluator = RetrievalEvaluator(sample, qrels, MEASURES)
    assert evaluator(encoder.model) == experiment(encoder, sample, qrels)
    assert evaluator.coverage == {"queries": 3, "without_candidates": 0, "others": 5, "without_judgements": 0}
    assert "5 judged validation queries have no candidates, and 3 have" in caplog.text


def test_searching_gives_the_numbers_of_an_experiment(collection, encoder, tmp_path):
    topics, qrels = collection.topics, collection.qrels
    asked, judged = topics[topics["qid"] < "q6"], qrels[qrels["qid"] > "q0"]
    retriever = encoder.build_retriever(collection.records, tmp_path / "index.flex")
    evaluator = RetrievalEvaluator(asked, judged, MEASURES, corpus=collection.corpus)
    assert evaluator(encoder.model) == experiment(retriever, asked, judged)
    assert evaluator.coverage == {"queries": 5, "without_candidates": 0, "others": 2, "without_judgements": 1}


PASSAGES = pt.text.sliding("text", length=2, stride=1, prepend_attr=None)


def test_documents_score_as_their_best_passages(encoder, collection, tmp_path):
    topics, qrels, results = collection.topics, collection.qrels, collection.results
    ranked = RetrievalEvaluator(results, qrels, MEASURES, passages=PASSAGES)(encoder.model)
    pipeline = pt.Transformer.from_df(results.assign(score=0.0)) >> PASSAGES >> encoder >> pt.text.max_passage()
    assert ranked == experiment(pipeline, topics, qrels)
    assert ranked != RetrievalEvaluator(results, qrels, MEASURES)(encoder.model)
    searched = RetrievalEvaluator(topics, qrels, MEASURES, corpus=collection.corpus, passages=PASSAGES)(encoder.model)
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (PASSAGES >> encoder >> index).index(collection.records)
    assert searched == experiment(encoder >> index >> pt.text.max_passage(), topics, qrels)


def test_the_depth_of_a_search_depends_on_the_measures(encoder):
    assert search_depth([nDCG @ 10, R @ 100]) == 100
    assert search_depth([nDCG @ 10, AP]) == 1000
    assert search_depth([nDCG(judged_only=True) @ 10]) == 1000
    corpus = [{"docno": f"d{number}", "text": f"sort the table {number}"} for number in range(50)]
    topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
    qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
    for options, found in [({}, 50), ({"num_results": 7}, 7)]:
        assert RetrievalEvaluator(topics, qrels, [NumRet], corpus=corpus, **options)(encoder.model)["NumRet"] == found


def test_vectors_of_another_encoder_are_not_scored(collection, encoder, other):
    results, qrels = collection.results, collection.qrels
    with_vectors = other.doc_encoder()(other.query_encoder()(results))
    stale = RetrievalEvaluator(with_vectors, qrels.astype({"label": float}), MEASURES)(encoder.model)
    assert stale == RetrievalEvaluator(results, qrels, MEASURES)(encoder.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, q: (r, None), "qrels"),
        (lambda r, q: (None, q), "topics"),
        (lambda r, q: (r[["qid", "query"]], q), "corpus="),
        (lambda r, q: (r.drop(columns="text"), q), "'text'"),
        (lambda r, q: (r, q.assign(qid="x")), "got none: .*'x'"),
        (lambda r, q: (r, q.assign(label=0.5)), "0.5"),
        (lambda r, q: ({"one": r}, q), "'a': "),
        (lambda r, q: ({"one": r}, {"two": q}), r"\['one'\] and \['two'\]"),
        (lambda r, q: ({}, {}), "valid_topics_or_results"),
        (lambda r, q: ({"one": r.head(0)}, {"one": q}), "(?s)in the collection 'one'|0 topics"),
    ],
)
def test_validation_that_cannot_be_done_is_an_error_before_training(make, collection, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(overwrite=True).fit_triples(ROWS, *change(collection.results, collection.qrels))
    assert not (tmp_path / "run").exists()


# --- validation while training --------------------------------------------------------------------------------------


def test_the_history_has_the_numbers_of_an_experiment(whole, encoder, collection):
    history = whole.history.set_index("step")[["nDCG@10", "RR"]].dropna()
    assert history.index.tolist() == [0, 3, 6, 9, 10]
    best = whole.encoder.training_summary["best_step"]
    assert history["nDCG@10"].idxmax() == best > 0
    topics, qrels, results = collection.topics, collection.qrels, collection.results
    pipelines = [pt.Transformer.from_df(results.assign(score=0.0)) >> one for one in (encoder, whole.encoder)]
    measured = pt.Experiment(pipelines, topics, qrels, [nDCG @ 10, RR])
    np.testing.assert_allclose(measured[["nDCG@10", "RR"]].to_numpy(), history.loc[[0, best]].to_numpy(), atol=1e-9)


def test_validation_measures_the_saved_weights(make, collection):
    """And not those that autocast rounds, which would choose another checkpoint than you get."""
    results, qrels = collection.results, collection.qrels
    options = {"num_train_epochs": 2, "save_total_limit": None, "learning_rate": 1e-2, "eval_strategy": "epoch"}
    trainer = make(bf16=True, **options).fit(results, qrels, results, qrels)
    measured = trainer.history.set_index("step")["nDCG@10"].dropna()
    assert measured.index.tolist() == [0, 5, 10]
    for step, value in measured.drop(0).items():
        saved = SelfDistillBiEncoder(trainer.output_dir / "checkpoints" / f"checkpoint-{step}")
        assert pt.Evaluate(saved(results), qrels, [nDCG @ 10])["nDCG@10"] == value
    texts = ["sort the table"]
    model = SentenceTransformer(str(trainer.output_dir / "model"))
    np.testing.assert_allclose(model.encode_document(texts), trainer.encoder.encode_docs(texts), atol=1e-6)


def test_judgements_of_training_queries_do_not_count(make, collection):
    """You may give all judgements for both."""
    results, qrels = collection.results, collection.qrels
    training, validation = results[results["qid"] < "q5"], results[results["qid"] >= "q5"]
    trainer = make(max_steps=1, passages=PASSAGES).fit(training, qrels, validation, qrels)
    evaluator = RetrievalEvaluator(validation, qrels[qrels["qid"] >= "q5"], [nDCG @ 10], passages=PASSAGES)
    measured = trainer.history["nDCG@10"].dropna()
    np.testing.assert_allclose(
        [measured.iloc[0], measured.max()],
        [evaluator(model)["nDCG@10"] for model in (trainer._encoder.model, trainer.encoder.model)],
        atol=1e-9,
    )


def test_eval_strategy_no_evaluates_nothing(make, collection):
    results, qrels = collection.results, collection.qrels
    trainer = make(max_steps=2, eval_strategy="no", logging_strategy="no").fit(results, qrels, results, qrels)
    assert trainer.history["nDCG@10"].isna().all()
    assert trainer.encoder.training_summary["best_step"] is None
    assert (trainer.output_dir / "history.png").exists()
    with pytest.raises(ValueError, match="metric_for_best_model.*'eval_RR'"):
        make("other", metric_for_best_model="eval_RR").fit(results, qrels, results, qrels)


# --- the encoder before training competes ---------------------------------------------------------------------------

DESTRUCTIVE = {"learning_rate": 0.1, "warmup_steps": 0, "max_grad_norm": 1e9, "eval_steps": 2}
"""A learning rate that makes the encoder worse in a step."""


@pytest.mark.parametrize(
    "options",
    [
        {"eval_strategy": "epoch"},
        {"save_strategy": "best", "bf16": True},
        {"learning_rate": 1e-9},
        {"num_train_epochs": 4, "eval_steps": 1, "patience": 3},
        {"weights": "bfloat16"},
    ],
    ids=str,
)
def test_an_encoder_that_training_does_not_improve_stays(make, encoder, collection, satisfied, caplog, options):
    """A tie counts too. Early stopping compares with the untrained encoder."""
    if options.pop("weights", None):
        encoder.model.bfloat16()
    trainer = make(**DESTRUCTIVE | options).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.encoder.model_name == encoder.model_name
    assert trainer.encoder.model is not encoder.model
    # trained in float32, whatever the weights are
    assert {str(weights.dtype) for weights in trainer.encoder.model.parameters()} == {"torch.float32"}
    saved = SelfDistillBiEncoder(trainer.output_dir / "model", device="cpu", dtype="float32")
    assert saved.model_name == encoder.model_name
    summary = trainer.encoder.training_summary
    assert (summary["steps"], summary["best_step"]) == (options.get("patience", 5), 0)
    assert summary["best_measure"] == {"name": "nDCG@10", "value": 1.0}
    assert summary["history"][0] == {"step": 0, "nDCG@10": 1.0}
    assert summary["similarity"]["after"] == summary["similarity"]["before"]
    later = trainer.history.set_index("step")["nDCG@10"].dropna().drop(0)
    assert f"1.0000 before, {later.max():.4f} at best after, in step {later.idxmax()}" in caplog.text
    assert caplog.text.count("did not improve nDCG@10") == 1


def test_the_last_encoder_is_the_result_if_you_choose_none(make, encoder, collection, satisfied, caplog):
    options = {**DESTRUCTIVE, "load_best_model_at_end": False, "save_strategy": "no"}
    trainer = make(**options).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.encoder != encoder
    summary = trainer.encoder.training_summary
    assert (summary["best_step"], summary["best_measure"]) == (None, None)
    assert "load_best_model_at_end=False" in caplog.text
    assert "| best |" not in (trainer.encoder.path / "README.md").read_text()
    last = trainer.history["nDCG@10"].dropna().iloc[-1]
    assert pt.Evaluate(trainer.encoder(collection.results), satisfied, [nDCG @ 10])["nDCG@10"] == last


def test_the_best_of_the_later_steps_is_kept_wherever_it_lies(make, encoder, collection, satisfied):
    """It may lie between checkpoints; the untrained encoder does not compete without an evaluation on start."""
    options = {**DESTRUCTIVE, "num_train_epochs": 2, "eval_steps": 1, "save_steps": 10, "eval_on_start": False}
    trainer = make(**options).fit(collection.results, collection.qrels, collection.results, satisfied)
    summary = trainer.encoder.training_summary
    measured = trainer.history.set_index("step")["nDCG@10"].dropna()
    assert 0 < summary["best_step"] < summary["steps"]
    assert measured[summary["best_step"]] == measured.max() == summary["best_measure"]["value"]
    found = pt.Evaluate(trainer.encoder(collection.results), satisfied, [nDCG @ 10])
    assert found["nDCG@10"] == pytest.approx(measured.max(), abs=1e-9)


def test_a_lower_measure_may_be_better(make, encoder, collection):
    """The untrained encoder finds the relevant document last, and no encoder can find it later."""
    ranked = encoder(collection.results)
    qrels = ranked[["qid", "docno"]].assign(label=(ranked["rank"] == ranked["rank"].max()).astype(int))
    options = {**DESTRUCTIVE, "measures": [nDCG @ 10, RR], "metric_for_best_model": "RR", "greater_is_better": False}
    trainer = make(**options).fit(collection.results, collection.qrels, collection.results, qrels)
    assert trainer.encoder == encoder
    best = trainer.encoder.training_summary["best_measure"]
    assert (best["name"], best["value"]) == ("RR", pytest.approx(1 / 40))
    assert trainer.history["RR"].dropna().iloc[1:].min() > best["value"]


# --- several data sets ----------------------------------------------------------------------------------------------


def test_the_mean_over_data_sets_chooses_the_best_step(make, satisfied, collection):
    """One of them cannot improve, and the other has a query less. Each has its prompts."""
    rows = [row[:3] for row in ROWS]
    fewer = QRELS[QRELS["qid"] != "table"]
    prompts = {"one": {"query": "read: ", "document": "write: "}, "two": {"query": "plot: "}}
    trainer = make(num_train_epochs=2, prompts=prompts, eval_on_start=False).fit_triples(
        {"one": rows, "two": ROWS[:14]},
        {"one": PAIRS, "other": collection.results},
        {"one": fewer, "other": satisfied},
    )
    history = trainer.history.dropna(subset="nDCG@10").set_index("step")
    assert list(history.columns[-3:]) == ["nDCG@10", "nDCG@10 (one)", "nDCG@10 (other)"]
    np.testing.assert_allclose(history["nDCG@10"], history[history.columns[-2:]].mean(axis=1))
    summary = trainer.encoder.training_summary
    best = summary["best_step"]
    assert best == history["nDCG@10"].idxmax() > 0
    for name, frames in {"one": (PAIRS, fewer), "other": (collection.results, satisfied)}.items():
        prompted = trainer.encoder.with_prompts(**prompts.get(name, {}))
        measured = pt.Evaluate(prompted(frames[0]), frames[1], [nDCG @ 10])["nDCG@10"]
        assert history.loc[best, f"nDCG@10 ({name})"] == pytest.approx(measured, abs=1e-9)
        assert summary["evaluation"]["collections"][name]["queries"] == {"one": 6, "other": 8}[name]
    assert summary["prompts"] == prompts
    card = (trainer.output_dir / "model" / "README.md").read_text()
    assert "| Data, one | 21 triples of 21 queries, from list, 1 negatives each" in card
    assert "| Data, two | 14 triples of 14 queries, from list, 2 negatives each" in card
    assert f"at step {best} (mean over collections) |" in card
