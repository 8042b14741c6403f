"""What ways to train MiniLM give: nDCG@10 on test queries, after a few hundred triples with random negatives, one seed.

python -m benchmarks.quality several          # training with several collections
python -m benchmarks.quality passages         # training with the best passages of documents
python -m benchmarks.quality adapters         # training an adapter, compared with all weights
python -m benchmarks.quality small_vectors    # shorter and smaller vectors, with and without training for them
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
from ir_measures import nDCG

from benchmarks.harness import DATA, DOCSTRINGS, MINILM, random_triples
from benchmarks.study.collection import Collection, load_collection, pool_documents
from benchmarks.training_speed import LORA
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer

PASSAGES = pt.text.sliding("text", length=24, stride=24, prepend_attr=None)
PROMPTS = {"docstrings": {"query": "function: "}, "scifact": {"query": "claim: "}}
DIMENSIONS = (384, 192, 96, 48)

KINDS: dict[str, tuple[str, dict[str, int], str]] = {
    "float32": ("retriever", {}, "vecs.f4"),
    "int8, rescore=1": ("int8_retriever", {"rescore": 1}, "int8.faiss"),
    "binary, rescore=1": ("binary_retriever", {"rescore": 1}, "binary.faiss"),
    "binary, rescore=4": ("binary_retriever", {"rescore": 4}, "binary.faiss"),
    "binary, rescore=10": ("binary_retriever", {"rescore": 10}, "binary.faiss"),
}
"""Ways to search vectors: the method of the index, its options, and the file that is searched."""


def several(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare training on each of two collections with training on both."""
    sources = {"docstrings": DOCSTRINGS, "scifact": "scifact"}
    collections = {name: load_collection(source, options.data) for name, source in sources.items()}
    triples = {name: random_triples(collection, 256) for name, collection in collections.items()}
    base = minilm(32)
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "nothing": (None, {}),
        **{name: (source, {}) for name, source in triples.items()},
        "both": (triples, {}),
        "both, with prompts": (triples, {"prompts": PROMPTS}),
    }
    rows = []
    for name, (source, more) in ways.items():
        encoder = base if source is None else train_briefly(base, source, **more)
        row = {"trained on": name}
        for title, collection in collections.items():
            prompts = PROMPTS[title] if more else {}
            row[title] = f"{measure(encoder.with_prompts(**prompts), *part_of(collection)):.3f}"
        rows.append(row)
    return rows


def passages(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare training on cut documents with training on their best passages, searched in both ways."""
    collection = load_collection("scifact", options.data)
    base, triples = minilm(32), random_triples(collection, 256)
    encoders = {
        "nothing": base,
        "documents, cut": train_briefly(base, triples),
        "best passages": train_briefly(base, triples, passages=PASSAGES),
    }
    documents, topics, qrels = part_of(collection)
    rows = []
    for name, encoder in encoders.items():
        cut = measure(encoder, documents, topics, qrels)
        divided = measure(encoder, PASSAGES(documents), topics, qrels, pt.text.max_passage())
        rows.append({"trained on": name, "documents, cut": f"{cut:.3f}", "passages": f"{divided:.3f}"})
    return rows


def adapters(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare training an adapter with training all weights, on whole collections."""
    collection = load_collection(options.collection or DOCSTRINGS, options.data)
    base = minilm(64, query_length=20, dtype="float32")
    topics, qrels = collection.splits["test"]
    ways: dict[str, dict[str, Any]] = {"all weights, 2e-05": {"learning_rate": 2e-5}}
    ways |= {f"LoRA, {rate:g}": {"learning_rate": rate, "adapter": LORA} for rate in options.rates}
    rows = [
        {"trained, learning rate": "nothing", "nDCG@10": f"{measure(base, collection.documents, topics, qrels):.4f}"}
    ]
    for name, more in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = SelfDistillTrainer(base, f"{folder}/run", bf16=False, verbose=False, **more)
            encoder = trainer.fit_triples(random_triples(collection, 512)).encoder
            kept = Path(folder, "run", "adapter" if "adapter" in more else "model")
            size = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file()) / 2**20
        quality = measure(encoder, collection.documents, topics, qrels)
        row = {"trained, learning rate": name, "nDCG@10": f"{quality:.4f}"}
        rows.append({**row, "seconds": f"{encoder.training_summary['seconds']:.0f}", "folder, MB": f"{size:.1f}"})
    return rows


def small_vectors(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare dimensions and kinds of vectors of the untrained encoder, and of encoders trained whole and nested."""
    collection = load_collection(options.collection or "nfcorpus", options.data)
    base = minilm(options.document_length, dtype=options.dtype)
    ways: dict[str, dict[str, Any]] = {"whole": {}, "nested": {"matryoshka_dims": list(DIMENSIONS)}}
    rows = []
    for name in options.encoders:
        encoder = base
        with tempfile.TemporaryDirectory() as folder:
            if name in ways:
                trainer = SelfDistillTrainer(base, f"{folder}/run", verbose=False, **ways[name])
                encoder = trainer.fit_triples(random_triples(collection, options.triples)).encoder
            for row in measure_vectors(encoder, collection, Path(folder), DIMENSIONS):
                rows.append({"encoder": name, **row})
    return rows


def measure_vectors(
    encoder: SelfDistillBiEncoder, collection: Collection, folder: Path, dimensions: Sequence[int]
) -> list[dict[str, Any]]:
    """Measure an encoder at each number of dimensions, the first of which is its own, with each kind of vectors."""
    topics, qrels = collection.splits["test"]
    whole = SelfDistillIndex(folder / "whole.flex", verbose=False)
    (encoder >> whole.indexer()).index(collection.documents.to_dict(orient="records"))
    rows = []
    for dimension in dimensions:
        shorter, index = encoder, whole
        if dimension < dimensions[0]:
            shorter = encoder.truncate(dimension)
            index = encoder.truncate_index(whole, folder / f"{dimension}.flex", dimension)
        queries = shorter.query_encoder()(topics)
        for kind, (method, more, file) in KINDS.items():
            results = getattr(index, method)(num_results=100, **more)(queries)
            quality = pt.Evaluate(results, qrels, [nDCG @ 10])["nDCG@10"]
            megabytes = (index.index_path / file).stat().st_size / 1e6
            row = {"dimensions": dimension, "vectors": kind, "MB": f"{megabytes:.2f}", "nDCG@10": f"{quality:.4f}"}
            rows.append(row)
    return rows


def minilm(document_length: int, query_length: int = 32, **options: Any) -> SelfDistillBiEncoder:
    """Load MiniLM."""
    lengths: dict[str, Any] = {"query_length": query_length, "document_length": document_length}
    return SelfDistillBiEncoder.from_pretrained(MINILM, **lengths, **options)


def train_briefly(base: SelfDistillBiEncoder, triples: Any, **options: Any) -> SelfDistillBiEncoder:
    """Train with batches of 16 and a rate of 3e-5."""
    options |= {"per_device_train_batch_size": 16, "learning_rate": 3e-5, "verbose": False, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        return SelfDistillTrainer(base, f"{folder}/run", **options).fit_triples(triples).encoder


def part_of(collection: Collection) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Take 100 test queries, and 300 documents with all that are relevant for them."""
    topics, qrels = collection.splits["test"]
    topics = topics[topics["qid"].isin(qrels["qid"])].head(100)
    qrels = qrels[qrels["qid"].isin(topics["qid"])]
    return pool_documents(collection.documents, qrels, 300), topics, qrels


def measure(
    encoder: SelfDistillBiEncoder, documents: pd.DataFrame, topics: pd.DataFrame, qrels: pd.DataFrame, *steps: Any
) -> float:
    """Search documents, and measure nDCG@10 after further steps."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = encoder.build_retriever(documents, f"{folder}/index.flex")
        for step in steps:
            pipeline = pipeline >> step
        return pt.Evaluate(pipeline(topics), qrels, [nDCG @ 10])["nDCG@10"]


def main() -> None:
    """Read the command line, measure, and print the table."""
    parts = {"several": several, "passages": passages, "adapters": adapters, "small_vectors": small_vectors}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=parts)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of collections")
    parser.add_argument("--collection", help="for adapters and small_vectors")
    parser.add_argument("--rates", type=float, nargs="*", default=(2e-5, 5e-4), help="learning rates of the adapter")
    parser.add_argument("--encoders", nargs="+", default=("untrained", "whole", "nested"), help="of small_vectors")
    parser.add_argument("--triples", type=int, default=3200, help="of small_vectors")
    parser.add_argument("--document-length", type=int, default=128, help="of small_vectors")
    parser.add_argument("--dtype", default="auto", help="the precision of encoding of small_vectors")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print(pd.DataFrame(parts[options.part](options)).fillna("").to_string(index=False))


if __name__ == "__main__":
    main()
