"""The loss on texts against the loss on embeddings, and in the trainer of sentence-transformers."""

import pytest
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from pyterrier_selfdistill import AdaptiveMarginLoss, CalibratedLoss, SelfDistillationLoss
from pyterrier_selfdistill.data.triples import read_triples


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
        tiny_model, args=arguments, train_dataset=read_triples(rows).dataset, loss=SelfDistillationLoss(tiny_model)
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] / 2


LOSSES = [
    AdaptiveMarginLoss(),
    AdaptiveMarginLoss(0.5),
    AdaptiveMarginLoss(0.5, in_batch=True),
    AdaptiveMarginLoss("adaptive"),
    AdaptiveMarginLoss("adaptive", in_batch=True),
    AdaptiveMarginLoss("adaptive", in_batch=True, pairing="released"),
    CalibratedLoss(),
]
"""Each target, with and without in-batch negatives, and the calibrated loss."""

COLUMNS = [
    ["sort", "plot a", "mean", "read", "write by"],
    ["sort rows", "plot a matrix", "return the mean value of an array by column", "read", "write the data"],
    ["read a file", "sort", "plot", "mean value", "return a value of the table by row and by column"],
    ["file", "sort the table by column", "plot a file", "mean", "query"],
]
"""Five queries, their positives, and two negatives each."""


def loss_and_gradients(model, loss):
    """Compute a loss on the columns, and what it is by the weights."""
    model.zero_grad()
    value = loss([model.preprocess(texts) for texts in COLUMNS])
    value.backward()
    return value.detach(), [weights.grad for weights in model.parameters() if weights.grad is not None]


@pytest.mark.parametrize("of_embeddings", LOSSES, ids=str)
def test_loss_and_gradients_are_those_of_columns_embedded_one_by_one(tiny_model, of_embeddings):
    tiny_model.eval()
    value, gradients = loss_and_gradients(tiny_model, SelfDistillationLoss(tiny_model, of_embeddings))
    tiny_model.zero_grad()
    query, positive, *negatives = [tiny_model(tiny_model.preprocess(texts))["sentence_embedding"] for texts in COLUMNS]
    expected = of_embeddings(query, positive, torch.stack(negatives, dim=1))
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    expected_gradients = [weights.grad for weights in tiny_model.parameters() if weights.grad is not None]
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("mini_batch_size", [1, 4, 100])
@pytest.mark.parametrize("of_embeddings", LOSSES, ids=str)
def test_the_gradient_cache_changes_neither_loss_nor_gradients(tiny_model, of_embeddings, mini_batch_size):
    tiny_model.double().eval()
    plain = SelfDistillationLoss(tiny_model, of_embeddings)
    cached = SelfDistillationLoss(tiny_model, of_embeddings, mini_batch_size=mini_batch_size)
    value, gradients = loss_and_gradients(tiny_model, cached)
    expected, expected_gradients = loss_and_gradients(tiny_model, plain)
    assert value.item() == pytest.approx(expected.item(), abs=1e-9)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)
    for name, statistic in plain.statistics.items():
        assert cached.statistics[name].item() == pytest.approx(statistic.item(), abs=1e-9)
    with torch.no_grad():
        assert cached([tiny_model.preprocess(texts) for texts in COLUMNS]).item() == pytest.approx(value.item())


def test_the_gradient_cache_repeats_what_dropout_draws(tiny_model):
    tiny_model.double().train()
    loss = SelfDistillationLoss(tiny_model, mini_batch_size=2)
    torch.manual_seed(0)
    value, gradients = loss_and_gradients(tiny_model, loss)
    torch.manual_seed(0)
    weights = next(tiny_model.parameters())
    row = gradients[0].abs().sum(dim=1).argmax()  # of a word that occurs
    step = 1e-6 * gradients[0][row].sign()
    with torch.no_grad():
        weights[row] += step
        raised = loss([tiny_model.preprocess(texts) for texts in COLUMNS])
    assert (raised - value).item() == pytest.approx((step * gradients[0][row]).sum().item(), rel=1e-3)


def test_gradients_of_the_cache_follow_the_scale_of_the_loss_and_accumulate(tiny_model):
    tiny_model.eval()
    loss = SelfDistillationLoss(tiny_model, mini_batch_size=2)
    features = [tiny_model.preprocess(texts) for texts in COLUMNS]
    loss(features).backward()
    once = next(tiny_model.parameters()).grad.clone()
    (loss(features) * 1024).backward()  # as a scaler for 16 bits does
    assert torch.allclose(next(tiny_model.parameters()).grad, 1025 * once, rtol=1e-3, atol=1e-6)


def test_the_gradient_cache_needs_tokens():
    model = SentenceTransformer(modules=[StaticEmbedding(Tokenizer(WordLevel({"a": 0})), embedding_dim=4)])
    with pytest.raises(ValueError, match="mini_batch_size=8 needs texts of several tokens"):
        SelfDistillationLoss(model, mini_batch_size=8)
