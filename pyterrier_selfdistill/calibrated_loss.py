"""The calibrated loss: InfoNCE at the temperature that the batch itself asks for.

A softmax over scores needs a temperature, and the best one differs by encoder and by data: sharp where the encoder's
scores already tell relevant documents from others, and flat where they do not, or where what is judged relevant hardly
is. Both show in the scores of a batch. So the temperature is taken from there, by maximum likelihood, as classifiers
are calibrated after training; here it is done in each step, and nothing is left to tune.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import normalize, pairs_with_other_documents, require_embeddings

SCALES = (1.0, 1000.0)
"""Between which scales to look: at 1 the documents of a batch are nearly alike to a softmax of cosines."""

HALVINGS = 30
"""How often to halve the range of the scale, in logarithms: to a hundred millionth of its value."""


class CalibratedTerms(NamedTuple):
    """A loss with the margins and the scale that made it.

    Attributes:
        loss: The scalar loss.
        margin: The margins, ``(B, B*K + B - 1)``.
        scale: What they were multiplied with, the inverse of the temperature; a scalar.
    """

    loss: Tensor
    margin: Tensor
    scale: Tensor


class CalibratedLoss(nn.Module):
    r"""Tell positives from all other documents of the batch, at the maximum likelihood scale of the batch.

    For B queries with one positive and K negatives each, the N = B*K + B - 1 other documents of a query are all
    negatives of the batch, and the positives of the other queries. With margins
    :math:`m_{ij} = s(q_i, p_i) - s(q_i, d_j)` of cosines,

    .. math:: L = \frac{1}{B} \sum_i \log\Bigl(1 + \sum_j e^{-\beta m_{ij}}\Bigr)

    which is InfoNCE with the scale :math:`\beta`, the inverse of the temperature, which
    :func:`~.calibrated_loss.calibrated_scale` computes from the same margins, without gradient. There is nothing to
    tune: were all cosines half as far apart, the scale would be twice as large, and the loss the same.

    Scores and loss are computed in float32 under autocast, and in float64 for float64 input.

    Example:
        >>> loss = CalibratedLoss()
        >>> query = torch.eye(2)
        >>> positive, negative = torch.tensor([[0.8, 0.6], [0.6, 0.8]]), torch.tensor([[0.6, -0.8], [-0.8, 0.6]])
        >>> loss(query, positive, negative)
        tensor(1.0331)
        >>> loss.terms(query, positive, negative).scale
        tensor(1.0464)

    References:
        Van den Oord, Li, Vinyals: Representation Learning with Contrastive Predictive Coding. 2018.
        https://arxiv.org/abs/1807.03748 (InfoNCE). Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural
        Networks. ICML 2017. https://arxiv.org/abs/1706.04599 (the temperature of a trained classifier by maximum
        likelihood)
    """

    def forward(self, query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Compute the loss, a scalar tensor; :meth:`terms` says of what."""
        return self.terms(query, positive, negative).loss

    def terms(self, query: Tensor, positive: Tensor, negative: Tensor) -> CalibratedTerms:
        """Compute the loss, and return the margins and the scale with it, for logging.

        Args:
            query: Query embeddings, ``(B, D)``, of any length (cosines are taken here).
            positive: Embeddings of one relevant document a query, ``(B, D)``.
            negative: Embeddings of the non-relevant documents, ``(B, D)`` or, for K a query, ``(B, K, D)``.

        Returns:
            The loss, the margins and the scale.

        Raises:
            ValueError: If the shapes do not agree or the batch is empty.
            TypeError: If an argument is not a floating point tensor.
        """
        require_embeddings(query, positive, negative)
        # under autocast, products would be in 16 bits, and differences of cosines are small
        with torch.autocast(query.device.type, enabled=False):
            q = normalize(query)
            p = normalize(positive)
            n = normalize(negative.reshape(-1, negative.shape[-1]))
            _, margin, _ = pairs_with_other_documents(q, p, n)
            scale = calibrated_scale(margin.detach())
            loss = cross_entropy(margin, scale).mean()
            return CalibratedTerms(loss, margin, scale)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for model cards and records of runs: there are none."""
        return {"target": "calibrated"}


def cross_entropy(margin: Tensor, scale: Tensor) -> Tensor:
    """Compute the negative log-likelihood that the positive is the relevant document of each query.

    Args:
        margin: What the positive's score is above the others', ``(B, N)``.
        scale: What to multiply margins with, a scalar.

    Returns:
        ``log(1 + sum(exp(-scale * margin)))`` of each query, ``(B,)``.

    Example:
        >>> cross_entropy(torch.zeros(1, 3), torch.tensor(20.0)).exp()
        tensor([4.])
    """
    return torch.logsumexp(_logits(margin, scale), dim=1)


def calibrated_scale(margin: Tensor) -> Tensor:
    r"""Compute the scale at which a softmax explains best which documents of a batch are relevant.

    It minimizes the sum of the cross-entropies of the batch's B queries. A few queries alone may be told apart without
    a fault, and ask for no end of confidence. So one more is counted, as in Laplace's rule of succession, of which the
    relevant document is any of the others, each with the same probability, on average over the queries. The sum is
    convex in the scale, and its derivative is 0 where

    .. math:: \frac{1}{B} \sum_i \sum_j w_{ij} m_{ij} = \frac{\bar m}{B + 1}

    with :math:`w_i` the softmax over a query's documents, its positive (of margin 0) included, and :math:`\bar m` the
    mean of all margins.

    Args:
        margin: What the positive's score is above the others', ``(B, N)``, without gradient.

    Returns:
        A scalar tensor, within ``SCALES``: 1 where positives do not score above other documents on average.

    Example:
        Positives that stand out ask for a large scale, those that do not for a small one.

        >>> margin = torch.tensor([[0.5, 0.4, 0.1], [0.3, -0.1, 0.2]])
        >>> calibrated_scale(margin)
        tensor(3.1734)
        >>> calibrated_scale(margin - 0.2)
        tensor(1.)
    """
    least = margin.mean() / (len(margin) + 1)
    low, high = (margin.new_tensor(scale).log() for scale in SCALES)
    # without a branch on a value, which a GPU would have to wait for
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_too_small = _expected_margin(margin, middle.exp()) > least
        low = torch.where(is_too_small, middle, low)
        high = torch.where(is_too_small, high, middle)
    return ((low + high) / 2).exp()


def _expected_margin(margin: Tensor, scale: Tensor) -> Tensor:
    """Compute the mean over queries of the margin over a document that the softmax draws."""
    weights = torch.softmax(_logits(margin, scale), dim=1)
    return (weights[:, 1:] * margin).sum(dim=1).mean()


def _logits(margin: Tensor, scale: Tensor) -> Tensor:
    """Compute the logits of each query's documents against its positive, which comes first."""
    return F.pad(-scale * margin, (1, 0))
