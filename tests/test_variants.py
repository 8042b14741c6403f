"""Variants keep the history of the encoder that they were made of, and nothing that is no longer true of them."""

import pytest


@pytest.fixture
def trained(encoder, tmp_path):
    encoder.save(tmp_path / "trained")
    encoder.training_summary = {"steps": 5}
    return encoder


def test_other_arguments_leave_model_and_history(trained):
    changed = trained.apply_attributes(batch_size=7)
    assert changed.batch_size == 7
    assert changed.model is trained.model
    assert (changed.name, changed.path) == (trained.name, trained.path)
    assert changed.training_summary == trained.training_summary


def test_another_model_has_no_history(trained, tiny_model):
    changed = trained.apply_attributes(model=tiny_model)
    assert changed.training_summary == {}
    assert changed.name != trained.name


VARIANTS = {
    "truncated": lambda encoder: encoder.truncate(8),
    "prompted": lambda encoder: encoder.with_prompts(query="query: "),
}


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_what_is_made_of_a_model_keeps_its_name_and_history(trained, make):
    made = make(trained)
    assert made.name == trained.name
    assert made.training_summary.items() >= trained.training_summary.items()
    assert made.identity.checksum != trained.identity.checksum
