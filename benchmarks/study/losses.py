"""The losses that a study compares.

:data:`LOSSES` makes, of a run, what ``SelfDistillTrainer`` takes as ``loss``. All train through the same trainer with
the same triples, so that they differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    MarginMSELoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import Tensor, nn

from pyterrier_selfdistill import AdaptiveMarginLoss, CalibratedLoss, SelfDistillationLoss
from pyterrier_selfdistill.calibrated_loss import EmbeddingLoss
from pyterrier_selfdistill.losses import TARGETS, MarginTerms

from .config import Run
from .experimental import CriticalLoss

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of margins and targets, in a record."""

Loss = EmbeddingLoss | Callable[[Any], nn.Module]


class RecordedLoss(AdaptiveMarginLoss):
    """The loss of the package, which remembers how margins and targets were distributed in each step.

    Attributes:
        distributions: The quantiles of ``margin`` and ``target``, and the share of the gradient that reduces a margin,
            ``pulled_back``; a dictionary a step.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.distributions: list[dict[str, Any]] = []

    def terms(self, query: Tensor, positive: Tensor, negative: Tensor) -> MarginTerms:
        """Compute the loss, and remember the quantiles and the share."""
        terms = super().terms(query, positive, negative)
        recorded = {
            "margin": _quantiles(terms.margin),
            "target": _quantiles(terms.target),
            "pulled_back": _pulled_back(terms),
        }
        self.distributions.append(recorded)
        return terms


def _pulled_back(terms: MarginTerms) -> float:
    """Compute the share of the gradient by the margins that makes them smaller."""
    (gradient,) = torch.autograd.grad(terms.loss, terms.margin, retain_graph=True)
    share = gradient.clamp(min=0).sum() / gradient.abs().sum().clamp(min=torch.finfo(gradient.dtype).tiny)
    return round(share.item(), 4)


def _quantiles(values: Tensor) -> list[float]:
    flat = values.detach().float().cpu().reshape(-1)
    quantiles = torch.quantile(flat, torch.tensor(QUANTILES))
    return [round(quantile, 4) for quantile in quantiles.tolist()]


def _adaptive_margin(run: Run) -> Loss:
    """Make a loss of the package."""
    target = run.margin if run.loss == "static" else run.loss
    return RecordedLoss(target, run.in_batch, run.error, detach_target=run.detach_target)


def _experimental(run: Run) -> Loss:
    """Make an experimental loss."""

    def make(model: SentenceTransformer) -> nn.Module:
        return SelfDistillationLoss(model, CriticalLoss(run.loss))  # type: ignore[arg-type]

    return make


def _calibrated(run: Run) -> Loss:
    """Make the calibrated loss."""
    return CalibratedLoss()


def _infonce(run: Run) -> Loss:
    """Make InfoNCE, at scale 20, the library's default, if the run does not say another one."""
    if run.scale is None:
        return MultipleNegativesRankingLoss
    return partial(MultipleNegativesRankingLoss, scale=run.scale)


def _triplet(run: Run) -> Loss:
    """Make the triplet loss on cosine distances."""
    if run.margin is None:
        raise ValueError("the loss 'triplet' needs a margin, got none; give one such as 0.3 in the study")
    margin = run.margin

    def make(model: SentenceTransformer) -> nn.Module:
        return TripletLoss(model, TripletDistanceMetric.COSINE, margin)

    return make


def _margin_mse(run: Run) -> Loss:
    """Make MarginMSE, whose labels are the margins of a teacher."""
    return MarginMSELoss


LOSSES: dict[str, Callable[[Run], Loss]] = {
    **dict.fromkeys(TARGETS, _adaptive_margin),
    "static": _adaptive_margin,
    "calibrated": _calibrated,
    "infonce": _infonce,
    "triplet": _triplet,
    "margin_mse": _margin_mse,
    **dict.fromkeys(CriticalLoss.FORMS, _experimental),
}
"""Losses by the name that a study gives them."""
