"""Workarounds: that each is still needed, and that it works."""

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers.utils import logging

from pyterrier_selfdistill.compat import no_checkpoint_progress_bars, remove_autocast

TEXTS = ["sort the rows of a table", "plot a matrix"]


@pytest.fixture
def make_plain_trainer(tiny_model, tmp_path):
    """Make a trainer of sentence-transformers for one step that changes nothing."""

    def make(**options):
        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            learning_rate=0.0,
            max_steps=1,
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
            **options,
        )
        dataset = Dataset.from_dict({"anchor": ["sort", "plot"], "positive": TEXTS})
        loss = MultipleNegativesRankingLoss(tiny_model)
        return SentenceTransformerTrainer(tiny_model, args=arguments, train_dataset=dataset, loss=loss)

    return make


@pytest.fixture
def progress_bars():
    """Progress bars of transformers are on, as they are unless a user turns them off."""
    logging.enable_progress_bar()


def test_transformers_draws_a_progress_bar_at_each_checkpoint(make_plain_trainer, progress_bars, capsys):
    make_plain_trainer(save_steps=1).train()
    if "it/s]" not in capsys.readouterr().err:
        pytest.fail("transformers no longer draws bars while training: delete compat.no_checkpoint_progress_bars")


def test_no_checkpoint_progress_bars(make_plain_trainer, progress_bars, capsys):
    with no_checkpoint_progress_bars():
        make_plain_trainer(save_steps=1).train()
    assert "it/s]" not in capsys.readouterr().err
    assert logging.is_progress_bar_enabled()


def test_accelerate_leaves_the_model_in_16_bits(make_plain_trainer, tiny_model):
    before = tiny_model.encode(TEXTS, convert_to_tensor=True)
    make_plain_trainer(bf16=True).train()
    if torch.equal(tiny_model.encode(TEXTS, convert_to_tensor=True), before):
        pytest.fail("accelerate no longer leaves its autocast around the model: delete compat.remove_autocast")


def test_remove_autocast(make_plain_trainer, tiny_model):
    before = tiny_model.encode(TEXTS, convert_to_tensor=True)
    trainer = make_plain_trainer(bf16=True)
    trainer.train()
    remove_autocast(trainer, tiny_model)
    assert torch.equal(tiny_model.encode(TEXTS, convert_to_tensor=True), before)
