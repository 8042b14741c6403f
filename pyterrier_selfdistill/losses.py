"""Self-distillation losses with adaptive relevance margins.

How far apart should the scores of a positive and a negative document be for a query? The encoder itself says: by as
much as it finds the two documents alike. A batch holds B triples ``(q_i, p_i, n_i)`` and ``s`` is cosine similarity::

    margin   m[i,j] = s(q_i, p_i) - s(q_i, n_j)
    target   t[i,j] = (1 + s(p_i, n_j)) / 2

and the loss is the mean error between the two. :class:`AdaptiveMarginLoss` computes it from embeddings;
:mod:`.text_losses` embeds texts first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .options import Expected, checked

ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": torch.square,
    "l1": torch.abs,
    "soft": lambda difference: F.softplus(-difference),
    "hinge": lambda difference: difference.clamp(max=0).square(),
}
"""Error functions of ``margin - target``, by name."""

ErrorName = Literal["l2", "l1", "soft", "hinge"]

ParameterFree = Literal["distributed", "adaptive", "trusting"]

TARGETS = get_args(ParameterFree)
"""The parameter-free targets."""

Target = Annotated[
    ParameterFree | Annotated[float, Field(gt=0, le=2)], Expected(f"one of {TARGETS} or a number in (0, 2]")
]
"""What margins are compared with."""

WHOLE_BATCH_TARGETS = ("distributed", "trusting")
"""Those that compare with the whole batch in any case."""


class MarginTerms(NamedTuple):
    """A loss with the margins and targets that made it.

    Attributes:
        loss: The scalar loss.
        margin: The margins, ``(B*K,)``, ``(B, B*K)`` with in-batch negatives, or ``(B, B*K + B - 1)`` of the trusting
            target.
        target: What the margins were compared with, in a shape that broadcasts with ``margin``.
    """

    loss: Tensor
    margin: Tensor
    target: Tensor


@checked
class AdaptiveMarginLoss(nn.Module):
    r"""Compare score margins with relevance margins that the encoder distills from itself.

    For B queries with one positive and K negatives each, the loss is the mean of the error function
    :math:`\phi(m - t)` over the pairs ``(i, j)`` of the table, where column ``j`` is the ``j``-th of all ``B*K``
    negatives and ``o`` is the row that it belongs to:

    ====================  ================  ==================================================  =====================
    ``target``            ``in_batch``      margin                                              target
    ====================  ================  ==================================================  =====================
    a number ``c``        no                :math:`s(q_o, p_o) - s(q_o, n_j)`                   :math:`c`
    a number ``c``        yes               :math:`s(q_i, p_i) - s(q_i, n_j)`                   :math:`c`
    ``"adaptive"``        no                :math:`s(q_o, p_o) - s(q_o, n_j)`                   :math:`t_{oj}`
    ``"adaptive"``        yes               :math:`s(q_i, p_i) - s(q_i, n_j)`                   :math:`t_{ij}`
    ``"distributed"``     (not defined)     :math:`s(q_o, p_o) - s(q_o, n_j)`, for every i      :math:`t_{ij}`
    ====================  ================  ==================================================  =====================

    with :math:`t_{ij} = (1 + s(p_i, n_j)) / 2`. A negative close to a positive asks for a large margin, so hard
    negatives weigh more without being mined. The distributed target compares a triple's own margin with what its
    negative gets from every positive of the batch, at the cost of one matrix product.

    ``"trusting"`` is not from the paper. It has the adaptive target, takes the positives of the other queries as
    negatives too, and instead of the mean over the N = B*K + B - 1 pairs of a query the weighted one, with weights

    .. math:: w_{ij} \propto \exp\left(\frac{\max(D_i, 0)}{\sigma} s(q_i, d_j)\right), \quad
              D_i = \frac{1}{N} \sum_j \operatorname{sign}(m_{ij})

    and no gradient through them. :math:`\sigma` is the standard deviation of the scores of all pairs of the batch, and
    :math:`D_i`, Somers' D, how far the positive stands out: 1 if it scores above all others, 0 if above half of them.
    So hard negatives weigh more where the positive can be trusted, and all the same where they may be as relevant as
    it is. ``benchmarks/RESULTS.md`` compares it with the others.

    Scores are cosines; they and the loss are computed in float32 under autocast, and in float64 for float64 input.
    The loss has no parameters to tune or to learn.

    Args:
        target: ``"distributed"``, ``"adaptive"``, ``"trusting"``, or a constant margin in (0, 2].
        in_batch: Whether the negatives of the other queries count as negatives too.
        error: ``"l2"`` (:math:`x^2`), ``"l1"`` (:math:`|x|`), ``"soft"`` (:math:`\log(1 + e^{-x})`) or ``"hinge"``
            (:math:`\min(x, 0)^2`, not from the paper): l2 of margins that fall short of their target, while one that is
            larger is left alone and not pulled back.
        detach_target: Whether to stop the gradient through the target (an ablation; the paper lets it flow).
        pairing: With in-batch negatives, ``"query"`` compares scores of the same query, as above. ``"released"``
            takes the positive score of the negative's own query, :math:`s(q_o, p_o) - s(q_i, n_j)`, as the authors'
            released code does, so that their runs can be repeated.

    Raises:
        ValueError: If an option is not one of those above, or a constant target is outside (0, 2].

    Example:
        A query as close to the negative as to the positive, two documents that are orthogonal: the margin is 0 and
        should be 0.5.

        >>> loss = AdaptiveMarginLoss(target="adaptive")
        >>> query = torch.tensor([[1.0, 1.0]])
        >>> positive, negative = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> loss(query, positive, negative)
        tensor(0.2500)

    References:
        Gienapp, Deckers, Potthast, Scells: Learning Effective Representations for Retrieval Using Self-Distillation
        with Adaptive Relevance Margins. ICTIR 2025. https://arxiv.org/abs/2407.21515
    """

    def __init__(
        self,
        target: Target = "distributed",
        in_batch: bool = False,
        error: ErrorName = "l2",
        *,
        detach_target: bool = False,
        pairing: Literal["query", "released"] = "query",
    ) -> None:
        super().__init__()
        if in_batch and target in WHOLE_BATCH_TARGETS:
            raise ValueError(
                f"target={target!r} already compares with the whole batch and is not defined with in_batch=True; use "
                "target='adaptive' or a number with in_batch=True, or in_batch=False"
            )
        if pairing == "released" and not in_batch:
            raise ValueError(
                "pairing='released' only differs with in-batch negatives; add in_batch=True or leave it out"
            )
        self.target = target
        self.in_batch = in_batch
        self.error = error
        self.detach_target = detach_target
        self.pairing = pairing

    def forward(self, query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Compute the loss, a scalar tensor; :meth:`terms` says of what."""
        return self.terms(query, positive, negative).loss

    def terms(self, query: Tensor, positive: Tensor, negative: Tensor) -> MarginTerms:
        """Compute the loss, and return the margins and targets with it, for logging.

        Args:
            query: Query embeddings, ``(B, D)``, of any length (cosines are taken here).
            positive: Embeddings of one relevant document a query, ``(B, D)``.
            negative: Embeddings of the non-relevant documents, ``(B, D)`` or, for K a query, ``(B, K, D)``.

        Returns:
            The loss, the margins and the targets.

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
            if self.target == "trusting":
                score, margin, target = pairs_with_other_documents(q, p, n)
                weights = trusting_weights(margin.detach(), score.detach())
            else:
                margin = self._margin(q, p, n)
                target = self._target(p, n)
                weights = None
            if self.detach_target:
                target = target.detach()
            error = ERRORS[self.error](margin - target)
            if weights is None:
                loss = error.mean()
            else:
                loss = (weights * error).sum(dim=1).mean()
            return MarginTerms(loss, margin, target)

    def _margin(self, q: Tensor, p: Tensor, n: Tensor) -> Tensor:
        """Compute the margins of positives over negatives, from unit vectors."""
        positive_score = (q * p).sum(dim=-1)
        negative_score = q @ n.T
        rows, columns = _own_negatives(q, n)
        if not self.in_batch:
            return positive_score[rows] - negative_score[rows, columns]
        if self.pairing == "released":
            return positive_score[rows] - negative_score
        return positive_score[:, None] - negative_score

    def _target(self, p: Tensor, n: Tensor) -> Tensor:
        """Compute the targets of the margins, in a shape that broadcasts with them."""
        if not isinstance(self.target, str):
            return p.new_tensor(self.target)
        target = relevance_target(p, n)
        if self.target == "adaptive" and not self.in_batch:
            return target[_own_negatives(p, n)]
        return target

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for model cards and records of runs."""
        return {
            "target": self.target,
            "in_batch": self.in_batch,
            "error": self.error,
            "detach_target": self.detach_target,
            "pairing": self.pairing,
        }

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        options = [f"{name}={value!r}" for name, value in self.get_config_dict().items()]
        return ", ".join(options)


def relevance_target(positive: Tensor, negative: Tensor) -> Tensor:
    """Compute the adaptive relevance margin of each positive and each negative document.

    Args:
        positive: Unit vectors of P documents, ``(P, D)``.
        negative: Unit vectors of N documents, ``(N, D)``.

    Returns:
        The cosines, scaled from [-1, 1] to [0, 1], ``(P, N)``.

    Example:
        >>> relevance_target(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    return (1 + positive @ negative.T) / 2


def pairs_with_other_documents(query: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pair each query's positive with all other documents of the batch: the negatives and the other positives.

    Args:
        query: Unit vectors of B queries, ``(B, D)``.
        positive: Those of their positives, ``(B, D)``.
        negative: Those of all negatives, ``(B*K, D)``.

    Returns:
        The other documents' scores, the positive's margins over them, and the targets of these margins, each
        ``(B, B - 1 + B*K)``.

    Example:
        >>> score, margin, target = pairs_with_other_documents(torch.eye(2), torch.eye(2), -torch.eye(2))
        >>> margin
        tensor([[1., 2., 1.],
                [1., 1., 2.]])
    """
    documents = torch.cat([positive, negative])
    is_other = ~torch.eye(len(query), len(documents), dtype=torch.bool, device=query.device)
    scores = query @ documents.T
    targets = relevance_target(positive, documents)
    score = scores[is_other].reshape(len(query), -1)
    margin = scores.diagonal()[:, None] - score
    target = targets[is_other].reshape(len(query), -1)
    return score, margin, target


def trusting_weights(margin: Tensor, score: Tensor) -> Tensor:
    """Weigh each query's negatives: the higher their score the more, as far as the positive stands out.

    Args:
        margin: What the positive's score is above the negatives', ``(B, N)``.
        score: The negatives' scores, ``(B, N)``.

    Returns:
        Weights that sum to 1 for each query, ``(B, N)``; :class:`AdaptiveMarginLoss` defines them.

    Example:
        The first positive stands out, the second is in the middle.

        >>> score = torch.tensor([[0.1, 0.3], [0.1, 0.3]])
        >>> trusting_weights(torch.tensor([[0.5], [0.2]]) - score, score)
        tensor([[0.1192, 0.8808],
                [0.5000, 0.5000]])
    """
    somers = margin.sign().mean(dim=1, keepdim=True).clamp(min=0)
    # the deviation is 0 where all scores are the same
    deviation = score.std(correction=0).clamp(min=torch.finfo(score.dtype).eps)
    return torch.softmax(somers * score / deviation, dim=1)


def normalize(vectors: Tensor) -> Tensor:
    """Scale vectors to unit length in at least float32.

    Args:
        vectors: Vectors of any length, ``(..., D)``.

    Returns:
        Unit vectors; a zero vector stays zero and gets a finite gradient.

    Example:
        >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(length > 0, length, 1.0)


def _own_negatives(queries: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of the query that each negative belongs to, and the negative's column."""
    columns = torch.arange(len(negatives), device=negatives.device)
    number = len(negatives) // len(queries)
    return columns // number, columns


def require_embeddings(query: Tensor, positive: Tensor, negative: Tensor) -> None:
    """Check the types and the shapes of a batch.

    Args:
        query: What should be ``(B, D)``.
        positive: What should be ``(B, D)``.
        negative: What should be ``(B, D)`` or ``(B, K, D)``.

    Raises:
        TypeError: If one is not a floating point tensor.
        ValueError: If the shapes do not agree or the batch is empty.

    Example:
        >>> require_embeddings(torch.ones(2, 4), torch.ones(2, 4), torch.ones(3, 4))
        Traceback (most recent call last):
        ValueError: expected query (B, D), positive (B, D) and negative (B, D) or (B, K, D), got query (2, 4), ...
    """
    for name, tensor in {"query": query, "positive": positive, "negative": negative}.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a floating point tensor, got a {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating point tensor, got {tensor.dtype}")
    shapes = f"query {tuple(query.shape)}, positive {tuple(positive.shape)}, negative {tuple(negative.shape)}"
    are_matrices = query.ndim == 2 and negative.ndim in (2, 3)
    agree = positive.shape == query.shape and (negative.shape[0], negative.shape[-1]) == tuple(query.shape)
    if not (are_matrices and agree):
        raise ValueError(f"expected query (B, D), positive (B, D) and negative (B, D) or (B, K, D), got {shapes}")
    if 0 in negative.shape:
        raise ValueError(f"expected a batch with B, K and D of at least 1, got {shapes}")
