"""Speed and memory of making triples of docpairs.

    python -m benchmarks.triples --pairs 1000000 10000000

makes collections shaped like MS MARCO, registers them with the classes of ir_datasets, and makes triples of each in a
process of its own, with texts stored and with texts looked up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ir_datasets
import numpy as np
import pyterrier as pt
from ir_datasets.formats import TsvDocPairs, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload

from benchmarks.machine import PeakMemory, resident
from pyterrier_selfdistill.data.triples import read_triples

CHUNK = 100_000
"""How many pairs are drawn at once."""


def main() -> None:
    """Print a row for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triples", description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--output", default=tempfile.gettempdir(), help="where to write, and to remove it after")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(make_triples(**json.loads(options.child))))
        return
    measure_growth(Path(options.output), options.pairs, options.documents, options.queries)


def measure_growth(
    folder: Path, pairs: Sequence[int] = (100_000, 1_000_000), documents: int = 500_000, queries: int = 50_000
) -> list[dict[str, Any]]:
    """Measure how time and memory of making triples grow with the number of docpairs.

    Args:
        folder: Where to write collections, and to remove them after.
        pairs: The numbers of docpairs.
        documents: How many documents they are drawn from.
        queries: How many queries they are drawn from.

    Returns:
        A row for each number of pairs, with stored texts. For the largest number also a row for texts that are looked
        up, and one for a hundredth of the pairs.
    """
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as collection:
        write_texts(Path(collection), documents, queries)
        for number in pairs:
            write_pairs(Path(collection), number, documents, queries)
            # triples are cached by the name of the collection, so each number of pairs needs its own cache
            homes = {"PYTERRIER_HOME": f"{collection}/of-{number}", "IR_DATASETS_HOME": f"{collection}/ir_datasets"}
            ways = [(True, None)] if number < max(pairs) else [(True, None), (False, None), (True, number // 100)]
            for store_texts, limit in ways:
                arguments = {"folder": collection, "documents": documents, "store_texts": store_texts, "limit": limit}
                command = [sys.executable, "-m", "benchmarks.triples", "--child", json.dumps(arguments)]
                environment = os.environ | homes
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def write_texts(folder: Path, documents: int, queries: int) -> None:
    """Write documents of 56 words and queries of 6."""
    generator = np.random.default_rng(0)
    words = np.char.add("w", np.arange(20_000).astype(str))
    for name, number, length in [("docs", documents, 56), ("queries", queries, 6)]:
        with (folder / f"{name}.tsv").open("w") as file:
            for row in range(number):
                text = " ".join(words[generator.integers(len(words), size=length)])
                file.write(f"{row}\t{text}\n")


def write_pairs(folder: Path, pairs: int, documents: int, queries: int) -> None:
    """Write pairs with one or two positives a query and random negatives."""
    generator = np.random.default_rng(0)
    positives = generator.integers(documents, size=(queries, 2))
    with (folder / "docpairs.tsv").open("w") as file:
        for begin in range(0, pairs, CHUNK):
            size = min(CHUNK, pairs - begin)
            query = generator.integers(queries, size=size)
            positive = positives[query, generator.integers(2, size=size)]
            negative = generator.integers(documents, size=size)
            np.savetxt(file, np.stack([query, positive, negative], axis=1), fmt="%d", delimiter="\t")


def make_triples(folder: str, documents: int, store_texts: bool, limit: int | None) -> dict[str, Any]:
    """Make triples twice, of the docpairs and from the cache."""
    file = {name: LocalDownload(Path(folder) / f"{name}.tsv") for name in ("docs", "queries", "docpairs")}
    docs = TsvDocs(file["docs"], namespace="benchmark", count_hint=documents)
    parts = ir_datasets.Dataset(docs, TsvQueries(file["queries"]), TsvDocPairs(file["docpairs"]))
    ir_datasets.registry.register("benchmark", parts)
    dataset: Any = pt.get_dataset("irds:benchmark")
    dataset.irds_ref().docs_store().get("0")  # built before, as ir_datasets does it once for all uses
    started = time.monotonic()
    with PeakMemory() as memory:
        triples = read_triples(dataset, store_texts=store_texts, limit=limit)
    seconds = time.monotonic() - started
    peak = resident("VmHWM")
    started = time.monotonic()
    again = read_triples(dataset, store_texts=store_texts, limit=limit)
    found = time.monotonic() - started
    disk = sum(path.stat().st_size for path in Path(again.dataset.cache_files[0]["filename"]).parent.iterdir())
    return {
        "texts": "stored" if store_texts else "looked up",
        "limit": "none" if limit is None else limit,
        "pairs": triples.summary["read"],
        "triples": triples.summary["triples"],
        "seconds": round(seconds, 1),
        "pairs/s": round(triples.summary["read"] / seconds),
        "peak, MB": round(memory.peak),
        "with file pages, MB": round(peak),
        "from the cache, s": round(found, 2),
        "disk, MB": round(disk / 1e6),
    }


if __name__ == "__main__":
    main()
