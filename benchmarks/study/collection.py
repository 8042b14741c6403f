"""Test collections in memory: documents, and topics with judgements in splits."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pandas as pd
import pyterrier as pt
from pydantic import Field

Split = Literal["train", "dev", "test"]

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
"""The splits that a PyTerrier dataset must have."""

Splits = dict[Literal["corpus"] | Split, str]
"""A PyTerrier dataset for the documents, and one for the topics and judgements of each split."""

Source = str | Annotated[Splits, Field(min_length=4)]
"""Where a collection is: a folder, a PyTerrier dataset with these splits, or a dataset for each."""


class Collection(NamedTuple):
    """A collection in memory.

    Attributes:
        documents: ``docno`` and ``text``.
        splits: Topics (``qid``, ``query``) and judgements (``qid``, ``docno``, ``label``) by the name of the split.
    """

    documents: pd.DataFrame
    splits: dict[str, tuple[pd.DataFrame, pd.DataFrame]]


def load_collection(source: Source, data: Path) -> Collection:
    """Load a collection.

    Args:
        source: A PyTerrier dataset (``docstrings:...``, ``irds:...``), or a folder below ``data`` with
            ``docs.jsonl.gz`` (docno, text) and, for each split, ``SPLIT.topics.tsv`` and ``SPLIT.qrels.tsv`` with a
            header, or a PyTerrier dataset for the ``corpus`` and one for each split.
        data: The folder of folders.

    Returns:
        The collection.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a PyTerrier dataset has no such split, or documents without a text.
    """
    if isinstance(source, dict):
        return _load_datasets(source)
    if ":" in source:
        return _load_dataset(source)
    return _load_folder(data / source)


def load_split(source: str, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Load the topics and the judgements of one split of a PyTerrier dataset.

    Datasets of ir_datasets name their splits ``irds:NAME/train`` and so on; others take the split as an argument.
    """
    if source.startswith("irds:"):
        return pt.get_dataset(f"{source}/{split}").get_topicsqrels()
    return pt.get_dataset(source).get_topicsqrels(split)


def judged_positives(qrels: pd.DataFrame, documents: pd.DataFrame, min_label: int = 1) -> pd.DataFrame:
    """Choose the judgements of relevant documents that the collection has."""
    is_relevant = qrels["label"] >= min_label
    return qrels[is_relevant & qrels["docno"].isin(documents["docno"])]


def sample_positives(positives: pd.DataFrame, number: int, seed: int) -> pd.DataFrame:
    """Draw judgements at random.

    Args:
        positives: The judgements.
        number: How many to draw.
        seed: The seed.

    Returns:
        The drawn ones.

    Raises:
        ValueError: If there are fewer.
    """
    if number > len(positives):
        raise ValueError(f"triples={number}, and the collection has {len(positives)} relevant documents to train with")
    return positives.sample(number, random_state=seed)


def pool_documents(documents: pd.DataFrame, qrels: pd.DataFrame, number: int) -> pd.DataFrame:
    """Choose the relevant documents of some queries, and others at random, always the same.

    Args:
        documents: All documents.
        qrels: The judgements of the queries.
        number: How many documents to choose, if the relevant ones are not more.

    Returns:
        The chosen documents, in their order.
    """
    is_relevant = documents["docno"].isin(judged_positives(qrels, documents)["docno"])
    others = documents[~is_relevant]
    wanted = min(max(number - int(is_relevant.sum()), 0), len(others))
    chosen = others.sample(wanted, random_state=0).index
    return documents[is_relevant | documents.index.isin(chosen)]


def _load_datasets(sources: Splits) -> Collection:
    splits: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}
    for split in SPLITS:
        splits[split] = pt.get_dataset(sources[split]).get_topicsqrels()
    return Collection(_load_documents(sources["corpus"]), splits)


def _load_dataset(source: str) -> Collection:
    splits: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}
    for split in SPLITS:
        try:
            splits[split] = load_split(source, split)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{source!r} has no split {split!r}: {error}; name a dataset for each in the study, such as "
                "{corpus: irds:NAME, train: irds:NAME/train, dev: irds:NAME/valid, test: irds:NAME/test}"
            ) from error
    return Collection(_load_documents(source), splits)


def _load_documents(source: str) -> pd.DataFrame:
    """Load the documents of a dataset."""
    documents = pd.DataFrame(pt.get_dataset(source).get_corpus_iter(verbose=False))
    if "text" not in documents:
        raise ValueError(
            f"documents of {source!r} have the fields {list(documents)}, and no text; write a folder of the collection "
            "with docs.jsonl.gz, SPLIT.topics.tsv and SPLIT.qrels.tsv"
        )
    return documents[["docno", "text"]]


def _load_folder(folder: Path) -> Collection:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(folder)!r} with docs.jsonl.gz, SPLIT.topics.tsv and SPLIT.qrels.tsv; name the "
            "folder of collections with --data, or name a PyTerrier dataset such as irds:beir/nfcorpus in the study"
        )
    documents = pd.read_json(folder / "docs.jsonl.gz", lines=True, dtype={"docno": str})
    splits = {}
    for path in folder.glob("*.topics.tsv"):
        split = path.name.removesuffix(".topics.tsv")
        topics = pd.read_table(path, dtype=str, quoting=csv.QUOTE_NONE)  # a query may begin with a quotation mark
        qrels = pd.read_table(folder / f"{split}.qrels.tsv", dtype={"qid": str, "docno": str})
        splits[split] = (topics, qrels)
    return Collection(documents[["docno", "text"]], splits)
