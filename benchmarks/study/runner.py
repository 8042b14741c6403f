"""Run what a study has no record of yet.

A record is appended when its run has ended. So a study that was killed goes on where it stopped, runs that several
grids share are run once, and several processes may work on the same study.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from pyterrier_pisa import PisaIndex

from pyterrier_selfdistill.data.negatives import Negatives, from_results, from_topics
from pyterrier_selfdistill.encoder.biencoder import SelfDistillBiEncoder
from pyterrier_selfdistill.index.index import SelfDistillIndex
from pyterrier_selfdistill.training.arguments import mixed_precision
from pyterrier_selfdistill.training.trainer import SelfDistillTrainer
from pyterrier_selfdistill.utils.folders import atomic_folder, scratch_folder

from .changes import Baseline
from .collection import Collection, judged_positives, load_collection, pool_documents, sample_positives
from .config import Study, describe
from .encoders import base_encoder, model_folder
from .evaluation import DEPTH, MEASURES, evaluate
from .losses import Loss, RecordedLoss, load_losses
from .memory import PeakMemory
from .records import Record, Records
from .run import Run, Start
from .teacher import Teacher

logger = logging.getLogger(__name__)

TEACHER_TRIPLES = 4096
"""What a teacher is trained with at most, whatever share of it the student sees."""

HISTORY = 33
"""How many steps of a training a record has: enough to draw."""

PACKAGES = ("torch", "transformers", "sentence-transformers", "pyterrier", "pyterrier-dr", "ir-measures", "numpy")
"""Whose versions a record has."""


class Runner:
    """Do the runs of a study, with what they share: collections in memory, BM25's results, teachers.

    Args:
        study: The study.
        data: The folder of collections.
        work: Where TREC runs, teachers and what is temporary go.
        records: Where records are and go.
    """

    def __init__(self, study: Study, data: Path, work: Path, records: Records) -> None:
        self.study = study
        self.data = data
        self.work = work
        self.records = records
        for folder in (work / "locks", work / "teachers"):
            folder.mkdir(parents=True, exist_ok=True)
        self.losses = load_losses(study.losses)
        self.grid_of = study.grid_of
        self.done = set(records.read())
        # caches of this object, and not of the class, which would keep collections in memory for good
        self.collection = functools.cache(self._load_collection)
        self.first_stage = functools.cache(self._retrieve_first_stage)
        self.teacher = functools.cache(self._load_teacher)
        self.baseline = functools.cache(self._encode_baseline)

    def run_grids(self, grids: Sequence[str]) -> int:
        """Do all runs of some grids, in the order of the grids.

        A grid that follows up another one has the runs for which that has its records when it comes to it.

        Args:
            grids: Their names.

        Returns:
            How many runs failed; their errors are logged.
        """
        failed = 0
        for grid in grids:
            self.study = self.study.follow_up(self.records.read())
            self.grid_of = self.study.grid_of
            runs = self.study.grids[grid]
            for number, run in enumerate(runs, 1):
                name = f"{grid} {number}/{len(runs)}, {describe(run, runs)}"
                try:
                    self.run(run, name)
                except Exception:  # hours of other runs must not depend on this one
                    failed += 1
                    logger.exception("%s: failed, %s", name, run)
        if failed:
            logger.error("%d runs failed; a further call tries them again", failed)
        return failed

    def run(self, run: Run, name: str) -> None:
        """Do a run, unless its record is there or another process is at it.

        Args:
            run: The run.
            name: What the log calls it.
        """
        if run.key in self.done:
            return
        lock = FileLock(self.work / "locks" / run.key)  # the system gives it back if this process is killed
        try:
            with lock.acquire(timeout=0):
                self.done = set(self.records.read())  # another process may have ended the run since
                if run.key in self.done:
                    return
                logger.info("%s: begins", name)
                record = self._measure(run)
                self.records.append(self.grid_of[run], record)
                quality = record["means"][f"{run.collection}/dev"]["nDCG@10"]
                logger.info("%s: nDCG@10 on dev %.3f, %.0f s", name, quality, record["cost"]["seconds"])
        except Timeout:
            logger.info("%s: another process is at it", name)

    def _load_collection(self, name: str) -> Collection:
        collection = load_collection(self.study.collections[name], self.data)
        unknown = sorted(collection.splits.keys() - {"train", *MEASURES})
        if unknown:
            raise ValueError(f"the collection {name!r} has the splits {unknown}; expected 'train', 'dev' and 'test'")
        return collection

    def _encode_baseline(self, name: str, start: Start) -> Baseline:
        return Baseline(base_encoder(start), self.collection(name))

    def _measure(self, run: Run) -> Record:
        """Train and evaluate, and return the record."""
        started = time.monotonic()
        started_cpu = time.process_time()
        cost: dict[str, float] = {}
        training: dict[str, Any] = {}
        with PeakMemory() as memory, scratch_folder(self.work) as folder:
            encoder = base_encoder(run.start)
            if run.loss != "untouched":
                encoder, training = self._train(run, encoder, folder, cost)
            evaluation = self._evaluate(run, encoder, folder, cost)
        cost["seconds"] = time.monotonic() - started
        cost["cpu_seconds"] = time.process_time() - started_cpu
        rounded = {name: round(seconds, 2) for name, seconds in cost.items()}
        return {
            "key": run.key,
            "run": dataclasses.asdict(run),
            **evaluation,
            "training": training,
            "cost": {**rounded, "peak_memory_mb": round(memory.peak)},
            "machine": describe_machine(),
            "commit": _commit(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def _train(
        self, run: Run, encoder: SelfDistillBiEncoder, folder: Path, cost: dict[str, float]
    ) -> tuple[SelfDistillBiEncoder, dict[str, Any]]:
        """Train, add the costs to those that are known, and return the trained encoder and how training went."""
        collection = self.collection(run.collection)
        topics, qrels = collection.splits["train"]
        available = judged_positives(qrels, collection.documents, run.min_label)
        positives = sample_positives(available, run.triples, run.seed)
        loss = self.losses[run.loss](run)
        trainer = self._trainer(run, encoder, loss, folder)
        agreement = None  # the share of triples whose positive the teacher scores above the negative
        cost["teacher_seconds"] = 0.0
        cost["labelling_seconds"] = 0.0
        if run.negatives == "re-mined":
            trainer.fit(topics, positives)
        elif run.loss == "margin_mse":
            teacher = self.teacher(run.collection, run.min_label, run.model, run.query_length + run.document_length)
            started = time.monotonic()
            triples = teacher.label(self._triples(run, topics, positives), run.margin or 1.0)
            cost["teacher_seconds"] = teacher.seconds
            cost["labelling_seconds"] = time.monotonic() - started
            agreement = float(np.mean(np.array(triples["label"]) > 0))
            trainer.fit_triples(triples)
        else:
            trainer.fit_triples(self._triples(run, topics, positives))
        summary = trainer.encoder.training_summary
        cost["training_seconds"] = summary["seconds"]
        data = summary["data"]
        training = {
            "data": {name: data[name] for name in ("read", "triples", "queries", "fingerprint")},
            "available": len(available),
            "teacher_agreement": agreement,
            "loss": summary["loss"],
            "steps": summary["steps"],
            **_thinned(trainer.history, loss),
        }
        return trainer.encoder, training

    def _trainer(self, run: Run, encoder: SelfDistillBiEncoder, loss: Loss, folder: Path) -> SelfDistillTrainer:
        rounds = 2 if run.negatives == "re-mined" else 1
        return SelfDistillTrainer(
            encoder,
            folder / "trainer",
            loss=loss,
            negatives=run.number,
            corpus=self.collection(run.collection).documents,
            rounds=rounds,
            seed=run.seed,
            verbose=False,
            learning_rate=run.learning_rate,
            per_device_train_batch_size=run.batch_size,
            batch_sampler=run.batch_sampler,
            num_train_epochs=run.epochs,
            logging_steps=1,  # the record chooses among all steps
            save_strategy="no",
        )

    def _triples(self, run: Run, topics: pd.DataFrame, positives: pd.DataFrame) -> Dataset:
        """Give each positive its negatives."""
        documents = self.collection(run.collection).documents
        options: dict[str, Any] = {"negatives": Negatives(run.number), "seed": run.seed, "corpus": documents}
        if run.negatives == "bm25":
            results = self.first_stage(run.collection)
            results = results[results["qid"].isin(positives["qid"])]
            return from_results(results, positives, **options).dataset
        return from_topics(topics, positives, **options).dataset

    def _retrieve_first_stage(self, name: str) -> pd.DataFrame:
        """Retrieve with BM25 for the training queries of a collection."""
        collection = self.collection(name)
        topics, _ = collection.splits["train"]
        with scratch_folder(self.work) as folder:
            index = PisaIndex(f"{folder}/pisa", text_field="text")
            bm25 = index.index(collection.documents.to_dict(orient="records")).bm25(num_results=100)
            return bm25(topics).drop(columns="text", errors="ignore")

    def _load_teacher(self, name: str, min_label: int, model: str, length: int) -> Teacher:
        """Load the teacher that an earlier process trained, or train it."""
        identity = hashlib.sha256(f"{min_label}-{model}-{length}".encode()).hexdigest()[:8]
        folder = self.work / "teachers" / f"{name}-{identity}"
        with FileLock(f"{folder}.lock"):  # other processes wait, rather than train it too
            if folder.exists():
                teacher = Teacher(str(folder), length, 0)
                teacher.seconds = json.loads((folder / "seconds.json").read_text())
                return teacher
            logger.info("training a teacher for %s", name)
            triples = self._teacher_triples(name, min_label)
            with scratch_folder(self.work) as folder_of_trainer:
                teacher = Teacher(model_folder(model), length, 0).fit(triples, str(folder_of_trainer))
            with atomic_folder(folder) as unfinished:
                teacher.model.save_pretrained(str(unfinished))
                (unfinished / "seconds.json").write_text(json.dumps(teacher.seconds))
        return teacher

    def _teacher_triples(self, name: str, min_label: int) -> Dataset:
        """Make the triples that a teacher is trained with, half with random and half with BM25's negatives."""
        collection = self.collection(name)
        topics, qrels = collection.splits["train"]
        available = judged_positives(qrels, collection.documents, min_label)
        positives = sample_positives(available, min(TEACHER_TRIPLES, len(available)), 0)
        # with BM25's negatives alone, it learns that what shares words with a query is not relevant
        random = self._triples(Run(name, negatives="random", seed=0), topics, positives.iloc[::2])
        bm25 = self._triples(Run(name, negatives="bm25", seed=0), topics, positives.iloc[1::2])
        return datasets.concatenate_datasets([random, bm25])

    def _evaluate(
        self, run: Run, encoder: SelfDistillBiEncoder, folder: Path, cost: dict[str, float]
    ) -> dict[str, dict[str, Any]]:
        """Search whole collections, and return measures and what became of the space of vectors."""
        means: dict[str, dict[str, float]] = {}
        queries: dict[str, dict[str, list[float]]] = {}
        changes: dict[str, Any] = {"space": {}, "margins": {}}
        for name in (run.collection, *run.transfer):
            collection = self.collection(name)
            documents = collection.documents
            splits = sorted(collection.splits.keys() - {"train"})
            if run.dev_documents is not None:
                splits = ["dev"]
                documents = pool_documents(documents, collection.splits["dev"][1], run.dev_documents)
            started = time.monotonic()
            path = folder / f"{name}.flex"
            retriever = encoder.build_retriever(documents, path, num_results=DEPTH)
            cost[f"indexing_{name}_seconds"] = time.monotonic() - started
            if name == run.collection and run.dev_documents is None:
                vectors = SelfDistillIndex(path, verbose=False).np_vecs()
                changes = self.baseline(run.collection, run.start).compare(encoder, vectors)
            for split in splits:
                topics, qrels = collection.splits[split]
                trec = self.work / "trec" / run.key / f"{name}-{split}"
                values = evaluate(retriever, split, topics, qrels, trec=trec, name=run.key)
                means[f"{name}/{split}"] = {measure: round(mean, 5) for measure, mean in values.mean().items()}
                if split != "dev":
                    queries[f"{name}/{split}"] = values.round(4).to_dict(orient="list")
        return {"means": means, "queries": queries, **changes}


def describe_machine() -> dict[str, Any]:
    """Describe where a run is made."""
    has_gpu = torch.cuda.is_available()
    device_type = "cuda" if has_gpu else "cpu"
    precision = mixed_precision(torch.device(device_type))
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "precision": next(iter(precision), "fp32"),
        "python": platform.python_version(),
    }


def _commit() -> str | None:
    """Name the commit of the code, where it is a repository and there is git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", check=False)
    return described.stdout.strip() or None


def _thinned(history: pd.DataFrame, loss: Loss) -> dict[str, Any]:
    """Choose some steps of the history and of the distributions of a loss, for the record."""
    history = history.dropna(subset="loss")
    steps = np.unique(np.linspace(0, len(history) - 1, HISTORY).astype(int))
    rows = history.iloc[steps][["step", "loss", "margin", "target", "scale"]].round(5)
    distributions: dict[str, dict[str, Any]] = {}
    if isinstance(loss, RecordedLoss):
        for step in steps.tolist():
            distributions[str(step)] = loss.distributions[step]
    return {"history": rows.to_dict(orient="list"), "distributions": distributions}


def _processor() -> str:
    """Name the processor, as Linux does where it can be asked."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
