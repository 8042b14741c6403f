"""The training loop: its schedule, when it stops, and what it logs."""

from itertools import count

import numpy as np
import pyterrier as pt
import pytest
import torch
from ir_measures import RR, nDCG

from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillBiEncoder
from pyterrier_selfdistill.training import loop


def test_the_paper_preset_multiplies_the_learning_rate_each_step(make, collection):
    trainer = make(preset="paper", learning_rate=5e-7, per_device_train_batch_size=8, logging_steps=1)
    trainer.fit(collection.results, collection.qrels)
    rates = trainer.history["learning_rate"].dropna().to_numpy()
    np.testing.assert_allclose(rates, 5e-7 * 0.99999 ** np.arange(1, len(rates) + 1), rtol=1e-3)


def test_early_stopping_after_patience(make, collection):
    results, qrels = collection.results, collection.qrels
    trainer = make(num_train_epochs=50, learning_rate=1e-12, eval_steps=1, patience=3)
    trainer.fit(results, qrels, results, qrels)
    # the value before training is the one to beat
    assert trainer.history["step"].max() == 3


def test_the_last_step_is_evaluated_too(make, collection):
    results, qrels = collection.results, collection.qrels
    trainer = make(eval_steps=2).fit(results, qrels, results, qrels)
    evaluated = trainer.history["nDCG@10"].notna()
    assert trainer.history["step"][evaluated].tolist() == [0, 2, 4, 5]


# --- the encoder before training ------------------------------------------------------------------------------------

DESTRUCTIVE = {"learning_rate": 0.1, "warmup_steps": 0, "max_grad_norm": 1e9, "eval_steps": 2}
"""A learning rate that makes the encoder worse in a step."""


@pytest.mark.parametrize(
    "options", [{}, {"eval_strategy": "epoch"}, {"save_strategy": "best"}, {"bf16": True}], ids=str
)
def test_an_encoder_that_training_makes_worse_is_kept(make, encoder, collection, satisfied, caplog, options):
    trainer = make(**DESTRUCTIVE, **options).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.encoder == encoder
    assert trainer.encoder.model is not encoder.model
    vectors = trainer.encoder.encode_docs(["sort the rows"])
    np.testing.assert_array_equal(vectors, encoder.encode_docs(["sort the rows"]))
    assert SelfDistillBiEncoder(trainer.output_dir / "model", device="cpu", dtype="float32") == encoder
    summary = trainer.encoder.training_summary
    assert (summary["steps"], summary["best_step"]) == (5, 0)
    assert summary["best_measure"] == {"name": "nDCG@10", "value": 1.0}
    assert summary["history"][0] == {"step": 0, "nDCG@10": 1.0}
    assert summary["similarity"]["after"] == summary["similarity"]["before"]
    later = trainer.history.set_index("step")["nDCG@10"].dropna().drop(0)
    warning = f"1.0000 before, {later.max():.4f} at best after, in step {later.idxmax()}, which is worse by "
    assert f"{warning}{1 - later.max():.4f}. The result is the encoder that training started from" in caplog.text


def test_a_tie_goes_to_the_encoder_before_training(make, encoder, collection, satisfied):
    trainer = make(learning_rate=1e-9).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.history["nDCG@10"].dropna().eq(1).all()
    assert trainer.encoder == encoder


def test_an_encoder_that_training_makes_better_is_not_kept(make, encoder, collection):
    results, qrels = collection.results, collection.qrels
    trainer = make(num_train_epochs=4).fit(results, qrels, results, qrels)
    summary = trainer.encoder.training_summary
    assert trainer.encoder != encoder
    assert summary["best_step"] > 0
    assert summary["best_measure"]["value"] == trainer.history["nDCG@10"].max() > trainer.history["nDCG@10"][0]


def test_early_stopping_counts_what_is_worse_than_before_training(make, encoder, collection, satisfied):
    options = {**DESTRUCTIVE, "eval_steps": 1, "num_train_epochs": 4, "patience": 3}
    trainer = make(**options).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.encoder == encoder
    assert trainer.encoder.training_summary["steps"] == 3


def test_the_last_encoder_is_the_result_where_none_is_chosen(make, encoder, collection, satisfied, caplog):
    options = {**DESTRUCTIVE, "load_best_model_at_end": False, "save_strategy": "no"}
    trainer = make(**options).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.encoder != encoder
    summary = trainer.encoder.training_summary
    assert (summary["best_step"], summary["best_measure"]) == (None, None)
    assert "The result is the encoder of the last step all the same" in caplog.text


def test_without_an_evaluation_on_start_the_best_of_the_others_is_the_result(make, encoder, collection, satisfied):
    options = {**DESTRUCTIVE, "eval_on_start": False}
    trainer = make(**options).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.encoder != encoder
    assert trainer.encoder.training_summary["best_step"] > 0


def test_a_measure_of_which_less_is_better_decides(make, encoder, collection):
    """The first encoder finds the relevant document last, which no encoder does more."""
    ranked = encoder(collection.results)
    is_last = ranked["rank"] == ranked["rank"].max()
    qrels = ranked[["qid", "docno"]].assign(label=is_last.astype(int))
    options = {**DESTRUCTIVE, "measures": [nDCG @ 10, RR], "metric_for_best_model": "RR", "greater_is_better": False}
    trainer = make(**options).fit(collection.results, collection.qrels, collection.results, qrels)
    assert trainer.encoder == encoder
    best = trainer.encoder.training_summary["best_measure"]
    assert (best["name"], best["value"]) == ("RR", pytest.approx(1 / 40))
    assert trainer.history["RR"].dropna().iloc[1:].min() > best["value"]


def test_weights_in_16_bits_are_given_back(make, encoder, collection, satisfied):
    encoder.model.bfloat16()
    trainer = make(**DESTRUCTIVE).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.encoder.training_summary["best_step"] == 0
    assert trainer.encoder.model_name == encoder.model_name


def test_the_best_step_is_saved_wherever_it_lies_between_checkpoints(make, collection):
    results, qrels = collection.results, collection.qrels
    options = {**DESTRUCTIVE, "num_train_epochs": 2, "eval_steps": 1, "save_steps": 10, "eval_on_start": False}
    trainer = make(**options).fit(results, qrels, results, qrels)
    summary = trainer.encoder.training_summary
    assert 0 < summary["best_step"] < summary["steps"]
    measured = pt.Evaluate(trainer.encoder(results), qrels, [nDCG @ 10])
    assert measured["nDCG@10"] == summary["best_measure"]["value"]


# --- checks and mini-batches ----------------------------------------------------------------------------------------


def test_a_device_that_computes_ahead_is_asked_for_losses_before_a_checkpoint(make, collection, monkeypatch, tmp_path):
    compute = SelfDistillationLoss.forward
    steps = count()

    def forward(*arguments):
        loss = compute(*arguments)
        return loss * float("inf") if next(steps) == 1 else loss

    def leave_the_weights(*arguments, **options):
        return None

    monkeypatch.setattr(SelfDistillationLoss, "forward", forward)
    monkeypatch.setattr(loop, "STEPS_BETWEEN_CHECKS", {})
    # as the scaler for float16 does, so that no weight says what happened
    monkeypatch.setattr("torch.optim.AdamW.step", leave_the_weights)
    with pytest.raises(FloatingPointError, match="the loss is (inf|nan) in step 2"):
        make(save_steps=4).fit(collection.results, collection.qrels)
    assert next(steps) == 4
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint-4" / "model.safetensors").exists()


@pytest.fixture
def without_dropout(encoder):
    """The encoder that trainers are made with, without dropout, which would draw differently."""
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


@pytest.mark.usefixtures("without_dropout")
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=str)
def test_mini_batches_train_as_whole_batches_do(make, collection, options):
    options |= {"bf16": False, "logging_steps": 1, "learning_rate": 1e-4, "negatives": 2}
    histories = []
    for name, mini_batch_size in {"whole": None, "parts": 3}.items():
        trainer = make(name, mini_batch_size=mini_batch_size, **options).fit(collection.results, collection.qrels)
        histories.append(trainer.history[["loss", "margin", "scale"]].to_numpy())
    np.testing.assert_allclose(*histories, atol=1e-3)


def test_mini_batches_train_in_16_bits(make, collection):
    trainer = make(mini_batch_size=3, bf16=True, num_train_epochs=4).fit(collection.results, collection.qrels)
    losses = trainer.history["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]


def test_a_run_that_took_too_much_memory_goes_on_in_mini_batches(make, collection, interrupted):
    options = {"num_train_epochs": 2, "save_steps": 2}
    with interrupted():
        make(**options).fit(collection.results, collection.qrels)
    trainer = make(**options, mini_batch_size=3, resume=True).fit(collection.results, collection.qrels)
    assert trainer.encoder.training_summary["steps"] == 10
