"""The study from its YAML file to its report, on a small collection with a tiny model."""

import json
import math
from pathlib import Path

import candidates
import ir_datasets
import numpy as np
import pandas as pd
import plan
import pytest
import results
import study
import torch
from candidates import CriticalLoss, critical_temperature
from filelock import FileLock
from ir_datasets.formats import TrecQrels
from ir_datasets.util import LocalDownload
from plan import Run

from pyterrier_selfdistill import AdaptiveMarginLoss

VERBS, THINGS = ["sort", "read", "write", "plot", "return"], ["table", "matrix", "file", "array", "column"]
BENCHMARKS = Path(study.__file__).parent

# --- the plan -------------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def write(grids, **more):
        path = tmp_path / "study.yaml"
        collections = {"tiny": "tiny", "other": "other"}
        path.write_text(json.dumps({"name": "tiny", "collections": collections, "grids": grids, **more}))
        return path

    return write


def test_grids_are_products_and_share_runs(write):
    grids = {
        "a": {"seed": [1, 2], "any_of": [{"loss": "untouched", "seed": 1}, {"loss": "adaptive", "in_batch": [True]}]},
        "b": {"loss": ["adaptive", "infonce"], "in_batch": True, "learning_rate": "1e-5"},
        "c": {"loss": "adaptive", "in_batch": True, "seed": 2, "transfer": ["other"]},
    }
    read = plan.read_study(write(grids, defaults={"collection": "tiny", "triples": 8}))
    assert [(r.loss, r.in_batch, r.seed) for r in read.grids["a"]] == [
        ("untouched", False, 1),
        ("adaptive", True, 1),
        ("adaptive", True, 2),
    ]
    assert [r.learning_rate for r in read.grids["b"]] == [1e-5, 1e-5]
    assert read.grids["c"][0].transfer == ("other",)
    assert len(read.runs) == 6
    assert len({run.key for run in read.runs}) == 6


def test_a_run_is_known_by_what_is_not_the_default():
    assert Run("tiny").key == Run("tiny", error="l2", triples=1024).key
    different = [Run("tiny"), Run("other"), *(Run("tiny", **{k: v}) for k, v in {"seed": 2, "margin": 0.5}.items())]
    assert len({run.key for run in different}) == 4
    # keys name the records of earlier versions: a setting may be added, with a default that changes nothing
    assert Run("nfcorpus", loss="adaptive", in_batch=True, learning_rate=3e-5).key == "782c9a491be5"


@pytest.mark.parametrize(
    ("grid", "message"),
    [({"collection": "tiny", "rate": 1}, "'rate'"), ({"collection": "nowhere"}, "names .'nowhere'")],
)
def test_unknown_settings_and_collections(write, grid, message):
    with pytest.raises(ValueError, match=message):
        plan.read_study(write({"a": grid}))


@pytest.mark.parametrize("name", ["full", "small"])
def test_studies_can_be_read(name):
    read = plan.read_study(BENCHMARKS / "studies" / f"{name}.yaml")
    assert all(run.loss in {"untouched", *study.LOSSES} for run in read.runs)
    for run in read.runs:
        if run.loss != "untouched":
            assert study.LOSSES[run.loss](run)


# --- candidates -----------------------------------------------------------------------------------------------------


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 16, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def test_critical_temperature(batch):
    query, positive, negative = map(torch.nn.functional.normalize, batch)
    scores = query @ torch.cat([positive, negative]).T
    others = ~torch.eye(6, 12, dtype=torch.bool)
    expected = scores[others].std().item() / math.sqrt(2 * math.log(11))
    assert critical_temperature(scores, others).item() == pytest.approx(expected)


@pytest.mark.parametrize("form", CriticalLoss.FORMS)
def test_candidates_do_not_depend_on_lengths_and_have_gradients(batch, form):
    loss = CriticalLoss(form).terms(*batch).loss
    scaled = CriticalLoss(form).terms(*[factor * x for factor, x in zip((2, 3, 4), batch, strict=True)]).loss
    assert loss.item() == pytest.approx(scaled.item())
    loss.backward()
    assert all(torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0 for x in batch)


def test_softmax_is_infonce_at_the_critical_temperature(batch):
    query, positive, negative = map(torch.nn.functional.normalize, batch)
    scores = query @ torch.cat([positive, negative]).T
    temperature = critical_temperature(scores, ~torch.eye(6, 12, dtype=torch.bool))
    expected = torch.nn.functional.cross_entropy(scores / temperature, torch.arange(6))
    assert CriticalLoss("softmax").terms(*batch).loss.item() == pytest.approx(expected.item())


def test_uniform_is_the_adaptive_loss_with_other_positives_as_negatives(batch):
    query, positive, negative = batch
    ours = CriticalLoss("uniform").terms(*batch)
    columns = torch.cat([positive, negative])
    rows = [
        AdaptiveMarginLoss("adaptive", True)(query[[i]], positive[[i]], columns[[j for j in range(12) if j != i]][None])
        for i in range(6)
    ]
    assert ours.loss.item() == pytest.approx(torch.stack(rows).mean().item())


def test_unknown_candidates():
    with pytest.raises(ValueError, match="'other' is unknown"):
        candidates.CriticalLoss("other")


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_comparisons_find_what_is_there_and_nothing_else():
    generator = np.random.default_rng(0)
    base = generator.random((3, 400))
    better = results.compare(base + 0.05 + 0.1 * generator.normal(size=(3, 400)), base)
    assert better.low < 0.05 < better.high
    assert better.low > 0
    assert better.p < 1e-6
    same = results.compare(base + 0.1 * generator.normal(size=(3, 400)), base)
    assert same.low < 0 < same.high
    assert results.compare(base, base).p == 1
    intervals = [
        results.compare(base + generator.normal(size=(3, 1)) * sd, base[:1]) for sd in (0.0, 0.3)
    ]  # seeds that disagree widen the interval
    assert intervals[1].high - intervals[1].low > 2 * (intervals[0].high - intervals[0].low)


# --- from first to last ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, write, language_model):
    """A folder with a collection, and a study of it."""
    for name in ("tiny", "other"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        docs = pd.DataFrame([(f"{v}{t}", f"{v} the {t} by mean") for v in VERBS for t in THINGS])
        docs.set_axis(["docno", "text"], axis=1).to_json(folder / "docs.jsonl.gz", orient="records", lines=True)
        for split, verbs in {"train": VERBS[:3], "dev": VERBS[3:4], "test": VERBS[4:]}.items():
            rows = [(f"{v}-{t}", f"{v} {t}", f"{v}{t}") for v in verbs for t in THINGS]
            topics = pd.DataFrame(rows, columns=["qid", "query", "docno"])
            topics[["qid", "query"]].to_csv(folder / f"{split}.topics.tsv", sep="\t", index=False)
            topics.assign(label=1)[["qid", "docno", "label"]].to_csv(
                folder / f"{split}.qrels.tsv", sep="\t", index=False
            )
    defaults = {"collection": "tiny", "model": language_model, "triples": 8, "batch_size": 4, "query_length": 8}
    grids = {
        "variants": {
            "seed": [1, 2],
            "any_of": [
                {"loss": "untouched", "seed": 1},
                {"loss": ["distributed", "infonce", "softmax"]},
                {"loss": "static", "margin": [0.2, 0.5]},
            ],
        },
        "more": {
            "any_of": [
                {"loss": "adaptive", "in_batch": True, "negatives": ["random", "bm25", "re-mined"]},
                {"loss": "margin_mse", "triples": 10, "margin": 0.5},
                {"loss": "untouched", "transfer": ["other"]},
            ]
        },
    }
    return write(grids, defaults={**defaults, "document_length": 32, "pooling": "cls"})


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "TEACHER_TRIPLES", 12)
    return ["--records", str(tmp_path / "records"), "--data", str(tmp_path / "data"), "--work", str(tmp_path / "work")]


def test_study(tiny, options, tmp_path, capsys):
    read = plan.read_study(tiny)
    records = tmp_path / "records"

    # another process is at one run, and it is left to that
    busy = read.runs[1]
    (tmp_path / "work" / "locks").mkdir(parents=True)
    with FileLock(tmp_path / "work" / "locks" / busy.key):
        assert study.main(["run", str(tiny), *options, "--grids", "variants"]) == 0
    expected = {f"{run.key}.json" for run in read.grids["variants"] if run != busy}
    assert {path.name for path in records.iterdir()} == expected

    # a study that was stopped goes on, and does nothing twice
    before = {path.name: path.stat().st_mtime_ns for path in records.iterdir()}
    assert study.main(["run", str(tiny), *options]) == 0
    assert {path.name for path in records.iterdir()} == {f"{run.key}.json" for run in read.runs}
    assert {path.name: path.stat().st_mtime_ns for path in records.iterdir() if path.name in before} == before
    study.main(["list", str(tiny), *options])
    assert "open" not in capsys.readouterr().out

    loaded = {key: json.loads((records / f"{key}.json").read_text()) for key in (run.key for run in read.runs)}
    for run in read.runs:
        record = loaded[run.key]
        assert Run(**{**record["run"], "transfer": tuple(record["run"]["transfer"])}) == run
        assert len(record["queries"]["tiny/test"]["nDCG@10"]) == 5
        assert record["means"]["tiny/test"]["R@1000"] == 1
        assert record["means"]["tiny/test"]["nDCG@10"] == pytest.approx(
            np.mean(record["queries"]["tiny/test"]["nDCG@10"]), abs=1e-3
        )
        assert record["cost"]["seconds"] > 0
        assert record["cost"]["peak_memory_mb"] > 0
        if run.loss == "untouched":
            assert record["space"]["kept"] == pytest.approx(1, abs=1e-3)
        assert list((tmp_path / "work" / "trec" / run.key / "tiny-test").glob(f"{run.key}.res.gz"))
        if run.loss != "untouched":
            assert record["training"]["data"]["triples"] == run.triples
    seeds = [loaded[r.key]["training"]["data"]["fingerprint"] for r in read.runs if r.loss == "infonce"]
    assert len(set(seeds)) == 2
    (teacher,) = [loaded[r.key] for r in read.runs if r.loss == "margin_mse"]
    assert teacher["cost"]["teacher_seconds"] > 0
    assert 0 <= teacher["training"]["teacher_agreement"] <= 1
    paper = [loaded[r.key]["training"]["distributions"] for r in read.runs if r.loss == "distributed"]
    assert all(len(row["margin"]) == 5 for distributions in paper for row in distributions.values())
    transferred = next(loaded[r.key] for r in read.runs if r.transfer)
    assert transferred["means"]["other/test"]["nDCG@10"] == transferred["means"]["tiny/test"]["nDCG@10"]

    study.main(["report", str(tiny), *options, "--to", str(tmp_path / "report")])
    page = (tmp_path / "report" / "RESULTS.md").read_text()
    assert f"{len(read.runs)} of {len(read.runs)} runs" in page
    untouched = loaded[read.runs[0].key]["means"]["tiny/test"]["nDCG@10"]
    assert f"| untouched | 1 | {untouched:.3f} |" in page
    for suffix in ("csv", "tex", "md"):
        assert (tmp_path / "report" / "tables" / f"variants-tiny.{suffix}").stat().st_size

    made = results.Results(read, records)
    assert made.open == {}
    (distributed,) = made.grid("variants", loss="distributed")
    assert len(distributed.records) == 2
    assert made.untouched(distributed.run).run.loss == "untouched"
    assert made.infonce(distributed).run.loss == "infonce"
    assert made.one("more", loss="margin_mse").total > made.one("more", loss="margin_mse").training
    assert np.isnan(made.one("more", loss="margin_mse").final_target)
    with pytest.raises(KeyError, match="2 systems"):
        made.one("variants", loss="static")
    best = made.best_static(collection="tiny")
    assert best.mean("tiny/dev", "nDCG@10") == max(
        s.mean("tiny/dev", "nDCG@10") for s in made.all if s.run.loss == "static"
    )


def test_a_run_that_fails_leaves_no_record_and_stops_no_other(tiny, options, tmp_path):
    content = json.loads(tiny.read_text())
    content["grids"] = {"a": {"any_of": [{"loss": "distributed", "triples": 99}, {"loss": "untouched"}]}}
    tiny.write_text(json.dumps(content))
    assert study.main(["run", str(tiny), *options]) == 1
    (record,) = (tmp_path / "records").iterdir()
    assert json.loads(record.read_text())["run"]["loss"] == "untouched"


def test_no_collection_and_no_records(tmp_path, tiny, options):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere.*--data"):
        study.testbeds.load("nowhere", tmp_path)
    with pytest.raises(FileNotFoundError, match="run the study first"):
        results.Results(plan.read_study(tiny), tmp_path / "nothing")


def test_datasets_of_ir_datasets(names, folder):
    registered = ir_datasets.registry._registered
    Path("qrels").write_text("q0 0 sort-table 1\n")
    parts = TrecQrels(LocalDownload("qrels"), {1: "relevant"}), registered["local"]
    for split in ("train", "dev", "test"):
        registered[f"local/{split}"] = ir_datasets.Dataset(*parts)
    try:
        loaded = study.testbeds.load("irds:local", folder)
    finally:
        for split in ("train", "dev", "test"):
            del registered[f"local/{split}"]
    assert list(loaded.documents.columns) == ["docno", "text"]
    assert len(loaded.documents) == 40
    for topics, qrels in loaded.splits.values():
        assert topics["qid"].tolist() == names["topics"]["qid"].tolist()
        assert qrels[["qid", "docno", "label"]].to_numpy().tolist() == [["q0", "sort-table", 1]]


def test_unknown_grids(tiny, options, capsys):
    with pytest.raises(SystemExit):
        study.main(["run", str(tiny), *options, "--grids", "nothing"])
    assert "--grids names ['nothing']" in capsys.readouterr().err


def test_describe_space():
    generator = np.random.default_rng(0)
    spread = generator.normal(size=(1000, 64))
    spread /= np.linalg.norm(spread, axis=1, keepdims=True)
    collapsed = spread * 0.01 + np.eye(64)[0]
    collapsed /= np.linalg.norm(collapsed, axis=1, keepdims=True)
    same, alike, other = (study.describe_space(vectors, spread) for vectors in (spread, collapsed, spread[::-1]))
    assert same["kept"] == 1
    assert abs(same["similarity"]) < 0.01
    assert same["dimensions"] > 50
    assert alike["similarity"] > 0.99
    assert abs(other["kept"]) < 0.01


def test_samples_of_positives():
    rows = [("q1", "d1", 2), ("q1", "d2", 1), ("q1", "d3", 0), ("q2", "gone", 2)]
    qrels = pd.DataFrame(rows, columns=["qid", "docno", "label"])
    documents = pd.DataFrame({"docno": ["d1", "d2", "d3"]})
    assert study.judged_positives(qrels, documents)["docno"].tolist() == ["d1", "d2"]
    positives = study.judged_positives(qrels, documents, min_label=2)
    assert positives["docno"].tolist() == ["d1"]
    with pytest.raises(ValueError, match="triples=2, and the collection has 1 relevant"):
        study.sample_positives(positives, 2, seed=1)


def test_records_in_the_repository_are_of_the_study():
    read = plan.read_study(BENCHMARKS / "studies" / "full.yaml")
    known = {run.key: run for run in read.runs}
    for path in (BENCHMARKS / "results").glob("*.json"):
        record = json.loads(path.read_text())
        settings = {**record["run"], "transfer": tuple(record["run"]["transfer"])}
        assert known[path.stem] == Run(**settings)  # a record from before a setting was added has its default
