"""What shorter and smaller vectors lose, on a test collection.

    python -m benchmarks.small_vectors --collections FOLDER --collection nfcorpus

trains MiniLM twice in a few minutes, on whole vectors and on nested dimensions, and prints for both, and for the model
as it was, a line for each number of dimensions and each kind of vectors: nDCG@10 on test topics, the share of it that
whole float32 vectors have, and the megabytes that are searched. One seed, so that small differences say nothing.

What was trained and encoded lies in ``--folder``: a run that was cut off goes on there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyterrier as pt
from ir_measures import nDCG

from benchmarks.materials import MINILM, random_triples
from benchmarks.study.collection import Collection, load_collection
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer

DIMENSIONS = (384, 192, 96, 48)
"""Whole vectors of MiniLM, and prefixes of them."""

TRAININGS: dict[str, dict[str, Any]] = {"whole": {}, "nested": {"matryoshka_dims": list(DIMENSIONS)}}
"""The options of the trainings by name."""

KINDS: dict[str, tuple[str, dict[str, int]]] = {
    "float32": ("retriever", {}),
    "int8, rescore=1": ("int8_retriever", {"rescore": 1}),
    "binary, rescore=1": ("binary_retriever", {"rescore": 1}),
    "binary, rescore=4": ("binary_retriever", {"rescore": 4}),
    "binary, rescore=10": ("binary_retriever", {"rescore": 10}),
}
"""How vectors are searched, by what is said of it."""

FILES = {"retriever": "vecs.f4", "int8_retriever": "int8.faiss", "binary_retriever": "binary.faiss"}
"""What is searched."""


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_vectors", description=__doc__.partition("\n")[0])
    parser.add_argument("--collections", type=Path, default=Path("../shared/data"), help="a folder of collections")
    parser.add_argument("--collection", default="nfcorpus")
    parser.add_argument("--folder", type=Path, default=Path("runs/small_vectors"))
    parser.add_argument("--triples", type=int, default=3200)
    parser.add_argument("--document-length", type=int, default=128)
    parser.add_argument("--dtype", default="auto", help="the precision of encoding")
    parser.add_argument("--encoders", nargs="+", default=["untouched", *TRAININGS], choices=["untouched", *TRAININGS])
    options = parser.parse_args()

    collection = load_collection(options.collection, options.collections)
    lengths = {"query_length": 32, "document_length": options.document_length}
    base = SelfDistillBiEncoder.from_pretrained(MINILM, dtype=options.dtype, **lengths)
    for name in options.encoders:
        encoder = base
        if name in TRAININGS:
            encoder = train(base, collection, options.triples, options.folder / name, TRAININGS[name])
        for figures in measure(encoder, collection, options.folder / "indexes" / name):
            print(json.dumps({"encoder": name, **figures}), flush=True)


def train(
    base: SelfDistillBiEncoder, collection: Collection, number: int, folder: Path, options: dict[str, Any]
) -> SelfDistillBiEncoder:
    """Train an encoder for one epoch, or go on, or load it if that is done."""
    triples = random_triples(collection, *collection.splits["train"], number)
    trainer = SelfDistillTrainer(base, folder, resume=True, save_steps=0.2, verbose=False, **options)
    return trainer.fit_triples(triples).encoder


def measure(encoder: SelfDistillBiEncoder, collection: Collection, folder: Path) -> Iterator[dict[str, Any]]:
    """Measure an encoder at each number of dimensions, with each kind of vectors.

    Args:
        encoder: The encoder, of whole vectors.
        collection: The collection.
        folder: Where its indexes are, or will be.

    Yields:
        The number of dimensions, the kind, the megabytes that are searched, nDCG@10, and its share of the first one's.
    """
    topics, qrels = collection.splits["test"]
    whole = SelfDistillIndex(folder / str(DIMENSIONS[0]), verbose=False)
    if not whole.built():
        (encoder >> whole.indexer()).index(collection.documents.to_dict(orient="records"))
    best = None
    for dimension in DIMENSIONS:
        shorter, index = encoder, whole
        if dimension < DIMENSIONS[0]:
            shorter = encoder.truncate(dimension)
            index = encoder.truncate_index(whole, folder / str(dimension), dimension, overwrite=True)
        queries = shorter.query_encoder()(topics)
        for kind, (method, options) in KINDS.items():
            results = getattr(index, method)(num_results=100, **options)(queries)
            quality = pt.Evaluate(results, qrels, [nDCG @ 10])["nDCG@10"]
            best = best or quality
            megabytes = (index.index_path / FILES[method]).stat().st_size / 1e6
            figures = {"dimensions": dimension, "vectors": kind, "MB": round(megabytes, 2)}
            yield {**figures, "nDCG@10": round(quality, 4), "share": round(quality / best, 3)}


if __name__ == "__main__":
    main()
