import pytest
import torch

from benchmarks.study.losses import LOSSES, RecordedLoss, load_losses
from benchmarks.study.run import Run
from pyterrier_selfdistill import AdaptiveMarginLoss


@pytest.fixture
def batch():
    """A batch in training."""
    return [torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in range(3)]


def test_recorded_loss_is_the_loss_of_the_package_and_remembers_quantiles(batch):
    loss = RecordedLoss("adaptive", True)
    expected = AdaptiveMarginLoss("adaptive", True).terms(*batch)
    for _ in range(2):
        assert loss(*batch) == expected.loss
    assert len(loss.distributions) == 2
    quantiles = loss.distributions[0]
    assert quantiles["margin"] == sorted(quantiles["margin"])
    assert quantiles["margin"][2] == pytest.approx(expected.margin.quantile(0.5).item(), abs=1e-4)
    assert quantiles["target"][2] == pytest.approx(expected.target.quantile(0.5).item(), abs=1e-4)


def test_recorded_loss_remembers_how_much_of_the_gradient_reduces_margins(batch):
    terms = AdaptiveMarginLoss("adaptive", True).terms(*batch)
    errors = terms.margin - terms.target
    two_sided, one_sided = RecordedLoss("adaptive", True), RecordedLoss("adaptive", True, "hinge")
    for loss in (two_sided, one_sided):
        loss(*batch)
    expected = errors.clamp(min=0).sum() / errors.abs().sum()
    assert 0 < expected < 1
    assert two_sided.distributions[0]["pulled_back"] == pytest.approx(expected.item(), abs=1e-4)
    assert one_sided.distributions[0]["pulled_back"] == 0


def test_losses_take_the_options_of_the_run():
    loss = LOSSES["adaptive"](Run("tiny", loss="adaptive", in_batch=True, error="l1", detach_target=True))
    assert isinstance(loss, AdaptiveMarginLoss)
    assert (loss.target, loss.in_batch, loss.error, loss.detach_target) == ("adaptive", True, "l1", True)
    static = LOSSES["static"](Run("tiny", loss="static", margin=0.3))
    assert isinstance(static, AdaptiveMarginLoss)
    assert static.target == 0.3


def test_the_triplet_loss_needs_a_margin():
    with pytest.raises(ValueError, match="needs a margin"):
        LOSSES["triplet"](Run("tiny", loss="triplet"))


def test_a_study_brings_losses_along():
    losses = load_losses({"mine": "builtins:repr"})
    assert losses["mine"](3) == "3"
    assert losses.keys() == {*LOSSES, "mine"}


@pytest.mark.parametrize(
    ("name", "reference", "message"),
    [
        ("mine", "no_such_module:loss", "'no_such_module:loss', which cannot be imported: No module named"),
        ("mine", "builtins:no_such_function", "no attribute 'no_such_function'; expected module:function"),
        ("infonce", "builtins:repr", "has the name of one of the package"),
    ],
)
def test_a_loss_that_cannot_be_brought_along_is_named(name, reference, message):
    with pytest.raises(ValueError, match=message):
        load_losses({name: reference})
