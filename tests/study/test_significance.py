import numpy as np
import pytest
from scipy import stats

from benchmarks.study.significance import Claim, Claims, Difference, compare, holm, pooled_seed_variance

SAME = Difference(mean=0.001, low=-0.005, high=0.007, error=0.003)
BETTER = Difference(mean=0.03, low=0.02, high=0.04, error=0.005)
WORSE = Difference(mean=-0.03, low=-0.04, high=-0.02, error=0.005)
WIDE = Difference(mean=0.001, low=-0.039, high=0.041, error=0.02)
SMALL = Difference(mean=0.004, low=0.002, high=0.006, error=0.001)


@pytest.fixture
def base():
    """The measures of 400 queries with three seeds."""
    return np.random.default_rng(0).random((3, 400))


@pytest.fixture
def noise():
    return np.random.default_rng(1).normal(size=(3, 400))


def test_compare_finds_a_difference(base, noise):
    better = compare(base + 0.05 + 0.1 * noise, base)
    assert better.low < 0.05 < better.high
    assert better.low > 0
    assert better.mean == pytest.approx(0.05, abs=0.01)


def test_compare_finds_no_difference_where_there_is_none(base, noise):
    same = compare(base[:1] + 0.1 * noise[:1], base[:1])
    assert same.low < 0 < same.high
    assert same.p > 0.05
    itself = compare(base[:1], base[:1])
    assert itself.p == 1
    assert itself.equivalence_p() == itself.non_inferiority_p() == 0


def test_seeds_that_disagree_widen_the_interval(base, noise):
    deviations = noise[:, :1]
    agreed = compare(base, base[:1])
    disagreed = compare(base + 0.3 * deviations, base[:1])
    assert disagreed.high - disagreed.low > 2 * (agreed.high - agreed.low)


def test_the_variance_of_a_single_seed_is_borrowed(base, noise):
    one, other = base[:1], base[:1] + 0.02 * noise[:1]
    alone = compare(one, other)
    borrowed = compare(one, other, 0.003**2, 0.004**2)
    assert borrowed.error**2 == pytest.approx(alone.error**2 + 0.005**2, rel=0.1)
    assert borrowed.high - borrowed.low == pytest.approx(2 * 1.96 * borrowed.error, rel=0.1)
    assert borrowed.mean == alone.mean


def test_compare_needs_the_same_queries(base):
    with pytest.raises(ValueError, match="got 400 and 399 of them; compare systems on the same collection"):
        compare(base, base[:, 1:])


def test_systems_that_differ_in_their_seeds_only_are_rarely_called_different():
    """Where a t-test over queries calls every seventh pair different, at a level of one in twenty."""
    generator = np.random.default_rng(0)

    def train():
        return base + generator.normal(scale=0.006, size=(3, 1)) + generator.normal(scale=0.08, size=(3, 300))

    found, found_by_t_test = 0, 0
    for _ in range(200):
        base = generator.random(300)
        one, other = train(), train()
        found += compare(one, other).p < 0.05
        found_by_t_test += stats.ttest_rel(one.mean(axis=0), other.mean(axis=0)).pvalue < 0.05
    assert found <= 0.07 * 200
    assert found_by_t_test >= 0.12 * 200


def test_pooled_seed_variance_is_that_within_systems():
    generator = np.random.default_rng(0)
    quality = generator.random(200)
    means = quality[:, None] + generator.normal(scale=0.003, size=(200, 3))
    assert pooled_seed_variance(means) == pytest.approx(0.003**2, rel=0.15)
    assert pooled_seed_variance([[0.5]]) == 0


@pytest.mark.parametrize(
    ("difference", "equivalent", "not_behind"),
    [(SAME, True, True), (BETTER, False, True), (WORSE, False, False), (WIDE, False, False), (SMALL, True, True)],
)
def test_equivalence_needs_both_sides_and_non_inferiority_one(difference, equivalent, not_behind):
    assert (difference.equivalence_p() < 0.05) is equivalent
    assert (difference.non_inferiority_p() < 0.05) is not_behind


def test_equivalence_is_that_the_interval_of_ninety_percent_is_within_the_bound():
    """Which is how Schuirmann defines it."""
    reach = stats.norm.ppf(0.95) * SAME.error
    assert SAME.equivalence_p(bound=SAME.mean + reach) == pytest.approx(0.05)


def test_difference_is_written_with_its_interval():
    assert str(Difference(mean=0.01234, low=-0.001, high=0.5, error=0.1)) == "+0.012 [-0.001, +0.500]"


def test_claims_are_corrected_over_all_kinds():
    rows = [Claim("same", SAME, "equivalence"), Claim("wide", WIDE), Claim("worse", WORSE, "non-inferiority")]
    claims = Claims(rows)
    assert claims.p[0] == pytest.approx(3 * SAME.equivalence_p())
    assert claims.verdicts("same") == ["equivalent"]
    assert claims.verdicts("wide") == claims.verdicts("worse") == []
    assert claims.difference("wide") == WIDE


def test_a_difference_can_be_significant_and_too_small_to_matter():
    claims = Claims([Claim("small", SMALL), Claim("small", SMALL, "equivalence"), Claim("worse", WORSE)])
    assert claims.verdicts("small") == ["better", "equivalent"]
    assert claims.verdicts("worse") == ["worse"]


def test_claims_are_known_and_there_once():
    with pytest.raises(ValueError, match=r"there twice.*\('same', 'difference'\)"):
        Claims([Claim("same", SAME), Claim("same", SAME)])
    with pytest.raises(ValueError, match="the kind 'equal'; expected one of"):
        Claims([Claim("same", SAME, "equal")])
    with pytest.raises(KeyError, match="no claim 'other'"):
        Claims([Claim("same", SAME)]).verdicts("other")


def test_holm_of_nothing_is_nothing():
    assert holm([]) == []
