import dataclasses

import numpy as np
import pytest

from benchmarks.study.comparison import Difference, Results, compare
from benchmarks.study.config import Run
from benchmarks.study.records import Records

UNTOUCHED = Run("tiny", loss="untouched")


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
    assert better.p < 1e-6
    assert better.mean == pytest.approx(0.05, abs=0.01)


def test_compare_finds_no_difference_where_there_is_none(base, noise):
    same = compare(base + 0.1 * noise, base)
    assert same.low < 0 < same.high
    assert compare(base, base).p == 1


def test_seeds_that_disagree_widen_the_interval(base, noise):
    deviations = noise[:, :1]
    agreed = compare(base, base[:1])
    disagreed = compare(base + 0.3 * deviations, base[:1])
    assert disagreed.high - disagreed.low > 2 * (agreed.high - agreed.low)


def test_difference_is_written_with_its_interval():
    assert str(Difference(mean=0.01234, low=-0.001, high=0.5, p=0.1)) == "+0.012 [-0.001, +0.500]"


def test_results_need_records(tmp_path, finished):
    with pytest.raises(FileNotFoundError, match="run the study first"):
        Results(finished.study, Records(tmp_path / "nothing"))


def test_results_group_runs_by_what_is_not_the_seed(finished):
    results = Results(finished.study, Records(finished.records))
    assert results.open == {}
    (distributed,) = results.grid("variants", loss="distributed")
    assert len(distributed.records) == 2
    assert distributed.values("tiny/test", "nDCG@10").shape[0] == 2
    assert results.untouched(distributed.run).run.loss == "untouched"
    assert results.untouched(distributed.run).run.transfer == ("other",)
    assert results.infonce(distributed).run.loss == "infonce"
    with pytest.raises(KeyError, match="2 systems"):
        results.one("variants", loss="static")


def test_the_cost_of_a_student_has_that_of_its_teacher(finished):
    student = Results(finished.study, Records(finished.records)).one("more", loss="margin_mse")
    assert student.total > student.training
    assert np.isnan(student.final_target)
    assert 0 <= student.agreement <= 1


def test_best_static_is_best_on_dev(finished):
    results = Results(finished.study, Records(finished.records))
    best = results.best_static(collection="tiny")
    qualities = [system.dev for system in results.systems if system.run.loss == "static"]
    assert best.dev == max(qualities)


def test_open_counts_runs_without_a_record(make_results):
    results = make_results((UNTOUCHED, 0.5))
    results.study.grids["made"].append(Run("tiny"))
    assert results.open == {"made": 1}


def test_cheapest_is_the_cheapest_of_those_that_are_good_enough(make_results):
    cheap = Run("tiny", triples=256)
    dear = Run("tiny")
    results = make_results(
        (cheap, 0.5, {"cost": {"training_seconds": 2.0}}), (dear, 0.6, {"cost": {"teacher_seconds": 90.0}})
    )
    for quality, expected in {0.4: cheap, 0.55: dear}.items():
        found = results.cheapest("made", quality)
        assert found is not None
        assert found.run == expected
    assert results.cheapest("made", 0.7) is None


def test_systems_are_compared_on_the_seeds_that_they_share(make_results):
    distributed = Run("tiny", seed=2)
    others = [Run("tiny", loss="infonce", seed=seed) for seed in (1, 2, 3)]
    results = make_results((distributed, 0.5), *((run, 0.6) for run in others))
    (system,) = results.grid("made", loss="distributed")
    found = results.infonce(system)
    assert found.run == others[1]
    assert len(found.records) == 1


def test_the_plain_system_has_l2_and_the_gradient_through_the_target(make_results):
    plain = Run("tiny", loss="adaptive")
    ablations = [dataclasses.replace(plain, error="l1"), dataclasses.replace(plain, detach_target=True)]
    results = make_results((plain, 0.5), *((run, 0.4) for run in ablations))
    for run in ablations:
        system = results.one("made", error=run.error, detach_target=run.detach_target)
        assert results.plain(system).run == plain


def test_alarms_count_warnings_and_harm(make_results):
    results = make_results(
        (UNTOUCHED, 0.5),
        (Run("tiny", seed=1), 0.51),
        (Run("tiny", seed=2), 0.4),
        (Run("tiny", seed=3), 0.4, {"space": {"similarity": 0.9}}),
        (Run("tiny", seed=4), 0.4, {"space": {"representational_similarity": 0.2}}),
        (Run("tiny", seed=5), 0.6, {"space": {"representational_similarity": 0.2}}),
        (Run("tiny", seed=6), 0.4, {"space": {"representational_similarity": float("nan")}}),
    )
    table = results.alarms().set_index("warning")
    assert table.loc["documents become alike"].tolist() == [6, 1, 1]
    assert table.loc["the encoder forgets"].tolist() == [5, 2, 1]
    assert table.loc["neither"].tolist() == [5, 2, 1]


def test_machine_names_each_kind_once(make_results):
    results = make_results(
        (UNTOUCHED, 0.5), (Run("tiny", seed=2), 0.5), (Run("tiny", seed=3), 0.5, {"machine": {"gpu": "G"}})
    )
    assert results.machine() == "P, 2 cores, G, fp32; P, 2 cores, no GPU, fp32"
