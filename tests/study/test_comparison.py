import dataclasses

import numpy as np
import pytest

from benchmarks.study.comparison import Results
from benchmarks.study.records import Records
from benchmarks.study.run import Run

UNTOUCHED = Run("tiny", loss="untouched")


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


def test_the_untouched_model_is_that_which_training_starts_from(make_results):
    raw = Run("tiny", loss="untouched", reinitialized=2)
    results = make_results((UNTOUCHED, 0.5), (raw, 0.1))
    assert results.untouched(Run("tiny", reinitialized=2, learning_rate=1e-3, min_label=2)).run == raw
    assert results.untouched(Run("tiny")).run == UNTOUCHED
    with pytest.raises(KeyError, match="no record of the untouched model"):
        results.untouched(Run("tiny", pooling="cls"))


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


def keep_dev_only(results, *runs):
    """Take what was measured on test from the records of some runs."""
    for run in runs:
        record = results.records[run.key]
        record["queries"].clear()
        del record["means"]["tiny/test"]


def test_tuned_is_best_on_dev_over_whatever_varies(make_results):
    rates = [Run("tiny", loss="infonce", learning_rate=rate, seed=seed) for rate in (1e-5, 1e-4) for seed in (1, 2)]
    raw = Run("tiny", loss="infonce", pooling="cls", triples=256)
    results = make_results(
        (rates[0], 0.5), (rates[1], 0.5), (rates[2], 0.4), (rates[3], 0.58), (raw, 0.6), (Run("tiny"), 0.9)
    )
    keep_dev_only(results, *rates, raw)
    assert results.tuned("made", loss="infonce", pooling="mean").run == rates[0]
    assert results.tuned("made", loss="infonce").run == raw
    assert results.search_cost("made", loss="infonce", pooling="mean") == 40
    with pytest.raises(KeyError, match="no systems of 'made' have {'loss': 'softmax'}"):
        results.tuned("made", loss="softmax")


def test_what_was_keep_dev_only_is_compared_with_nothing(make_results):
    searched = Run("tiny", loss="infonce", learning_rate=1e-3)
    results = make_results((UNTOUCHED, 0.5), (Run("tiny"), 0.6), (searched, 0.4))
    keep_dev_only(results, searched)
    assert not results.one("made", loss="infonce").is_tested
    assert results.alarms().set_index("warning").loc["neither", "runs"] == 1


def test_a_single_seed_borrows_the_variance_of_systems_with_several(make_results):
    repeated = [Run("tiny", loss="adaptive", seed=seed) for seed in (1, 2)]
    results = make_results((UNTOUCHED, 0.5), (Run("tiny"), 0.6), (repeated[0], 0.5), (repeated[1], 0.6))
    single, untouched = results.one("made", loss="distributed"), results.untouched(UNTOUCHED)
    variance = results.seed_variance("tiny/test", "nDCG@10")
    assert variance == pytest.approx(0.1**2 / 2, rel=0.1)
    assert single.better_than(untouched).error == pytest.approx(variance**0.5, rel=0.1)
    assert untouched.better_than(untouched).error == 0
    assert results.seed_variance("elsewhere/test", "nDCG@10") == variance


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
    assert results.machine("made") == results.machine()


def test_machine_is_that_of_the_records_of_a_grid(finished):
    results = Results(finished.study, Records(finished.records))
    for record in results.records.values():
        record["machine"]["processor"] = "early"
    later = results.one("more", loss="margin_mse").records[0]
    later["machine"]["processor"] = "later"
    assert "later" not in results.machine("variants")
    assert "later" in results.machine("more")
    assert results.machine("variants", "more").count(";") == 1


def test_best_is_of_each_loss_and_encoder_by_dev(make_results):
    results = make_results(
        (Run("tiny", loss="infonce", scale=10), 0.5),
        (Run("tiny", loss="infonce", learning_rate=1e-5), 0.6),
        (Run("tiny", loss="infonce", pooling="cls"), 0.3),
        (Run("tiny", loss="adaptive", in_batch=True), 0.4),
        (Run("tiny", loss="adaptive"), 0.7),
    )
    chosen = [(system.run.loss_name, system.run.pooling) for system in results.best("tiny")]
    assert chosen == [("adaptive", "mean"), ("InfoNCE", "mean"), ("adaptive, in-batch", "mean"), ("InfoNCE", "cls")]
    assert results.best("tiny")[1].run.learning_rate == 1e-5
    assert results.best("other") == []
    assert not results.has_untouched(Run("tiny"))


def test_margins_scales_and_shares_are_means_over_seeds(make_results):
    def more(shift):
        described = {"before": {"margin": [0.1 + shift, 0.2]}}
        distributions = {"1": {"pulled_back": shift}, "2": {"pulled_back": 0.0}}
        return {
            "margins": described,
            "training": {"history": {"scale": [10.0, 20 + shift]}, "distributions": distributions},
        }

    results = make_results((Run("tiny", seed=1), 0.5, more(0.2)), (Run("tiny", seed=2), 0.5, more(0.6)))
    (system,) = results.grid("made")
    assert system.margins("before", "margin") == pytest.approx([0.5, 0.2])
    assert system.scale == pytest.approx(15.2)
    assert system.pulled_back == pytest.approx(0.2)
