from pathlib import Path

import pytest

from benchmarks.study.config import describe, read_study, varying
from benchmarks.study.losses import load_losses
from benchmarks.study.records import Records
from benchmarks.study.run import Run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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
    [
        (
            {"collection": "tiny", "rate": 1},
            r"grid 'a' of .*study\.yaml: unknown settings \['rate'\]; expected some of",
        ),
        ({"collection": "nowhere"}, r"unknown collection \['nowhere'\]; expected some of \['tiny', 'other'\]"),
        ({"collection": "tiny", "transfer": "nowhere"}, r"unknown collection \['nowhere'\]"),
        (
            {"collection": "tiny", "loss": ["infonce", "inofnce"]},
            r"unknown loss \['inofnce'\]; .*'untouched', .*'mine'",
        ),
        ({"collection": "tiny", "triples": [8, "many"]}, "triples must be a positive integer, got 'many'"),
        ({"collection": "tiny", "learning_rate": "fast"}, "learning_rate must be a positive number, got 'fast'"),
        ({"collection": "tiny", "loss": "static"}, "'static' needs a margin, got none"),
        ({"collection": "tiny", "any_of": {"seed": [1]}}, "any_of must be a list such as"),
        ({"seed": [1, 2]}, r"no collection; give one of \['tiny', 'other'\]"),
    ],
)
def test_read_study_says_what_is_wrong_with_a_grid(write_study, grid, message):
    path = write_study({"a": grid}, losses={"mine": "my_losses:mine"})
    with pytest.raises(ValueError, match=message):
        read_study(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {}}, r"study\.yaml is not a study, whose keys are \['name', .*\]: grid: Extra inputs"),
        ({"name": None}, "name: Value error, be a name that a file can have"),
        ({"name": "a/b"}, "name: Value error, be a name that a file can have"),
        ({"collections": {"tiny": 3}}, "collections.tiny.str: Input should be a valid string"),
        ({"collections": {"tiny": {"corpus": "irds:tiny"}}}, "collections.tiny.* at least 4 items"),
        ({"losses": {"mine": "no function"}}, "losses.mine: String should match"),
        ({"defaults": ["loss"]}, "defaults: Input should be a valid dictionary"),
    ],
)
def test_read_study_says_what_is_wrong_with_the_file(write_study, changes, message):
    path = write_study({"a": {"collection": "tiny"}}, **changes)
    with pytest.raises(ValueError, match=message):
        read_study(path)


def test_read_study_says_where_a_file_is_not_yaml(tmp_path):
    (tmp_path / "study.yaml").write_text("name: [a\n")
    with pytest.raises(ValueError, match=r"study\.yaml is not YAML: .*(\n.*)*line 2"):
        read_study(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"best_of": "tune", "over": "scale"}, r"best_of names \['tune'\]; the grids before it are \['a'\]"),
        ({"best_of": "a"}, r"best_of needs over"),
        ({"best_of": "a", "over": "rate"}, r"over names \['rate'\]"),
        ({"best_of": "a", "over": "scale", "seed": [1, "two"]}, "seed must be an integer"),
    ],
)
def test_read_study_says_what_is_wrong_with_a_grid_that_follows_up(write_study, grid, message):
    path = write_study({"a": {"collection": "tiny"}, "b": grid})
    with pytest.raises(ValueError, match=f"grid 'b' of .*{message}"):
        read_study(path)


def test_varying_names_the_settings_in_which_runs_differ():
    assert varying([Run("tiny", loss="infonce"), Run("tiny", seed=2)]) == ["loss", "seed"]


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


@pytest.mark.parametrize("name", ["full", "small"])
def test_every_loss_of_the_configs_can_be_made(name):
    study = read_study(BENCHMARKS / "configs" / f"{name}.yaml")
    losses = load_losses(study.losses)
    for run in study.runs:
        if run.loss != "untouched":
            losses[run.loss](run)


def test_records_in_the_repository_are_of_the_study():
    """A record from before a setting was added has its default."""
    folder = BENCHMARKS / "records"
    records = Records(folder).read()
    study = read_study(BENCHMARKS / "configs" / "full.yaml").follow_up(records)
    runs = {run.key: run for run in study.runs}
    assert records
    lines = 0
    for path in folder.glob("*.jsonl"):
        lines += len(path.read_text().splitlines())
        assert path.stem in study.grids
    assert lines == len(records)  # none stands in two files
    for key, record in records.items():
        assert Run.from_settings(record["run"]) == runs[key]


def test_a_run_is_described_by_what_tells_it_from_others():
    runs = [Run("tiny", loss="static", margin=0.5, learning_rate=1e-5), Run("tiny", batch_size=8)]
    assert describe(runs[0], runs) == "tiny: static 0.5, batch size 16, learning rate 1e-05"
    assert describe(runs[0], runs[:1]) == "tiny: static 0.5"
