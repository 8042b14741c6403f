"""The examples from first to last, on small local datasets of the structure of their defaults, with a tiny model."""

import importlib
import json
from pathlib import Path

import ir_datasets
import pandas as pd
import pytest
from ir_datasets.formats import TrecQrels, TrecScoredDocs, TsvDocPairs, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload

from pyterrier_selfdistill import RayIndexer, SelfDistillIndex, ShardedIndex

VERBS, THINGS = ["sort", "read", "write", "plot", "return"], ["table", "matrix", "file", "array", "column"]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """Registers ``small/train`` with docpairs and ``small/judged`` with candidates, as MS MARCO has them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    docs = [(f"{v}{t}", f"{v} the {t} by mean") for v in VERBS for t in THINGS]
    queries = [(f"q{v}{t}", f"{v} {t}") for v in VERBS for t in THINGS]
    pairs = [(q, q[1:], d) for q, _ in queries for d, _ in docs if d != q[1:]]
    qrels = [(q, "0", d, str(2 * (d == q[1:]) + (d.startswith(q[1:4])))) for q, _ in queries for d, _ in docs]
    scored = [(q, "Q0", d, str(i), str(-i), "run") for q, _ in queries for i, (d, _) in enumerate(docs)]
    for name, rows, separator in [
        ("docs", docs, "\t"),
        ("queries", queries, "\t"),
        ("pairs", pairs, "\t"),
        ("qrels", qrels, " "),
        ("scored", scored, " "),
    ]:
        Path(name).write_text("".join(separator.join(row) + "\n" for row in rows))
    local = {name: LocalDownload(tmp_path / name) for name in ("docs", "queries", "pairs", "qrels", "scored")}
    common = TsvDocs(local["docs"], namespace="small"), TsvQueries(local["queries"])
    registered = ir_datasets.registry._registered
    registered["small/train"] = ir_datasets.Dataset(*common, TsvDocPairs(local["pairs"]))
    judged = TrecQrels(local["qrels"], {0: "no", 1: "related", 2: "relevant"}), TrecScoredDocs(local["scored"])
    registered["small/judged"] = ir_datasets.Dataset(*common, *judged)
    yield
    del registered["small/train"], registered["small/judged"]


def test_msmarco(datasets, language_model):
    import msmarco

    arguments = [
        *("--dataset", "irds:small/train", "--valid", "irds:small/judged", "--test", "irds:small/judged"),
        *("--model", language_model, "--output", "out", "--max-pairs-per-query", "3", "--batch-size", "8"),
        *("--eval-steps", "3", "--document-length", "32"),
    ]
    table = msmarco.main(msmarco.read_options(arguments))
    assert table["name"].tolist() == ["first stage", "untrained", "self-distilled"]
    assert table["nDCG@10"].between(0, 1).all()
    assert {path.name for path in Path("out").iterdir()} >= {"model", "history.csv", "runs", "table.csv"}
    assert len(list(Path("out/runs").glob("*.res.gz"))) == 3
    training = json.loads(Path("out/model/pt_meta.json").read_text())["training"]
    assert training["preset"] == "paper"
    assert training["steps"] == 30
    data = training["data"]
    assert (data["read"], data["triples"], data["queries"]) == (600, 75, 25)
    assert data["dropped"] == {"pair beyond 3 of its query": 525}
    history = pd.read_csv("out/history.csv")
    assert history["step"][history["nDCG@10"].notna()].tolist() == list(range(0, 31, 3))

    again = [*arguments, "--no-store-texts", "--resume"]
    assert msmarco.main(msmarco.read_options(again))["nDCG@10"].tolist() == table["nDCG@10"].tolist()


def test_hard_negatives(datasets, language_model, capsys):
    import hard_negatives

    options = ["--dataset", "irds:small/judged", "--model", language_model, "--output", "out", "--queries", "20"]
    table = hard_negatives.main(hard_negatives.read_options([*options, "--batch-size", "8", "--depth", "20"]))
    names = ["bm25", "untrained", "random negatives", "bm25 negatives", "re-mined negatives"]
    assert table["name"].tolist() == names
    assert table["nDCG@10"].between(0, 1).all()
    assert "re-mined negatives" in capsys.readouterr().out
    assert list(Path("out/re-mined/checkpoints").glob("mined-*.parquet"))
    models = {
        pd.read_csv(f"out/{name}/history.csv")["loss"].dropna().iloc[-1] for name in ("random", "bm25", "re-mined")
    }
    assert len(models) == 3


@pytest.mark.ray
@pytest.mark.parametrize("is_kept", [False, True])
def test_index_with_ray(language_model, monkeypatch, tmp_path, is_kept, caplog):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import index_with_ray

    def encode(indexer, corpus):
        """Encodes as a single worker would."""
        assert corpus == ["*.jsonl"]
        assert (indexer.workers, indexer.num_gpus, indexer.shard_size) == (3, 0.5, 2)
        index = SelfDistillIndex(indexer.folder / "shard", verbose=False)
        (indexer.encoder >> index).index([{"docno": "d1", "text": "sort"}])
        return ShardedIndex([index.index_path])

    monkeypatch.setattr(RayIndexer, "encode", encode)
    arguments = ["*.jsonl", "--model", language_model, "--index", str(tmp_path / "a.flex"), "--workers", "3"]
    arguments += ["--gpus", "0.5", "--shard-size", "2", *(["--keep-shards"] * is_kept)]
    with caplog.at_level("INFO"):
        index_with_ray.main(index_with_ray.read_options(arguments))
    assert "1 documents" in caplog.text
    assert SelfDistillIndex(tmp_path / "a.flex").built() != is_kept
    assert (tmp_path / "a.flex.shards").exists() == is_kept


# --- the folder that an example writes ------------------------------------------------------------------------------


@pytest.fixture
def prepare(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    from output_folder import prepare_output

    return lambda path: prepare_output(str(path), "quickstart", ["model", "*.flex"])


def test_prepare_output_replaces_what_the_example_wrote(prepare, tmp_path):
    folder = prepare(tmp_path / "runs" / "quickstart")
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("0.5")
    (folder / ".untrained.flex.unfinished").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "untrained.flex").symlink_to(tmp_path / "elsewhere")
    assert prepare(folder) == folder
    assert [path.name for path in folder.iterdir()] == [".quickstart"]
    assert (tmp_path / "elsewhere").exists()


def test_prepare_output_takes_an_empty_folder(prepare, tmp_path):
    (tmp_path / "empty").mkdir()
    assert prepare(tmp_path / "empty").is_dir()


@pytest.mark.parametrize("is_marked", [False, True])
def test_prepare_output_removes_nothing_else(prepare, tmp_path, is_marked):
    for name in ("model", "thesis.tex"):
        (tmp_path / name).write_text("mine")
    if is_marked:
        (tmp_path / ".quickstart").touch()
    with pytest.raises(FileExistsError, match="holds what quickstart did not write: .*thesis.tex; give another"):
        prepare(tmp_path)
    assert (tmp_path / "model").read_text() == "mine"


def test_prepare_output_refuses_what_only_looks_like_its_own(prepare, tmp_path):
    (tmp_path / "folder" / "model").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="did not write: model"):
        prepare(tmp_path / "folder")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        prepare(tmp_path / "file")


@pytest.mark.parametrize("name", ["quickstart", "hard_negatives"])
def test_examples_remove_nothing_that_is_not_theirs(datasets, name):
    example = importlib.import_module(name)
    Path("home").mkdir()
    Path("home/thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        example.main(example.read_options(["--output", "home"]))
    assert Path("home/thesis.tex").read_text() == "mine"
