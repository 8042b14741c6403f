"""Validation: the numbers of an experiment, which queries count, and which checkpoint becomes the encoder."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyterrier as pt
import pytest
from ir_measures import AP, RR, Judged, P, R, Rprec, Success, nDCG
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import RetrievalEvaluator, SelfDistillBiEncoder, SelfDistillIndex, compare
from pyterrier_selfdistill.data.negatives import from_results
from pyterrier_selfdistill.training.evaluation import search_depth
from tests.training.conftest import DESTRUCTIVE
from tests.training.together import PAIRS, QRELS, ROWS

MEASURES = [nDCG @ 3, nDCG, RR, RR @ 2, RR(rel=2) @ 5, R @ 5, R @ 100, P @ 5, AP @ 10, Rprec, Success @ 1, Judged @ 10]


def experiment(pipeline, topics, qrels):
    measured = pt.Experiment([pipeline], topics, qrels, MEASURES).iloc[0]
    return pytest.approx({str(measure): measured[str(measure)] for measure in MEASURES}, abs=1e-9)


@pytest.mark.parametrize(
    ("select", "coverage", "message"),
    [
        # candidates of half of the queries only, and not of all their relevant documents
        (lambda r, q: (r[(r["qid"] < "q4") & ~r["docno"].str.startswith("sort")], q), (8, 4, 0, 0), "4 of 8 judged"),
        # the topics are a sample, and the judgements are of all topics
        (lambda r, q: (r[r["qid"] < "q3"], q), (3, 0, 5, 0), "queries have no candidates, and only 3 have some"),
        (lambda r, q: (r, q[q["qid"] < "q6"]), (6, 0, 0, 2), "2 of 8 validation queries have no judgements"),
        (lambda r, q: (r, q), (8, 0, 0, 0), ""),
    ],
    ids=["half", "sample", "judged", "all"],
)
def test_queries_count_as_in_an_experiment(collection, encoder, caplog, select, coverage, message):
    candidates, qrels = select(collection.results, collection.qrels)
    evaluator = RetrievalEvaluator(candidates, qrels, MEASURES)
    assert tuple(evaluator.coverage.values()) == coverage
    assert message in caplog.text
    assert bool(message) == bool(caplog.records)
    topics = candidates if coverage[2] else collection.topics
    first_stage = pt.Transformer.from_df(candidates.assign(score=0.0, rank=0))
    assert evaluator(encoder.model) == experiment(first_stage >> encoder, topics, qrels)


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


def test_the_depth_of_a_search_depends_on_the_measures():
    assert search_depth([nDCG @ 10, R @ 100]) == 100
    assert search_depth([nDCG @ 10, AP]) == 1000
    assert search_depth([nDCG(judged_only=True) @ 10]) == 1000


def test_vectors_of_another_encoder_are_not_scored(collection, encoder, other):
    results, qrels = collection.results, collection.qrels
    with_vectors = other.doc_encoder()(other.query_encoder()(results))
    stale = RetrievalEvaluator(with_vectors, qrels.astype({"label": float}), MEASURES)(encoder.model)
    assert stale == RetrievalEvaluator(results, qrels, MEASURES)(encoder.model)


def test_the_corpus_supplies_texts_that_candidates_lack(collection, encoder):
    results, qrels = collection.results, collection.qrels
    without = RetrievalEvaluator(results.drop(columns="text"), qrels, MEASURES, corpus=collection.corpus)
    assert without(encoder.model) == RetrievalEvaluator(results, qrels, MEASURES)(encoder.model)


ARROW = {"qid": pd.ArrowDtype(pa.string()), "label": pd.ArrowDtype(pa.int64())}


@pytest.mark.parametrize("labels", [ARROW, {"qid": "category", "label": "Int8"}], ids=["Arrow", "nullable"])
def test_judgements_of_any_type_mean_the_same_everywhere(collection, encoder, labels):
    """Negative labels mean that a document is not relevant."""
    results, qrels = collection.results, collection.qrels
    scored = encoder(results)
    typed = results.astype({"qid": "category", "docno": ARROW["qid"]})
    judged = qrels.assign(label=qrels["label"].replace(0, -2)).astype(labels)
    measured, summaries, tables = [], [], []
    for frames in ((results, qrels), (typed, judged)):
        measured.append(RetrievalEvaluator(*frames, MEASURES)(encoder.model))
        summaries.append(from_results(*frames).summary)
        systems = {"first": scored.astype(frames[0].dtypes[["qid", "docno"]]), "second": scored.assign(score=0.0)}
        tables.append(compare(systems, *frames, MEASURES).table)
    assert measured[0] == measured[1]
    assert summaries[0] == summaries[1]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, q: (r, None), "qrels"),
        (lambda r, q: (r, q.assign(qid="x")), "got none: .*'x'"),
        (lambda r, q: (r, q.assign(label=0.5)), "0.5"),
        (lambda r, q: ({"one": r}, {"two": q}), r"\['one'\] and \['two'\]"),
        (lambda r, q: ({"one": r.head(0)}, {"one": q}), "(?s)in the collection 'one'|0 topics"),
    ],
)
def test_validation_that_cannot_be_done_is_an_error_before_training(make, collection, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(overwrite=True).fit_triples(ROWS, *change(collection.results, collection.qrels))
    assert not (tmp_path / "run").exists()


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


def test_judgements_of_training_queries_do_not_count(make, encoder, collection):
    """You may give all judgements for both."""
    results, qrels = collection.results, collection.qrels
    training, validation = results[results["qid"] < "q5"], results[results["qid"] >= "q5"]
    trainer = make(max_steps=1, passages=PASSAGES).fit(training, qrels, validation, qrels)
    evaluator = RetrievalEvaluator(validation, qrels[qrels["qid"] >= "q5"], [nDCG @ 10], passages=PASSAGES)
    measured = trainer.history["nDCG@10"].dropna()
    for value, kept in {measured.iloc[0]: encoder, measured.max(): trainer.encoder}.items():
        assert value == pytest.approx(evaluator(kept.model)["nDCG@10"], abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"save_strategy": "best", "bf16": True},
        {"learning_rate": 1e-9},
        {"num_train_epochs": 4, "eval_steps": 1, "patience": 3, "weights": "bfloat16"},
    ],
    ids=str,
)
def test_an_encoder_that_training_does_not_improve_stays(make, encoder, collection, satisfied, caplog, options):
    """A tie counts too. Early stopping compares with the untrained encoder."""
    if "weights" in options:
        encoder.model.bfloat16()
    options = {name: value for name, value in options.items() if name != "weights"}
    trainer = make(**DESTRUCTIVE | options).fit(collection.results, collection.qrels, collection.results, satisfied)
    # trained in float32, whatever the weights are
    assert {str(weights.dtype) for weights in trainer.encoder.model.parameters()} == {"torch.float32"}
    saved = SelfDistillBiEncoder(trainer.output_dir / "model", device="cpu", dtype="float32")
    assert saved.model_name == trainer.encoder.model_name == encoder.model_name
    summary = trainer.encoder.training_summary
    assert (summary["steps"], summary["best_step"]) == (options.get("patience", 5), 0)
    assert summary["best_measure"] == {"name": "nDCG@10", "value": 1.0}
    assert summary["similarity"]["after"] == summary["similarity"]["before"]
    assert caplog.text.count("did not improve nDCG@10") == 1
    assert ("which is equal (" in caplog.text) == ("learning_rate" in options)
    assert ("which is worse by " in caplog.text) == ("learning_rate" not in options)


def test_the_last_encoder_is_the_result_if_you_choose_none(make, encoder, collection, satisfied, caplog):
    options = {**DESTRUCTIVE, "load_best_model_at_end": False, "save_strategy": "no"}
    trainer = make(**options).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.encoder != encoder
    summary = trainer.encoder.training_summary
    assert (summary["best_step"], summary["best_measure"]) == (None, None)
    assert "load_best_model_at_end=False" in caplog.text
    last = trainer.history["nDCG@10"].dropna().iloc[-1]
    assert pt.Evaluate(trainer.encoder(collection.results), satisfied, [nDCG @ 10])["nDCG@10"] == last


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


def test_the_mean_over_data_sets_chooses_the_best_step(make, satisfied, collection):
    """One of them cannot improve, and the other has a query less. Each has its prompts."""
    frames = {"one": (PAIRS, QRELS[QRELS["qid"] != "table"]), "other": (collection.results, satisfied)}
    valid_results, valid_qrels = [{name: pair[part] for name, pair in frames.items()} for part in (0, 1)]
    prompts = {"one": {"query": "read: ", "document": "write: "}, "two": {"query": "plot: "}}
    trainer = make(num_train_epochs=2, prompts=prompts, eval_on_start=False).fit_triples(
        {"one": [row[:3] for row in ROWS], "two": ROWS[:14]}, valid_results, valid_qrels
    )
    history = trainer.history.dropna(subset="nDCG@10").set_index("step")
    assert list(history.columns[-3:]) == ["nDCG@10", "nDCG@10 (one)", "nDCG@10 (other)"]
    np.testing.assert_allclose(history["nDCG@10"], history[history.columns[-2:]].mean(axis=1))
    summary = trainer.encoder.training_summary
    best = summary["best_step"]
    assert best == history["nDCG@10"].idxmax() > 0
    for name, (results, qrels) in frames.items():
        prompted = trainer.encoder.with_prompts(**prompts.get(name, {}))
        measured = pt.Evaluate(prompted(results), qrels, [nDCG @ 10])["nDCG@10"]
        assert history.loc[best, f"nDCG@10 ({name})"] == pytest.approx(measured, abs=1e-9)
        assert summary["evaluation"]["collections"][name]["queries"] == {"one": 6, "other": 8}[name]
    card = (trainer.output_dir / "model" / "README.md").read_text()
    assert "| Data, two | 14 triples of 14 queries, from list, negatives per triple: 2" in card
    assert f"at step {best} (mean over collections) |" in card
