"""Measures with intervals: against pt.Experiment, SciPy, and intervals that cover what they are of."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.measures import RR, nDCG
from scipy import stats

from pyterrier_selfdistill.report.comparison import experiment, mean_interval, values_by_query, with_intervals


@pytest.fixture
def measured(systems, collection):
    return experiment(systems, collection.topics, collection.qrels, [nDCG @ 10, RR @ 10], "mixed")


def test_the_numbers_are_those_of_an_experiment(systems, collection, measured):
    expected = pt.Experiment(
        systems, collection.topics, collection.qrels, [nDCG @ 10, RR @ 10], baseline="mixed", correction="holm"
    )
    table = with_intervals(*measured, ["nDCG@10", "RR@10"], "mixed")
    pd.testing.assert_frame_equal(table[expected.columns], expected)


def test_values_by_query_keeps_the_order_of_systems(measured, systems):
    values = values_by_query(measured[1], "RR@10", list(systems))
    assert list(values) == list(systems)
    assert values["right"].eq(1).all()


def test_intervals_are_those_of_the_tests(measured):
    means, per_query = measured
    table = with_intervals(means, per_query, ["nDCG@10"], "mixed").set_index("name")
    values = values_by_query(per_query, "nDCG@10", ["right", "mixed"])
    expected = stats.ttest_rel(values["right"], values["mixed"]).confidence_interval(0.95)
    row = table.loc["right"]
    assert (row["nDCG@10 difference low"], row["nDCG@10 difference high"]) == pytest.approx(tuple(expected))
    assert row["nDCG@10 difference"] == pytest.approx(table.loc["right", "nDCG@10"] - table.loc["mixed", "nDCG@10"])
    assert table.loc["mixed"].filter(like="difference").isna().all()


def test_intervals_cover_the_mean_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        low, high = mean_interval(pd.Series(generator.uniform(size=20)))
        covered += low <= 0.5 <= high
    assert 460 <= covered <= 490


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5]])
def test_there_is_no_interval_without_variance(values):
    assert np.isnan(mean_interval(pd.Series(values))).all()
