"""Evaluation while training: what it ranks, when, and what it decides."""

import pyterrier as pt
import pytest
from ir_measures import nDCG


def test_the_best_checkpoint_becomes_the_encoder(make, collection):
    """A learning rate that destroys the model after a good start: the encoder is the one from the start."""
    results, qrels = collection.results, collection.qrels
    trainer = make(num_train_epochs=4, learning_rate=0.3, warmup_steps=0, max_grad_norm=1e9, eval_steps=2, bf16=False)
    trainer.fit(results, qrels, results, qrels)
    measured = trainer.history.set_index("step")["nDCG@10"].dropna()
    best = trainer.encoder.training_summary["best_step"]
    assert measured[best] == measured.drop(0).max()
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
