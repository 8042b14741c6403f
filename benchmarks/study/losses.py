"""The losses that a study compares.

:data:`LOSSES` makes, of a run, what ``SelfDistillTrainer`` takes as ``loss``. All train through the same trainer with
the same triples, so that they differ in nothing else.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
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

from pyterrier_selfdistill.losses import TARGETS, AdaptiveMarginLoss, CalibratedLoss, EmbeddingLoss, MarginTerms

from .run import Run

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of margins and targets, in a record."""

Loss = EmbeddingLoss | Callable[[Any], nn.Module]
"""What the trainer takes as ``loss``."""

LossFactory = Callable[[Run], Loss]
"""What makes it, of a run."""


class RecordedLoss(AdaptiveMarginLoss):
    """The loss of the package, which remembers how margins and targets were distributed in each step.

    Args:
        *arguments: Those of the loss.
        **options: Those of the loss.

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
    target: float | str = run.loss
    if run.loss == "static":
        target = _margin_of(run)
    return RecordedLoss(target, run.in_batch, run.error, detach_target=run.detach_target)


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
    margin = _margin_of(run)

    def make(model: SentenceTransformer) -> nn.Module:
        return TripletLoss(model, TripletDistanceMetric.COSINE, margin)

    return make


def _margin_of(run: Run) -> float:
    """Return the margin of a run whose loss needs one."""
    if run.margin is None:
        raise ValueError(f"the loss {run.loss!r} needs a margin, got none; give one such as 0.3 in the study")
    return run.margin


def _margin_mse(run: Run) -> Loss:
    """Make MarginMSE, whose labels are the margins of a teacher."""
    return MarginMSELoss


LOSSES: dict[str, LossFactory] = {
    **dict.fromkeys(TARGETS, _adaptive_margin),
    "static": _adaptive_margin,
    "calibrated": _calibrated,
    "infonce": _infonce,
    "triplet": _triplet,
    "margin_mse": _margin_mse,
}
"""Losses by the name that a study gives them."""


def load_losses(references: Mapping[str, str]) -> dict[str, LossFactory]:
    """Load the losses that a study brings along, and put them beside those of the package.

    Args:
        references: ``module:function`` by the name of the loss. The function takes a
            :class:`Run` and returns what :class:`~pyterrier_selfdistill.SelfDistillTrainer` takes as ``loss``. The
            module is imported as Python imports any: it is installed, or lies in the folder in which
            ``python -m benchmarks.study`` is called.

    Returns:
        All losses by name.

    Raises:
        ValueError: If there is no such module or function, or the package has a loss of the name.

    Example:
        >>> losses = load_losses({"mine": "sentence_transformers.sentence_transformer.losses:CoSENTLoss"})
        >>> list(losses)[-1]
        'mine'
    """
    losses = dict(LOSSES)
    for name, reference in references.items():
        if name in LOSSES:
            raise ValueError(f"the loss {name!r} of the study has the name of one of the package; give it another name")
        try:
            losses[name] = pkgutil.resolve_name(reference)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"the loss {name!r} is {reference!r}, which cannot be imported: {error}; expected module:function, of "
                "a module that is installed or lies in the folder in which this is called"
            ) from error
    return losses
