"""What is trained, saved and indexed: a tiny encoder with random weights, and a small collection."""

from __future__ import annotations

import functools
import json
import string
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from pyterrier_selfdistill import SelfDistillBiEncoder

VERBS = ["sort", "read", "write", "return", "plot"]
THINGS = ["table", "matrix", "file", "array", "row", "column", "value", "data"]

DIMENSION = 32
"""The length of vectors."""

TRIPLES = 20_000
"""How many triples the file holds: writing them takes long enough to be interrupted."""

PROBES = ["sort the table", "plot a matrix", "read"]
"""The texts whose vectors tell models apart."""

SIZES = {"old": 12_000, "new": 10_000}
"""How many documents the versions of an index have."""

FIRST_COMPONENT = {"old": 0.25, "new": 0.75}
"""The first component of the unit vectors of a version, by which its scores are told from the other's."""


class Materials:
    """Files that operations read, in a folder.

    Args:
        folder: The folder.

    Attributes:
        language_model: The folder of a plain language model: BERT with two layers.
        triples: A file of triples.
        study: The YAML file of a study, in the form of JSON.
        collections: The folder of the collection of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.language_model = folder / "tiny-bert"
        self.triples = folder / "triples.tsv"
        self.study = folder / "study.yaml"
        self.collections = folder / "collections"

    def write(self) -> None:
        """Write them all, unless they are there."""
        if self.study.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_language_model(self.language_model)
        write_triples(self.triples)
        write_collection(self.collections / "tiny")
        write_study(self.study, self.language_model)

    def encoder(self, version: str = "old") -> SelfDistillBiEncoder:
        """Load the encoder: the ``old`` version as it is, the ``new`` one with other weights."""
        encoder = SelfDistillBiEncoder.from_pretrained(self.language_model, device="cpu")
        if version == "new":
            weights = next(encoder.model.parameters())
            with torch.no_grad():
                weights.add_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
        return encoder


def write_language_model(folder: Path) -> None:
    """Write a language model with random weights, and its tokenizer."""
    folder.mkdir(parents=True)
    characters = string.ascii_lowercase + string.digits
    words = [*VERBS, *THINGS, "the", "by", "mean", "-", *characters]
    pieces = [f"##{character}" for character in characters]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *pieces]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=DIMENSION,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)


def write_triples(path: Path) -> None:
    """Write triples of texts."""
    lines = []
    for number in range(TRIPLES):
        thing, other = THINGS[number % len(THINGS)], THINGS[(number + 1) % len(THINGS)]
        lines.append(f"mean {thing} {number}\tsort the {thing} by {number}\tplot the {other} by {number}\n")
    path.write_text("".join(lines))


def write_collection(folder: Path) -> None:
    """Write the collection with a query for each document: three verbs for training, one for dev, and one for test."""
    folder.mkdir(parents=True)
    documents = corpus()
    documents.to_json(folder / "docs.jsonl.gz", orient="records", lines=True)
    topics = documents.rename(columns={"docno": "qid", "text": "query"})
    qrels = topics[["qid"]].assign(docno=topics["qid"], label=1)
    for split, verbs in {"train": VERBS[:3], "dev": VERBS[3:4], "test": VERBS[4:]}.items():
        rows = topics["qid"].str.partition("-")[0].isin(verbs)
        topics[rows].to_csv(folder / f"{split}.topics.tsv", sep="\t", index=False)
        qrels[rows].to_csv(folder / f"{split}.qrels.tsv", sep="\t", index=False)


def write_study(path: Path, language_model: Path) -> None:
    """Write a study of an untouched, a trained and a taught model."""
    defaults = {
        "collection": "tiny",
        "model": str(language_model),
        "pooling": "cls",
        "triples": 8,
        "batch_size": 4,
        "query_length": 8,
        "document_length": 32,
    }
    grid = {"loss": ["untouched", "distributed", "margin_mse"]}
    study = {"name": "tiny", "collections": {"tiny": "tiny"}, "defaults": defaults, "grids": {"losses": grid}}
    path.write_text(json.dumps(study))


def corpus() -> pd.DataFrame:
    """Make a document for each verb and thing."""
    documents = [(f"{verb}-{thing}", f"{verb} the {thing} by mean") for verb in VERBS for thing in THINGS]
    return pd.DataFrame(documents, columns=["docno", "text"])


def topics() -> pd.DataFrame:
    """Make a query for each thing."""
    queries = [(f"q{number}", f"mean {thing}") for number, thing in enumerate(THINGS)]
    return pd.DataFrame(queries, columns=["qid", "query"])


def results() -> pd.DataFrame:
    """Pair all queries with all documents."""
    return topics().merge(corpus(), how="cross")


def qrels() -> pd.DataFrame:
    """Judge the documents about the thing of a query relevant, and all others not."""
    pairs = results()
    is_relevant = pairs["query"].str.removeprefix("mean ") == pairs["docno"].str.partition("-")[2]
    return pairs[["qid", "docno"]].assign(label=is_relevant.astype(int))


@functools.cache
def vectors(version: str) -> np.ndarray:
    """Draw the unit vectors of a version of an index, all with its first component."""
    seed = list(SIZES).index(version)
    drawn = np.random.default_rng(seed).normal(size=(SIZES[version], DIMENSION))
    first = FIRST_COMPONENT[version]
    drawn[:, 0] = 0
    drawn *= np.sqrt(1 - first**2) / np.linalg.norm(drawn, axis=1, keepdims=True)
    drawn[:, 0] = first
    return drawn.astype(np.float32)


def records(version: str) -> list[dict[str, object]]:
    """Make the documents of a version of an index, named by it."""
    return [{"docno": f"{version}-{row}", "doc_vec": vector} for row, vector in enumerate(vectors(version))]
