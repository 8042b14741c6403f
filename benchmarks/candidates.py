"""Parameter-free losses beyond the paper, that the study tries.

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
from torch import Tensor, nn

from pyterrier_selfdistill.losses import MarginTerms, normalize


def critical_temperature(scores: Tensor, others: Tensor) -> Tensor:
    """Returns sigma / sqrt(2 ln N), without gradient.

    Args:
        scores: Cosines of queries and documents, ``(B, D)``.
        others: Which of them are of other documents than the query's own positive, ``(B, D)``, the same number N in
            each row.
    """
    number = int(others[0].sum())
    return scores[others].std().detach() / math.sqrt(2 * math.log(max(number, 2)))


class CriticalLoss(nn.Module):
    r"""A loss over all other documents of a batch, at the critical temperature.

    With the margin :math:`m_{ij} = s(q_i, p_i) - s(q_i, d_j)`, the relevance target
    :math:`t_{ij} = (1 + s(p_i, d_j)) / 2`, and the critical temperature :math:`T`:

    - ``"softmax"``: the mean of :math:`\log(1 + \sum_j \exp(-m_{ij} / T))`, InfoNCE without a constant;
    - ``"softmax, adaptive"``: with :math:`m_{ij} - (t_{ij} - \bar t_i)`, where a document closer to the positive than
      others has to stay further behind;
    - ``"softmax, tolerant"``: with :math:`m_{ij} + (t_{ij} - \bar t_i)`, where it may come closer;
    - ``"weighted"``: the mean of :math:`\sum_j w_{ij} (m_{ij} - t_{ij})^2`, where :math:`w_i` is the softmax of
      :math:`-m_{ij} / T`, without gradient;
    - ``"weighted, mild"``: the same with the weights' temperature at the standard deviation of the scores, which is
      higher, so that more negatives have a say;
    - ``"uniform"``: the same with equal weights: the adaptive in-batch loss, with the other positives as negatives.

    Args:
        form: One of these.
    """

    FORMS = (
        "softmax",
        "softmax, adaptive",
        "softmax, tolerant",
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
        """Computes the loss from embeddings, as :meth:`AdaptiveMarginLoss.terms` does."""
        with torch.autocast(query.device.type, enabled=False):
            q, p, n = normalize(query), normalize(positive), normalize(negative.reshape(-1, negative.shape[-1]))
            documents = torch.cat([p, n])
            scores = q @ documents.T
            others = ~torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
            margin = (scores.diagonal()[:, None] - scores)[others].reshape(len(q), -1)
            target = ((1 + p @ documents.T) / 2)[others].reshape(len(q), -1)
            temperature = critical_temperature(scores, others)
            if self.form.startswith("softmax"):
                sign = {"softmax": 0, "softmax, adaptive": 1, "softmax, tolerant": -1}[self.form]
                asked = sign * (target - target.mean(dim=1, keepdim=True))
                logits = (asked - margin) / temperature
                loss = torch.logsumexp(nn.functional.pad(logits, (1, 0)), dim=1).mean()
            else:
                sharpness = {
                    "weighted": 1 / temperature,
                    "weighted, mild": 1 / scores[others].std(),
                    "uniform": torch.zeros_like(temperature),
                }[self.form]
                weights = torch.softmax(-margin * sharpness, dim=1).detach()
                loss = (weights * (margin - target).square()).sum(dim=1).mean()
            return MarginTerms(loss, margin, target)

    def get_config_dict(self) -> dict[str, Any]:
        """Returns the form."""
        return {"form": self.form}
