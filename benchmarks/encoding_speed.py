"""How fast documents are encoded, and what lower precision costs.

    python -m benchmarks.encoding_speed              # into an index and as vectors, compared with the peers
    python -m benchmarks.encoding_speed precision    # float32, bfloat16, int8, OpenVINO: speed, cosines and nDCG@10

The peers are pyterrier-dr's encoder with a FlexIndex, and ``encode`` of sentence-transformers, with the same model,
documents and lengths.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from ir_measures import nDCG
from pyterrier_dr import FlexIndex, SBertBiEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import get_device_name

from benchmarks.harness import DATA, LENGTHS, MINILM, draw_documents, in_turns, rates_table, seconds
from benchmarks.pages import records_table
from benchmarks.study.collection import Collection, judged_positives, load_collection
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex
from pyterrier_selfdistill.encoder.precision import has_bfloat16

INTO_INDEX = "SBertBiEncoder >> FlexIndex"
ONLY_VECTORS = "SentenceTransformer.encode, same precision"
HAS_BFLOAT16 = has_bfloat16(torch.device(get_device_name()))
PRECISIONS = ("auto", "float32", "openvino", "int8") if HAS_BFLOAT16 else ("auto", "int8")
"""Without hardware for bfloat16, ``auto`` is float32, and its emulation is too slow to wait for."""


def rates_tables(data: Path, turns: int = 2) -> str:
    """Measure encoding into an index and to vectors, and write a table of each."""
    records = draw_documents(data)
    parts = []
    for name, works, peer in (
        ("encoding into an index", indexing_works(records), INTO_INDEX),
        ("encoding to vectors", vector_works([record["text"] for record in records]), ONLY_VECTORS),
    ):
        rates = in_turns(works, len(records), turns)
        parts.append(rates_table((name, "documents/s", "ratio"), rates, peer))
    return "\n\n".join(parts)


def indexing_works(records: list[dict[str, str]]) -> dict[str, Callable[[], Any]]:
    """List the encoders before an index, each with a function that indexes all documents."""
    sbert = SBertBiEncoder(MINILM)
    sbert.model.max_seq_length = LENGTHS["document_length"]
    works: dict[str, Callable[[], Any]] = {INTO_INDEX: partial(index_all, sbert, FlexIndex, records)}
    for name, encoder in our_encoders().items():
        works[f"SelfDistillBiEncoder >> SelfDistillIndex, {name}"] = partial(
            index_all, encoder, SelfDistillIndex, records
        )
    return works


def vector_works(texts: list[str]) -> dict[str, Callable[[], Any]]:
    """List the encoders of texts, each with a function that encodes all."""
    works: dict[str, Callable[[], Any]] = {}
    dtypes = {ONLY_VECTORS: torch.bfloat16 if HAS_BFLOAT16 else torch.float32}
    if HAS_BFLOAT16:
        dtypes["SentenceTransformer.encode, float32 (its default)"] = torch.float32
    for name, dtype in dtypes.items():
        model = SentenceTransformer(MINILM, model_kwargs={"dtype": dtype})
        model.max_seq_length = LENGTHS["document_length"]
        works[name] = partial(model.encode, texts, show_progress_bar=False)
    for name, encoder in our_encoders().items():
        works[f"SelfDistillBiEncoder.encode_docs, {name}"] = partial(encoder.encode_docs, texts)
    return works


def our_encoders(precisions: Iterable[str] = PRECISIONS, **options: Any) -> dict[str, SelfDistillBiEncoder]:
    """Load MiniLM in several precisions, and in the default one with OpenVINO."""
    load: Any = partial(SelfDistillBiEncoder.from_pretrained, MINILM, **{**LENGTHS, **options})
    encoders = {name: load(backend=name) if name == "openvino" else load(dtype=name) for name in precisions}
    for encoder in encoders.values():
        encoder.encode_docs(["one", "two words"])  # the copy that encodes is made once
    return encoders


def index_all(encoder: pt.Transformer, make_index: Callable[..., Any], records: Iterable[dict[str, str]]) -> None:
    """Index documents in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        (encoder >> make_index(f"{folder}/index.flex", verbose=False)).index(iter(records))


def precision_table(data: Path) -> str:
    """Measure each precision on parts of two collections, and write the table."""
    if not data.is_dir():
        return f"Not measured: there is no folder of collections at {data}."
    collections = {name: part_of(load_collection(name, data), 300, 100) for name in ("scifact", "nfcorpus")}
    encoders = our_encoders(["float32", *["bfloat16"] * HAS_BFLOAT16, "openvino", "int8"], device="cpu")
    return records_table(measure_precision(encoders, collections))


def part_of(collection: Collection, documents: int, queries: int) -> Collection:
    """Take some documents, up to half of them relevant for the first test queries, and the queries that have some."""
    topics, qrels = collection.splits["test"]
    positives = judged_positives(qrels, collection.documents)
    asked = positives[positives["qid"].isin(topics["qid"].head(queries))]
    is_relevant = collection.documents["docno"].isin(asked["docno"])
    relevant = collection.documents[is_relevant].head(documents // 2)
    chosen = pd.concat([relevant, collection.documents[~is_relevant].head(documents - len(relevant))])
    qrels = qrels[qrels["docno"].isin(chosen["docno"])]
    has_relevant = topics["qid"].isin(judged_positives(qrels, chosen)["qid"])
    return Collection(chosen, {"test": (topics[has_relevant].head(queries), qrels)})


def measure_precision(
    encoders: dict[str, SelfDistillBiEncoder], collections: dict[str, Collection]
) -> list[dict[str, Any]]:
    """Measure encoders, the first of which is that of float32.

    Returns:
        A row for each: documents and queries a second, the lowest cosine with the first, and nDCG@10, with queries of
        the same precision and of float32. Each encodes the documents once, and 20 queries one by one in turns.
    """
    texts = pd.concat([collection.documents for collection in collections.values()])["text"].tolist()
    vectors: dict[str, np.ndarray] = {}
    speeds: dict[str, float] = {}
    for name, encoder in encoders.items():
        started = time.perf_counter()
        vectors[name] = encoder.encode_docs(texts)
        speeds[name] = len(texts) / (time.perf_counter() - started)
    queries = next(iter(collections.values())).splits["test"][0]["query"].head(20)
    works = {name: partial(encode_one_by_one, encoder, queries) for name, encoder in encoders.items()}
    one_by_one = in_turns(works, len(queries))
    exact = next(iter(encoders))
    rows = []
    for name, encoder in encoders.items():
        row: dict[str, Any] = {
            "precision": name,
            "documents/s": round(speeds[name], 1),
            "against float32": round(speeds[name] / speeds[exact], 2),
            "ms/query": round(1000 / np.median(one_by_one[name].turns), 1),
            "lowest cosine": round(float((vectors[name] * vectors[exact]).sum(axis=1).min()), 4),
        }
        first = 0
        for title, collection in collections.items():
            found = vectors[name][first : first + len(collection.documents)]
            first += len(collection.documents)
            row[f"{title} nDCG@10"] = round(quality(collection, found, encoder), 3)
            row[f"{title}, float32 queries"] = round(quality(collection, found, encoders[exact]), 3)
        rows.append({field: str(value) for field, value in row.items()})
    return rows


def encode_one_by_one(encoder: SelfDistillBiEncoder, queries: Iterable[str]) -> float:
    """Encode each query in a call of its own, as a server does, and return the seconds of a second round."""

    def encode() -> None:
        for query in queries:
            encoder.encode_queries([query])

    encode()  # before it, the caches of the processor hold another model
    return seconds(encode)


def quality(collection: Collection, vectors: np.ndarray, encoder: SelfDistillBiEncoder) -> float:
    """Search the vectors of the documents, and measure nDCG@10."""
    topics, qrels = collection.splits["test"]
    scores = encoder.encode_queries(topics["query"]) @ vectors.T
    run = pd.DataFrame(scores, index=topics["qid"], columns=collection.documents["docno"]).stack()
    results = run.rename_axis(["qid", "docno"]).reset_index(name="score")
    return pt.Evaluate(results, qrels, [nDCG @ 10])["nDCG@10"]


def main() -> None:
    """Read the command line, measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding_speed", description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=["rates", "precision"], default="rates")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of collections")
    options = parser.parse_args()
    print({"rates": rates_tables, "precision": precision_table}[options.part](options.data))


if __name__ == "__main__":
    main()
