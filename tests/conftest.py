"""What several tests share: a small collection, and datasets of ir_datasets that are made of local files."""

import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import ir_datasets
import pandas as pd
import pyterrier as pt
import pytest
import torch
from ir_datasets.formats import TrecQrels, TrecScoredDocs, TsvDocPairs, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload
from pyterrier_pisa import PisaIndex

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex

VERBS = ["sort", "read", "write", "return", "plot"]
THINGS = ["table", "matrix", "file", "array", "row", "column", "value", "data"]


class Collection(NamedTuple):
    """Documents about things, and queries for them.

    Attributes:
        verbs: The five verbs.
        things: The eight things.
        corpus: One document for each verb and thing: ``docno`` and ``text``.
        topics: One query for each thing: ``qid`` and ``query``.
        qrels: All pairs; the label is 2 for the five documents about the thing of the query, 0 for others.
        results: All pairs of topics and documents, unranked: ``qid``, ``query``, ``docno``, ``text``.
    """

    verbs: list[str]
    things: list[str]
    corpus: pd.DataFrame
    topics: pd.DataFrame
    qrels: pd.DataFrame
    results: pd.DataFrame

    @property
    def records(self) -> list[dict[str, str]]:
        """The documents as records."""
        return self.corpus.to_dict(orient="records")


@pytest.fixture(scope="session")
def _collection() -> Collection:
    documents = [(f"{verb}-{thing}", f"{verb} the {thing} by mean") for verb in VERBS for thing in THINGS]
    corpus = pd.DataFrame(documents, columns=["docno", "text"])
    queries = [(f"q{number}", f"mean {thing}") for number, thing in enumerate(THINGS)]
    topics = pd.DataFrame(queries, columns=["qid", "query"])
    results = topics.merge(corpus, how="cross")
    things = results["query"].str.removeprefix("mean "), results["docno"].str.partition("-")[2]
    qrels = results[["qid", "docno"]].assign(label=2 * (things[0] == things[1]).astype(int))
    return Collection(VERBS, THINGS, corpus, topics, qrels, results)


@pytest.fixture
def collection(_collection) -> Collection:
    """A copy of the small collection, to change at will."""
    copies = [part.copy() for part in _collection]
    return Collection(*copies)


@pytest.fixture
def conforms(monkeypatch) -> Callable[[pt.Transformer], None]:
    """Check that a transformer does what PyTerrier's own tests ask of one."""
    # they warn of what they report
    monkeypatch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")

    def check(transformer: pt.Transformer) -> None:
        case = pt.testing.transformer_test_class(lambda: transformer)
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        assert result.testsRun
        assert not [trace for _, trace in result.failures + result.errors]

    return check


@pytest.fixture
def other(encoder) -> SelfDistillBiEncoder:
    """The same encoder after one more step of training: same name, other weights."""
    other = encoder.copy()
    with torch.no_grad():
        next(other.model.parameters()).add_(0.1)
    return other


@pytest.fixture
def index(encoder, collection, tmp_path) -> SelfDistillIndex:
    """An index of the small collection, built by the encoder."""
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (encoder >> index).index(collection.records)
    return index


@pytest.fixture
def ranking() -> Callable[[pd.DataFrame], list[list[str]]]:
    """List the queries and the documents of results, in the order of their ranks."""

    def ranking(results: pd.DataFrame) -> list[list[str]]:
        return results.sort_values(["qid", "rank"])[["qid", "docno"]].to_numpy().tolist()

    return ranking


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A machine without a network, which has downloaded nothing of PyTerrier's documentation."""

    def fail(*arguments, **options):
        raise URLError("there is no network")

    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pt.documentation, "_cached_objects_inv", None)
    monkeypatch.setattr(pt.io, "download", fail)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that code runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Ray, with a small cluster of Ray, for all tests that need one."""
    import ray

    # next to busy processes, its workers would take minutes to start
    config = {"worker_niceness": 0}
    options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    ray.init(address="local", num_cpus=1, _system_config=config, **options)
    yield ray
    ray.shutdown()


FORMATS = {
    "docs": lambda file, name: TsvDocs(file, namespace=name),
    "queries": lambda file, name: TsvQueries(file),
    "docpairs": lambda file, name: TsvDocPairs(file),
    "qrels": lambda file, name: TrecQrels(file, {0: "no", 1: "related", 2: "relevant"}),
    "scoreddocs": lambda file, name: TrecScoredDocs(file),
}
"""The real classes of ir_datasets by the part of a dataset that they read."""


@pytest.fixture
def register(tmp_path) -> Iterator[Callable[..., pt.datasets.Dataset]]:
    """Register datasets of ir_datasets: ``register("name", docs=rows, queries=rows, ...)``."""
    registry = ir_datasets.registry._registered
    before = set(registry)

    def register(name: str, **parts: Any) -> pt.datasets.Dataset:
        handlers = []
        for part, rows in parts.items():
            path = tmp_path / "irds" / name / part
            path.parent.mkdir(parents=True, exist_ok=True)
            separator = " " if part in ("qrels", "scoreddocs") else "\t"
            lines = [separator.join(map(str, row)) + "\n" for row in rows]
            path.write_text("".join(lines))
            handlers.append(FORMATS[part](LocalDownload(path), name.replace("/", "-")))
        registry[name] = ir_datasets.Dataset(*handlers)
        return pt.get_dataset(f"irds:{name}")

    yield register
    for name in set(registry) - before:
        del registry[name]


@pytest.fixture
def names(collection, register, folder) -> dict[str, Any]:
    """A retriever, a dataset of ir_datasets, topics and judgements, by their usual names."""
    topics, qrels, things = collection.topics, collection.qrels, collection.things
    negatives = [f"plot-{thing}" for thing in [things[-1], *things[:-1]]]
    docpairs = list(zip(topics["qid"], (f"sort-{thing}" for thing in things), negatives, strict=True))
    dataset = register("local", docs=collection.corpus.to_numpy(), queries=topics.to_numpy(), docpairs=docpairs)
    bm25 = PisaIndex(str(folder / "index.pisa"), text_field="text").index(collection.records).bm25()
    return {"bm25": bm25, "dataset": dataset, "topics": topics, "qrels": qrels}
