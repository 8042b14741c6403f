"""What is said of encoders."""

import base64

import pytest

from pyterrier_selfdistill import SelfDistillTrainer
from pyterrier_selfdistill.report.page import describe_model


@pytest.fixture
def trainer(encoder, folder):
    trainer = SelfDistillTrainer(encoder, "run", logging_steps=1, per_device_train_batch_size=2, verbose=False)
    return trainer.fit_triples([(f"sort {n}", f"sort the table {n}", f"plot {n}") for n in range(8)])


def test_a_trainer_shows_its_whole_history(trainer):
    whole = describe_model("mine", trainer)
    milestones = describe_model("mine", trainer.encoder)
    assert len(whole.history) == len(trainer.history) > len(milestones.history) == 1
    assert dict(whole.facts)["Vectors"].startswith("32 dimensions")
    assert "Loss" in dict(milestones.facts)
    prefix, _, image = whole.picture.partition(",")
    assert prefix == "data:image/svg+xml;base64"
    assert b"<svg" in base64.b64decode(image)
    assert not milestones.picture


def test_an_encoder_that_was_not_trained_has_facts_only(encoder):
    described = describe_model("base", encoder)
    assert described.history.empty
    assert not described.picture
    assert dict(described.facts)["Checksum"] == f"`{encoder.model_name[:12]}`"


def test_paths_of_this_machine_are_not_told(encoder, folder):
    encoder.save(folder / "model")
    assert dict(describe_model("base", encoder).facts)["Name"] == "`model`"
