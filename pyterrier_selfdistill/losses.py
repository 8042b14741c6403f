"""The losses: margins with adaptive targets, the calibrated softmax, and the loss on texts that trains with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.base.losses.gradcache import has_static_embedding_input
from sentence_transformers.base.losses.merged_forward import merge_feature_batches
from torch import Tensor, nn

from .utils.checks import Expected, PositiveInteger, PositiveNumber, checked
from .utils.processes import gather_batch

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


Dimensions = Annotated[
    Sequence[PositiveInteger], Field(min_length=1), Expected("a list of numbers of dimensions such as [384, 192, 96]")
]
Weights = Annotated[Sequence[PositiveNumber], Expected("a list of positive numbers such as [1, 1, 0.5]")]


@checked
class NestedDimensionsLoss(nn.Module):
    r"""Sum a loss over prefixes of the embeddings.

    For dimensions :math:`d_1 > d_2 > \ldots` with weights :math:`w_k` it is

    .. math:: \sum_k w_k L(q_{1:d_k}, p_{1:d_k}, n_{1:d_k})

    where :math:`x_{1:d}` are the first d numbers of an embedding. The loss takes cosines, so prefixes need not be
    scaled to unit length again.

    Args:
        loss: The loss.
        matryoshka_dims: The numbers of dimensions, in any order. The largest is that of whole vectors.
        matryoshka_weights: The weight of each; 1 by default.

    Raises:
        ValueError: If a number of dimensions is given twice, or there are not as many weights.

    Example:
        >>> loss = NestedDimensionsLoss(CalibratedLoss(), [4, 2])
        >>> query, positive, negative = torch.eye(4)[:2], torch.eye(4)[:2], torch.eye(4)[2:]
        >>> prefixes = [vectors[:, :2] for vectors in (query, positive, negative)]
        >>> expected = CalibratedLoss()(query, positive, negative) + CalibratedLoss()(*prefixes)
        >>> bool(loss(query, positive, negative) == expected)
        True

    References:
        Kusupati, Bhatt, Rege, Wallingford, Sinha, Ramanujan, Howard-Snyder, Chen, Kakade, Jain, Farhadi: Matryoshka
        Representation Learning. NeurIPS 2022. https://arxiv.org/abs/2205.13147
    """

    def __init__(
        self,
        loss: AdaptiveMarginLoss | CalibratedLoss,
        matryoshka_dims: Dimensions,
        matryoshka_weights: Weights | None = None,
    ) -> None:
        super().__init__()
        if len(set(matryoshka_dims)) < len(matryoshka_dims):
            raise ValueError(f"matryoshka_dims={list(matryoshka_dims)} has a number of dimensions twice; give it once")
        if matryoshka_weights is None:
            matryoshka_weights = [1.0] * len(matryoshka_dims)
        if len(matryoshka_weights) != len(matryoshka_dims):
            raise ValueError(
                f"matryoshka_weights must be one for each of matryoshka_dims={list(matryoshka_dims)}, got "
                f"{list(matryoshka_weights)}"
            )
        self.loss = loss
        longest_first = sorted(zip(matryoshka_dims, matryoshka_weights, strict=True), reverse=True)
        self.dimensions = [dimension for dimension, _ in longest_first]
        self.weights = [weight for _, weight in longest_first]

    def forward(self, query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Compute the loss, a scalar tensor; :meth:`terms` says of what."""
        return self.terms(query, positive, negative).loss

    def terms(self, query: Tensor, positive: Tensor, negative: Tensor) -> MarginTerms | CalibratedTerms:
        """Compute the loss, and return with it what the loss of the longest prefix has beside, for logging.

        Args:
            query: Query embeddings, ``(B, D)``, of any length (cosines are taken here).
            positive: Embeddings of one relevant document a query, ``(B, D)``.
            negative: Embeddings of the non-relevant documents, ``(B, D)`` or, for K a query, ``(B, K, D)``.

        Returns:
            The sum, with the margins, and the targets or the scale, of the longest prefix.

        Raises:
            ValueError: If the shapes do not agree, the batch is empty, or embeddings are not as long as the
                longest prefix.
            TypeError: If an argument is not a floating point tensor.
        """
        self.require_dimensions_of(query.shape[-1])
        terms = []
        for dimension in self.dimensions:
            prefixes = [vectors[..., :dimension] for vectors in (query, positive, negative)]
            terms.append(self.loss.terms(*prefixes))
        weighted = [weight * part.loss for weight, part in zip(self.weights, terms, strict=True)]
        return terms[0]._replace(loss=torch.stack(weighted).sum())

    def require_dimensions_of(self, dimension: int) -> None:
        """Check that the longest prefix is the whole vector, which would not be trained otherwise.

        Args:
            dimension: How many dimensions the vectors have.

        Raises:
            ValueError: If they have more or fewer.
        """
        if self.dimensions[0] != dimension:
            raise ValueError(
                f"matryoshka_dims={self.dimensions} must begin with the {dimension} dimensions that the vectors have; "
                f"give [{dimension}, ...], all others smaller"
            )

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for model cards and records of runs: those of the loss, and the dimensions."""
        return {
            **self.loss.get_config_dict(),
            "matryoshka_dims": self.dimensions,
            "matryoshka_weights": self.weights,
        }


EmbeddingLoss: TypeAlias = AdaptiveMarginLoss | CalibratedLoss | NestedDimensionsLoss
"""The losses of this package, on embeddings."""


Features = dict[str, Any]
"""The tokens of some texts, as a model of sentence-transformers takes them."""

MOST_PASSES = 8
"""Into how many passes to divide a pool at most; with more, there is little padding left to save."""

ROWS_OF_A_PASS = {"cpu": 8}
"""How many texts make a pass worth its overhead, by the type of the device."""

ROWS_OF_A_PASS_ELSEWHERE = 64
"""The same for devices that compute many texts in the time of one."""


class Arrangement(NamedTuple):
    """The columns of a batch, in the order in which to embed them.

    Attributes:
        batches: What to embed: the queries and the pool of documents, or column by column.
        widths: How many tokens of each text of the pool lie before its last padding, ascending; None without a pool.
        positions: Where in the pool each document is, column by column; None without a pool.
    """

    batches: list[Features]
    widths: Tensor | None = None
    positions: Tensor | None = None


def arrange(columns: Iterable[Features]) -> Arrangement:
    """Put all columns but the first, the queries, into one pool that is sorted by length.

    Args:
        columns: The tokens of each column: query, positive, and one or more negatives.

    Returns:
        The arrangement. Columns stay as they are where the model has no tokens, has no padding (flattened inputs of
        flash attention), or treats columns differently.

    Example:
        >>> columns = [["sort"], ["sort the rows of a table"], ["read"]]
        >>> queries, pool = arrange([encoder.model.preprocess(texts) for texts in columns]).batches
        >>> pool["attention_mask"].sum(dim=1)
        tensor([3, 8])
    """
    columns = list(columns)
    queries, *documents = columns
    pool = None
    if len(documents) > 1:
        pool = merge_feature_batches(documents)
    if pool is None or "attention_mask" not in pool:
        return Arrangement(columns)
    widths, order = _widths(pool["attention_mask"]).sort(stable=True)
    return Arrangement([queries, _take(pool, order)], widths, order.argsort())


def embed(model: nn.Module, arrangement: Arrangement) -> list[Tensor]:
    """Embed a batch, the pool in passes of like length.

    Args:
        model: The model.
        arrangement: What :func:`arrange` returns.

    Returns:
        One ``(B, D)`` tensor a column.

    Example:
        >>> columns = [["sort"], ["sort the rows of a table"], ["read"]]
        >>> arrangement = arrange([encoder.model.preprocess(texts) for texts in columns])
        >>> [embeddings.shape for embeddings in embed(encoder.model, arrangement)]
        [torch.Size([1, 32]), torch.Size([1, 32]), torch.Size([1, 32])]
    """
    if arrangement.widths is None:
        return [model(batch)["sentence_embedding"] for batch in arrangement.batches]
    queries, pool = arrangement.batches
    embedded_queries = model(queries)["sentence_embedding"]
    passes = number_of_passes(len(arrangement.widths), arrangement.widths.device)
    widths = arrangement.widths.cpu().numpy()
    begin = 0
    parts = []
    for end in divide(widths, passes):
        part = _take(pool, slice(begin, end), width=widths[end - 1])
        parts.append(model(part)["sentence_embedding"])
        begin = end
    return restore([embedded_queries, torch.cat(parts)], arrangement.positions)


def restore(embeddings: list[Tensor], positions: Tensor | None) -> list[Tensor]:
    """Put embeddings back into columns.

    Args:
        embeddings: One ``(rows, D)`` tensor for each batch of an :class:`Arrangement`.
        positions: Its positions.

    Returns:
        One ``(B, D)`` tensor a column: query, positive, and one or more negatives.

    Example:
        >>> queries, pool = torch.tensor([[1], [2]]), torch.tensor([[3], [4], [5], [6]])
        >>> restore([queries, pool], torch.tensor([3, 0, 2, 1]))[1]
        tensor([[6],
                [3]])
    """
    if positions is None:
        return embeddings
    queries, pool = embeddings
    return [queries, *pool[positions].split(len(queries))]


def number_of_passes(rows: int, device: torch.device) -> int:
    """Choose into how many passes to divide a pool.

    Args:
        rows: The number of texts.
        device: Where the model is.

    Returns:
        The number.

    Example:
        >>> number_of_passes(40, torch.device("cpu")), number_of_passes(40, torch.device("cuda"))
        (5, 1)
    """
    least = ROWS_OF_A_PASS.get(device.type, ROWS_OF_A_PASS_ELSEWHERE)
    return min(MOST_PASSES, math.ceil(rows / least))


def divide(lengths: np.ndarray, number: int) -> list[int]:
    """Divide texts into parts, so that padding each part to its longest text takes the fewest tokens.

    Args:
        lengths: The tokens of each text, ascending.
        number: The number of parts.

    Returns:
        The end of each part.

    Example:
        >>> divide(np.array([5, 5, 5, 6, 50, 60]), 2)
        [4, 6]
    """
    # texts of one length belong together, so that the parts can only end where a length does
    widths, starts = np.unique(lengths, return_index=True)
    if len(widths) < number:
        parts = np.array_split(lengths, number)
        return np.cumsum([len(part) for part in parts]).tolist()
    borders = np.append(starts, len(lengths))
    # tokens[i, j]: those of the texts between two borders, padded
    tokens = np.where(np.tri(len(borders), dtype=bool), np.inf, 0.0)
    tokens[:, 1:] += widths * (borders[None, 1:] - borders[:, None])
    fewest = tokens[0]
    choices = []
    for _ in range(number - 1):
        candidates = fewest[:, None] + tokens
        choices.append(candidates.argmin(axis=0))
        fewest = candidates.min(axis=0)
    chosen = [len(widths)]
    for choice in reversed(choices):
        chosen.append(int(choice[chosen[-1]]))
    return [int(borders[border]) for border in reversed(chosen)]


def _widths(mask: Tensor) -> Tensor:
    """Find where the last token of each text is, counted from 1, whichever side is padded."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)


def _take(features: Features, rows: Tensor | slice, width: int | None = None) -> Features:
    """Take the features of some texts, cut at a width."""
    full = features["attention_mask"].shape[1]
    taken: Features = {}
    for name, value in features.items():
        # the length of the prompt is the same for all
        if not isinstance(value, Tensor) or name == "prompt_length":
            taken[name] = value
        elif value.ndim > 1 and value.shape[1] == full:
            taken[name] = value[rows][:, :width]
        else:
            taken[name] = value[rows]
    return taken


CITATION = """
@inproceedings{gienapp2025selfdistillation,
    title = {Learning Effective Representations for Retrieval Using Self-Distillation with Adaptive Relevance Margins},
    author = {Lukas Gienapp and Niklas Deckers and Martin Potthast and Harrisen Scells},
    booktitle = {Proceedings of the 2025 International ACM SIGIR Conference on Innovative Concepts and Theories in
                 Information Retrieval (ICTIR)},
    year = {2025},
    url = {https://arxiv.org/abs/2407.21515},
}
"""


class SelfDistillationLoss(CachedLossMixin, nn.Module):
    """Compute :class:`AdaptiveMarginLoss` or :class:`CalibratedLoss` on texts, for a ``SentenceTransformerTrainer``.

    A large batch takes much memory, nearly all of it for going back through the model. With a ``mini_batch_size`` the
    batch is embedded without that, the loss is differentiated by the embeddings, and each mini-batch is embedded again
    and gone back through with its part of the gradient: the same loss and gradients, for a forward pass more.

    Args:
        model: The model to train.
        loss: The loss on embeddings; the distributed one of the paper by default.
        mini_batch_size: How many texts to go back through the model with at once; None for the whole batch.

    Raises:
        ValueError: If the model has static embeddings and there is a ``mini_batch_size``.

    Attributes:
        statistics: After each forward pass, the batch's mean ``margin`` and ``target``, or ``scale`` of the calibrated
            loss (detached scalars).

    In several processes that train together, it is the loss of the global batch, the embeddings of which all processes
    give each other: call it in all of them.

    Inputs:
        ==============================================  ======
        Texts                                           Labels
        ==============================================  ======
        (query, positive, negative)                     none
        (query, positive, negative_1, ..., negative_K)  none
        ==============================================  ======

    Relations:
        ``TripletLoss`` and ``MarginMSELoss`` need a tuned margin or a teacher's scores for the same inputs;
        ``MultipleNegativesRankingLoss`` a scale.

    Example:
        ::

            model = SentenceTransformer("microsoft/mpnet-base")
            loss = SelfDistillationLoss(model, AdaptiveMarginLoss(target="adaptive", in_batch=True))
            SentenceTransformerTrainer(model, train_dataset=triples, loss=loss).train()

        >>> loss = SelfDistillationLoss(encoder.model)
        >>> columns = [["sort"], ["sort the rows"], ["plot a file"]]
        >>> loss([encoder.model.preprocess(texts) for texts in columns]).shape
        torch.Size([])
        >>> list(loss.statistics)
        ['margin', 'target']

    References:
        Gao, Zhang, Han, Callan: Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup. RepL4NLP
        2021. https://arxiv.org/abs/2101.06983 (the gradient cache)
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: EmbeddingLoss | None = None,
        mini_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if mini_batch_size is not None and has_static_embedding_input(model):
            raise ValueError(
                f"mini_batch_size={mini_batch_size} needs texts of several tokens each, and this model looks up static "
                "embeddings, which take little memory anyway; leave it out"
            )
        self.model = model
        self.loss = AdaptiveMarginLoss() if loss is None else loss
        self.uses_gradient_cache = mini_batch_size is not None
        self.mini_batch_size = mini_batch_size or 0
        self.statistics: dict[str, Tensor] = {}

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Embed each column and compute the loss.

        Args:
            sentence_features: The tokenized columns: query, positive, and one or more negatives.
            labels: Not used.

        Returns:
            A scalar tensor.
        """
        arrangement = arrange(sentence_features)
        if self.uses_gradient_cache:
            # what it takes for labels it hands to calculate_loss as it is
            return self.forward_cached(arrangement.batches, arrangement.positions)
        return self.compute_loss_from_embeddings(embed(self.model, arrangement), labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss from the embeddings of mini-batches, for the gradient cache.

        Args:
            reps: The embeddings of each mini-batch, for each batch of an arrangement.
            labels: The positions of the arrangement.
            with_backward: Whether to go back to the embeddings.

        Returns:
            A scalar tensor, without a graph if ``with_backward``.
        """
        batches = [torch.cat(parts) for parts in reps]
        loss = self.compute_loss_from_embeddings(restore(batches, labels))
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the loss from embeddings, of all processes if there are several.

        Args:
            embeddings: One ``(B, D)`` tensor a column: query, positive, and one or more negatives.
            labels: Not used.

        Returns:
            A scalar tensor.

        Raises:
            ValueError: If there are fewer than three columns.
        """
        if len(embeddings) < 3:
            raise ValueError(
                f"{type(self).__name__} got {len(embeddings)} text column(s) and needs at least three, in this order: "
                "query, positive, negative (more negatives may follow)"
            )
        query, positive, *negatives = gather_batch(embeddings)
        terms = self.loss.terms(query, positive, torch.stack(negatives, dim=1))._asdict()
        loss = terms.pop("loss")
        self.statistics = {name: values.detach().mean() for name, values in terms.items()}
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        return self.loss.get_config_dict()

    @property
    def citation(self) -> str:
        """The paper, as BibTeX, for the model card."""
        return CITATION
