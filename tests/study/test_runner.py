"""A study from its file to its records."""

import json

import numpy as np
import pytest
from filelock import FileLock

from benchmarks.study import runner
from benchmarks.study.__main__ import main
from benchmarks.study.collection import Collection
from benchmarks.study.config import read_study
from benchmarks.study.records import Records
from benchmarks.study.run import Run
from benchmarks.study.runner import Runner


@pytest.fixture
def records(finished):
    """The records of the finished study by key."""
    return Records(finished.records).read()


@pytest.fixture
def options(data, tmp_path):
    """The command line of a study that was not run yet."""
    return ["--records", str(tmp_path / "records"), "--data", str(data), "--work", str(tmp_path / "work")]


@pytest.fixture
def untouched_twice(write_study, defaults):
    """A study of two runs that train nothing."""
    return write_study({"a": {"loss": "untouched", "seed": [1, 2]}}, defaults=defaults)


def records_of(finished, records, **settings):
    """The records of runs with these settings, in the order of the study."""
    found = []
    for run in finished.study.runs:
        if all(getattr(run, name) == value for name, value in settings.items()):
            found.append(records[run.key])
    return found


def test_every_run_has_a_record_in_the_first_grid_that_has_it(finished, records):
    assert list(records) != []
    assert records.keys() == {run.key for run in finished.study.runs}
    for grid in finished.study.grids:
        expected = [run.key for run in finished.study.runs if finished.study.grid_of[run] == grid]
        lines = (finished.records / f"{grid}.jsonl").read_text().splitlines()
        assert [json.loads(line)["key"] for line in lines] == expected


def test_records_have_settings_measures_and_costs(finished, records, collection):
    for run in finished.study.runs:
        record = records[run.key]
        assert Run.from_settings(record["run"]) == run
        values = record["queries"]["tiny/test"]["nDCG@10"]
        assert len(values) == len(collection.things)
        assert record["means"]["tiny/test"]["R@1000"] == 1
        assert record["means"]["tiny/test"]["nDCG@10"] == pytest.approx(np.mean(values), abs=1e-3)
        assert "tiny/dev" not in record["queries"]
        assert record["cost"]["seconds"] > 0
        assert record["cost"]["peak_memory_mb"] > 0
        if run.loss != "untouched":
            assert record["training"]["data"]["triples"] == run.triples


def test_runs_leave_trec_runs(finished):
    for run in finished.study.runs:
        folder = finished.work / "trec" / run.key / "tiny-test"
        assert (folder / f"{run.key}.res.gz").exists()


def test_the_untouched_model_is_what_it_was(finished, records):
    for record in records_of(finished, records, loss="untouched"):
        assert record["space"]["representational_similarity"] == pytest.approx(1, abs=1e-3)
        assert record["training"] == {}


def test_seeds_draw_different_triples(finished, records):
    found = records_of(finished, records, loss="infonce")
    fingerprints = {record["training"]["data"]["fingerprint"] for record in found}
    assert len(fingerprints) == 2


def test_a_student_counts_the_cost_of_its_teacher(finished, records):
    (student,) = records_of(finished, records, loss="margin_mse")
    assert student["cost"]["teacher_seconds"] > 0
    assert 0 <= student["training"]["teacher_agreement"] <= 1


def test_losses_of_the_paper_record_distributions(finished, records):
    for record in records_of(finished, records, loss="distributed"):
        distributions = record["training"]["distributions"]
        assert len(distributions) == len(record["training"]["history"]["step"])
        for quantiles in distributions.values():
            assert len(quantiles["margin"]) == 5


def test_transfer_searches_other_collections_too(finished, records):
    found = records_of(finished, records, transfer=("other",))
    assert len(found) == 2
    for record in found:
        means = record["means"]
        assert means["other/test"]["nDCG@10"] == means["tiny/test"]["nDCG@10"]


def test_a_study_that_was_stopped_goes_on_and_does_nothing_twice(finished):
    variants = finished.records / "variants.jsonl"
    assert variants.read_bytes() == finished.first
    modified = {path: path.stat().st_mtime_ns for path in finished.records.glob("*.jsonl")}
    assert main(["run", str(finished.path), *finished.options]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.records.glob("*.jsonl")} == modified


def test_a_run_is_left_to_the_process_that_is_at_it(untouched_twice, options, tmp_path):
    busy, free = read_study(untouched_twice).runs
    locks = tmp_path / "work" / "locks"
    locks.mkdir(parents=True)
    with FileLock(locks / busy.key):
        assert main(["run", str(untouched_twice), *options]) == 0
    assert list(Records(tmp_path / "records").read()) == [free.key]


def test_a_run_that_another_process_has_ended_since_is_not_done_again(untouched_twice, data, tmp_path, monkeypatch):
    study = read_study(untouched_twice)
    records = Records(tmp_path / "records")
    runner = Runner(study, data, tmp_path / "work", records)
    records.append("a", {"key": study.runs[0].key})
    monkeypatch.setattr(Runner, "_measure", None)
    runner.run(study.runs[0], "the first")
    assert len(records.read()) == 1


def test_a_run_that_fails_leaves_no_record_and_stops_no_other(write_study, defaults, options, tmp_path, caplog):
    caplog.set_level("INFO", "pyterrier_selfdistill")
    grids = {"a": {"any_of": [{"loss": "distributed", "triples": 99}, {"loss": "untouched"}]}}
    assert main(["run", str(write_study(grids, defaults=defaults)), *options]) == 1
    (record,) = Records(tmp_path / "records").read().values()
    assert record["run"]["loss"] == "untouched"
    quality = record["means"]["tiny/dev"]["nDCG@10"]
    lines = [message.getMessage() for message in caplog.records if message.name.endswith("study.runner")]
    assert lines[0] == "a 1/2, tiny: distributed, triples 99: begins"
    assert lines[1].startswith("a 1/2, tiny: distributed, triples 99: failed, Run(")
    assert lines[2] == "a 2/2, tiny: untouched, triples 8: begins"
    assert lines[3].startswith(f"a 2/2, tiny: untouched, triples 8: nDCG@10 on dev {quality:.3f}, ")
    assert lines[4] == "1 runs failed; a further call tries them again"


def test_a_search_for_settings_measures_dev_only(write_study, defaults, options, tmp_path):
    grids = {"tune": {"loss": "untouched", "dev_documents": 3}}
    assert main(["run", str(write_study(grids, defaults=defaults)), *options]) == 0
    (record,) = Records(tmp_path / "records").read().values()
    assert list(record["means"]) == ["tiny/dev"]
    assert record["queries"] == {}


def test_a_run_needs_no_git(monkeypatch):
    """A record is made when a run has ended: what describes it must not lose it."""
    monkeypatch.setenv("PATH", "")
    assert runner._commit() is None


def test_splits_of_another_name_are_refused(untouched_twice, data, tmp_path, monkeypatch):
    runner = Runner(read_study(untouched_twice), data, tmp_path / "work", Records(tmp_path / "records"))
    splits = dict.fromkeys(("train", "valid", "test"))
    monkeypatch.setattr("benchmarks.study.runner.load_collection", lambda *_: Collection(None, splits))
    with pytest.raises(ValueError, match=r"'tiny' has the splits \['valid'\]; expected 'train', 'dev' and 'test'"):
        runner.collection("tiny")
