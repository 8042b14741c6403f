"""What the precision of encoding gives, and what it costs in quality.

    python -m benchmarks.precision

encodes parts of collections with the untrained MiniLM in each precision, and prints a Markdown table: documents a
second into vectors, milliseconds for a single query, the lowest cosine with the vectors of float32, and nDCG@10 on each
collection; with queries in the precision of the documents, and with queries in float32.

Speeds are the best of turns in which all precisions follow each other.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import nDCG

from benchmarks.materials import LENGTHS, MINILM
from benchmarks.study.collection import Collection, judged_positives, load_collection
from benchmarks.study.report import to_markdown
from pyterrier_selfdistill import SelfDistillBiEncoder

PRECISIONS = ("float32", "bfloat16", "int8")
COLLECTIONS = ("scifact", "nfcorpus")
DOCUMENTS = 300
"""How many documents of each collection are searched: all relevant ones, and others."""
QUERIES = 100
"""How many test queries of each collection there are."""
TURNS = 2
SINGLE_QUERIES = 20


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of collections")
    options = parser.parse_args()
    print(precision_table(options.data))


def precision_table(data: Path) -> str:
    """Measure each precision on parts of two collections, and write the table.

    Args:
        data: The folder of collections.

    Returns:
        A table in Markdown.
    """
    if not data.is_dir():
        return f"Not measured: there is no folder of collections at {data}."
    collections = {}
    for name in COLLECTIONS:
        collections[name] = part_of(load_collection(name, data), DOCUMENTS, QUERIES)
    return to_markdown(pd.DataFrame(measure(MINILM, collections)))


def part_of(collection: Collection, documents: int, queries: int) -> Collection:
    """Take a number of documents, first those that are relevant for test queries, and the queries that have some."""
    topics, qrels = collection.splits["test"]
    positives = judged_positives(qrels, collection.documents)
    asked = positives[positives["qid"].isin(topics["qid"].head(queries))]
    is_relevant = collection.documents["docno"].isin(asked["docno"])
    # an equal part of the relevant ones and the others, where all would be too many
    relevant = collection.documents[is_relevant].head(documents // 2)
    others = collection.documents[~is_relevant].head(documents - len(relevant))
    chosen = pd.concat([relevant, others])
    qrels = qrels[qrels["docno"].isin(chosen["docno"])]
    has_relevant = topics["qid"].isin(judged_positives(qrels, chosen)["qid"])
    return Collection(chosen, {"test": (topics[has_relevant].head(queries), qrels)})


def measure(model: str, collections: dict[str, Collection]) -> list[dict[str, Any]]:
    """Measure each precision.

    Args:
        model: The folder of a model.
        collections: Collections by their names, with a split ``test``.

    Returns:
        A row for each precision.
    """
    encoders = {}
    for name in PRECISIONS:
        encoders[name] = SelfDistillBiEncoder.from_pretrained(model, device="cpu", dtype=name, **LENGTHS)
        # the copy that encodes is made once
        encoders[name].encode_docs(["one", "two words"])
    documents = pd.concat([collection.documents for collection in collections.values()])
    speeds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    vectors = {}
    for _ in range(TURNS):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            vectors[name] = encoder.encode_docs(documents["text"].tolist())
            speeds[name].append(len(documents) / (time.perf_counter() - start))
    rows = []
    for name, encoder in encoders.items():
        cosines = (vectors[name] * vectors["float32"]).sum(axis=1)
        row = {
            "precision": name,
            "documents/s": round(max(speeds[name]), 1),
            "against float32": round(max(speeds[name]) / max(speeds["float32"]), 2),
            "ms/query": round(milliseconds_a_query(encoder, collections), 1),
            "lowest cosine": round(float(cosines.min()), 4),
        }
        first = 0
        for title, collection in collections.items():
            found = vectors[name][first : first + len(collection.documents)]
            first += len(collection.documents)
            row[f"{title} nDCG@10"] = round(effectiveness(collection, found, encoder), 3)
            row[f"{title}, float32 queries"] = round(effectiveness(collection, found, encoders["float32"]), 3)
        rows.append(row)
    return rows


def milliseconds_a_query(encoder: SelfDistillBiEncoder, collections: dict[str, Collection]) -> float:
    """Encode queries one by one, and take the median."""
    topics = next(iter(collections.values())).splits["test"][0]
    times = []
    for query in topics["query"].head(SINGLE_QUERIES):
        start = time.perf_counter()
        encoder.encode_queries([query])
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def effectiveness(collection: Collection, vectors: np.ndarray, encoder: SelfDistillBiEncoder) -> float:
    """Search the vectors of the documents, and measure nDCG@10."""
    topics, qrels = collection.splits["test"]
    documents = collection.documents["docno"].to_numpy()
    scores = encoder.encode_queries(topics["query"]) @ vectors.T
    found = []
    for qid, row in zip(topics["qid"], scores, strict=True):
        best = np.argsort(-row)[:10]
        found.append(pd.DataFrame({"qid": qid, "docno": documents[best], "score": row[best], "rank": range(len(best))}))
    return pt.Evaluate(pd.concat(found), qrels, [nDCG @ 10])["nDCG@10"]


if __name__ == "__main__":
    main()
