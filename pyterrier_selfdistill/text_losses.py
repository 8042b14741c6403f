"""The self-distillation loss on texts, in the form that sentence-transformers trains with.

:class:`SelfDistillationLoss` embeds the columns of a batch, queries, positives and negatives, and hands the embeddings
to :class:`.losses.AdaptiveMarginLoss`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from .distributed import gather_batch
from .losses import AdaptiveMarginLoss

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


class SelfDistillationLoss(nn.Module):
    """Compute :class:`AdaptiveMarginLoss` on texts, for a ``SentenceTransformerTrainer``.

    Args:
        model: The model to train.
        loss: The loss on embeddings; the parameter-free distributed one by default.

    Attributes:
        statistics: After each forward pass, the batch's mean ``margin`` and ``target`` (detached scalars).

    In several processes that train together, it is the loss of the global batch, the embeddings of which all processes
    give each other: call it in all of them.

    Inputs:
        ============================================  ======
        Texts                                         Labels
        ============================================  ======
        (query, positive, negative)                   none
        (query, positive, negative_1, ..., negative_K)  none
        ============================================  ======

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
    """

    def __init__(self, model: SentenceTransformer, loss: AdaptiveMarginLoss | None = None) -> None:
        super().__init__()
        self.model = model
        self.loss = AdaptiveMarginLoss() if loss is None else loss
        self.statistics: dict[str, Tensor] = {}

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Embed each column and compute the loss.

        Args:
            sentence_features: The tokenized columns: query, positive, and one or more negatives.
            labels: Not used.

        Returns:
            A scalar tensor.
        """
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

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
        loss, margin, target = self.loss.terms(query, positive, torch.stack(negatives, dim=1))
        self.statistics = {"margin": margin.detach().mean(), "target": target.detach().mean()}
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        return self.loss.get_config_dict()

    @property
    def citation(self) -> str:
        """The paper, as BibTeX, for the model card."""
        return CITATION
