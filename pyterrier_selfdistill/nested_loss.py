"""Nested dimensions: a loss on embeddings that trains their first dimensions to be embeddings too.

An encoder that was trained so is to lose little when its vectors are cut to a prefix (Matryoshka representation
learning): an index of them is smaller, and searched faster. :class:`NestedDimensionsLoss` computes what
``MatryoshkaLoss`` of sentence-transformers does, on embeddings: so texts are embedded, and processes give each other
their embeddings, once for all dimensions, and what is logged is of the longest vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from .calibrated_loss import CalibratedLoss, CalibratedTerms
from .losses import AdaptiveMarginLoss, MarginTerms
from .options import Expected, PositiveInteger, PositiveNumber, checked

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
