"""How fast an index is built and searched, how much memory that takes, and what approximate search loses.

    python -m benchmarks.retrieval            # docstrings: memory, indexing, shared work in experiments, all backends
    python -m benchmarks.retrieval --exact    # random vectors: exact backends, and the growth of building an index
    python -m benchmarks.retrieval --small    # random vectors: int8 and binary vectors next to exact search

With ``--full``, ``--exact`` and ``--small`` take ten times as many vectors.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import nDCG
from pyterrier_dr import VectorPrf

from benchmarks.harness import DOCSTRINGS, MINILM, in_turns, seconds
from benchmarks.machine import PeakMemory, resident
from benchmarks.study.collection import load_split
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex

TURNS = 3
DEPTH = 100

BACKENDS: list[tuple[str, str, list[int]]] = [
    ("retriever", "", [0]),
    ("torch_retriever", "", [0]),
    ("faiss_flat_retriever", "", [0]),
    ("faiss_hnsw_retriever", "ef_search", [16, 100, 400]),
    ("faiss_ivf_retriever", "n_probe", [1, 8, 32]),
    ("voyager_retriever", "query_ef", [100, 400]),
    ("int8_retriever", "rescore", [1, 2]),
    ("binary_retriever", "rescore", [1, 4, 10]),
]
"""The methods of an index that make a retriever, an option of each, and its values."""

EXACT = ("retriever", "np_retriever", "torch_retriever", "faiss_flat_retriever")
SMALL = ("retriever", "np_retriever", "int8_retriever", "binary_retriever")


def main() -> None:
    """Read the command line, measure, and print a line for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default=DOCSTRINGS)
    parser.add_argument("--indexing", type=int, default=1500, help="how many documents to index again and again")
    parser.add_argument("--vectors", type=int, default=2_000_000, help="of the index that memory is measured with")
    parser.add_argument("--exact", action="store_true", help="only exact backends, and the growth of building")
    parser.add_argument("--small", action="store_true", help="only int8 and binary vectors")
    parser.add_argument("--full", action="store_true", help="with --exact and --small: ten times as many vectors")
    options = parser.parse_args()
    rows: Iterator[dict[str, Any]]
    if options.small:
        rows = iter(measure_searching([1_000_000 if options.full else 100_000], SMALL, (10, 100)))
    elif options.exact:
        sizes = [10_000, 100_000, 1_000_000, 10_000_000]
        searched, built = (sizes[:3], sizes[2:]) if options.full else (sizes[:2], sizes[1:3])
        rows = itertools.chain(measure_searching(searched), measure_growth(built))
    else:
        rows = measure_collection(options.dataset, options.indexing, options.vectors)
    for row in rows:
        print(json.dumps(row), flush=True)


def measure_searching(
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000),
    backends: Sequence[str] = EXACT,
    depths: Sequence[int] = (10, 1000),
    dimension: int = 384,
) -> list[dict[str, Any]]:
    """Measure backends on random unit vectors, without encoding.

    Returns:
        A row for each backend, size, depth and number of queries: ``cold s``, the first search, which also maps or
        loads the vectors; ``ms/query`` and ``queries/s``, medians of three; ``processor ms/query``, a mean.
    """
    rows = []
    for size in sizes:
        with built_index(size, dimension) as index:
            for backend, depth, number in itertools.product(backends, depths, (1, 100)):
                vectors = [row["doc_vec"] for row in random_vectors(number, dimension, seed=1)]
                queries = pd.DataFrame({"qid": map(str, range(number)), "query_vec": vectors})
                index.close()  # so that only this measurement has vectors in memory
                started = time.monotonic()
                retriever = make_retriever(index, backend, depth)
                retriever(queries)
                cold = time.monotonic() - started
                started = time.process_time()
                warm = statistics.median([seconds(partial(retriever, queries)) for _ in range(TURNS)])
                figures = {
                    "cold s": round(cold, 3),
                    "ms/query": 1000 * warm / number,
                    "queries/s": number / warm,
                    "processor ms/query": 1000 * (time.process_time() - started) / TURNS / number,
                }
                rows.append({"backend": backend, "size": size, "k": depth, "queries": number, **figures})
    return rows


def measure_growth(sizes: Sequence[int] = (100_000, 1_000_000), dimension: int = 32) -> list[dict[str, Any]]:
    """Measure time and memory of building an index for each number of random vectors, smallest first."""
    rows = []
    for size in sizes:
        before = resident("RssAnon")
        started = time.perf_counter()
        with PeakMemory() as memory, built_index(size, dimension):
            building = time.perf_counter() - started
        figures = {"seconds": round(building, 3), "documents/s": round(size / building)}
        rows.append({"documents": size, **figures, "before, MB": round(before), "peak, MB": round(memory.peak)})
    return rows


def measure_collection(dataset_name: str, documents: int, vectors: int) -> Iterator[dict[str, Any]]:
    """Measure memory with random vectors, then indexing, experiments and backends on a collection."""
    before = resident("RssAnon")
    with PeakMemory() as building, built_index(vectors, 384) as index:
        peak = building.peak
        queries = pd.DataFrame({"qid": map(str, range(10)), "query_vec": list(index.np_vecs()[:10])})
        with PeakMemory() as searching:
            index.retriever(num_results=DEPTH)(queries)
        disk = (index.index_path / "vecs.f4").stat().st_size / 1e6
    peaks = {"before": before, "building": peak, "searching": searching.peak, "disk": disk}
    yield {"measured": "memory, MB", "vectors": vectors, **{name: round(size) for name, size in peaks.items()}}

    dataset = pt.get_dataset(dataset_name)
    topics, qrels = load_split(dataset_name, "test")
    topics = topics.head(500)
    encoder = SelfDistillBiEncoder.from_pretrained(MINILM, document_length=64)
    with tempfile.TemporaryDirectory() as folder:
        yield measure_indexing(encoder, list(itertools.islice(dataset.get_corpus_iter(verbose=False), documents)))
        encoder.build_retriever(dataset, f"{folder}/index.flex")
        index = SelfDistillIndex(f"{folder}/index.flex", verbose=False)
        yield measure_experiment(encoder, index, topics, qrels)
        queries = encoder.query_encoder()(topics)
        exact = index.retriever(num_results=DEPTH, drop_query_vec=True)(queries)
        for backend, option, values in BACKENDS:
            for value in values:
                yield measure_backend(index, queries, exact, backend, {option: value} if option else {})


def measure_indexing(encoder: SelfDistillBiEncoder, documents: list[dict[str, str]]) -> dict[str, Any]:
    """Measure indexing if 100 documents are read at once, as PyTerrier does by itself, and as ``>>`` reads."""
    with tempfile.TemporaryDirectory() as folder:

        def index(**options: int) -> None:
            target: Any = SelfDistillIndex(f"{folder}/again.flex", verbose=False).indexer(mode="overwrite")
            (encoder >> target).index(documents, **options)

        rates = in_turns({"100 at once": partial(index, batch_size=100), "by default": index}, len(documents), TURNS)
    ratio = rates["by default"].over(rates["100 at once"])
    return {"measured": "indexing, documents/s", **{name: str(rate) for name, rate in rates.items()}, "ratio": ratio}


def measure_experiment(
    encoder: SelfDistillBiEncoder, index: SelfDistillIndex, topics: pd.DataFrame, qrels: pd.DataFrame
) -> dict[str, Any]:
    """Measure an experiment of three systems that share an encoder, one by one and as a tree."""
    first = encoder >> index.retriever(num_results=3)
    systems = [
        encoder >> index.retriever(num_results=DEPTH),
        encoder >> index.retriever(num_results=10),
        first >> index.vec_loader() >> VectorPrf() >> index.retriever(num_results=DEPTH),
    ]

    def run(plan: Literal["linear", "tree"]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # the tree is drawn
            pt.Experiment(systems, topics, qrels, [nDCG @ 10], plan=plan, validate="ignore")

    plans = {plan: partial(run, plan) for plan in ("linear", "tree")}
    rates = in_turns(plans, len(topics), TURNS)
    ratio = rates["tree"].over(rates["linear"])
    return {"measured": "experiment, queries/s", **{name: str(rate) for name, rate in rates.items()}, "ratio": ratio}


def measure_backend(
    index: SelfDistillIndex, queries: pd.DataFrame, exact: pd.DataFrame, backend: str, options: dict[str, int]
) -> dict[str, Any]:
    """Measure time and recall of a backend against exact search."""
    started = time.monotonic()
    retriever = make_retriever(index, backend, DEPTH, **options)
    made = time.monotonic() - started
    found = retriever(queries)
    times = [seconds(partial(retriever, queries)) for _ in range(TURNS)]
    return {
        "measured": backend,
        **options,
        "making it, s": round(made, 2),
        "ms/query": round(1000 * statistics.median(times) / len(queries), 2),
        **{f"recall@{depth}": round(recall(found, exact, depth), 4) for depth in (10, 100)},
    }


def make_retriever(index: SelfDistillIndex, backend: str, depth: int, **options: int) -> pt.Transformer:
    """Make a retriever of some depth; that of FAISS always finds 1,000 documents."""
    if backend == "faiss_flat_retriever":
        return index.faiss_flat_retriever(drop_query_vec=True) % depth
    return getattr(index, backend)(num_results=depth, drop_query_vec=True, **options)


def recall(found: pd.DataFrame, exact: pd.DataFrame, depth: int) -> float:
    """Return the share of the first results that score as well as the last exact one: documents may be equal."""
    least = exact[exact["rank"] == depth - 1].set_index("qid")["score"] - 1e-5
    first = found[found["rank"] < depth]
    return float((first["score"].to_numpy() >= least.loc[first["qid"]].to_numpy()).sum() / (depth * len(least)))


@contextlib.contextmanager
def built_index(size: int, dimension: int) -> Iterator[SelfDistillIndex]:
    """Build an index of random vectors in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        index = SelfDistillIndex(Path(folder) / "random.flex", verbose=False)
        index.index(random_vectors(size, dimension))
        yield index


def random_vectors(number: int, dimension: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Draw unit vectors of documents."""
    generator = np.random.default_rng(seed)
    for start in range(0, number, 10_000):
        vectors = generator.standard_normal((10_000, dimension), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for row, vector in enumerate(vectors[: number - start], start):
            yield {"docno": f"d{row}", "doc_vec": vector}


if __name__ == "__main__":
    main()
