import pytest
import torch

from benchmarks.study.config import Run
from benchmarks.study.losses import LOSSES, RecordedLoss
from pyterrier_selfdistill import AdaptiveMarginLoss


def test_recorded_loss_is_the_loss_of_the_package_and_remembers_quantiles():
    batch = [torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    loss = RecordedLoss("adaptive", True)
    expected = AdaptiveMarginLoss("adaptive", True).terms(*batch)
    for _ in range(2):
        assert loss(*batch) == expected.loss
    assert len(loss.distributions) == 2
    quantiles = loss.distributions[0]
    assert quantiles["margin"] == sorted(quantiles["margin"])
    assert quantiles["margin"][2] == pytest.approx(expected.margin.quantile(0.5).item(), abs=1e-4)
    assert quantiles["target"][2] == pytest.approx(expected.target.quantile(0.5).item(), abs=1e-4)


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
