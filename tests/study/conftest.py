"""A little study: written, run once, or made up."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.study import runner
from benchmarks.study.__main__ import main
from benchmarks.study.comparison import Results
from benchmarks.study.config import Study, read_study
from benchmarks.study.records import Records
from benchmarks.study.run import Run


@pytest.fixture
def write_study(tmp_path) -> Callable[..., Path]:
    """Write a study of the collections ``tiny`` and ``other``: ``write_study(grids, defaults=...)``."""

    def write(grids: dict[str, Any], **more: Any) -> Path:
        return _write(tmp_path / "study.yaml", grids, **more)

    return write


@pytest.fixture(scope="session")
def data(_collection, tmp_path_factory) -> Path:
    """A folder of two collections that are alike, ``tiny`` and ``other``: a query for each document.

    Of the verbs of the queries, three are for training, one is for dev, and one is for test.
    """
    topics = _collection.corpus.rename(columns={"docno": "qid", "text": "query"})
    qrels = topics[["qid"]].assign(docno=topics["qid"], label=1)
    verbs = {"train": _collection.verbs[:3], "dev": _collection.verbs[3:4], "test": _collection.verbs[4:]}
    root = tmp_path_factory.mktemp("data")
    for name in ("tiny", "other"):
        folder = root / name
        folder.mkdir()
        _collection.corpus.to_json(folder / "docs.jsonl.gz", orient="records", lines=True)
        for split, chosen in verbs.items():
            rows = topics["qid"].str.partition("-")[0].isin(chosen)
            topics[rows].to_csv(folder / f"{split}.topics.tsv", sep="\t", index=False)
            qrels[rows].to_csv(folder / f"{split}.qrels.tsv", sep="\t", index=False)
    return root


@pytest.fixture(scope="session")
def defaults(language_model) -> dict[str, Any]:
    """The settings of runs on the collection ``tiny``."""
    return {
        "collection": "tiny",
        "model": language_model,
        "pooling": "cls",
        "triples": 8,
        "batch_size": 4,
        "query_length": 8,
        "document_length": 32,
    }


class Finished(NamedTuple):
    """A study that was run.

    Attributes:
        path: Its file.
        study: The study.
        records: The folder of its records.
        work: What its runs wrote besides.
        options: The command line that ran it, after the path.
        first: The file of the first grid, before the others were run.
    """

    path: Path
    study: Study
    records: Path
    work: Path
    options: list[str]
    first: bytes


@pytest.fixture(scope="session")
def finished(data, defaults, tmp_path_factory) -> Finished:
    """A study with each kind of run, which was stopped after its first grid, and run to its end then."""
    variants = {
        "seed": [1, 2],
        "any_of": [
            {"loss": "untouched", "seed": 1},
            {"loss": ["distributed", "infonce", "softmax"]},
            {"loss": "static", "margin": [0.2, 0.5]},
        ],
    }
    more = {
        "any_of": [
            {"loss": "adaptive", "in_batch": True, "negatives": ["random", "bm25", "re-mined"]},
            {"loss": "margin_mse", "triples": 10, "margin": 0.5},
            {"loss": "untouched"},
        ]
    }
    root = tmp_path_factory.mktemp("study")
    grids = {
        "variants": variants,
        "more": more,
        "forgetting": {"loss": ["untouched", "distributed"], "transfer": ["other"]},
    }
    losses = {"softmax": "benchmarks.experimental:critical"}
    path = _write(root / "study.yaml", grids, defaults=defaults, losses=losses)
    records, work = root / "records", root / "work"
    options = ["--records", str(records), "--data", str(data), "--work", str(work)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "TEACHER_TRIPLES", 12)
        assert main(["run", str(path), *options, "--grids", "variants"]) == 0
        first = (records / "variants.jsonl").read_bytes()
        assert main(["run", str(path), *options]) == 0
    return Finished(path, read_study(path), records, work, options, first)


@pytest.fixture
def make_results(tmp_path) -> Callable[..., Results]:
    """Make up results of a grid ``made``: ``make_results((run, quality), ...)``, and more of a record, by its keys."""

    def make(*rows: tuple[Any, ...]) -> Results:
        records = Records(tmp_path / "made-up")
        for run, quality, *more in rows:
            record = _record(run, quality)
            for part in more:
                for name, values in part.items():
                    record[name] |= values
            records.append("made", record)
        return Results(Study("made up", {"tiny": "tiny"}, {"made": [run for run, *_ in rows]}), records)

    return make


def _write(path: Path, grids: dict[str, Any], **more: Any) -> Path:
    content = {"name": "tiny", "collections": {"tiny": "tiny", "other": "other"}, "grids": grids, **more}
    path.write_text(json.dumps(content))
    return path


def _record(run: Run, quality: float) -> dict[str, Any]:
    """Make up a record in which each query has nearly this nDCG@10, and which cost ten seconds."""
    generator = np.random.default_rng(int(run.key, base=16))
    values = generator.normal(loc=quality, scale=0.01, size=50).tolist()
    measures = ("nDCG@10", "RR@10", "R@100", "R@1000")
    mean = float(np.mean(values))
    return {
        "key": run.key,
        "run": asdict(run),
        "means": {
            "tiny/dev": {"nDCG@10": quality},
            "tiny/test": dict.fromkeys(measures, mean),
        },
        "queries": {"tiny/test": dict.fromkeys(measures, values)},
        "space": {"similarity": 0.1, "dimensions": 60.0, "representational_similarity": 0.9},
        "margins": {},
        "training": {"history": {"target": [0.8, 0.5]}},
        "cost": {"training_seconds": 10.0},
        "machine": {"processor": "P", "cores": 2, "gpu": None, "precision": "fp32"},
    }
