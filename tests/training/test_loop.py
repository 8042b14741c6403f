"""The training loop: its schedule, when it stops, and what it logs."""

from itertools import count

import numpy as np
import pytest
import torch

from pyterrier_selfdistill import SelfDistillationLoss
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
    assert trainer.history["step"].max() == 4


def test_the_last_step_is_evaluated_too(make, collection):
    results, qrels = collection.results, collection.qrels
    trainer = make(eval_steps=2).fit(results, qrels, results, qrels)
    evaluated = trainer.history["nDCG@10"].notna()
    assert trainer.history["step"][evaluated].tolist() == [0, 2, 4, 5]


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
        histories.append(trainer.history[["loss", "margin", "target"]].to_numpy())
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
