"""Test collections in memory: documents, and topics with judgements in splits."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pandas as pd
import pyterrier as pt
from pydantic import Field

SPLITS = ("train", "dev", "test")

Source = str | Annotated[dict[Literal["corpus", "train", "dev", "test"], str], Field(min_length=4)]
"""A folder, a PyTerrier dataset with the three splits, perhaps behind ``copies:``, or a dataset for the corpus and each
split."""


class Collection(NamedTuple):
    """Documents (``docno``, ``text``), and topics and judgements by the name of the split."""

    documents: pd.DataFrame
    splits: dict[str, tuple[pd.DataFrame, pd.DataFrame]]


def load_collection(source: Source, data: Path) -> Collection:
    """Load a collection.

    Args:
        source: A PyTerrier dataset (``docstrings:...``, ``irds:...``); a dataset for the ``corpus`` and each split; or
            a folder below ``data`` with ``docs.jsonl.gz`` (``docno``, ``text``) and, for each split,
            ``SPLIT.topics.tsv`` and ``SPLIT.qrels.tsv`` with a header. ``copies:`` before either adds a near-copy of
            every tenth document, in capitals and with other punctuation, which nobody has judged.
        data: The folder of folders.
    """
    if isinstance(source, str) and source.startswith("copies:"):
        documents, splits = load_collection(source.removeprefix("copies:"), data)
        copies = documents.iloc[::10]
        texts = copies["text"].str.upper().str.translate(str.maketrans(".,", ";-"))
        copies = copies.assign(docno=copies["docno"] + "-copy", text=texts)
        return Collection(pd.concat([documents, copies], ignore_index=True), splits)
    if isinstance(source, str) and ":" not in source:
        return _load_folder(data / source)
    splits = {}
    for split in SPLITS:
        try:
            splits[split] = load_split(source, split)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{source!r} has no split {split!r}: {error}; give a dataset for each split, such as "
                "{corpus: irds:NAME, train: irds:NAME/train, dev: irds:NAME/valid, test: irds:NAME/test}"
            ) from error
    corpus = source if isinstance(source, str) else source["corpus"]
    documents = pd.DataFrame(pt.get_dataset(corpus).get_corpus_iter(verbose=False))
    if "text" not in documents:
        raise ValueError(f"the documents of {corpus!r} need a text, and have the fields {list(documents)}")
    return Collection(documents[["docno", "text"]], splits)


def load_split(source: Source, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Load the topics and the judgements of a split of a dataset; ir_datasets call theirs ``irds:NAME/train``."""
    if isinstance(source, dict):
        return pt.get_dataset(source[split]).get_topicsqrels()  # type: ignore[index]
    if source.startswith("irds:"):
        return pt.get_dataset(f"{source}/{split}").get_topicsqrels()
    return pt.get_dataset(source).get_topicsqrels(split)


def judged_positives(qrels: pd.DataFrame, documents: pd.DataFrame, min_label: int = 1) -> pd.DataFrame:
    """Choose the judgements of relevant documents that the collection has."""
    return qrels[(qrels["label"] >= min_label) & qrels["docno"].isin(documents["docno"])]


def pool_documents(documents: pd.DataFrame, qrels: pd.DataFrame, number: int) -> pd.DataFrame:
    """Choose the relevant documents of some queries and a fixed sample of others, ``number`` in all if possible."""
    is_relevant = documents["docno"].isin(judged_positives(qrels, documents)["docno"])
    others = documents[~is_relevant]
    wanted = min(max(number - int(is_relevant.sum()), 0), len(others))
    chosen = others.sample(wanted, random_state=0).index
    return documents[is_relevant | documents.index.isin(chosen)]


def _load_folder(folder: Path) -> Collection:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {str(folder)!r} with docs.jsonl.gz, SPLIT.topics.tsv and SPLIT.qrels.tsv; give the folder of "
            "collections with --data, or name a PyTerrier dataset such as irds:beir/nfcorpus in the study"
        )
    documents = pd.read_json(folder / "docs.jsonl.gz", lines=True, dtype={"docno": str})
    splits = {}
    for path in folder.glob("*.topics.tsv"):
        split = path.name.removesuffix(".topics.tsv")
        topics = pd.read_table(path, dtype=str, quoting=csv.QUOTE_NONE)  # a query may begin with a quotation mark
        splits[split] = (topics, pd.read_table(folder / f"{split}.qrels.tsv", dtype={"qid": str, "docno": str}))
    return Collection(documents[["docno", "text"]], splits)
