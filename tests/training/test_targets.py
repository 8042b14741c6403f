import pytest
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

from pyterrier_selfdistill import AdaptiveMarginLoss, CalibratedLoss
from pyterrier_selfdistill.training.arguments import loss_maker, loss_of


def test_mini_batches_are_for_the_losses_of_this_package(encoder):
    loss = loss_maker(AdaptiveMarginLoss(0.5), None, False, "l2", 4, default="calibrated")(encoder.model)
    assert loss.mini_batch_size == 4
    assert loss.loss.target == 0.5
    with pytest.raises(ValueError, match=r"mini_batch_size=4 is for the losses of this package.*Cached"):
        loss_maker(MultipleNegativesRankingLoss, None, False, "l2", 4, default="calibrated")


def test_the_target_is_the_default_if_none_is_given(encoder):
    default = loss_maker(None, None, False, "l2", default="distributed")(encoder.model)
    assert default.loss.target == "distributed"
    given = loss_maker(None, "calibrated", False, "l2", default="distributed")(encoder.model)
    assert isinstance(given.loss, CalibratedLoss)


@pytest.mark.parametrize("options", [{"in_batch": True}, {"error": "l1"}], ids=str)
def test_the_calibrated_loss_has_no_options(options):
    with pytest.raises(ValueError, match=r"target='calibrated' .* leave them out, or give the target"):
        loss_of("calibrated", **options)


def test_a_loss_beside_a_target_is_refused():
    with pytest.raises(ValueError, match="was given beside target"):
        loss_maker(CalibratedLoss(), "calibrated", False, "l2", default="calibrated")


def test_nested_dimensions_are_those_of_the_model(encoder):
    make = loss_maker(None, "calibrated", False, "l2", 4, default="calibrated", matryoshka_dims=[32, 8])
    loss = make(encoder.model)
    assert isinstance(loss, MatryoshkaLoss)
    assert (loss.matryoshka_dims, loss.loss.mini_batch_size) == ((32, 8), 4)
    make = loss_maker(None, None, False, "l2", default="calibrated", matryoshka_dims=[64, 32])
    with pytest.raises(ValueError, match="must contain the 32 dimensions"):
        make(encoder.model)


@pytest.mark.parametrize(
    "options",
    [
        {"matryoshka_weights": [1.0]},
        {"matryoshka_dims": [32, 8, 8]},
        {"matryoshka_dims": [32, 8], "matryoshka_weights": [1.0]},
    ],
    ids=str,
)
def test_nested_dimensions_that_cannot_be_trained_are_errors(options):
    with pytest.raises(ValueError, match="matryoshka_"):
        loss_maker(None, None, False, "l2", default="calibrated", **options)


def test_other_losses_have_nested_dimensions_too(encoder):
    make = loss_maker(MultipleNegativesRankingLoss, None, False, "l2", default="calibrated", matryoshka_dims=[32, 8])
    assert isinstance(make(encoder.model).loss, MultipleNegativesRankingLoss)
