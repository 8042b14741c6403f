"""Documents in one pool: the same vectors and gradients as column by column, and little padding."""

import itertools

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from pyterrier_selfdistill.losses import arrange, divide, embed, number_of_passes, restore

WORDS = ["sort", "read", "write", "plot", "mean", "table", "file"]


def draw_texts(number, longest, seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, number)
    return [" ".join(random.choice(WORDS, length)) for length in lengths]


@pytest.fixture(params=["right", "left"])
def model(language_model, request):
    """A model that pads on one side or the other, without dropout."""
    transformer = Transformer(language_model)
    transformer.tokenizer.padding_side = request.param
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu").eval()


def gradients_of(model, embeddings):
    """Go back from embeddings to the weights."""
    model.zero_grad()
    torch.cat(embeddings).square().mean().backward()
    return [weights.grad for weights in model.parameters() if weights.grad is not None]


def test_vectors_and_gradients_are_those_of_single_columns(model):
    columns = [draw_texts(12, 4, seed=0), *(draw_texts(12, 40, seed=seed) for seed in (1, 2, 3))]
    features = [model.preprocess(texts) for texts in columns]
    apart = [model(dict(column))["sentence_embedding"] for column in features]
    together = embed(model, *arrange(features))
    assert len(together) == 4
    for ours, expected in zip(together, apart, strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)
    for ours, expected in zip(gradients_of(model, together), gradients_of(model, apart), strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)


def test_passes_are_as_wide_as_their_longest_text(tiny_model, monkeypatch):
    widths = []
    forward = tiny_model.forward

    def record(features):
        widths.append(features["input_ids"].shape[1])
        return forward(features)

    monkeypatch.setattr(tiny_model, "forward", record)
    texts = [["sort"] * 8, ["sort"] * 8, [*["read"] * 7, " ".join(["mean"] * 50)]]
    embed(tiny_model, *arrange([tiny_model.preprocess(column) for column in texts]))
    assert widths == [3, 3, 52]


def test_columns_that_differ_are_embedded_one_by_one(tiny_model):
    features = [tiny_model.preprocess(texts) for texts in (["sort"], ["read a file"], ["plot"])]
    features[2]["task"] = "other"
    batches, positions = arrange(features)
    assert batches == features
    assert positions is None
    assert restore([torch.ones(1, 2)], positions)[0].shape == (1, 2)
    assert len(embed(tiny_model, batches, positions)) == 3


def test_flattened_columns_stay_as_they_are():
    features = [{"input_ids": torch.ones(1, 6), "cu_seq_lens_q": torch.tensor([0, 2, 6])} for _ in range(3)]
    assert arrange(features) == (features, None)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_no_other_division_takes_fewer_tokens(number):
    lengths = np.sort(np.random.default_rng(number).integers(1, 30, 12))

    def padded(ends):
        begins = [0, *ends]
        return sum(lengths[end - 1] * (end - begin) for begin, end in zip(begins, ends, strict=False))

    ends = divide(lengths, number)
    inner = itertools.combinations(range(1, len(lengths)), number - 1)
    assert len(ends) == number
    assert ends[-1] == len(lengths)
    assert padded(ends) == min(padded([*borders, len(lengths)]) for borders in inner)


def test_the_number_of_passes_depends_on_the_number_of_texts_alone():
    device = torch.device("cpu")
    for rows in (1, 8, 9, 64, 2000):
        lengths = np.sort(np.random.default_rng(rows).integers(1, 5, rows))
        assert len(divide(lengths, number_of_passes(rows, device))) == number_of_passes(rows, device) <= rows
