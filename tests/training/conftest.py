"""Fixtures for the tests of training: trainers, a run that many tests read, and a way to stop a run."""

from contextlib import contextmanager
from itertools import count

import pytest
from ir_measures import RR, nDCG

from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillBiEncoder, SelfDistillTrainer

DEFAULTS = {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "bf16": False, "verbose": False}
"""Five steps an epoch on the small collection."""

WHOLE = DEFAULTS | {"num_train_epochs": 2, "eval_steps": 3, "save_steps": 3, "logging_steps": 1}
WHOLE |= {"measures": [nDCG @ 10, RR]}
"""The options of ``whole`` that decide on its result."""

SECRETS = {"hub_token": "hf_abcdefghijklmnop", "hub_model_id": "/home/me/logs", "report_to": "tensorboard"}


@pytest.fixture
def make(encoder, tmp_path):
    """Make a trainer: ``make("folder", option=value)``."""
    return lambda folder="run", **options: SelfDistillTrainer(encoder, tmp_path / folder, **DEFAULTS | options)


@pytest.fixture(scope="session")
def whole(language_model, _collection, tmp_path_factory, _same_precision_everywhere):
    """A run of ten steps with validation that was never stopped. Only read it."""
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="float32")
    trainer = SelfDistillTrainer(encoder, tmp_path_factory.mktemp("whole") / "mine", **WHOLE, **SECRETS)
    results, qrels = _collection.results, _collection.qrels
    return trainer.fit(results, qrels, results, qrels)


@pytest.fixture
def satisfied(encoder, collection):
    """Judgements that no encoder ranks better by: the first result of the untrained encoder is relevant."""
    ranked = encoder(collection.results)
    return ranked[["qid", "docno"]].assign(label=(ranked["rank"] == 0).astype(int))


@pytest.fixture
def stopped(monkeypatch):
    """Stop what trains in ``with stopped(at):`` after so many batches, or ``"saving"``, after the last step."""

    @contextmanager
    def stopped(at):
        compute, save = SelfDistillationLoss.forward, SelfDistillBiEncoder.save
        batches = count()

        def stop_in_batch(*arguments, **options):
            if next(batches) == at:
                raise KeyboardInterrupt
            return compute(*arguments, **options)

        def stop_saving(*arguments, **options):
            if at == "saving":
                raise KeyboardInterrupt
            return save(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(SelfDistillationLoss, "forward", stop_in_batch)
            patch.setattr(SelfDistillBiEncoder, "save", stop_saving)
            with pytest.raises(KeyboardInterrupt):
                yield

    return stopped


@pytest.fixture
def seen(monkeypatch):
    """The tokens of each batch that trains, column by column, as lists of texts."""
    batches = []
    compute = SelfDistillationLoss.forward

    def record(self, features, labels=None):
        features = list(features)
        decode = self.model.tokenizer.batch_decode
        batches.append([decode(column["input_ids"], skip_special_tokens=True) for column in features])
        return compute(self, features, labels)

    monkeypatch.setattr(SelfDistillationLoss, "forward", record)
    return batches
