"""What training with several collections gives, and training with passages.

    python -m benchmarks.training_data several
    python -m benchmarks.training_data passages

trains MiniLM on a few hundred triples with random negatives, of one seed, and prints a table of nDCG@10 for
``pt_docs/several_collections.rst`` or ``pt_docs/long_texts.rst``: on test queries, of which a part of the collection is
searched, that has all their relevant documents.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
from ir_measures import nDCG

from benchmarks.materials import DOCSTRINGS, MINILM, random_triples
from benchmarks.study.collection import Collection, load_collection, pool_documents
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer

COLLECTIONS = {"docstrings": DOCSTRINGS, "scifact": "scifact"}
PROMPTS = {"docstrings": {"query": "function: "}, "scifact": {"query": "claim: "}}
TRIPLES = 256
DOCUMENTS = 300
QUERIES = 100
LENGTHS: dict[str, Any] = {"query_length": 32, "document_length": 32}
PASSAGES = pt.text.sliding("text", length=24, stride=24, prepend_attr=None)
TRAINING: dict[str, Any] = {"per_device_train_batch_size": 16, "learning_rate": 3e-5, "verbose": False, "seed": 0}


def main() -> None:
    """Read the command line, measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_data", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["several", "passages"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of collections")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    tables = {"several": several_table, "passages": passages_table}
    print(tables[options.what](options.data).round(3).to_string())


def several_table(data: Path) -> pd.DataFrame:
    """Compare training on each collection with training on both.

    Args:
        data: The folder of collections.

    Returns:
        A row a training, a column a collection.
    """
    collections = {name: load_collection(source, data) for name, source in COLLECTIONS.items()}
    triples = {name: training_triples(collection) for name, collection in collections.items()}
    rows = {"untrained": measure_each(base_encoder(), collections, {})}
    for name, source in triples.items():
        rows[name] = measure_each(train(source), collections, {})
    rows["both"] = measure_each(train(triples), collections, {})
    prompted = train(triples, prompts=PROMPTS)
    rows["both, with prompts"] = measure_each(prompted, collections, PROMPTS)
    return pd.DataFrame(rows).T.rename_axis("trained on")


def measure_each(
    encoder: SelfDistillBiEncoder, collections: dict[str, Collection], prompts: dict[str, dict[str, str]]
) -> dict[str, float]:
    """Measure on each collection, with its prompts if it has some."""
    values = {}
    for name, collection in collections.items():
        values[name] = measure(encoder.with_prompts(**prompts.get(name, {})), collection)
    return values


def base_encoder() -> SelfDistillBiEncoder:
    """Return the encoder that training starts with."""
    return SelfDistillBiEncoder.from_pretrained(MINILM, **LENGTHS)


def training_triples(collection: Collection) -> pd.DataFrame:
    """Draw triples of the training queries."""
    return random_triples(collection, *collection.splits["train"], TRIPLES)


def train(triples: Any, **options: Any) -> SelfDistillBiEncoder:
    """Train on the triples of a collection, or of several."""
    with tempfile.TemporaryDirectory() as folder:
        return SelfDistillTrainer(base_encoder(), folder, **TRAINING, **options).fit_triples(triples).encoder


def measure(encoder: SelfDistillBiEncoder, collection: Collection, passages: pt.Transformer | None = None) -> float:
    """Measure nDCG@10 on test queries, in a part of the collection, whole or by its passages."""
    topics, qrels = collection.splits["test"]
    topics = topics[topics["qid"].isin(qrels["qid"])].head(QUERIES)
    qrels = qrels[qrels["qid"].isin(topics["qid"])]
    documents = pool_documents(collection.documents, qrels, DOCUMENTS)
    with tempfile.TemporaryDirectory() as folder:
        if passages is None:
            retriever = encoder.build_retriever(documents, f"{folder}/index.flex", num_results=100)
        else:
            divided = passages(documents)
            retriever = encoder.build_retriever(divided, f"{folder}/index.flex") >> pt.text.max_passage()
        measured = pt.Evaluate(retriever(topics), qrels, [nDCG @ 10])
    return measured["nDCG@10"]


def passages_table(data: Path) -> pd.DataFrame:
    """Compare training on whole documents, which are cut, with training on their best passages.

    Args:
        data: The folder of collections.

    Returns:
        A row an encoder, a column a way to search.
    """
    collection = load_collection("scifact", data)
    triples = training_triples(collection)
    encoders = {
        "untrained": base_encoder(),
        "documents, cut": train(triples),
        "best passages": train(triples, passages=PASSAGES),
    }
    rows = {}
    for name, encoder in encoders.items():
        rows[name] = {
            "documents, cut": measure(encoder, collection),
            "passages": measure(encoder, collection, PASSAGES),
        }
    return pd.DataFrame(rows).T.rename_axis("trained on")


if __name__ == "__main__":
    main()
