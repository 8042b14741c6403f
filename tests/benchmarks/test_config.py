from pathlib import Path

import pytest

import benchmarks.study
from benchmarks.study.config import Run, read_study
from benchmarks.study.losses import LOSSES
from benchmarks.study.records import Records

STUDY = Path(benchmarks.study.__file__).parent


def test_read_study_multiplies_grids_that_share_runs(write_study):
    grids = {
        "a": {"seed": [1, 2], "any_of": [{"loss": "untouched", "seed": 1}, {"loss": "adaptive", "in_batch": [True]}]},
        "b": {"loss": ["adaptive", "infonce"], "in_batch": True, "learning_rate": "1e-5"},
        "c": {"loss": "adaptive", "in_batch": True, "seed": 2, "transfer": ["other"]},
        "d": {"loss": "adaptive", "in_batch": True, "seed": 2},
    }
    study = read_study(write_study(grids, defaults={"collection": "tiny", "triples": 8}))
    settings = [(run.loss, run.in_batch, run.seed) for run in study.grids["a"]]
    assert settings == [("untouched", False, 1), ("adaptive", True, 1), ("adaptive", True, 2)]
    assert [run.learning_rate for run in study.grids["b"]] == [1e-5, 1e-5]
    assert study.grids["c"][0].transfer == ("other",)
    assert len(study.runs) == 6
    assert len({run.key for run in study.runs}) == 6
    assert study.grid_of[study.grids["d"][0]] == "a"
    assert study.grid_of[study.grids["c"][0]] == "c"


@pytest.mark.parametrize(
    ("grid", "message"),
    [({"collection": "tiny", "rate": 1}, "'rate'"), ({"collection": "nowhere"}, "names .'nowhere'")],
)
def test_read_study_refuses_unknown_settings_and_collections(write_study, grid, message):
    path = write_study({"a": grid})
    with pytest.raises(ValueError, match=message):
        read_study(path)


def test_read_study_multiplies_lists_of_alternatives(write_study):
    cells = [{"collection": "tiny"}, {"collection": "other", "pooling": "cls"}]
    losses = [{"loss": "infonce", "scale": [10, 20]}, {"loss": "adaptive", "in_batch": True}]
    study = read_study(write_study({"a": {"any_of cells": cells, "any_of losses": losses, "triples": 8}}))
    assert len(study.runs) == 6
    assert sum(run.pooling == "cls" and run.scale == 20 for run in study.runs) == 1


@pytest.fixture
def searched(write_study):
    """A study that searches the learning rate of two losses, and runs the best with two seeds."""
    grids = {
        "tune": {"loss": ["distributed", "infonce"], "learning_rate": ["1e-5", "1e-4"], "dev_documents": 10},
        "best": {"best_of": "tune", "over": ["learning_rate"], "seed": [1, 2], "dev_documents": None},
    }
    return read_study(write_study(grids, defaults={"collection": "tiny"}))


def dev_records(runs):
    """Records in which the higher learning rate is better for InfoNCE, and worse for others."""
    records = {}
    for run in runs:
        sign = 1 if run.loss == "infonce" else -1
        records[run.key] = {"means": {"tiny/dev": {"nDCG@10": sign * run.learning_rate}}}
    return records


def test_a_grid_follows_up_what_is_best_on_dev(searched):
    assert "best" not in searched.grids
    followed_up = searched.follow_up(dev_records(searched.runs))
    settings = [(run.loss, run.learning_rate, run.seed, run.dev_documents) for run in followed_up.grids["best"]]
    assert settings == [
        ("distributed", 1e-5, 1, None),
        ("distributed", 1e-5, 2, None),
        ("infonce", 1e-4, 1, None),
        ("infonce", 1e-4, 2, None),
    ]


def test_a_search_without_all_its_records_is_not_followed_up(searched):
    records = dev_records(searched.runs)
    del records[searched.runs[0].key]
    assert {run.loss for run in searched.follow_up(records).grids["best"]} == {"infonce"}


def test_a_grid_follows_up_one_before_it(write_study):
    path = write_study({"best": {"best_of": "tune", "over": ["learning_rate"]}})
    with pytest.raises(ValueError, match="is of the best of .'tune'.; the grids before it are"):
        read_study(path)


def test_the_key_of_a_run_is_of_what_is_not_the_default():
    assert Run("tiny").key == Run("tiny", error="l2", triples=1024).key
    different = [Run("tiny"), Run("other"), Run("tiny", seed=2), Run("tiny", margin=0.5)]
    assert len({run.key for run in different}) == 4


def test_the_key_of_a_run_never_changes():
    """Keys name the records of earlier versions: a setting may be added, with a default that changes nothing."""
    assert Run("nfcorpus", loss="adaptive", in_batch=True, learning_rate=3e-5).key == "782c9a491be5"


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (Run("tiny"), "distributed"),
        (Run("tiny", loss="infonce"), "InfoNCE"),
        (Run("tiny", loss="infonce", scale=40), "InfoNCE 40"),
        (Run("tiny", loss="margin_mse", margin=1.0), "MarginMSE 1"),
        (Run("tiny", loss="static", margin=0.5, in_batch=True, error="l1"), "static 0.5, in-batch, l1"),
        (Run("tiny", loss="adaptive", detach_target=True), "adaptive, detached"),
    ],
)
def test_loss_name_has_the_options_that_are_not_the_default(run, name):
    assert run.loss_name == name


@pytest.mark.parametrize("name", ["full", "small"])
def test_every_loss_of_the_configs_can_be_made(name):
    study = read_study(STUDY / "configs" / f"{name}.yaml")
    for run in study.runs:
        if run.loss != "untouched":
            LOSSES[run.loss](run)


def test_records_in_the_repository_are_of_the_study():
    """A record from before a setting was added has its default."""
    folder = STUDY.parent / "records"
    records = Records(folder).read()
    study = read_study(STUDY / "configs" / "full.yaml").follow_up(records)
    runs = {run.key: run for run in study.runs}
    assert records
    lines = 0
    for path in folder.glob("*.jsonl"):
        lines += len(path.read_text().splitlines())
        assert path.stem in study.grids
    assert lines == len(records)  # none stands in two files
    for key, record in records.items():
        assert Run.from_settings(record["run"]) == runs[key]
