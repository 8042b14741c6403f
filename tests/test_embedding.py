"""Losses on texts: one pool of documents, the gradient cache and Matryoshka give the same loss and gradients."""

import numpy as np
import pytest
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from pyterrier_selfdistill import AdaptiveMarginLoss, SelfDistillationLoss, SoftmaxLoss
from pyterrier_selfdistill.data.triples import read_triples
from pyterrier_selfdistill.losses import divide, number_of_passes
from pyterrier_selfdistill.training import loop

LOSSES = [
    AdaptiveMarginLoss(),
    AdaptiveMarginLoss(0.5),
    AdaptiveMarginLoss("adaptive", in_batch=True),
    AdaptiveMarginLoss("adaptive", in_batch=True, pairing="released"),
    SoftmaxLoss("listwise", scale=20.0),
    SoftmaxLoss("softmax", scale=20.0),
]
COLUMNS = [
    ["sort", "plot a", "mean", "read", "write by"],
    ["sort rows", "plot a matrix", "return the mean value of an array by column", "read", "write the data"],
    ["read a file", "sort", "plot", "mean value", "return a value of the table by row and by column"],
    ["file", "sort the table by column", "plot a file", "mean", "query"],
]
"""Five queries, their positives, and two negatives each."""


@pytest.fixture(params=["right", "left"])
def model(language_model, request):
    """A model that pads on one side or the other, without dropout, in float64."""
    transformer = Transformer(language_model)
    transformer.tokenizer.padding_side = request.param
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu").double().eval()


def tokens_of(model):
    return [model.preprocess(texts) for texts in COLUMNS]


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return [weights.grad for weights in model.parameters() if weights.grad is not None]


def loss_of_single_columns(model, loss, dim=None):
    """Compute the loss of columns that are embedded one by one, of prefixes of their vectors."""
    query, positive, *negatives = [model(column)["sentence_embedding"][:, :dim] for column in tokens_of(model)]
    return loss.terms(query, positive, torch.stack(negatives, dim=1))


@pytest.mark.parametrize("mini_batch_size", [None, 1, 4])
@pytest.mark.parametrize("of_embeddings", LOSSES, ids=str)
def test_loss_and_gradients_are_those_of_single_columns(model, of_embeddings, mini_batch_size, monkeypatch):
    monkeypatch.setattr(loop, "MANY_ROWS", 10)
    loss = SelfDistillationLoss(model, of_embeddings, mini_batch_size)
    with loop.sparse_embedding_gradients(model):
        assert model[0].model.get_input_embeddings().sparse
        value = loss(tokens_of(model))
        own = gradients(model, value)
    expected = loss_of_single_columns(model, of_embeddings)._asdict()
    assert value.item() == pytest.approx(expected["loss"].item(), rel=1e-9)
    torch.testing.assert_close(own, gradients(model, expected.pop("loss")))
    means = {name: terms.mean().item() for name, terms in expected.items() if terms is not None}
    assert {name: number.item() for name, number in loss.statistics.items()} == pytest.approx(means)
    with torch.no_grad():
        assert loss(tokens_of(model)).item() == pytest.approx(value.item())


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_matryoshka_sums_the_loss_over_prefixes(model, mini_batch_size):
    of_embeddings = SoftmaxLoss("listwise", scale=20.0)
    inner = SelfDistillationLoss(model, of_embeddings, mini_batch_size)
    value = MatryoshkaLoss(model, inner, [8, 32, 4], [0.5, 2.0, 1.0])(tokens_of(model), None)
    of_prefixes = {dim: loss_of_single_columns(model, of_embeddings, dim) for dim in (8, 32, 4)}
    expected = 0.5 * of_prefixes[8].loss + 2 * of_prefixes[32].loss + of_prefixes[4].loss
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradients(model, value), gradients(model, expected))
    # logged statistics are those of whole vectors
    assert inner.statistics["margin"].item() == pytest.approx(of_prefixes[32].margin.mean().item())


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_pairs_train_with_a_softmax_loss(model, mini_batch_size):
    loss = SelfDistillationLoss(model, SoftmaxLoss("softmax", scale=20.0), mini_batch_size)
    query, positive = [model(column)["sentence_embedding"] for column in tokens_of(model)[:2]]
    expected = loss.loss(query, positive)
    value = loss(tokens_of(model)[:2])
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradients(model, value), gradients(model, expected))


def static_model():
    words = dict(zip("abcdefgh", range(8), strict=True))
    tokenizer = Tokenizer(WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu").double()


@pytest.mark.parametrize("make", [static_model, None])
def test_texts_of_other_positives_of_the_query_are_left_out_and_batches_of_one_positive_skipped(model, make):
    model = make() if make else model
    columns = [["a b", "c", "a b", "d"], ["e", "f", "g", "e"], ["g", "h", "b a", "a"]]
    loss = SelfDistillationLoss(model, SoftmaxLoss("softmax", scale=1.0))
    value = loss([model.preprocess(texts) for texts in columns])
    query, positive, negative = [model(model.preprocess(texts))["sentence_embedding"] for texts in columns]
    positives = {"a b": {"e", "g"}, "c": {"f"}, "d": {"e"}}
    documents = columns[1] + columns[2]
    is_positive = torch.tensor([[text in positives[query] for text in documents] for query in columns[0]])
    expected = loss.loss.terms(query, positive, negative, is_positive).loss
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    assert value.item() != pytest.approx(loss.loss(query, positive, negative).item(), rel=1e-3)
    assert loss.skipped == 0
    value = loss([model.preprocess(texts) for texts in (["a", "b"], ["c", "c"], ["d", "e"])])
    assert value.item() == 0
    assert all(gradient.abs().sum() == 0 for gradient in gradients(model, value))
    assert loss.skipped == 1
    assert loss([model.preprocess(texts) for texts in (["a"], ["c"])]).item() == 0
    assert loss.statistics == {}


def test_the_gradient_cache_repeats_the_draws_of_dropout(tiny_model):
    tiny_model.double().train()
    loss = SelfDistillationLoss(tiny_model, mini_batch_size=2)
    torch.manual_seed(0)
    value = loss(tokens_of(tiny_model))
    gradient = gradients(tiny_model, value)[0]
    row = gradient.abs().sum(dim=1).argmax()  # of a word that occurs
    step = 1e-6 * gradient[row].sign()
    torch.manual_seed(0)
    with torch.no_grad():
        next(tiny_model.parameters())[row] += step
        raised = loss(tokens_of(tiny_model))
    assert (raised - value).item() == pytest.approx((step * gradient[row]).sum().item(), rel=1e-3)


def test_gradients_of_the_cache_follow_the_scale_of_the_loss(model):
    loss = SelfDistillationLoss(model, mini_batch_size=2)
    once = [gradient.clone() for gradient in gradients(model, loss(tokens_of(model)))]
    # as a scaler for 16 bits multiplies it
    scaled = gradients(model, 1024 * loss(tokens_of(model)))
    torch.testing.assert_close(scaled, [1024 * gradient for gradient in once])


def test_input_that_the_loss_cannot_take(tiny_model):
    with pytest.raises(ValueError, match="2 text column"):
        SelfDistillationLoss(tiny_model)(tokens_of(tiny_model)[:2])
    static = SentenceTransformer(modules=[StaticEmbedding(Tokenizer(WordLevel({"a": 0})), embedding_dim=4)])
    with pytest.raises(ValueError, match="mini_batch_size=8"):
        SelfDistillationLoss(static, mini_batch_size=8)


def test_the_loss_trains_in_sentence_transformers_itself(tiny_model, tmp_path):
    rows = [("sort", "sort the rows", "plot", "read a file"), ("plot", "plot a matrix", "sort", "mean")] * 8
    options = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False, "use_cpu": True}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), learning_rate=1e-3, num_train_epochs=5, logging_steps=1, save_strategy="no", **options
    )
    loss = SelfDistillationLoss(tiny_model)
    trainer = SentenceTransformerTrainer(tiny_model, arguments, train_dataset=read_triples(rows).dataset, loss=loss)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < 0.75 * losses[0]


def test_passes_are_as_wide_as_their_longest_text(tiny_model):
    widths = []
    tiny_model.register_forward_pre_hook(lambda model, inputs: widths.append(inputs[0]["input_ids"].shape[1]))
    texts = [["sort"] * 8, ["sort"] * 8, [*["read"] * 7, " ".join(["mean"] * 50)]]
    SelfDistillationLoss(tiny_model)([tiny_model.preprocess(column) for column in texts])
    assert widths == [3, 3, 52]


@pytest.mark.parametrize("rows", [1, 9, 64, 2000])
def test_the_number_of_passes_depends_on_the_number_of_texts_alone(rows):
    """So that processes that train together make as many passes."""
    lengths = np.sort(np.random.default_rng(rows).integers(1, 5, rows))
    number = number_of_passes(rows, torch.device("cpu"))
    assert len(divide(lengths, number)) == number <= rows
