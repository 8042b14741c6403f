"""What to train margins for: the targets that a trainer knows by name, and the losses that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, TypeAlias, cast

from pydantic import Field
from sentence_transformers import SentenceTransformer
from torch import nn

from ..calibrated_loss import CalibratedLoss
from ..losses import TARGETS, AdaptiveMarginLoss, ErrorName, Target
from ..nested_loss import Dimensions, EmbeddingLoss, NestedDimensionsLoss, Weights
from ..options import Expected
from ..text_losses import SelfDistillationLoss

LossMaker: TypeAlias = Callable[[SentenceTransformer], nn.Module]
"""Makes a loss on texts for a model, such as a class of sentence-transformers' losses does."""


CALIBRATED = "calibrated"
"""The name of the calibrated loss where a target is asked for."""

TRAINING_TARGETS = (CALIBRATED, *TARGETS)
"""What can be trained for without a constant."""

TrainingTarget = Annotated[
    Literal["calibrated", "distributed", "adaptive", "trusting"] | Annotated[float, Field(gt=0, le=2)],
    Expected(f"one of {TRAINING_TARGETS} or a number in (0, 2]"),
]
"""What to train margins for: a target of :class:`.losses.AdaptiveMarginLoss`, or
:class:`.calibrated_loss.CalibratedLoss`."""


def loss_maker(
    loss: LossMaker | EmbeddingLoss | None,
    target: TrainingTarget | None,
    in_batch: bool,
    error: ErrorName,
    mini_batch_size: int | None = None,
    *,
    default: TrainingTarget,
    matryoshka_dims: Dimensions | None = None,
    matryoshka_weights: Weights | None = None,
) -> LossMaker:
    """Return the function that makes the loss of a training for its model.

    Args:
        loss: A loss on embeddings, a function that makes a loss for a model, or None for the three options.
        target: As :func:`loss_of` takes it, and so are the next two; None for the default.
        in_batch: Whether a margin has in-batch negatives.
        error: Its error function.
        mini_batch_size: That of :class:`SelfDistillationLoss`.
        default: The target if there is none.
        matryoshka_dims: Those of :class:`.nested_loss.NestedDimensionsLoss`, and so are the weights; None to train
            whole vectors only.
        matryoshka_weights: The weight of each.

    Returns:
        The function.

    Raises:
        ValueError: If a loss is given and one of its options too, or if options contradict each other.
        TypeError: If the loss is something else.

    Example:
        >>> loss_maker(None, 0.5, True, "l1", default="calibrated")(encoder.model).loss
        AdaptiveMarginLoss(target=0.5, in_batch=True, error='l1', detach_target=False, pairing='query')
    """
    if loss is None:
        loss = loss_of(target or default, in_batch, error)
    elif (target, in_batch, error) != (None, False, "l2"):
        raise ValueError(f"loss={loss!r} was given beside target, in_batch or error; set those in the loss itself")
    if matryoshka_dims is not None:
        loss = _nested(loss, matryoshka_dims, matryoshka_weights)
    elif matryoshka_weights is not None:
        raise ValueError(f"matryoshka_weights={matryoshka_weights} are those of matryoshka_dims; give these too")
    if isinstance(loss, EmbeddingLoss):
        return partial(_loss_on_texts, loss=loss, mini_batch_size=mini_batch_size)
    if isinstance(loss, nn.Module) or not callable(loss):
        raise TypeError(
            f"expected an AdaptiveMarginLoss, a CalibratedLoss or a function of the model, got loss={loss!r}; for "
            "another loss give its class, such as MultipleNegativesRankingLoss, or lambda model: TheLoss(model, ...)"
        )
    if mini_batch_size is not None:
        raise ValueError(
            f"mini_batch_size={mini_batch_size} is for the losses of this package, got loss={loss!r} beside it; leave "
            "it out, and give a loss that has a gradient cache, such as "
            "lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=...)"
        )
    return loss


def _nested(loss: LossMaker | EmbeddingLoss, dims: Dimensions, weights: Weights | None) -> NestedDimensionsLoss:
    """Have a loss train the first dimensions too."""
    if not isinstance(loss, AdaptiveMarginLoss | CalibratedLoss):
        raise ValueError(
            f"matryoshka_dims={dims} is for AdaptiveMarginLoss and CalibratedLoss, got loss={loss!r} beside it; leave "
            "it out, and give another loss as lambda model: MatryoshkaLoss(model, TheLoss(model), [...])"
        )
    return NestedDimensionsLoss(loss, dims, weights)


def _loss_on_texts(model: SentenceTransformer, loss: EmbeddingLoss, mini_batch_size: int | None) -> nn.Module:
    """Make the loss on texts, if the model has the dimensions that it trains."""
    dimension = model.get_embedding_dimension()
    if isinstance(loss, NestedDimensionsLoss) and dimension is not None:
        loss.require_dimensions_of(dimension)
    return SelfDistillationLoss(model, loss, mini_batch_size)


def loss_of(target: TrainingTarget, in_batch: bool = False, error: ErrorName = "l2") -> EmbeddingLoss:
    """Make the loss that trains for a target.

    Args:
        target: ``"calibrated"``, or a target of :class:`.losses.AdaptiveMarginLoss`.
        in_batch: For a margin: whether the negatives of the other queries count as negatives too.
        error: For a margin: the error function.

    Returns:
        The loss.

    Raises:
        ValueError: If the options contradict each other.

    Example:
        >>> loss_of("calibrated")
        CalibratedLoss()
        >>> loss_of(0.5, in_batch=True).target
        0.5
    """
    if target != CALIBRATED:
        return AdaptiveMarginLoss(cast(Target, target), in_batch, error)
    if in_batch or error != "l2":
        raise ValueError(
            f"target='calibrated' compares with the whole batch and has no error function, got in_batch={in_batch} and "
            f"error={error!r}; leave them out, or give the target that they are for, such as target='adaptive'"
        )
    return CalibratedLoss()
