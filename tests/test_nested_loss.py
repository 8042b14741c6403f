"""Nested dimensions against sentence-transformers' MatryoshkaLoss, and in training."""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

from pyterrier_selfdistill import AdaptiveMarginLoss, CalibratedLoss, NestedDimensionsLoss, SelfDistillationLoss

COLUMNS = [["sort", "plot", "mean"], ["sort rows", "plot a matrix", "read"], ["read", "write", "sort the rows of a"]]
DIMS, WEIGHTS = [8, 32, 4], [0.5, 2.0, 1.0]


def value_and_gradients(model, loss):
    model.zero_grad()
    value = loss([model.preprocess(column) for column in COLUMNS], None)
    value.backward()
    gradients = [weights.grad.clone() for weights in model.parameters() if weights.grad is not None]
    return value.item(), gradients


@pytest.mark.parametrize("mini_batch_size", [None, 2], ids=["whole batch", "mini-batches"])
@pytest.mark.parametrize("inner", [CalibratedLoss(), AdaptiveMarginLoss("adaptive", in_batch=True)], ids=repr)
def test_value_and_gradients_are_those_of_matryoshka_loss(tiny_model, inner, mini_batch_size):
    model = tiny_model.eval()
    ours = SelfDistillationLoss(model, NestedDimensionsLoss(inner, DIMS, WEIGHTS), mini_batch_size)
    theirs = MatryoshkaLoss(model, SelfDistillationLoss(model, inner, mini_batch_size), DIMS, WEIGHTS)
    value, gradients = value_and_gradients(model, ours)
    expected, expected_gradients = value_and_gradients(model, theirs)
    assert value == pytest.approx(expected, rel=1e-5)
    assert value > value_and_gradients(model, SelfDistillationLoss(model, inner))[0] * 2
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


def test_statistics_are_those_of_whole_vectors(tiny_model):
    model = tiny_model.eval()
    nested = SelfDistillationLoss(model, NestedDimensionsLoss(CalibratedLoss(), DIMS))
    plain = SelfDistillationLoss(model, CalibratedLoss())
    for loss in (nested, plain):
        loss([model.preprocess(column) for column in COLUMNS])
    assert nested.statistics.keys() == {"margin", "scale"}
    torch.testing.assert_close(nested.statistics, plain.statistics)


def test_options_are_those_of_the_loss_and_the_dimensions():
    loss = NestedDimensionsLoss(AdaptiveMarginLoss(0.5), DIMS, WEIGHTS)
    assert loss.get_config_dict() == {
        **AdaptiveMarginLoss(0.5).get_config_dict(),
        "matryoshka_dims": [32, 8, 4],
        "matryoshka_weights": [2.0, 0.5, 1.0],
    }


@pytest.mark.parametrize(
    ("dims", "weights", "error"),
    [
        ([8, 8], None, "twice; give it once"),
        ([], None, "matryoshka_dims must be a list of numbers of dimensions such as"),
        ([8, 0], None, "matryoshka_dims must be"),
        ([8, 4], [1.0], "must be one for each of"),
        ([8, 4], [1.0, 0.0], "matryoshka_weights must be a list of positive numbers"),
    ],
)
def test_dimensions_that_make_no_sense_are_errors(dims, weights, error):
    with pytest.raises(ValueError, match=error):
        NestedDimensionsLoss(CalibratedLoss(), dims, weights)


def test_whole_vectors_are_among_those_that_are_trained():
    with pytest.raises(ValueError, match=r"must begin with the 16 dimensions that the vectors have; give \[16, "):
        NestedDimensionsLoss(CalibratedLoss(), [8, 4])(*torch.ones(3, 2, 16))
