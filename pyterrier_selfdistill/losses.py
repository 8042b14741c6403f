"""The losses: margins with adaptive targets, the calibrated softmax, and the loss on texts that trains with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.base.losses.gradcache import has_static_embedding_input
from sentence_transformers.base.losses.merged_forward import merge_feature_batches
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from torch import Tensor, nn

from .utils.checks import Expected, checked
from .utils.processes import gather_batch

# error functions of ``margin - target``, by name
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
    """A loss with its margins and targets."""

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

    with :math:`t_{ij} = (1 + s(p_i, n_j)) / 2`. A negative close to a positive needs a large margin, so hard negatives
    weigh more without being mined. The distributed target compares the margin of a triple with the targets that its
    negative has for every positive of the batch, at the cost of one matrix product.

    Scores are cosines. They and the loss are computed in float32 under autocast, and in float64 for float64 input.
    The loss has no parameters to tune or to learn.

    Args:
        target: ``"distributed"``, ``"adaptive"``, or a constant margin in (0, 2].
        in_batch: Whether the negatives of the other queries are negatives too.
        error: ``"l2"`` (:math:`x^2`), ``"l1"`` (:math:`|x|`) or ``"soft"`` (:math:`\log(1 + e^{-x})`).
        detach_target: Whether to stop the gradient through the target (an ablation; in the paper it flows).
        pairing: With in-batch negatives, ``"query"`` compares scores of the same query, as above. ``"released"``
            takes the positive score of the query that the negative belongs to, :math:`s(q_o, p_o) - s(q_i, n_j)`, as
            the authors' released code does, so that you can repeat their runs.

    Raises:
        ValueError: If an option has another value, or two options contradict each other.

    Example:
        The query is as close to the negative as to the positive, and the two documents are orthogonal: the margin is 0
        and should be 0.5.

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
        """Compute the loss, and return the margins and targets with it, for logging.

        Args:
            query: Query embeddings, ``(B, D)``, of any length.
            positive: Embeddings of one relevant document per query, ``(B, D)``.
            negative: Embeddings of the non-relevant documents, ``(B, D)`` or, for K per query, ``(B, K, D)``.

        Returns:
            The loss, the margins and the targets.

        Raises:
            ValueError: If the shapes do not agree or the batch is empty.
            TypeError: If an argument is not a floating point tensor.
        """
        q, p, n = _unit_vectors(query, positive, negative)
        # autocast would compute products in 16 bits, and differences of cosines are small
        with torch.autocast(q.device.type, enabled=False):
            columns = torch.arange(len(n), device=n.device)
            owners = columns // (len(n) // len(q))
            positive_score = (q * p).sum(dim=-1)
            if self.pairing == "released":
                margin = positive_score[owners] - q @ n.T
            else:
                margin = positive_score[:, None] - q @ n.T
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


def _unit_vectors(query: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check a batch, and return its unit vectors: ``(B, D)``, ``(B, D)`` and ``(B*K, D)``."""
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
    return normalize(query), normalize(positive), normalize(negative.reshape(-1, negative.shape[-1]))


# --- the calibrated softmax -------------------------------------------------------------------------------------------

SCALES = (1.0, 1000.0)  # the range of the scale: at 1, a softmax of cosines hardly tells the documents of a batch apart
HALVINGS = 30  # how often to halve this range, in logarithms: to a hundred millionth of the scale


class CalibratedTerms(NamedTuple):
    """A loss with its margins and its scale."""

    loss: Tensor
    margin: Tensor
    scale: Tensor


class CalibratedLoss(nn.Module):
    r"""Tell positives from all other documents of the batch, at the maximum likelihood scale of the batch.

    For B queries with one positive and K negatives each, the N = B*K + B - 1 other documents of a query are all
    negatives of the batch, and the positives of the other queries. With margins
    :math:`m_{ij} = s(q_i, p_i) - s(q_i, d_j)` of cosines,

    .. math:: L = \frac{1}{B} \sum_i \log\Bigl(1 + \sum_j e^{-\beta m_{ij}}\Bigr)

    which is InfoNCE with the scale :math:`\beta`, the inverse of the temperature, which ``calibrated_scale``
    computes from the same margins, without gradient. You tune nothing: if all cosines were half as far apart, the
    scale would be twice as large, and the loss the same.

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
        """Compute the loss, a scalar tensor, from the same arguments as :meth:`terms`."""
        return self.terms(query, positive, negative).loss

    def terms(self, query: Tensor, positive: Tensor, negative: Tensor) -> CalibratedTerms:
        """Compute the loss with its margins and its scale, as :meth:`AdaptiveMarginLoss.terms` does with the target."""
        with torch.autocast(query.device.type, enabled=False):
            q, p, n = _unit_vectors(query, positive, negative)
            scores = q @ torch.cat([p, n]).T
            others = ~torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
            margin = scores.diagonal()[:, None] - scores[others].reshape(len(q), -1)
            scale = calibrated_scale(margin.detach())
            loss = torch.logsumexp(_logits(margin, scale), dim=1).mean()
            return CalibratedTerms(loss, margin, scale)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the name of the loss, for model cards and records of runs; it has no options."""
        return {"target": "calibrated"}


def calibrated_scale(margin: Tensor) -> Tensor:
    r"""Compute the scale at which a softmax best explains which documents of a batch are relevant.

    It minimizes the sum of the cross-entropies of the batch's B queries. A few queries alone may be told apart without
    a fault, so that no scale would be large enough. So one more is counted, as in Laplace's rule of succession: its
    relevant document is any of the others, each with the same probability, on average over the queries. The sum is
    convex in the scale, and its derivative is 0 where

    .. math:: \frac{1}{B} \sum_i \sum_j w_{ij} m_{ij} = \frac{\bar m}{B + 1}

    with :math:`w_i` the softmax over a query's documents, including its positive (of margin 0), and :math:`\bar m` the
    mean of all margins.

    Args:
        margin: How far the score of the positive is above the others, ``(B, N)``, without gradient.

    Returns:
        A scalar tensor, within ``SCALES``: 1 where positives do not score above other documents on average.

    Example:
        Positives that stand out need a large scale, others a small one.

        >>> margin = torch.tensor([[0.5, 0.4, 0.1], [0.3, -0.1, 0.2]])
        >>> calibrated_scale(margin)
        tensor(3.1734)
        >>> calibrated_scale(margin - 0.2)
        tensor(1.)
    """
    least = margin.mean() / (len(margin) + 1)
    low, high = (margin.new_tensor(scale).log() for scale in SCALES)
    # no branch on a value, which a GPU would have to wait for
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        weights = torch.softmax(_logits(margin, middle.exp()), dim=1)[:, 1:]
        is_too_small = (weights * margin).sum(dim=1).mean() > least
        low = torch.where(is_too_small, middle, low)
        high = torch.where(is_too_small, high, middle)
    return ((low + high) / 2).exp()


def _logits(margin: Tensor, scale: Tensor) -> Tensor:
    """Compute the logits of each query's documents relative to its positive, which comes first."""
    return F.pad(-scale * margin, (1, 0))


# --- on texts ---------------------------------------------------------------------------------------------------------

EmbeddingLoss: TypeAlias = AdaptiveMarginLoss | CalibratedLoss  # the losses of this package, on embeddings
Features = dict[str, Any]  # the tokens of some texts, as a model of sentence-transformers takes them

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

    A large batch takes much memory, nearly all of it for the backward pass through the model. With a
    ``mini_batch_size``, the batch is embedded without gradients, the gradient of the loss is computed for the
    embeddings, and each mini-batch is embedded again to propagate its part of the gradient: the same loss and
    gradients, for one more forward pass.

    In multi-GPU training, it is the loss of the global batch: all processes share their embeddings.

    Args:
        model: The model to train.
        loss: The loss on embeddings; the distributed one of the paper by default.
        mini_batch_size: How many texts to propagate through the model at once; None for the whole batch.

    Raises:
        ValueError: If the model has static embeddings and you give a ``mini_batch_size``.

    Attributes:
        statistics: After each forward pass, the mean ``margin`` and ``target`` of the batch, or ``scale`` of the
            calibrated loss (detached scalars). Inside ``MatryoshkaLoss``, they are those of whole vectors.

    Inputs:
        ==============================================  ======
        Texts                                           Labels
        ==============================================  ======
        (query, positive, negative)                     none
        (query, positive, negative_1, ..., negative_K)  none
        ==============================================  ======

    Relations:
        ``TripletLoss`` and ``MarginMSELoss`` need a tuned margin or a teacher's scores for the same inputs;
        ``MultipleNegativesRankingLoss`` a scale. ``MatryoshkaLoss(model, SelfDistillationLoss(model), [384, 96])``
        trains vectors that you can truncate.

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
                "embeddings, which take little memory anyway; omit it"
            )
        self.model = model
        self.loss = AdaptiveMarginLoss() if loss is None else loss
        self.uses_gradient_cache = mini_batch_size is not None
        self.mini_batch_size = mini_batch_size or 0
        self.statistics: dict[str, Tensor] = {}
        self._dimension = model.get_embedding_dimension() or 0

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """Embed each column and compute the loss.

        Args:
            sentence_features: The tokenized columns: query, positive, and one or more negatives.
            labels: Not used.

        Returns:
            A scalar tensor.
        """
        batches, positions = arrange(sentence_features)
        if self.uses_gradient_cache:
            # it hands the labels to calculate_loss unchanged
            return self.forward_cached(batches, positions)
        return self.compute_loss_from_embeddings(embed(self.model, batches, positions))

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss from the embeddings of mini-batches, for the gradient cache; labels are positions."""
        embeddings = restore([torch.cat(parts) for parts in reps], labels)
        loss = self.compute_loss_from_embeddings(embeddings)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the loss from embeddings, of all processes if there are several.

        Args:
            embeddings: One ``(B, D)`` tensor per column: query, positive, and one or more negatives.
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
        # MatryoshkaLoss computes the loss of prefixes too
        if query.shape[-1] >= self._dimension:
            self.statistics = {name: values.detach().mean() for name, values in terms.items()}
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        return self.loss.get_config_dict()

    @property
    def citation(self) -> str:
        """The paper, as BibTeX, for the model card."""
        return CITATION


def without_matryoshka(loss: nn.Module) -> nn.Module:
    """Return the loss on texts that a ``MatryoshkaLoss`` computes for each prefix, or the loss itself."""
    return loss.loss if isinstance(loss, MatryoshkaLoss) else loss


# --- embedding in one pool --------------------------------------------------------------------------------------------

MOST_PASSES = 8  # the largest number of passes for a pool; more would save little padding
ROWS_OF_A_PASS = {"cpu": 8}  # how many texts make a pass worth its overhead, by the type of the device
ROWS_OF_A_PASS_ELSEWHERE = 64  # the same for devices that compute many texts in the time of one


def arrange(columns: Iterable[Features]) -> tuple[list[Features], Tensor | None]:
    """Put all columns but the first, the queries, into one pool that is sorted by length."""
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
    """Choose into how many passes to divide a pool."""
    least = ROWS_OF_A_PASS.get(device.type, ROWS_OF_A_PASS_ELSEWHERE)
    return min(MOST_PASSES, math.ceil(rows / least))


def divide(lengths: np.ndarray, number: int) -> list[int]:
    """Divide texts into parts, so that padding each part to its longest text takes the fewest tokens."""
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


def _widths(features: Features) -> Tensor:
    """Find the position of the last token of each text, counted from 1, whichever side is padded."""
    mask = features["attention_mask"]
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
