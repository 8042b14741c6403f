"""The loss on texts against the loss on embeddings, and in the trainer of sentence-transformers."""

import pytest
import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from pyterrier_selfdistill import AdaptiveMarginLoss, SelfDistillationLoss
from pyterrier_selfdistill.data.triples import from_texts


def test_sentence_loss_equals_the_loss_on_embeddings(tiny_model):
    loss = SelfDistillationLoss(tiny_model.eval())
    columns = [["sort", "plot"], ["sort rows", "plot a matrix"], ["read", "write"]]
    features = [tiny_model.preprocess(column) for column in columns]
    embeddings = [torch.tensor(tiny_model.encode(column)) for column in columns]
    terms = AdaptiveMarginLoss().terms(*embeddings)
    assert loss(features).item() == pytest.approx(terms.loss.item(), abs=1e-6)
    assert loss.statistics["margin"].item() == pytest.approx(terms.margin.mean().item(), abs=1e-6)
    assert loss.statistics["target"].item() == pytest.approx(terms.target.mean().item(), abs=1e-6)
    with pytest.raises(ValueError, match="got 2 text column"):
        loss(features[:2])


def test_sentence_loss_trains_in_sentence_transformers_itself(tiny_model, tmp_path):
    rows = [("sort", "sort the rows", "plot", "read a file"), ("plot", "plot a matrix", "sort", "mean")] * 8
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        learning_rate=1e-3,
        num_train_epochs=10,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = SentenceTransformerTrainer(
        tiny_model, args=arguments, train_dataset=from_texts(rows).dataset, loss=SelfDistillationLoss(tiny_model)
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] / 2
