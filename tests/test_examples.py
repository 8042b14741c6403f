"""The examples from first to last, on small local data sets of the structure of their defaults, with a tiny model."""

import importlib
import json
from pathlib import Path

import pandas as pd
import pytest

from pyterrier_selfdistill import RayIndexer, SelfDistillIndex, ShardedIndex


@pytest.fixture
def example(monkeypatch, folder, register, collection):
    """Run an example in an empty folder: ``example("msmarco", "--option", "value")``."""
    docs = [(f"{v}{t}", f"{v} the {t} by mean") for v in collection.verbs for t in collection.things[:5]]
    queries = [(f"q{docno}", text.replace(" the ", " ").removesuffix(" by mean")) for docno, text in docs]
    pairs = [(q, q[1:], d) for q, _ in queries for d, _ in docs if d != q[1:]]
    qrels = [(q, "0", d, 2 * (d == q[1:]) + (d.startswith(q[1:4]))) for q, _ in queries for d, _ in docs]
    scored = [(q, "Q0", d, i, -i, "run") for q, _ in queries for i, (d, _) in enumerate(docs)]
    register("small/train", docs=docs, queries=queries, docpairs=pairs)
    register("small/judged", docs=docs, queries=queries, qrels=qrels, scoreddocs=scored)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))

    def run(name, *arguments):
        module = importlib.import_module(name)
        return module.main(module.read_options(list(map(str, arguments))))

    return run


def test_quickstart(example, language_model):
    arguments = ["--dataset", "irds:small/judged", "--model", language_model, "--output", "out", "--target", 0.5]
    table = example("quickstart", *arguments)
    assert table["name"].tolist() == ["bm25", "untrained", "self-distilled", "bm25, re-ranked", "bm25, fused"]
    assert table["nDCG@10"].astype(float).between(0, 1).all()
    assert json.loads(Path("out/model/pt_meta.json").read_text())["training"]["loss"]["target"] == 0.5
    written = {path.name for path in Path("out").iterdir()}
    assert written >= {"history.csv", "history.png", "report.html", "self-distilled.flex", "table.csv"}
    assert len(list(Path("out/runs").glob("*.res.gz"))) == len(table)


def test_msmarco(example, language_model):
    arguments = [
        *("--dataset", "irds:small/train", "--valid", "irds:small/judged", "--test", "irds:small/judged"),
        *("--model", language_model, "--output", "out", "--max-pairs-per-query", 3, "--batch-size", 8),
        *("--eval-steps", 3, "--document-length", 32),
    ]
    table = example("msmarco", *arguments)
    assert table["name"].tolist() == ["first stage", "untrained", "self-distilled"]
    assert table["nDCG@10"].between(0, 1).all()
    training = json.loads(Path("out/model/pt_meta.json").read_text())["training"]
    assert (training["preset"], training["steps"]) == ("paper", 30)
    assert (training["data"]["read"], training["data"]["triples"], training["data"]["queries"]) == (600, 75, 25)
    history = pd.read_csv("out/history.csv")
    assert history["step"][history["nDCG@10"].notna()].tolist() == list(range(0, 31, 3))
    again = example("msmarco", *arguments, "--no-store-texts", "--resume")
    assert again["nDCG@10"].tolist() == table["nDCG@10"].tolist()


def test_hard_negatives(example, language_model, capsys):
    options = ["--dataset", "irds:small/judged", "--model", language_model, "--output", "out", "--queries", 20]
    table = example("hard_negatives", *options, "--batch-size", 8, "--depth", 20)
    names = ["bm25", "untrained", "random negatives", "bm25 negatives", "re-mined negatives"]
    assert table["name"].tolist() == names
    assert names[-1] in capsys.readouterr().out
    losses = [
        pd.read_csv(f"out/{name}/history.csv")["loss"].dropna().iloc[-1] for name in ("random", "bm25", "re-mined")
    ]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("more", [[], ["--keep-shards"]])
def test_index_with_ray(example, language_model, monkeypatch, more):
    """A single worker in place of Ray."""

    def encode(indexer, corpus):
        assert (corpus, indexer.workers, indexer.num_gpus, indexer.shard_size) == (["*.jsonl"], 3, 0.5, 2)
        index = SelfDistillIndex(indexer.folder / "shard", verbose=False)
        (indexer.encoder >> index).index([{"docno": "d1", "text": "sort"}])
        return ShardedIndex([index.index_path])

    monkeypatch.setattr(RayIndexer, "encode", encode)
    arguments = ["*.jsonl", "--model", language_model, "--index", "a.flex", "--workers", 3]
    example("index_with_ray", *arguments, "--gpus", 0.5, "--shard-size", 2, *more)
    assert Path("a.flex").exists() != bool(more)


@pytest.mark.parametrize("name", ["quickstart", "hard_negatives"])
def test_examples_remove_only_their_own_files(example, name):
    Path("home").mkdir()
    for file in ("thesis.tex", f".{name}"):
        Path("home", file).write_text("mine")
        with pytest.raises(FileExistsError, match="thesis.tex"):
            example(name, "--output", "home")
    assert Path("home", "thesis.tex").read_text() == "mine"
