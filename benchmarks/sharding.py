"""What encoding on Ray costs and gains, and what joining shards costs.

    python -m benchmarks.sharding

encodes 400 documents with MiniLM, and joins random vectors, and prints a line for each measurement:

- encoding: documents a second of ``encoder >> index`` with one thread and with two, and of Ray with one worker and with
  two, of one thread each. ``start`` is what Ray takes where all shards are there already: to start workers, to load the
  encoder, and to read the corpus. It does not grow with the corpus, but for reading;
- joining: the time and the most memory of this process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.materials import LENGTHS, MINILM, draw_documents
from benchmarks.study.memory import PeakMemory, resident
from pyterrier_selfdistill import RayIndexer, SelfDistillBiEncoder, SelfDistillIndex, ShardedIndex
from pyterrier_selfdistill.index.files import write_index
from pyterrier_selfdistill.index.shards import load_ray

CORES = 2
"""How many cores are measured with."""

SHARD_SIZE = 64
"""How many documents a shard has that is encoded."""

VECTORS, DIMENSION, SHARDS = 1_000_000, 64, 4
"""How many random vectors are joined, of which length, and from how many shards."""


def main() -> None:
    """Read the command line, measure, and print a line for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharding", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of collections")
    options = parser.parse_args()
    for row in measure(options.data):
        print(json.dumps(row), flush=True)


def measure(data: Path) -> list[dict[str, Any]]:
    """Measure joining, and encoding without Ray and with it.

    Args:
        data: The folder of collections.

    Returns:
        A row for each measurement.
    """
    encoder = SelfDistillBiEncoder.from_pretrained(MINILM, device="cpu", **LENGTHS)
    corpus = pd.DataFrame(draw_documents(data))
    return [*measure_encoding(encoder, corpus, SHARD_SIZE), *measure_joining(VECTORS, DIMENSION, SHARDS)]


def measure_encoding(encoder: SelfDistillBiEncoder, corpus: pd.DataFrame, shard_size: int) -> list[dict[str, Any]]:
    """Measure how fast a corpus is encoded into an index, without Ray and with it.

    Args:
        encoder: The encoder, on the CPU.
        corpus: The documents, ``docno`` and ``text``.
        shard_size: How many of them a shard has.

    Returns:
        A row for each way, with documents a second, and that over the one of this process with one thread.
    """
    ray = load_ray()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        threads_before = torch.get_num_threads()
        for threads in range(1, CORES + 1):
            torch.set_num_threads(threads)
            pipeline: Any = encoder >> SelfDistillIndex(folder / f"threads-{threads}.flex", verbose=False)
            taken = seconds(partial(pipeline.index, corpus.to_dict(orient="records")))
            rows.append({"measured": f"encoder >> index, threads: {threads}", "seconds": taken})
        torch.set_num_threads(threads_before)
        ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
        for workers in range(1, CORES + 1):
            target = SelfDistillIndex(folder / f"workers-{workers}.flex", verbose=False)
            indexer = RayIndexer(encoder, target, workers=workers, shard_size=shard_size)
            taken = seconds(partial(indexer.encode, corpus))
            start = seconds(partial(indexer.encode, corpus))
            rows.append({"measured": f"RayIndexer, workers: {workers}", "seconds": taken, "start": start})
        ray.shutdown()
    for row in rows:
        working = row["seconds"] - row.get("start", 0)
        row |= {"documents": len(corpus), "documents/s": len(corpus) / row["seconds"]}
        row |= {"documents/s without start": len(corpus) / working, "ratio": rows[0]["seconds"] / working}
    return [rounded(row) for row in rows]


def measure_joining(vectors: int, dimension: int, shards: int) -> list[dict[str, Any]]:
    """Measure the joining of shards of random vectors.

    Args:
        vectors: How many there are.
        dimension: Their length.
        shards: How many shards they are in.

    Returns:
        One row, with seconds and MB.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = []
        for number, positions in enumerate(np.array_split(np.arange(vectors), shards)):
            paths.append(folder / f"{number}.flex")
            paths[-1].mkdir()
            write_index(paths[-1], random_documents(positions, dimension))
        index = ShardedIndex(paths)
        before = resident("RssAnon")
        with PeakMemory() as joining:
            taken = seconds(partial(index.join, folder / "joined.flex"))
        size = (folder / "joined.flex" / "vecs.f4").stat().st_size
    row = {"measured": "joining", "vectors": vectors, "dimension": dimension, "shards": shards, "seconds": taken}
    return [rounded(row | {"disk, MB": size / 1e6, "before, MB": before, "peak, MB": joining.peak})]


def random_documents(positions: np.ndarray, dimension: int) -> Iterator[tuple[str, np.ndarray]]:
    """Draw a vector for each position."""
    generator = np.random.default_rng(int(positions[0]))
    for position in positions:
        yield f"d{position}", generator.random(dimension, dtype=np.float32)


def seconds(work: Callable[[], Any]) -> float:
    """Return how long something takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Keep three digits behind the point."""
    is_float = {name: isinstance(value, float) for name, value in row.items()}
    return row | {name: round(row[name], 3) for name in row if is_float[name]}


if __name__ == "__main__":
    main()
