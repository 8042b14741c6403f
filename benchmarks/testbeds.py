"""The test collections of studies: documents, and topics with judgements in splits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyterrier as pt

SPLITS = ("train", "dev", "test")


class Collection(NamedTuple):
    """A collection in memory.

    Attributes:
        documents: ``docno`` and ``text``.
        splits: Topics (``qid``, ``query``) and judgements (``qid``, ``docno``, ``label``) by the name of the split.
    """

    documents: pd.DataFrame
    splits: dict[str, tuple[pd.DataFrame, pd.DataFrame]]


def load(source: str, data: Path) -> Collection:
    """Loads a collection.

    Args:
        source: A PyTerrier dataset (``docstrings:...``, ``irds:...``), or a folder below ``data`` with
            ``docs.jsonl.gz`` (docno, text) and, for each split, ``SPLIT.topics.tsv`` and ``SPLIT.qrels.tsv`` with a
            header.
        data: The folder of folders.

    Raises:
        FileNotFoundError: If there is no such folder.

    Returns:
        The collection.
    """
    if ":" in source:
        return _dataset(source)
    folder = data / source
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(folder)!r} with docs.jsonl.gz, SPLIT.topics.tsv and SPLIT.qrels.tsv; name the "
            "folder of collections with --data, or name a PyTerrier dataset such as irds:beir/nfcorpus in the study"
        )
    documents = pd.read_json(folder / "docs.jsonl.gz", lines=True, dtype={"docno": str})
    splits = {}
    for path in folder.glob("*.topics.tsv"):
        name = path.name.removesuffix(".topics.tsv")
        qrels = pd.read_table(folder / f"{name}.qrels.tsv", dtype={"qid": str, "docno": str})
        splits[name] = pd.read_table(path, dtype=str, quoting=3), qrels
    return Collection(documents[["docno", "text"]], splits)


def _dataset(source: str) -> Collection:
    dataset = pt.get_dataset(source)
    documents = pd.DataFrame(dataset.get_corpus_iter(verbose=False))
    splits = {}
    for split in SPLITS:
        if source.startswith("irds:"):
            splits[split] = pt.get_dataset(f"{source}/{split}").get_topicsqrels()
        else:
            splits[split] = dataset.get_topicsqrels(split)
    return Collection(documents[["docno", "text"]], splits)
