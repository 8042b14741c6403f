"""What encoding on Ray costs and gains, and what joining shards costs.

    python -m benchmarks.sharding

encodes 400 documents with MiniLM: ``encoder >> index`` with one thread and with two, and Ray with two workers of one
thread each. ``start, s`` is the time of Ray if all shards exist: to start workers, to load the encoder, and
to read the corpus. Then it joins random vectors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch

from benchmarks.harness import DATA, LENGTHS, MINILM, draw_documents, seconds
from benchmarks.machine import PeakMemory, resident
from benchmarks.retrieval import random_vectors
from pyterrier_selfdistill import RayIndexer, SelfDistillBiEncoder, SelfDistillIndex, ShardedIndex

CORES = 2


def measure(data: Path) -> list[dict[str, Any]]:
    """Measure encoding without Ray and with it, and joining: a row each."""
    encoder = SelfDistillBiEncoder.from_pretrained(MINILM, device="cpu", **LENGTHS)
    return [*measure_encoding(encoder, pd.DataFrame(draw_documents(data)), 64), measure_joining(1_000_000, 64, 4)]


def measure_encoding(encoder: SelfDistillBiEncoder, corpus: pd.DataFrame, shard_size: int) -> list[dict[str, Any]]:
    """Measure documents a second of each way to encode a corpus into an index, and the ratio to one thread."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        threads_before = torch.get_num_threads()
        for threads in range(1, CORES + 1):
            torch.set_num_threads(threads)
            pipeline: Any = encoder >> SelfDistillIndex(f"{folder}/threads-{threads}.flex", verbose=False)
            taken = seconds(partial(pipeline.index, corpus.to_dict(orient="records")))
            rows.append({"measured": f"encoder >> index, threads: {threads}", "seconds": taken})
        torch.set_num_threads(threads_before)
        ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
        target = SelfDistillIndex(f"{folder}/by-ray.flex", verbose=False)
        indexer = RayIndexer(encoder, target, workers=CORES, shard_size=shard_size)
        taken, start = (seconds(partial(indexer.encode, corpus)) for _ in range(2))
        rows.append({"measured": f"RayIndexer, workers: {CORES}", "seconds": taken, "start, s": start})
        ray.shutdown()
    for row in rows:
        working = row["seconds"] - row.get("start, s", 0)
        row["documents/s"] = len(corpus) / row["seconds"]
        row |= {"documents/s without start": len(corpus) / working, "against one thread": rows[0]["seconds"] / working}
    return rows


def measure_joining(vectors: int, dimension: int, shards: int) -> dict[str, Any]:
    """Measure seconds and memory of joining shards of random vectors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"{number}.flex" for number in range(shards)]
        rows = random_vectors(vectors, dimension)
        for path, positions in zip(paths, np.array_split(np.arange(vectors), shards), strict=True):
            SelfDistillIndex(path, verbose=False).index(next(rows) for _ in positions)
        before = resident("RssAnon")
        with PeakMemory() as memory:
            taken = seconds(partial(ShardedIndex(paths).join, folder / "joined.flex"))
        size = (folder / "joined.flex" / "vecs.f4").stat().st_size / 1e6
    row = {"measured": "joining", "seconds": taken, "vectors": vectors, "dimension": dimension, "shards": shards}
    return {**row, "disk, MB": size, "memory before, MB": before, "peak, MB": memory.peak}


def main() -> None:
    """Read the command line, measure, and print a line for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharding", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of collections")
    for row in measure(parser.parse_args().data):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
