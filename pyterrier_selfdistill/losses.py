"""Losses: margins with adaptive targets, the softmax over a batch, and a loss on texts that trains with either."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.optimize import brentq
from scipy.special import softmax
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.base.losses.gradcache import has_static_embedding_input
from sentence_transformers.base.losses.merged_forward import merge_feature_batches
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from torch import Tensor, nn

from .utils.checks import Expected, checked
from .utils.processes import gather_batch

# error functions of ``margin - target`` by name
ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": torch.square,
    "l1": torch.abs,
    "soft": lambda difference: F.softplus(-difference),
}

ErrorName = Literal["l2", "l1", "soft"]
ParameterFree = Literal["distributed", "adaptive"]
TARGETS = get_args(ParameterFree)  # the targets without a parameter

# the target of a margin
Target = Annotated[
    ParameterFree | Annotated[float, Field(gt=0, le=2)], Expected(f"one of {TARGETS} or a number in (0, 2]")
]

# --- margins ----------------------------------------------------------------------------------------------------------


class MarginTerms(NamedTuple):
    """A loss with its margins and, if it has any, their targets."""

    loss: Tensor
    margin: Tensor
    target: Tensor | None


@checked
class AdaptiveMarginLoss(nn.Module):
    r"""Train score margins towards relevance margins that the encoder distills from itself.

    For B queries with one positive and K negatives each, the loss is the mean of the error function
    :math:`\phi(m - t)` over the pairs ``(i, j)`` of the table, where column ``j`` is the ``j``-th of all ``B*K``
    negatives and ``o`` is the row of its query:

    ====================  ================  ==================================================  =====================
    ``target``            ``in_batch``      margin                                              target
    ====================  ================  ==================================================  =====================
    a number ``c``        no                :math:`s(q_o, p_o) - s(q_o, n_j)`                   :math:`c`
    a number ``c``        yes               :math:`s(q_i, p_i) - s(q_i, n_j)`                   :math:`c`
    ``"adaptive"``        no                :math:`s(q_o, p_o) - s(q_o, n_j)`                   :math:`t_{oj}`
    ``"adaptive"``        yes               :math:`s(q_i, p_i) - s(q_i, n_j)`                   :math:`t_{ij}`
    ``"distributed"``     (not defined)     :math:`s(q_o, p_o) - s(q_o, n_j)`, for every i      :math:`t_{ij}`
    ====================  ================  ==================================================  =====================

    with :math:`t_{ij} = (1 + s(p_i, n_j)) / 2`. A negative close to a positive needs a large margin, so hard negatives
    weigh more even if you don't mine them. The distributed target compares the margin of a triple with the targets of
    its negative for every positive of the batch, at the cost of one matrix product.

    Scores are cosine similarities. Scores and loss are computed in float32 under autocast, and in float64 for float64
    input. You need not tune any parameter of the loss, and it has no parameters to learn.

    Args:
        target: ``"distributed"``, ``"adaptive"``, or a constant margin in (0, 2].
        in_batch: Whether to use the negatives of other queries as in-batch negatives.
        error: ``"l2"`` (:math:`x^2`), ``"l1"`` (:math:`|x|`) or ``"soft"`` (:math:`\log(1 + e^{-x})`).
        detach_target: Whether to stop the gradient through the target. This is an ablation; in the paper it flows.
        pairing: With in-batch negatives, ``"query"`` compares scores of the same query, as in the table. Choose
            ``"released"`` to reproduce runs of the authors' released code. It takes the positive score from the query
            of the negative: :math:`s(q_o, p_o) - s(q_i, n_j)`.

    Raises:
        ValueError: If the value of an option is not valid, or two options contradict each other.

    Example:
        The query is as close to the negative as to the positive, so the margin is 0. The two documents are orthogonal,
        so the target is 0.5.

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
        if in_batch and target == "distributed":
            raise ValueError(
                "target='distributed' already compares with the whole batch and is not defined with in_batch=True; use "
                "target='adaptive' or a number with in_batch=True, or in_batch=False"
            )
        if pairing == "released" and not in_batch:
            raise ValueError("pairing='released' only differs with in-batch negatives; add in_batch=True or omit it")
        self.target = target
        self.in_batch = in_batch
        self.error = error
        self.detach_target = detach_target
        self.pairing = pairing

    def forward(self, query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Compute the loss, a scalar tensor, from the same arguments as :meth:`terms`."""
        return self.terms(query, positive, negative).loss

    def terms(self, query: Tensor, positive: Tensor, negative: Tensor) -> MarginTerms:
        """Compute the loss, and return it with margins and targets for logging.

        Args:
            query: Query embeddings of any length, ``(B, D)``.
            positive: Embeddings of one relevant document per query, ``(B, D)``.
            negative: Embeddings of the non-relevant documents, ``(B, D)`` or, for K per query, ``(B, K, D)``.

        Raises:
            ValueError: If the shapes do not match, or the batch is empty.
            TypeError: If an argument is not a floating point tensor.
        """
        q, p, n = _unit_vectors(query, positive, negative)
        # autocast would compute products in 16 bits, which is too coarse for small differences of cosines
        with torch.autocast(q.device.type, enabled=False):
            columns = torch.arange(len(n), device=n.device)
            owners = columns // (len(n) // len(q))
            positive_score = (q * p).sum(dim=-1)
            margin = (positive_score[owners] if self.pairing == "released" else positive_score[:, None]) - q @ n.T
            target = (1 + p @ n.T) / 2
            if not self.in_batch:
                margin = margin[owners, columns]
            if not isinstance(self.target, str):
                target = p.new_tensor(self.target)
            elif self.target == "adaptive" and not self.in_batch:
                target = target[owners, columns]
            if self.detach_target:
                target = target.detach()
            return MarginTerms(ERRORS[self.error](margin - target).mean(), margin, target)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for model cards and records of runs."""
        names = ("target", "in_batch", "error", "detach_target", "pairing")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.get_config_dict().items())


def normalize(vectors: Tensor) -> Tensor:
    """Scale vectors to unit length in at least float32."""
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(length > 0, length, 1.0)


def _unit_vectors(query: Tensor, positive: Tensor, negative: Tensor | None) -> list[Tensor]:
    """Check a batch and return its unit vectors: ``(B, D)``, ``(B, D)`` and, with negatives, ``(B*K, D)``."""
    given = {"query": query, "positive": positive}
    if negative is not None:
        given["negative"] = negative
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise TypeError(f"{name} must be a floating point tensor, got {kind}")
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
    agree = query.ndim == 2 and positive.shape == query.shape
    if negative is not None:
        agree &= negative.ndim in (2, 3) and (negative.shape[0], negative.shape[-1]) == tuple(query.shape)
    if not agree:
        raise ValueError(f"expected query (B, D), positive (B, D) and negative (B, D) or (B, K, D), got {shapes}")
    if 0 in (query if negative is None else negative).shape:
        raise ValueError(f"expected a batch with B, K and D of at least 1, got {shapes}")
    return [normalize(tensor.reshape(-1, tensor.shape[-1])) for tensor in given.values()]


# --- the softmax ------------------------------------------------------------------------------------------------------

SoftmaxTarget = Literal["listwise", "softmax"]
SOFTMAX_TARGETS = get_args(SoftmaxTarget)
SCALES = (1.0, 1000.0)  # the range of the scale; at 1, a softmax of cosines barely separates the documents of a batch


@checked
class SoftmaxLoss(nn.Module):
    r"""Learn which documents of the batch are relevant, at a scale that the encoder measures before training.

    For B queries with one positive and K negatives each (K may be 0), the documents :math:`d_j` of every query are all
    B positives and B*K negatives. With cosines :math:`s` and the scale :math:`\beta`, the inverse of the temperature,

    .. math:: L = -\frac{1}{B} \sum_i \sum_j y_{ij} \log \operatorname{softmax}_j \beta\,s(q_i, d_j)

    ``"listwise"`` distills the labels from the encoder itself:
    :math:`y_{ij} = \operatorname{softmax}_j \beta\,s(p_i, d_j)`, without gradient. The loss is lowest where the score
    of :math:`d_j` is :math:`1 - s(p_i, d_j)` below the score of the positive: a relevance margin that adapts to each
    pair. For example, a copy of the positive gets the same label as the positive, so training doesn't push it away,
    and a document that has nothing in common with the positive gets almost no label, as in InfoNCE.

    ``"softmax"`` is InfoNCE: the positive gets the whole label. Documents with the text of another positive of the
    same query are ignored.

    Scores and loss are computed in float32 under autocast, and in float64 for float64 input.

    Args:
        target: ``"listwise"`` or ``"softmax"``.
        scale: The scale. If you omit it, :class:`SelfDistillTrainer` measures it before the first step, with
            :func:`~pyterrier_selfdistill.losses.maximum_likelihood_scale`.

    Raises:
        ValueError: If the value of an option is not valid.

    Example:
        Both queries have the same positive.

        >>> query = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
        >>> positive = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> SoftmaxLoss("listwise", scale=20.0)(query, positive)
        tensor(0.6931)

    References:
        Van den Oord, Li, Vinyals: Representation Learning with Contrastive Predictive Coding. 2018.
        https://arxiv.org/abs/1807.03748 (InfoNCE). Cao, Qin, Liu, Tsai, Li: Learning to Rank: From Pairwise Approach
        to Listwise Approach. ICML 2007 (cross-entropy of two softmaxes over a list).
    """

    def __init__(
        self,
        target: SoftmaxTarget = "listwise",
        scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
    ) -> None:
        super().__init__()
        self.target, self.scale = target, scale

    def forward(self, query: Tensor, positive: Tensor, negative: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar tensor, from the same arguments as :meth:`terms`."""
        return self.terms(query, positive, negative).loss

    def terms(
        self, query: Tensor, positive: Tensor, negative: Tensor | None = None, is_positive: Tensor | None = None
    ) -> MarginTerms:
        """Compute the loss, and return it with margins and targets for logging.

        Args:
            query: Query embeddings of any length, ``(B, D)``.
            positive: Embeddings of one relevant document per query, ``(B, D)``.
            negative: Embeddings of the non-relevant documents, ``(B, D)`` or, for K per query, ``(B, K, D)``, if any.
            is_positive: A mask of the documents that have the text of a positive of the query, ``(B, B*(K + 1))``. The
                positives come first.

        Returns:
            The loss; the margins by which each document of the batch scores below the positive; and, for
            ``"listwise"``, the targets of these margins.

        Raises:
            ValueError: If the shapes do not match, the batch is empty, or the loss has no scale.
            TypeError: If an argument is not a floating point tensor.
        """
        if self.scale is None:
            raise ValueError(
                f"{self} has no scale; pass one, such as scale=20, or train with SelfDistillTrainer, which measures "
                "it before the first step"
            )
        with torch.autocast(query.device.type, enabled=False):
            q, p, *n = _unit_vectors(query, positive, negative)
            documents = torch.cat([p, *n])
            scores = q @ documents.T
            similarity = (p @ documents.T).detach()
            is_other = ~torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
            margin = (scores.diagonal()[:, None] - scores)[is_other]
            if self.target == "listwise":
                labels = torch.softmax(self.scale * similarity, dim=1)
                return MarginTerms(F.cross_entropy(self.scale * scores, labels), margin, (1 - similarity)[is_other])
            if is_positive is not None:
                scores = scores.masked_fill(is_positive & is_other, -math.inf)
            labels = torch.arange(len(q), device=q.device)
            return MarginTerms(F.cross_entropy(self.scale * scores, labels), margin, None)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for model cards and records of runs."""
        return {"target": self.target, "scale": self.scale}

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        return f"target={self.target!r}, scale={self.scale}"


def maximum_likelihood_scale(margins: Sequence[np.ndarray]) -> float:
    r"""Compute the scale at which a softmax best explains which documents are relevant.

    The scale minimizes the sum of the cross-entropies of Q queries, which is convex in the scale. If all positives
    score above all other documents, no scale is large enough. So one more query is counted, as in Laplace's rule of
    succession: its relevant document is any of the others, with equal probability. The derivative is 0 where

    .. math:: \frac{1}{Q} \sum_i \sum_j w_{ij} m_{ij} = \frac{\bar m}{Q + 1}

    with :math:`w_i` the softmax over a query's documents, including its positive (of margin 0), and :math:`\bar m` the
    mean of all margins.

    Args:
        margins: For each query, the margins by which other documents of its batch score below the positive, ``(N,)``.

    Returns:
        A scale within ``SCALES``. It is 1 if positives do not score above other documents on average.

    Example:
        Positives that stand out get a large scale, and others a small one.

        >>> margins = [np.array([0.5, 0.4, 0.1]), np.array([0.3, -0.1, 0.2])]
        >>> round(maximum_likelihood_scale(margins), 3)
        3.173
        >>> maximum_likelihood_scale([margin - 0.2 for margin in margins])
        1.0

    References:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks. ICML 2017.
        https://arxiv.org/abs/1706.04599 (the temperature of a trained classifier by maximum likelihood)
    """
    least = np.concatenate(margins).mean() / (len(margins) + 1)

    def excess(logarithm: float) -> float:
        logits = [np.append(0.0, -math.exp(logarithm) * margin) for margin in margins]
        return float(np.mean([softmax(row)[1:] @ margin for row, margin in zip(logits, margins, strict=True)]) - least)

    low, high = map(math.log, SCALES)
    if excess(low) <= 0:
        return SCALES[0]
    if excess(high) >= 0:
        return SCALES[1]
    return math.exp(brentq(excess, low, high))


# --- on texts ---------------------------------------------------------------------------------------------------------

EmbeddingLoss: TypeAlias = AdaptiveMarginLoss | SoftmaxLoss  # the losses of this package, on embeddings
Features = dict[str, Any]  # tokenized texts, the input of a sentence-transformers model

CITATION = """
@inproceedings{gienapp2025selfdistillation,
    title = {Learning Effective Representations for Retrieval Using Self-Distillation
             with Adaptive Relevance Margins},
    author = {Lukas Gienapp and Niklas Deckers and Martin Potthast and Harrisen Scells},
    booktitle = {Proceedings of the 2025 International ACM SIGIR Conference on Innovative
                 Concepts and Theories in Information Retrieval (ICTIR)},
    year = {2025},
    url = {https://arxiv.org/abs/2407.21515},
}
"""


class SelfDistillationLoss(CachedLossMixin, nn.Module):
    """Compute :class:`AdaptiveMarginLoss` or :class:`SoftmaxLoss` on texts, for a ``SentenceTransformerTrainer``.

    The backward pass through the model needs a lot of memory for large batches. Set ``mini_batch_size`` to save most of
    it: the batch is embedded without gradients, the gradient of the loss is computed for the embeddings, and each
    mini-batch is embedded again to propagate its part of the gradient. You get the same loss and gradients, at the cost
    of one more forward pass.

    In multi-GPU training, all processes share their embeddings, so the loss covers the global batch.

    Args:
        model: The model to train.
        loss: The loss on embeddings; by default the distributed loss of the paper.
        mini_batch_size: The number of texts to propagate through the model at once, or None for the whole batch.

    Raises:
        ValueError: If you pass a ``mini_batch_size`` for a model of static embeddings, or a batch has too few columns.

    Attributes:
        statistics: The mean ``margin`` and ``target`` of the latest batch, as detached scalars. Inside
            ``MatryoshkaLoss``, they are the means for full vectors.
        skipped: The number of batches with fewer than two distinct positives. A :class:`SoftmaxLoss` cannot learn from
            them, so they add no gradient.

    Inputs:
        Columns of texts, without labels: (query, positive, negative_1, ..., negative_K), where K may be 0 for a
        :class:`SoftmaxLoss`. ``MatryoshkaLoss(model, SelfDistillationLoss(model), [384, 96])`` takes the same
        columns, and trains vectors that you can truncate.

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
        self, model: SentenceTransformer, loss: EmbeddingLoss | None = None, mini_batch_size: int | None = None
    ) -> None:
        super().__init__()
        if mini_batch_size is not None and has_static_embedding_input(model):
            raise ValueError(
                f"mini_batch_size={mini_batch_size} needs texts of several tokens each, and this model looks up static "
                "embeddings, which need little memory anyway; omit it"
            )
        self.model = model
        # a copy, since each training measures its scale
        self.loss = AdaptiveMarginLoss() if loss is None else copy.copy(loss)
        if self.loss.target in TARGETS:
            self.citation = CITATION  # for cards of sentence-transformers
        self.uses_gradient_cache = mini_batch_size is not None
        self.mini_batch_size = mini_batch_size or 0
        self.statistics: dict[str, Tensor] = {}
        self.skipped = torch.tensor(0)
        self._dimension = model.get_embedding_dimension() or 0

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """Embed the tokenized columns and compute the loss, a scalar tensor; labels are not used."""
        columns = list(sentence_features)
        keys = text_keys(columns) if isinstance(self.loss, SoftmaxLoss) else None
        batches, positions = arrange(columns)
        if self.uses_gradient_cache:
            # passes the labels to calculate_loss unchanged
            return self.forward_cached(batches, (positions, keys))  # type: ignore[arg-type]
        return self.compute_loss_from_embeddings(embed(self.model, batches, positions), keys)

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """Compute the loss from the embeddings of mini-batches, for the gradient cache."""
        positions, keys = labels
        embeddings = restore([torch.cat(parts) for parts in reps], positions)
        loss = self.compute_loss_from_embeddings(embeddings, keys)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the loss from one ``(B, D)`` tensor per column. A softmax needs :func:`text_keys` as ``labels``."""
        least = 2 if isinstance(self.loss, SoftmaxLoss) else 3
        if len(embeddings) < least:
            raise ValueError(
                f"{self.loss} got {len(embeddings)} text column(s) and needs at least {least}, in this order: query, "
                "positive, negative (more negatives may follow); pairs without a negative train with "
                "SelfDistillationLoss(model, SoftmaxLoss('listwise', scale=20))"
            )
        is_useful = embeddings[0].new_ones((), dtype=torch.bool)
        if labels is None:
            terms = self.loss.terms(*_gathered(embeddings))  # type: ignore[arg-type]
        else:
            queries, positives, negatives = _gathered(list(labels))
            documents = positives if negatives is None else torch.cat([positives, negatives.flatten()])
            is_same_query = queries[:, None] == queries
            is_same_text = positives[:, None] == documents
            is_positive = is_same_query.float() @ is_same_text.float() > 0
            terms = cast(SoftmaxLoss, self.loss).terms(*_gathered(embeddings), is_positive)
            # without a branch, which would wait for the GPU
            is_useful = (positives != positives[0]).any()
        # MatryoshkaLoss computes the loss of prefixes too
        if embeddings[0].shape[-1] >= self._dimension:
            logged = {"margin": terms.margin, "target": terms.target}
            # a single pair has no margin
            self.statistics = {
                name: values.detach().mean() for name, values in logged.items() if values is not None and values.numel()
            }
            self.skipped = self.skipped.to(is_useful.device) + ~is_useful
        return terms.loss * is_useful

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        return self.loss.get_config_dict()


def _gathered(columns: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gather the columns of all processes, with the negatives in one tensor."""
    query, positive, *negatives = gather_batch(columns)
    return query, positive, torch.stack(negatives, dim=1) if negatives else None


def without_matryoshka(loss: nn.Module) -> nn.Module:
    """Return the loss inside a ``MatryoshkaLoss``, or the loss itself."""
    return loss.loss if isinstance(loss, MatryoshkaLoss) else loss


def of_embeddings(loss: nn.Module) -> EmbeddingLoss | None:
    """Return the loss on embeddings inside a loss on texts, or None if it is not of this package."""
    loss = without_matryoshka(loss)
    return loss.loss if isinstance(loss, SelfDistillationLoss) else None


ODD = 0x1E3779B97F4A7C15  # a factor with irregular bits, to mix token numbers and positions


def text_keys(columns: Sequence[Features]) -> Tensor | None:
    """Compute a key for each text from its tokens, ``(columns, B)``, or return None if the model takes no tokens."""
    keys = []
    for features in columns:
        tokens, mask = features.get("input_ids"), features.get("attention_mask")
        if tokens is not None and mask is not None:
            keys.append((_mixed(tokens, mask.cumsum(dim=1)) * mask).sum(dim=1))
        elif tokens is not None and "offsets" in features:
            # static embeddings take the concatenated texts
            starts = features["offsets"]
            lengths = torch.diff(starts, append=starts.new_tensor([len(tokens)]))
            rows = torch.repeat_interleave(lengths, output_size=len(tokens))
            mixed = _mixed(tokens, torch.arange(len(tokens), device=tokens.device) - starts[rows])
            keys.append(torch.zeros_like(starts).index_add(0, rows, mixed))
        else:
            return None
    return torch.stack(keys)


def _mixed(tokens: Tensor, positions: Tensor) -> Tensor:
    mixed = (tokens + 1) * ODD + positions * (ODD >> 7)
    mixed = (mixed ^ (mixed >> 31)) * ODD
    return mixed ^ (mixed >> 29)


# --- embedding in one pool --------------------------------------------------------------------------------------------

MOST_PASSES = 8  # the maximum number of passes per pool; more would save little padding


def arrange(columns: Iterable[Features]) -> tuple[list[Features], Tensor | None]:
    """Put all document columns, after the queries in the first, into one pool sorted by length."""
    queries, *documents = columns
    pool = merge_feature_batches(documents) if len(documents) > 1 else None
    if pool is None or "attention_mask" not in pool:
        return [queries, *documents], None
    order = _widths(pool).argsort(stable=True)
    return [queries, _take(pool, order)], order.argsort()


def embed(model: nn.Module, batches: list[Features], positions: Tensor | None) -> list[Tensor]:
    """Embed the batches of :func:`arrange`, the pool in passes of similar length: one ``(B, D)`` tensor per column."""
    if positions is None:
        return [model(batch)["sentence_embedding"] for batch in batches]
    queries, pool = batches
    widths = _widths(pool).cpu().numpy()
    ends = divide(widths, number_of_passes(len(widths), positions.device))
    parts = [_take(pool, slice(begin, end), widths[end - 1]) for begin, end in pairwise([0, *ends])]
    embedded, *documents = [model(part)["sentence_embedding"] for part in (queries, *parts)]
    return restore([embedded, torch.cat(documents)], positions)


def restore(embeddings: list[Tensor], positions: Tensor | None) -> list[Tensor]:
    """Put the embeddings of the batches of :func:`arrange` back into columns."""
    if positions is None:
        return embeddings
    queries, pool = embeddings
    return [queries, *pool[positions].split(len(queries))]


def number_of_passes(rows: int, device: torch.device) -> int:
    """Choose the number of passes for a pool, so that each has enough texts to justify its overhead."""
    return min(MOST_PASSES, math.ceil(rows / (8 if device.type == "cpu" else 64)))


def divide(lengths: np.ndarray, number: int) -> list[int]:
    """Divide texts into parts, so that padding each part to its longest text adds the fewest tokens."""
    # texts of equal length stay together, so parts end only where the length changes
    widths, starts = np.unique(lengths, return_index=True)
    if len(widths) < number:
        return np.cumsum([len(part) for part in np.array_split(lengths, number)]).tolist()
    borders = np.append(starts, len(lengths))
    # tokens[i, j]: the padded number of tokens between two borders
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


def _widths(features: Features) -> Tensor:
    """Return the position of the last token of each text, counted from 1, for padding on either side."""
    mask = features["attention_mask"]
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)


def _take(features: Features, rows: Tensor | slice, width: int | None = None) -> Features:
    """Select the features of some texts, truncated at a width."""
    full = features["attention_mask"].shape[1]
    taken = dict(features)
    for name, value in features.items():
        # the length of the prompt is the same for all texts
        if isinstance(value, Tensor) and name != "prompt_length":
            taken[name] = value[rows][:, :width] if value.shape[1:2] == (full,) else value[rows]
    return taken
