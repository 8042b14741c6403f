"""Describe sources by what changes when their content does, so that triples that were made of them are found again.

A signature is a list that JSON can write, or None where nothing says what the content is. Files are described by their
size and time, and by a checksum where that is quick; what ir_datasets distributes, by its name and the counts that
ir_datasets knows. No documents are read, and none downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyterrier as pt
from more_itertools import always_iterable

Signature: TypeAlias = list[Any] | None

SMALL_FILE = 2**20
"""The size in bytes up to which the checksum of a file is part of its signature."""


def file_signature(path: Path) -> list[Any]:
    """Describe a file by what changes when its content does; nothing describes one that is not there.

    Args:
        path: The file.

    Returns:
        Its path, its size and when it was written, and a checksum if it is small; or an empty list.
    """
    if not path.is_file():
        return []
    status = path.stat()
    signature = [str(path.resolve()), status.st_size, status.st_mtime_ns]
    if status.st_size <= SMALL_FILE:
        # a file that is written twice at once has the same time, and maybe the same size
        signature.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return signature


def texts_signature(texts: Mapping[str, str]) -> list[Any]:
    """Describe texts that are in memory.

    Args:
        texts: The texts by identifier.

    Returns:
        A checksum of both.

    Example:
        >>> texts_signature({"1": "sort"}) == texts_signature({"1": "plot"})
        False
    """
    checksum = hashlib.sha256()
    for pair in texts.items():
        for text in pair:
            encoded = text.encode(errors="surrogatepass")
            # lengths tell texts apart that are the same one after another
            checksum.update(b"%d " % len(encoded))
            checksum.update(encoded)
    return [checksum.hexdigest()]


def part_signature(dataset: Any, part: Literal["docs", "queries", "docpairs"]) -> Signature:
    """Describe a part of a dataset.

    Args:
        dataset: The dataset, or any other corpus, of which nothing is known.
        part: Which of its parts.

    Returns:
        Its name, the version of ir_datasets, what that knows of the part, and the signatures of its files; None if it
        is not of ir_datasets, or neither distributed with it nor in files.
    """
    if not isinstance(dataset, pt.datasets.Dataset) or not hasattr(dataset, "irds_ref"):
        return None
    reference = dataset.irds_ref()
    if not getattr(reference, f"has_{part}")():
        return None
    metadata: dict[str, Any] = getattr(reference, f"{part}_metadata", dict)()
    if part == "docs":
        paths = _docstore_files(reference)
    elif metadata:
        # to ask for the files would download them; ir_datasets has checked those that it has
        paths = []
    else:
        paths = _source_files(reference, part)
    files = list(map(file_signature, paths))
    if not any(files) and not metadata:
        return None
    return [repr(dataset), version("ir_datasets"), metadata, files]


def _docstore_files(reference: Any) -> list[Path]:
    """Find the files that texts are read from, also when the documents that they were made of change."""
    folder = getattr(reference.docs_store(), "path", None)
    if folder is None:
        return []
    return sorted(Path(folder).glob("*"))


def _source_files(reference: Any, part: str) -> list[Path]:
    try:
        paths = getattr(reference, f"{part}_path")()
    except (AttributeError, NotImplementedError):
        # made of something else, such as the pairs of some of the queries of another dataset
        return []
    return list(map(Path, always_iterable(paths, base_type=(str, Path))))
