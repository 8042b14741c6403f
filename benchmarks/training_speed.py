"""How many triples a second are trained with, beside other trainers, and what each measure gives.

    python -m benchmarks.training_speed            # peers
    python -m benchmarks.training_speed measures   # what embedding documents together gives
    python -m benchmarks.training_speed padding    # what batches consist of
    python -m benchmarks.training_speed memory     # the peak of a batch of 1,024 in mini-batches
    python -m benchmarks.training_speed results    # that losses and nDCG@10 stay what they are

All of it trains MiniLM with the same triples in batches of 32, queries cut at 20 and documents at 200 tokens. Trainings
are timed in turns in one process, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from datasets import Dataset
from ir_measures import nDCG
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MarginMSELoss, MultipleNegativesRankingLoss

from benchmarks.materials import MINILM, draw_triples, random_triples
from benchmarks.pages import table
from benchmarks.study.collection import Collection, load_collection
from benchmarks.study.losses import Teacher
from benchmarks.study.memory import PeakMemory
from benchmarks.turns import Rates, in_turns
from pyterrier_selfdistill import (
    AdaptiveMarginLoss,
    SelfDistillationLoss,
    SelfDistillBiEncoder,
    SelfDistillTrainer,
    embedding,
    text_losses,
)
from pyterrier_selfdistill.training import callbacks
from pyterrier_selfdistill.training.arguments import mixed_precision

LENGTHS = {"query": 20, "positive": 200, "negative": 200}
"""How many tokens of each column are read."""

RESULTS_OF = "docstrings:numpy"
"""The collection with which results are compared."""

RESULT_TRIPLES = 256

BATCH = 32
STEPS = 2
TURNS = 3


Training = Callable[[pd.DataFrame], float]
"""Trains with triples in batches, and returns how many seconds that took, without loading the model."""


def main() -> None:
    """Read the command line, measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=TABLES, default="peers")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of collections")
    options = parser.parse_args()
    print(TABLES[options.part](options.data))


def peers_table(data: Path) -> str:
    """Time the trainers, and write their rates and what ours is against each."""
    rates = time_trainings(peers(), data)
    ours = next(iter(rates.values()))
    rows = [(name, str(rate), ours.over(rate)) for name, rate in rates.items()]
    return table(["trainer", "triples/s (spread)", "ours against it"], rows)


def measures_table(data: Path) -> str:
    """Time training with documents embedded in other ways, and write what ours gives."""
    rates = time_trainings(measures(), data)
    apart = next(iter(rates.values()))
    rows = [(name, str(rate), rate.over(apart)) for name, rate in rates.items()]
    return table(["documents embedded", "triples/s (spread)", "against one by one"], rows)


def padding_table(data: Path) -> str:
    """Count what the batches consist of, and write it."""
    counted = count_padding(draw_triples(data, BATCH * STEPS))
    rows = [(name, f"{number:.2f}") for name, number in counted.items()]
    return table(["documents embedded", "tokens, or share"], rows)


def memory_table(data: Path) -> str:
    """Measure the memory of a step, which needs no collection, and write it."""
    rows = []
    for batch, mini_batch_size in ((32, None), (128, None), (1024, 32)):
        # in a process of its own, whose memory is only its own
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            peak = process.submit(peak_memory, batch, mini_batch_size).result()
        rows.append((batch, mini_batch_size or "the whole batch", f"{peak:,.0f}"))
    return table(["batch", "mini-batch", "peak, MB"], rows)


def results_table(data: Path) -> str:
    """Train in the ways that are to change nothing, without dropout, and write what came of it."""
    collection = load_collection(RESULTS_OF, data)
    topics, qrels = collection.splits["train"]
    triples = random_triples(collection, topics, qrels, RESULT_TRIPLES)
    rows = []
    for name, options in {"apart": {}, "together": {}, "in mini-batches of 8": {"mini_batch_size": 8}}.items():
        with contextlib.ExitStack() as stack:
            if name == "apart":
                stack.enter_context(patch.object(text_losses, "arrange", _apart))
            losses, quality = train_and_search(triples, collection, **options)
        rows.append((name, f"{losses[0]:.6f}", f"{losses[-1]:.6f}", f"{quality:.4f}"))
    return table(["documents embedded", "first loss", "last loss", "nDCG@10"], rows)


TABLES = {
    "peers": peers_table,
    "measures": measures_table,
    "padding": padding_table,
    "memory": memory_table,
    "results": results_table,
}
"""What can be measured, given the folder of collections."""


def time_trainings(trainings: dict[str, Training], data: Path) -> dict[str, Rates]:
    """Time trainings with the same triples, in turns."""
    triples = draw_triples(data, BATCH * STEPS)
    works = {name: partial(train, triples) for name, train in trainings.items()}
    return in_turns(works, len(triples), TURNS)


def peers() -> dict[str, Training]:
    """Name the trainers that are compared."""
    return {
        "SelfDistillTrainer": train_ours,
        "bare loop, padded by batch": train_bare,
        "bare loop, padded to 20 and 200 (as the authors do)": partial(train_bare, padding="max_length"),
        "sentence-transformers, InfoNCE, same precision": train_infonce,
        "sentence-transformers, InfoNCE, float32 (as it comes)": partial(train_infonce, precision={}),
        "sentence-transformers, MarginMSE with its teacher's time": train_margin_mse,
    }


def measures() -> dict[str, Training]:
    """Name the ways to embed the documents of a batch."""
    return {
        "columns, one by one": partial(train_with, pool=False),
        "documents in one pool": partial(train_with, passes=False),
        "and in passes of like length": train_with,
    }


def train_ours(triples: pd.DataFrame) -> float:
    """Train with this package."""
    encoder = SelfDistillBiEncoder.from_pretrained(
        MINILM, query_length=LENGTHS["query"], document_length=LENGTHS["positive"]
    )
    # comparing documents with those before training happens five times, however long a training is
    with tempfile.TemporaryDirectory() as folder, patch.object(callbacks, "MONITORED_TIMES", 0):
        options: dict[str, Any] = {"per_device_train_batch_size": BATCH, "save_strategy": "no", "verbose": False}
        trainer = SelfDistillTrainer(encoder, f"{folder}/run", **options).fit_triples(triples)
        return trainer.encoder.training_summary["seconds"]


def train_with(triples: pd.DataFrame, *, pool: bool = True, passes: bool = True) -> float:
    """Train with this package, embedding documents in another way.

    Args:
        triples: What to train with.
        pool: Whether positives and negatives are embedded together.
        passes: Whether they are in passes of like length, and not in a single one.

    Returns:
        Seconds.
    """
    with contextlib.ExitStack() as stack:
        if not pool:
            stack.enter_context(patch.object(text_losses, "arrange", _apart))
        if not passes:
            stack.enter_context(patch.object(embedding, "number_of_passes", _one))
        return train_ours(triples)


def _apart(columns: list[embedding.Features]) -> embedding.Arrangement:
    """Arrange columns as they are."""
    return embedding.Arrangement(list(columns))


def _one(rows: int, device: torch.device) -> int:
    """Divide a pool into a single pass."""
    return 1


def train_and_search(triples: pd.DataFrame, collection: Collection, **options: Any) -> tuple[list[float], float]:
    """Train without dropout, search all documents for the test queries, and return the losses and nDCG@10."""
    encoder = SelfDistillBiEncoder.from_pretrained(MINILM, query_length=20, document_length=64, dtype="float32")
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    topics, qrels = collection.splits["test"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SelfDistillTrainer(encoder, f"{folder}/run", bf16=False, verbose=False, **options)
        trainer.fit_triples(triples)
        retriever = trainer.encoder.build_retriever(collection.documents, f"{folder}/index.flex", num_results=10)
        quality = pt.Evaluate(retriever(topics), qrels, [nDCG @ 10])["nDCG@10"]
    return trainer.history["loss"].dropna().tolist(), quality


def count_padding(triples: pd.DataFrame) -> dict[str, float]:
    """Count with how many tokens documents are embedded, for each token that they have, and how many occur twice.

    Args:
        triples: What to train with.

    Returns:
        The ratios by how documents are embedded, and the shares of queries and documents that repeat another.
    """
    model = _cut_model()
    tokens: dict[str, int] = dict.fromkeys(["real", "padded column by column"], 0)
    repeated = {"query": 0, "document": 0}
    for batch in _batches(triples):
        columns = [model.preprocess(batch[name].tolist()) for name in LENGTHS]
        lengths = np.sort(torch.cat([column["attention_mask"].sum(dim=1) for column in columns[1:]]).numpy())
        tokens["real"] += int(lengths.sum())
        tokens["padded column by column"] += sum(column["input_ids"].numel() for column in columns[1:])
        for number in (1, 2, 4, 8):
            ends = embedding.divide(lengths, number)
            rows = np.diff(ends, prepend=0)
            name = f"one pool in {number} passes"
            tokens[name] = tokens.get(name, 0) + int((rows * lengths[np.array(ends) - 1]).sum())
        documents = pd.concat([batch["positive"], batch["negative"]])
        repeated["query"] += int(batch["query"].duplicated().sum())
        repeated["document"] += int(documents.duplicated().sum())
    ratios = {name: number / tokens["real"] for name, number in tokens.items()}
    ratios["share of queries that are repeated"] = repeated["query"] / len(triples)
    ratios["share of documents that are repeated"] = repeated["document"] / (2 * len(triples))
    return ratios


def train_bare(triples: pd.DataFrame, padding: bool | str = True) -> float:
    """Train in a loop of a few lines: the floor for the tokens that it computes with."""
    model = SentenceTransformer(MINILM).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    loss = AdaptiveMarginLoss()
    started = time.perf_counter()
    for batch in _batches(triples):
        with _autocast(model.device):
            embeddings = []
            for name, length in LENGTHS.items():
                options = {"padding": padding, "truncation": True, "max_length": length, "return_tensors": "pt"}
                features = model.tokenizer(batch[name].tolist(), **options).to(model.device)
                embeddings.append(model(dict(features))["sentence_embedding"])
            value = loss(*embeddings)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    value.item()  # a device may not be done
    return time.perf_counter() - started


def train_infonce(triples: pd.DataFrame, precision: dict[str, bool] | None = None) -> float:
    """Train with sentence-transformers and its usual loss, in the precision that this package chooses or another."""
    model = _cut_model()
    dataset = Dataset.from_pandas(triples, preserve_index=False)
    return _train_sentence_transformers(model, dataset, MultipleNegativesRankingLoss(model), precision)


def train_margin_mse(triples: pd.DataFrame) -> float:
    """Train with sentence-transformers and MarginMSE, and count how long a cross-encoder takes to label the triples."""
    model = _cut_model()
    teacher = Teacher(MINILM, sum(LENGTHS.values()) - LENGTHS["negative"])
    dataset = Dataset.from_pandas(triples, preserve_index=False)
    started = time.perf_counter()
    labelled = teacher.label(dataset, scale=1.0)
    labelling = time.perf_counter() - started
    return labelling + _train_sentence_transformers(model, labelled, MarginMSELoss(model))


def _cut_model() -> SentenceTransformer:
    """Load the model with one length for all texts, which is all that it has."""
    model = SentenceTransformer(MINILM)
    model.max_seq_length = LENGTHS["positive"]
    return model


def _train_sentence_transformers(
    model: SentenceTransformer,
    dataset: Dataset,
    loss: torch.nn.Module,
    precision: dict[str, bool] | None = None,
) -> float:
    on_cpu = model.device.type == "cpu"
    if precision is None:
        precision = mixed_precision(model.device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            **precision,  # type: ignore[arg-type]
        )
        trainer = SentenceTransformerTrainer(model, args=arguments, train_dataset=dataset, loss=loss)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def peak_memory(batch: int = 1024, mini_batch_size: int | None = 32, length: int = 128) -> float:
    """Train a step with a large batch of long documents, and find how much memory that takes at most.

    Args:
        batch: Triples a step.
        mini_batch_size: That of :class:`SelfDistillationLoss`.
        length: The tokens of each document.

    Returns:
        The peak in MB, with the model and the optimizer.
    """
    model = SentenceTransformer(MINILM, device="cpu").train()
    loss = SelfDistillationLoss(model, mini_batch_size=mini_batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model.max_seq_length = length
    texts = ["what to sort", "sort " * length, "read " * length]
    # as the trainer does: each pass by itself
    forward = _autocast(model.device)(model.forward)
    with patch.object(model, "forward", forward), PeakMemory() as memory:
        # a small step first, in which the optimizer takes what it needs
        for size in (1, batch):
            features = [model.preprocess([text] * size) for text in texts]
            loss(features).backward()
            optimizer.step()
            optimizer.zero_grad()
    return memory.peak


def _autocast(device: torch.device) -> torch.autocast:
    """Compute in the precision that this package would choose."""
    in_16_bits = bool(mixed_precision(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=in_16_bits)


def _batches(triples: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Iterate over the batches of triples."""
    for begin in range(0, len(triples), BATCH):
        yield triples.iloc[begin : begin + BATCH]


if __name__ == "__main__":
    main()
