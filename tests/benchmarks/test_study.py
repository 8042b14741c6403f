"""A tiny study from its file to its page, statistics against values by hand, and the records of the repository."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

import pyterrier_selfdistill
from benchmarks.study.__main__ import main
from benchmarks.study.config import SETTINGS, Loss, Run, read_study
from benchmarks.study.records import Records
from benchmarks.study.results import Results
from benchmarks.study.runner import describe_space
from benchmarks.study.statistics import Claim, Claims, Difference, compare, holm, pooled_seed_variance

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SWEEPS = Path(pyterrier_selfdistill.__file__).parent / "pt_docs" / "report.rst"


@pytest.fixture(scope="module")
def data(tmp_path_factory, _collection) -> Path:
    """A folder of two equal collections, ``tiny`` and ``other``, with a query for each document."""
    root = tmp_path_factory.mktemp("data")
    (root / "tiny").mkdir()
    documents = _collection.corpus
    documents.to_json(root / "tiny" / "docs.jsonl.gz", orient="records", lines=True)
    for split, rows in {"train": slice(24), "dev": slice(24, 32), "test": slice(32, 40)}.items():
        part = documents[rows].assign(qid=documents["docno"], query='"' + documents["text"], label=1)
        part[["qid", "query"]].to_csv(root / "tiny" / f"{split}.topics.tsv", sep="\t", index=False, quoting=3)
        part[["qid", "docno", "label"]].to_csv(root / "tiny" / f"{split}.qrels.tsv", sep="\t", index=False)
    shutil.copytree(root / "tiny", root / "other")
    return root


def write(path: Path, grids: dict[str, Any], **more: Any) -> str:
    content = {"name": "tiny", "collections": {"tiny": "tiny", "other": "other"}, "grids": grids, **more}
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture(scope="module")
def defaults(language_model) -> dict[str, Any]:
    lengths = {"query_length": 8, "document_length": 16}
    return {"collection": "tiny", "model": language_model, "pooling": "cls", "triples": 8, "batch_size": 4, **lengths}


@pytest.fixture(scope="module")
def finished(data, defaults, tmp_path_factory) -> tuple[str, Path]:
    """A study with each kind of run that was stopped after its first grid and continued: its file and folder."""
    root = tmp_path_factory.mktemp("study")
    losses = [{"loss": "infonce", "seed": [1, 2]}, {"loss": "static", "margin": 0.5}, {"loss": "untouched"}]
    kinds = [
        {"loss": "adaptive", "in_batch": True, "negatives": "re-mined"},
        {"loss": "margin_mse", "margin": 0.5},
        {"loss": "untouched", "transfer": ["other"], "reinitialized": 1},
    ]
    search = {"loss": "infonce", "scale": [10, 20], "dev_documents": 12}
    grids = {
        "losses": {"any_of": losses},
        "kinds": {"any_of": kinds},
        "search": search,
        "best": {"best_of": "search", "over": ["scale"], "dev_documents": None},
    }
    path = write(root / "study.yaml", grids, defaults=defaults)
    options = ["--records", f"{root}/records", "--data", str(data), "--work", f"{root}/work"]
    assert main(["run", path, *options, "--grids", "losses"]) == 0
    first = Records(root / "records").read()
    assert main(["run", path, *options]) == 0
    assert Records(root / "records").read().items() >= first.items()
    return path, root


def test_every_run_has_one_record_with_settings_measures_and_costs(finished):
    path, root = finished
    records = Records(root / "records").read()
    study = read_study(path).follow_up(records)
    assert {run.key for run in study.grid_of} == records.keys()
    assert len(study.grid_of) == 4 + 3 + 2 + 1
    for run in study.grid_of:
        record = records[run.key]
        assert record["run"] == dataclasses.asdict(run) | {"transfer": list(run.transfer)}
        assert record["cost"]["seconds"] > 0 < record["cost"]["peak_memory_mb"]
        if run.loss != "untouched":
            assert record["training"]["data"]["triples"] == 8
            assert len(record["training"]["history"]["loss"]) == record["training"]["steps"]
        if run.dev_documents is None:
            values = record["queries"]["tiny/test"]["nDCG@10"]
            assert len(values) == 8
            assert record["means"]["tiny/test"]["nDCG@10"] == pytest.approx(np.mean(values), abs=1e-3)
            assert record["means"]["tiny/test"]["R@100"] == 1
        else:
            assert (list(record["means"]), record["queries"]) == (["tiny/dev"], {})
    by_loss = {run.loss: records[run.key] for run in study.grid_of if run.dev_documents is None}
    assert by_loss["margin_mse"]["cost"]["teacher_seconds"] > 0
    assert by_loss["untouched"]["means"]["other/test"] == by_loss["untouched"]["means"]["tiny/test"]
    assert by_loss["untouched"]["space"]["representational_similarity"] == pytest.approx(1, abs=1e-3)


def test_the_page_has_all_systems_and_a_figure(finished, tmp_path):
    path, root = finished
    assert main(["report", path, "--records", f"{root}/records", "--to", str(tmp_path)]) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    assert "10 of the 10 runs have a record." in page
    for text in ("| static 0.5 |", "| InfoNCE 10 |", "| MarginMSE 0.5 |", "| adaptive, in-batch |", "| all | 10 |"):
        assert text in page
    assert (tmp_path / "figures" / "differences.png").stat().st_size > 10_000
    (row,) = [line for line in page.splitlines() if line.startswith("| untrained | 1 ")]
    assert "nDCG@10 on other" in page
    assert row.endswith(" |  |  |  |  |"), "a system is not compared with itself"


def test_a_run_that_fails_or_is_taken_stops_no_other(data, defaults, tmp_path):
    grid = {"any_of": [{"triples": 99}, {"loss": "untouched", "seed": [1, 2]}]}
    path = write(tmp_path / "a.yaml", {"a": grid}, defaults=defaults)
    _, taken, free = read_study(path).grid_of
    (tmp_path / "work" / "locks").mkdir(parents=True)
    options = ["--records", f"{tmp_path}/records", "--data", str(data), "--work", f"{tmp_path}/work"]
    with FileLock(tmp_path / "work" / "locks" / taken.key):
        assert main(["run", path, *options]) == 1
    assert list(Records(tmp_path / "records").read()) == [free.key]


@pytest.mark.parametrize(
    ("grid", "error"),
    [
        ({"collection": "tiny", "rate": 1}, "rate"),
        ({"collection": "nowhere"}, "nowhere"),
        ({"collection": "tiny", "loss": "static"}, "margin"),
        ({"best_of": "later", "over": ["scale"]}, "later"),
        ({"loss": "infonce"}, "collection"),
    ],
)
def test_a_wrong_study_is_named_before_anything_runs(tmp_path, capsys, grid, error):
    with pytest.raises(SystemExit):
        main(["run", write(tmp_path / "a.yaml", {"a": grid})])
    assert error in capsys.readouterr().err.splitlines()[-1]


def test_a_torn_line_is_ignored_and_cut(tmp_path):
    records = Records(tmp_path)
    records.append("a", {"key": "1"})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"key": "2"')
    assert list(records.read()) == ["1"]
    for grid in ("a", "b"):
        records.append(grid, {"key": "3"})
    assert records.read() == {"1": {"key": "1"}, "3": {"key": "3"}}


def test_keys_of_the_repository_are_those_of_its_runs():
    records = Records(BENCHMARKS / "records").read()
    study = read_study(BENCHMARKS / "configs" / "full.yaml").follow_up(records)
    runs = {run.key: run for run in study.grid_of}
    for key, record in records.items():
        assert Run(**{**record["run"], "transfer": tuple(record["run"]["transfer"])}) == runs[key]


def test_the_page_shows_a_study_that_can_be_read_and_names_all_settings(tmp_path):
    page = SWEEPS.read_text()
    whole = re.search(r"code-block:: yaml\n\n((?:    .*\n|\n)+)", page)
    (tmp_path / "study.yaml").write_text(re.sub("^    ", "", whole[1], flags=re.MULTILINE))
    results = Results(read_study(tmp_path / "study.yaml"), Records(BENCHMARKS / "records"))
    assert results.open == {}
    for system in results.best("docstrings"):
        assert f" - {system.mean(system.test):.3f}\n" in page
        if system.is_trained:
            assert f" - {system.better_than(results.untouched(system.run))}\n" in page
    assert [name for name in (*SETTINGS, *Loss.__args__) if f"``{name}``" not in page] == []


def test_intervals_are_of_queries_and_seeds():
    one, other = np.random.default_rng(0).normal(0.5, 0.1, size=(2, 1, 400))
    found = compare(one, other)
    by_hand = (one - other).std() / np.sqrt(400)
    assert (found.mean, found.error) == (pytest.approx((one - other).mean()), pytest.approx(by_hand, rel=0.1))
    assert found.high - found.low == pytest.approx(2 * 1.96 * by_hand, rel=0.1)
    seeds = compare(one, other, one_seed_variance=0.03**2, other_seed_variance=0.04**2)
    assert seeds.error == pytest.approx(np.sqrt(by_hand**2 + 0.05**2), rel=0.1)
    # two seeds at a distance: resampling draws both, or one of them twice
    apart = compare(np.array([[0.4] * 9, [0.6] * 9]), np.full((1, 9), 0.5))
    assert apart.error == pytest.approx(0.1 / np.sqrt(2), rel=0.1)


def test_values_by_hand():
    assert Difference(0.0196, 0, 0, 0.01).p() == pytest.approx(0.05, abs=1e-3)
    assert Difference(0.0, 0, 0, 0.0025).p("equivalence") == pytest.approx(0.0228, abs=1e-3)
    assert Difference(0.005, 0, 0, 0.01).p("non-inferiority") == pytest.approx(0.1587, abs=1e-3)
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert pooled_seed_variance([[0.1, 0.3], [0.2, 0.2, 0.2], [0.9]]) == pytest.approx(0.02 / 3)
    claims = Claims([Claim("a", Difference(-0.1, 0, 0, 0.01)), Claim("b", Difference(0.001, 0, 0, 0.01))])
    assert (claims.verdicts("a"), claims.verdicts("b")) == (["worse"], [])
    described = describe_space(np.eye(4)[:3], np.eye(4)[:3] * [[1], [1], [-1]])
    assert (described["similarity"], described["dimensions"]) == (0, 2)
