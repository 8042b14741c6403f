"""How many triples a second are trained with, compared with other trainers, and what each measure gives.

    python -m benchmarks.training_speed            # sentence-transformers and a bare loop
    python -m benchmarks.training_speed measures   # ways to embed the documents of a batch
    python -m benchmarks.training_speed padding    # the padding of batches
    python -m benchmarks.training_speed memory     # the peak of a batch of 256 in mini-batches
    python -m benchmarks.training_speed adapters   # the peak of training an adapter of a model as large as BERT-large

The first three train MiniLM with the same triples in batches of 32, queries cut at 20 and documents at 200 tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MarginMSELoss, MultipleNegativesRankingLoss
from sentence_transformers.util import get_device_name
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks.harness import DATA, LENGTHS, MINILM, draw_triples, in_own_process, in_turns, rates_table
from benchmarks.machine import PeakMemory
from benchmarks.pages import table
from benchmarks.study.losses import Teacher
from pyterrier_selfdistill import AdaptiveMarginLoss, SelfDistillationLoss, SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.training import loop
from pyterrier_selfdistill.training.arguments import mixed_precision

QUERY, DOCUMENT = LENGTHS["query_length"], LENGTHS["document_length"]
COLUMNS = {"query": QUERY, "positive": DOCUMENT, "negative": DOCUMENT}
"""The tokens of each column of triples."""

BATCH = 32
STEPS, TURNS = (3, 3) if mixed_precision(torch.device(get_device_name())) else (1, 2)
"""How many steps a turn has. Without hardware for 16 bits, a step takes several times as long."""

LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")

LARGE: dict[str, Any] = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
"""The layers of BERT-large, which has 24 of them."""


def peers_table(data: Path) -> str:
    """Time the trainers, and write their rates and the ratio of ours to each."""
    trainings: dict[str, Callable[[pd.DataFrame], float]] = {
        "SelfDistillTrainer": train_ours,
        "bare loop, padded by batch": train_bare,
        "bare loop, padded to 20 and 200 tokens, as the authors do": partial(train_bare, padding="max_length"),
        "sentence-transformers, InfoNCE, same precision": train_infonce,
        "sentence-transformers, InfoNCE, float32 (its default)": partial(train_infonce, precision={}),
        "sentence-transformers, MarginMSE, with the time of its teacher": train_margin_mse,
    }
    if not mixed_precision(torch.device(get_device_name())):
        del trainings["sentence-transformers, InfoNCE, float32 (its default)"]
    return _timed(trainings, data, ("trainer", "triples/s", "speed-up of ours"), ours="SelfDistillTrainer")


def measures_table(data: Path) -> str:
    """Time training with documents embedded in other ways, and write the ratios to the plainest."""
    trainings: dict[str, Callable[[pd.DataFrame], float]] = {
        "column by column": partial(train_ours, loss=EmbeddedApart),
        "one pool": partial(train_ours, loss=partial(EmbeddedApart, pool=True)),
        "one pool, in passes by length (the default)": partial(train_ours, loss=AdaptiveMarginLoss()),
    }
    return _timed(trainings, data, ("documents are embedded", "triples/s", "speed-up"))


def _timed(
    trainings: dict[str, Callable[[pd.DataFrame], float]],
    data: Path,
    header: tuple[str, str, str],
    ours: str | None = None,
) -> str:
    """Time some steps of each training with the same triples in turns."""
    triples = draw_triples(data, STEPS * BATCH)
    rates = in_turns({name: partial(train, triples) for name, train in trainings.items()}, len(triples), TURNS)
    return rates_table(header, rates, peer=next(iter(rates)), ours=ours)


class EmbeddedApart(nn.Module):
    """A loss that embeds the columns of texts one by one, or all documents in one pass.

    Args:
        model: The model.
        pool: Whether to embed all documents in one pass.
    """

    def __init__(self, model: SentenceTransformer, pool: bool = False) -> None:
        super().__init__()
        self.model = model
        self.loss = AdaptiveMarginLoss()
        self.pool = pool

    def forward(self, sentence_features: Any, labels: Tensor | None = None) -> Tensor:
        """Embed and compute the loss."""
        features = [dict(column) for column in sentence_features]
        if not self.pool:
            embeddings = [self.model(column)["sentence_embedding"] for column in features]
            return self.loss(*embeddings)
        query, *documents = features
        width = max(column["input_ids"].shape[1] for column in documents)
        pooled = {}
        for name, value in documents[0].items():
            columns = [column[name] for column in documents]
            if isinstance(value, Tensor) and value.dim() == 2:
                columns = [nn.functional.pad(column, (0, width - column.shape[1])) for column in columns]
                pooled[name] = torch.cat(columns)
            else:
                pooled[name] = value
        embeddings = [self.model(column)["sentence_embedding"] for column in (query, pooled)]
        return self.loss(embeddings[0], *embeddings[1].chunk(len(documents)))


def train_ours(triples: pd.DataFrame, loss: Any = None) -> float:
    """Train with this package, and return the seconds without loading the model."""
    encoder = SelfDistillBiEncoder.from_pretrained(MINILM, **LENGTHS)
    # documents are compared with those before training five times, however short a training is
    with tempfile.TemporaryDirectory() as folder, patch.object(loop, "MONITORED_TIMES", 0):
        options: dict[str, Any] = {"per_device_train_batch_size": BATCH, "save_strategy": "no", "verbose": False}
        trainer = SelfDistillTrainer(encoder, f"{folder}/run", loss=loss, **options).fit_triples(triples)
        return trainer.encoder.training_summary["seconds"]


def train_bare(triples: pd.DataFrame, padding: bool | str = True) -> float:
    """Train in a loop of a few lines: the floor for the tokens that it computes with."""
    model = SentenceTransformer(MINILM).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    loss = AdaptiveMarginLoss()
    started = time.perf_counter()
    for batch in _batches(triples):
        with _autocast(model.device):
            embeddings = []
            for name, length in COLUMNS.items():
                options = {"padding": padding, "truncation": True, "max_length": length, "return_tensors": "pt"}
                features = model.tokenizer(batch[name].tolist(), **options).to(model.device)
                embeddings.append(model(dict(features))["sentence_embedding"])
            value = loss(*embeddings)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    value.item()  # a device may not be done
    return time.perf_counter() - started


def train_infonce(triples: pd.DataFrame, precision: dict[str, bool] | None = None) -> float:
    """Train with sentence-transformers and its usual loss, by default in the precision of this package."""
    model = _cut_model()
    dataset = Dataset.from_pandas(triples, preserve_index=False)
    return _train_sentence_transformers(model, dataset, MultipleNegativesRankingLoss(model), precision)


def train_margin_mse(triples: pd.DataFrame) -> float:
    """Train with sentence-transformers and MarginMSE, and count the time of a cross-encoder to label the triples."""
    model = _cut_model()
    dataset = Dataset.from_pandas(triples, preserve_index=False)
    margins, labelling = Teacher(MINILM, QUERY + DOCUMENT).margins(dataset)
    labelled = dataset.add_column("label", margins.tolist())
    return labelling + _train_sentence_transformers(model, labelled, MarginMSELoss(model))


def _cut_model() -> SentenceTransformer:
    """Load the model with one length for all texts, which is all that it has."""
    model = SentenceTransformer(MINILM)
    model.max_seq_length = DOCUMENT
    return model


def _train_sentence_transformers(
    model: SentenceTransformer, dataset: Dataset, loss: nn.Module, precision: dict[str, bool] | None = None
) -> float:
    on_cpu = model.device.type == "cpu"
    options: dict[str, Any] = {**(mixed_precision(model.device) if precision is None else precision)}
    options |= {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    options |= {"use_cpu": on_cpu, "dataloader_pin_memory": not on_cpu, "num_train_epochs": 1}
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(folder, per_device_train_batch_size=BATCH, **options)
        trainer = SentenceTransformerTrainer(model, args=arguments, train_dataset=dataset, loss=loss)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def padding_table(data: Path) -> str:
    """Count the tokens with which batches are embedded, and write them."""
    rows = [(name, f"{number:.2f}") for name, number in count_padding(draw_triples(data, 2 * BATCH)).items()]
    return table(["documents are embedded", "processed tokens for each token of a text"], rows)


def count_padding(triples: pd.DataFrame) -> dict[str, float]:
    """Count the tokens of documents with their padding, for each token that they have, by how they are embedded."""
    model = _cut_model()
    tokens: dict[str, float] = {}
    for batch in _batches(triples):
        lengths, counted = [], {"real": 0, "column by column": 0}
        for name in ("positive", "negative"):
            mask = model.preprocess(batch[name].tolist())["attention_mask"]
            counted["column by column"] += mask.numel()
            lengths.append(mask.sum(dim=1).numpy())
        pool = np.sort(np.concatenate(lengths))
        counted["real"] = int(pool.sum())
        for number in (1, 2, 4, 8):
            counted["one pool" if number == 1 else f"one pool, in {number} passes"] = least_padded(pool, number)
        tokens = {name: tokens.get(name, 0) + number for name, number in counted.items()}
    real = tokens.pop("real")
    return {name: number / real for name, number in tokens.items()}


def least_padded(lengths: np.ndarray, passes: int) -> int:
    """Return the least tokens, padding included, of texts with these sorted lengths in so many passes.

    Example:
        >>> least_padded(np.array([1, 1, 4]), 1), least_padded(np.array([1, 1, 4]), 2)
        (12, 6)
    """
    least = np.arange(len(lengths) + 1) * np.concatenate([[0], lengths])
    for _ in range(1, passes):
        rows = np.arange(len(lengths) + 1)
        last = (rows[:, None] - rows) * np.concatenate([[0], lengths])[:, None]
        least = np.where(last >= 0, least + last, np.iinfo(np.int64).max).min(axis=1)
    return int(least[-1])


def memory_table(data: Path) -> str:
    """Measure the memory of a step, and write it; ``data`` is not needed."""
    rows = []
    for batch, mini_batch_size in ((32, None), (128, None), (256, 32)):
        _, peak = in_own_process(costs_of_step, batch, mini_batch_size)
        rows.append((batch, mini_batch_size or "the whole batch", f"{peak:,.0f}"))
    return table(["batch", "mini-batch", "peak, MB"], rows)


def measure_growth(
    batches: Sequence[int] = (32, 512, 4096), negatives: Sequence[int] = (1, 4, 31), length: int = 8
) -> dict[str, list[dict[str, Any]]]:
    """Measure steps of growing batches in mini-batches of 32, and of a batch of 32 with more negatives a query."""
    sizes = {"batch": [(batch, 1) for batch in batches], "negatives": [(32, number) for number in negatives]}
    grown: dict[str, list[dict[str, Any]]] = {}
    for (name, steps), labels in zip(sizes.items(), (batches, negatives), strict=True):
        costs = in_own_process(costs_of_steps, steps, length)
        columns = zip(labels, costs, strict=True)
        grown[name] = [{name: label, "seconds": taken, "peak, MB": peak} for label, (taken, peak) in columns]
    return grown


def costs_of_steps(sizes: Sequence[tuple[int, int]], length: int) -> list[tuple[float, float]]:
    """Train a step of each batch and number of negatives, smallest first, in mini-batches of 32."""
    return [costs_of_step(batch, 32, negatives, length) for batch, negatives in sizes]


def costs_of_step(batch: int, mini_batch_size: int | None, negatives: int = 1, length: int = 64) -> tuple[float, float]:
    """Train a step, and return its seconds, and the peak in MB with model and optimizer."""
    model = SentenceTransformer(MINILM, device="cpu").train()
    loss = SelfDistillationLoss(model, mini_batch_size=mini_batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model.max_seq_length = length
    # the trainer too enters autocast for each pass
    forward = _autocast(model.device)(model.forward)
    with patch.object(model, "forward", forward), PeakMemory() as memory:
        # a small step first, in which the optimizer takes its memory
        for size in (1, batch):
            started = time.perf_counter()
            texts = ["what to sort", "sort " * length, *["read " * length] * negatives]
            loss([model.preprocess([text] * size) for text in texts]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return time.perf_counter() - started, memory.peak


def adapters_table(data: Path, layers: int = 24) -> str:
    """Measure the memory of training all weights and adapters, and write it; ``data`` is not needed."""
    ways: dict[str, dict[str, Any]] = {
        "all weights": {},
        "LoRA": {"adapter": LORA},
        "LoRA, gradient_checkpointing": {"adapter": LORA, "gradient_checkpointing": True},
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        BertModel(BertConfig(num_hidden_layers=layers, **LARGE)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(MINILM).save_pretrained(folder)
        for name, options in ways.items():
            peak, trained = in_own_process(peak_of_training, folder, options)
            rows.append((name, f"{trained / 1e6:,.1f}", f"{peak:,.0f}"))
    return table(["trained", "million weights", "peak, MB"], rows)


def peak_of_training(model: str, options: dict[str, Any]) -> tuple[float, int]:
    """Train two steps in batches of 4, and return the peak in MB, with the given encoder, and the trained weights."""
    encoder = SelfDistillBiEncoder.from_pretrained(model, document_length=64, device="cpu", dtype="float32")
    triples = [("what to sort", "sort " * 64, "read " * 64)] * 8
    arguments: dict[str, Any] = {"per_device_train_batch_size": 4, "save_strategy": "no", "verbose": False}
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        SelfDistillTrainer(encoder, f"{folder}/run", **arguments, **options).fit_triples(triples)
    adapted = encoder.copy().model
    if "adapter" in options:
        adapted.add_adapter(options["adapter"])
    return memory.peak, sum(weights.numel() for weights in adapted.parameters() if weights.requires_grad)


def _autocast(device: torch.device) -> torch.autocast:
    """Compute in the precision that this package would choose."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(mixed_precision(device)))


def _batches(triples: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for begin in range(0, len(triples), BATCH):
        yield triples.iloc[begin : begin + BATCH]


TABLES = {
    "peers": peers_table,
    "measures": measures_table,
    "padding": padding_table,
    "memory": memory_table,
    "adapters": adapters_table,
}


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=TABLES, default="peers")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of collections")
    options = parser.parse_args()
    print(TABLES[options.part](options.data))


if __name__ == "__main__":
    main()
