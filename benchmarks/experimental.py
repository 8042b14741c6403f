"""Experimental losses: parameter-free, and not from the paper.

All compare, for B queries, the positive's score with those of N other documents of the batch: the B*K negatives and the
B - 1 positives of other queries. What would be a constant in InfoNCE, the temperature, is taken from the batch itself.

The scores of documents that have nothing to do with a query are spread with some standard deviation sigma. A softmax
over N of them at temperature T is dominated by all of them together while T is high, and by the single highest while T
is low; the random energy model (Derrida, 1981) puts the change at the *critical temperature*
sigma / sqrt(2 ln N). There a softmax tells hard from easy and still listens to more than one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from benchmarks.study.losses import Loss
from benchmarks.study.run import Run
from pyterrier_selfdistill import SelfDistillationLoss
from pyterrier_selfdistill.losses import MarginTerms, normalize, pairs_with_other_documents


def critical(run: Run) -> Loss:
    """Make the loss of a run, which is named after its form, for the study that brings it along."""
    form = run.loss

    def make(model: SentenceTransformer) -> nn.Module:
        return SelfDistillationLoss(model, CriticalLoss(form))  # type: ignore[arg-type]

    return make


class CriticalLoss(nn.Module):
    r"""Compare with all other documents of a batch, at the critical temperature.

    With the margin :math:`m_{ij} = s(q_i, p_i) - s(q_i, d_j)`, the relevance target
    :math:`t_{ij} = (1 + s(p_i, d_j)) / 2`, and the critical temperature :math:`T`:

    - ``"softmax"``: the mean of :math:`\log(1 + \sum_j \exp(-m_{ij} / T))`, InfoNCE without a constant;
    - ``"softmax, adaptive"``: with :math:`m_{ij} - (t_{ij} - \bar t_i)`, where a document closer to the positive than
      others has to stay further behind;
    - ``"softmax, tolerant"``: with :math:`m_{ij} + (t_{ij} - \bar t_i)`, where it may come closer;
    - ``"softmax, trusting"``: with :math:`\max(D_i, 0)\, m_{ij}`, where :math:`D_i` is Somers' D of the ``"trusting"``
      target, so that a query counts as far as its positive stands out;
    - ``"softmax, both directions"``: the mean of it and of the softmax of each positive over the queries of the batch;
    - ``"weighted"``: the mean of :math:`\sum_j w_{ij} (m_{ij} - t_{ij})^2`, where :math:`w_i` is the softmax of
      :math:`-m_{ij} / T`, without gradient;
    - ``"weighted, mild"``: the same with the weights' temperature at the standard deviation of the scores, which is
      higher, so that more negatives have a say;
    - ``"uniform"``: the same with equal weights: the adaptive in-batch loss, with the other positives as negatives.

    Args:
        form: One of these.

    Raises:
        ValueError: If it is another one.
    """

    FORMS = (
        "softmax",
        "softmax, adaptive",
        "softmax, tolerant",
        "softmax, trusting",
        "softmax, both directions",
        "weighted",
        "weighted, mild",
        "uniform",
    )

    def __init__(self, form: str) -> None:
        super().__init__()
        if form not in self.FORMS:
            raise ValueError(f"form={form!r} is unknown; use one of {self.FORMS}")
        self.form = form

    def terms(self, query: Tensor, positive: Tensor, negative: Tensor) -> MarginTerms:
        """Compute the loss from embeddings, as :meth:`AdaptiveMarginLoss.terms` does.

        Args:
            query: Query embeddings, ``(B, D)``, of any length.
            positive: Embeddings of one relevant document a query, ``(B, D)``.
            negative: Embeddings of the negatives, ``(B, D)`` or, for K a query, ``(B, K, D)``.

        Returns:
            The loss, and the margins and targets of all pairs, ``(B, B*K + B - 1)``.
        """
        with torch.autocast(query.device.type, enabled=False):
            q = normalize(query)
            p = normalize(positive)
            n = normalize(negative.reshape(-1, negative.shape[-1]))
            score, margin, target = pairs_with_other_documents(q, p, n)
            if self.form.startswith("softmax"):
                loss = self._softmax(score, margin, target)
                if self.form == "softmax, both directions":
                    loss = (loss + _softmax_over_queries(q, p, score)) / 2
            else:
                loss = self._weighted(score, margin, target)
            return MarginTerms(loss, margin, target)

    def _softmax(self, score: Tensor, margin: Tensor, target: Tensor) -> Tensor:
        """Compute the forms that are cross-entropies."""
        above_average = target - target.mean(dim=1, keepdim=True)
        if self.form == "softmax, adaptive":
            margin = margin - above_average
        elif self.form == "softmax, tolerant":
            margin = margin + above_average
        elif self.form == "softmax, trusting":
            margin = margin * margin.detach().sign().mean(dim=1, keepdim=True).clamp(min=0)
        logits = -margin / critical_temperature(score)
        with_positive = nn.functional.pad(logits, (1, 0))
        return torch.logsumexp(with_positive, dim=1).mean()

    def _weighted(self, score: Tensor, margin: Tensor, target: Tensor) -> Tensor:
        """Compute the forms that are weighted means of squared errors."""
        if self.form == "weighted":
            weights = torch.softmax(-margin / critical_temperature(score), dim=1)
        elif self.form == "weighted, mild":
            weights = torch.softmax(-margin / score.std(), dim=1)
        else:
            weights = torch.full_like(margin, 1 / margin.shape[1])
        errors = (margin - target).square()
        return (weights.detach() * errors).sum(dim=1).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """Return the form."""
        return {"form": self.form}


def _softmax_over_queries(query: Tensor, positive: Tensor, score: Tensor) -> Tensor:
    """Compute the cross-entropy of each positive's own query among those of the batch."""
    logits = positive @ query.T / critical_temperature(score)
    return nn.functional.cross_entropy(logits, torch.arange(len(query), device=query.device))


def critical_temperature(score: Tensor) -> Tensor:
    """Compute sigma / sqrt(2 ln N), without gradient.

    Args:
        score: Cosines of the B queries with N documents each that are not their own positive, ``(B, N)``.

    Returns:
        A scalar tensor.
    """
    number = max(score.shape[1], 2)
    return score.std().detach() / math.sqrt(2 * math.log(number))
