"""The training loop: its schedule, when it stops, and what it logs."""

import numpy as np


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
