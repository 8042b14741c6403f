"""The self-distillation loss on texts, in the form that sentence-transformers trains with.

:class:`SelfDistillationLoss` embeds the columns of a batch, queries, positives and negatives, and hands the embeddings
to a loss of this package: :class:`.losses.AdaptiveMarginLoss` or :class:`.calibrated_loss.CalibratedLoss`, or
:class:`.nested_loss.NestedDimensionsLoss` of one of them. With a ``mini_batch_size`` it takes one mini-batch after the
other, with the gradient cache of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.base.losses.gradcache import has_static_embedding_input
from torch import Tensor, nn

from .distributed import gather_batch
from .embedding import arrange, embed, restore
from .losses import AdaptiveMarginLoss
from .nested_loss import EmbeddingLoss

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
