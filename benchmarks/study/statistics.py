"""Which differences between systems can be claimed: intervals, p-values and their correction.

Queries and seeds are both drawn by chance. A paired t-test over queries ignores the seeds, and calls systems different
that differ only in their seeds. So both are resampled here, by a two-way bootstrap (the pigeonhole bootstrap of Owen,
Annals of Applied Statistics 1(2), 2007): queries together for both systems, seeds for each system alone. Its
percentiles are the interval, its standard deviation is the standard error, and p-values are of the normal distribution
with that error. With two to five seeds this rejects a true null hypothesis in 2 to 6 % of cases, the t-test in up to
20 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

SAMPLES = 2000
"""The bootstrap samples of an interval."""

EQUIVALENCE_BOUND = 0.005
"""The difference of nDCG@10 up to which systems are equivalent."""

NON_INFERIORITY_BOUND = 0.005
"""The difference of nDCG@10 by which a system may be worse and still not be behind."""

LEVEL = 0.05
"""The corrected p-value below which a claim holds."""


class Difference(NamedTuple):
    """How much better one system is than another, with a 95 % interval and a standard error over queries and seeds."""

    mean: float
    low: float
    high: float
    error: float

    def p(self, kind: str = "difference") -> float:
        """Return the p-value of a claim, not corrected.

        Args:
            kind: ``difference``: the systems differ (two-sided). ``equivalence``: they differ by less than
                :data:`EQUIVALENCE_BOUND` (two one-sided tests). ``non-inferiority``: the one is not worse by
                :data:`NON_INFERIORITY_BOUND` (one-sided).

        Example:
            >>> same = Difference(mean=0.001, low=-0.002, high=0.004, error=0.0015)
            >>> round(same.p(), 2), round(same.p("equivalence"), 4)
            (0.5, 0.0038)
        """
        if kind == "difference":
            return min(1.0, 2 * self._beyond(abs(self.mean)))
        if kind == "equivalence":
            return max(self._beyond(EQUIVALENCE_BOUND + self.mean), self._beyond(EQUIVALENCE_BOUND - self.mean))
        if kind == "non-inferiority":
            return self._beyond(NON_INFERIORITY_BOUND + self.mean)
        raise ValueError(f"unknown kind of claim {kind!r}; expected difference, equivalence or non-inferiority")

    def _beyond(self, distance: float) -> float:
        """Return the probability that chance alone goes beyond a distance."""
        if self.error == 0:  # a system and itself
            return float(distance <= 0)
        return float(norm.sf(distance / self.error))

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def compare(
    one: np.ndarray, other: np.ndarray, one_seed_variance: float = 0.0, other_seed_variance: float = 0.0
) -> Difference:
    """Compare two systems query by query.

    Args:
        one: A measure of one system, ``(seeds, queries)``.
        other: The same of the other, for the same queries; the number of seeds may differ.
        one_seed_variance: How much the mean of the one varies over seeds, if it has a single seed, which does not tell
            (:func:`pooled_seed_variance`).
        other_seed_variance: The same of the other.
    """
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"expected systems with the same queries, got {one.shape[1]} and {other.shape[1]} queries")
    generator = np.random.default_rng(1)  # a report that is written again must say the same
    weights = _query_weights(one.shape[1])
    resampled = _resampled_means(one, weights, generator) - _resampled_means(other, weights, generator)
    resampled += generator.normal(scale=math.sqrt(one_seed_variance + other_seed_variance), size=SAMPLES)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Difference(float(one.mean() - other.mean()), float(low), float(high), float(np.std(resampled)))


def average(differences: Sequence[tuple[str, Difference]]) -> Difference:
    """Average differences over cells, each with the name of its collection.

    The errors of cells with the same collection, and so the same queries, may go together, and are added; those of
    different collections are independent.

    Example:
        >>> one = Difference(mean=0.01, low=0, high=0, error=0.003)
        >>> str(average([("a", one), ("b", one)])), str(average([("a", one), ("a", one)]))
        ('+0.010 [+0.006, +0.014]', '+0.010 [+0.004, +0.016]')
    """
    errors: dict[str, float] = {}
    for collection, difference in differences:
        errors[collection] = errors.get(collection, 0.0) + difference.error
    mean = float(np.mean([difference.mean for _, difference in differences]))
    error = math.hypot(*errors.values()) / len(differences)
    return Difference(mean, mean - 1.96 * error, mean + 1.96 * error, error)


def pooled_seed_variance(means: Sequence[Sequence[float]]) -> float:
    """Estimate how much a mean varies over seeds, from systems with several; 0 if no system has two seeds.

    Example:
        >>> round(pooled_seed_variance([[0.50, 0.52], [0.40, 0.40], [0.9]]), 6)
        0.0001
    """
    squares = sum(len(values) * float(np.var(values)) for values in means)
    freedom = sum(len(values) - 1 for values in means)
    return squares / freedom if freedom else 0.0


class Claim(NamedTuple):
    """A claim about two systems: the label of both, their difference and the kind (:meth:`Difference.p`)."""

    label: str
    difference: Difference
    kind: str = "difference"

    @property
    def verdict(self) -> str:
        """The word for what holds if the p-value is low."""
        better = "better" if self.difference.mean > 0 else "worse"
        return {"equivalence": "equivalent", "non-inferiority": "not behind"}.get(self.kind, better)


class Claims:
    """All claims of a section, corrected together after Holm. A pair of systems may be in it with several kinds.

    Attributes:
        claims: The claims.
        p: Their corrected p-values.

    Example:
        >>> claims = Claims([
        ...     Claim("A, B", Difference(0.001, -0.002, 0.004, 0.0015), "equivalence"),
        ...     Claim("A, C", Difference(0.030, 0.010, 0.050, 0.010)),
        ... ])
        >>> claims.verdicts("A, B"), claims.verdicts("A, C")
        (['equivalent'], ['better'])
    """

    def __init__(self, claims: Sequence[Claim]) -> None:
        names = [(claim.label, claim.kind) for claim in claims]
        if len(set(names)) < len(names):
            raise ValueError(f"a claim is there twice, and would be corrected for twice: {names}")
        self.claims = list(claims)
        self.p = holm([claim.difference.p(claim.kind) for claim in claims])

    def verdicts(self, label: str) -> list[str]:
        """Return what holds of a pair of systems; nothing if undecided."""
        self.difference(label)
        pairs = zip(self.claims, self.p, strict=True)
        return [claim.verdict for claim, p in pairs if claim.label == label and p < LEVEL]

    def difference(self, label: str) -> Difference:
        """Return the difference of a pair of systems."""
        for claim in self.claims:
            if claim.label == label:
                return claim.difference
        raise KeyError(f"no claim {label!r}; there are {[claim.label for claim in self.claims]}")


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values after Holm.

    Example:
        >>> holm([0.01, 0.04])
        [0.02, 0.04]
    """
    return multipletests(p, method="holm")[1].tolist() if p else []


@cache
def _query_weights(number: int) -> np.ndarray:
    """Draw queries with replacement, and return the share of each in each sample, ``(samples, queries)``."""
    drawn = np.random.default_rng(0).integers(number, size=(SAMPLES, number))
    drawn += number * np.arange(SAMPLES)[:, None]  # so that one count is enough for all samples
    counts = np.bincount(drawn.ravel(), minlength=SAMPLES * number)
    return counts.reshape(SAMPLES, number) / number


def _resampled_means(values: np.ndarray, query_weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw seeds with replacement, and average over them and over the drawn queries."""
    seeds = len(values)
    seed_weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=SAMPLES) / seeds
    return ((query_weights @ values.T) * seed_weights).sum(axis=1)
