"""Measure how alike documents are, and recognize two kinds of harm in it: collapse and forgetting.

A model whose documents all move together has *collapsed*; one that no longer agrees with itself before training on
which documents are alike has *forgotten*. Neither shows in the loss.
"""

from __future__ import annotations

import math

import numpy as np

COLLAPSE = 2 / 3
"""What must be left of the mean cosine distance of documents. ``benchmarks/RESULTS.md`` says what became of runs above
and below it, under "What goes wrong, and what shows it early"."""

FORGETTING = 0.4
"""How much the cosines of documents must correlate with those before training; likewise."""


def mean_cosine(vectors: np.ndarray) -> float:
    """Compute the mean cosine of two different vectors, 1 where all are the same.

    Args:
        vectors: Unit vectors, of shape ``(number, dimension)``.

    Returns:
        The mean, 0 for a single vector.

    Example:
        >>> mean_cosine(np.eye(3))
        0.0
    """
    number = len(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)
    pairs = number * (number - 1)
    return float((total @ total - number) / max(pairs, 1))


def representational_similarity(before: np.ndarray, after: np.ndarray) -> float:
    """Compute how much two encoders agree on which of some texts are alike: 1 for wholly, 0 for not at all.

    It is the correlation of the cosines of all pairs, as in representational similarity analysis (Kriegeskorte et al.,
    2008), so it does not see rotations, or cosines that rise or fall together.

    Args:
        before: Unit vectors of some texts by one encoder, of shape ``(number, dimension)``.
        after: Those of the same texts by the other encoder; their dimension may differ.

    Returns:
        The correlation; NaN for fewer than three texts, or where all cosines are the same.

    Example:
        >>> vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]])
        >>> round(representational_similarity(vectors, -vectors), 6)
        1.0
    """
    if len(before) < 3:
        return math.nan
    pairs = np.triu_indices(len(before), k=1)
    cosines_before = (before @ before.T)[pairs]
    cosines_after = (after @ after.T)[pairs]
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.corrcoef(cosines_before, cosines_after)[0, 1])


def has_collapsed(before: float, after: float) -> bool:
    """Tell whether documents became too much alike.

    Args:
        before: Their mean cosine before training.
        after: Their mean cosine now.

    Returns:
        Whether less than :data:`COLLAPSE` of their mean cosine distance is left.

    Example:
        >>> has_collapsed(0.1, 0.3), has_collapsed(0.1, 0.7)
        (False, True)
    """
    return 1 - after < COLLAPSE * (1 - before)


def has_forgotten(similarity: float) -> bool:
    """Tell whether an encoder has forgotten which documents are alike.

    Args:
        similarity: The representational similarity of the encoder before training and now; NaN if unknown.

    Returns:
        Whether it is below :data:`FORGETTING`. What is unknown is not forgotten.

    Example:
        >>> has_forgotten(0.9), has_forgotten(0.2)
        (False, True)
    """
    return similarity < FORGETTING
