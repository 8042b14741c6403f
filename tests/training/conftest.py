"""Fixtures for the tests of training: trainers, a run that many tests read, and a way to stop a run."""

from contextlib import contextmanager

import pytest
from ir_measures import RR, nDCG
from matplotlib.figure import Figure

from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillBiEncoder, SelfDistillTrainer
from tests.training.together import failing

DEFAULTS = {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "eval_steps": 5, "bf16": False, "verbose": False}
"""Five steps an epoch on the small collection, then a checkpoint, which costs more than they do."""

WHOLE = DEFAULTS | {"num_train_epochs": 2, "eval_steps": 3, "save_steps": 3, "logging_steps": 1}
WHOLE |= {"measures": [nDCG @ 10, RR]}
"""The options of ``whole`` that decide on its result."""

DESTRUCTIVE = {"learning_rate": 0.3, "warmup_steps": 0, "max_grad_norm": 1e9}
"""Options that make the encoder worse in a step."""

SECRETS = {"hub_token": "hf_abcdefghijklmnop", "hub_model_id": "/home/me/logs", "report_to": "tensorboard"}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    """Drawing the history costs more than many steps; only ``whole`` does it."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


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
def stopped():
    """Stop what trains in ``with stopped(at):`` after so many batches, or ``"saving"``, after the last step."""

    @contextmanager
    def stopped(at):
        call, place = (1, (SelfDistillBiEncoder, "save")) if at == "saving" else (at + 1, ())
        with pytest.raises(KeyboardInterrupt), failing(call, KeyboardInterrupt, *place):
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
