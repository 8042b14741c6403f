"""Shards: an index in parts, each of which is an index itself, and how they become one.

A shard is the folder of a :class:`~.index.SelfDistillIndex` with the documents of some positions. :func:`join_shards`
writes one index of several, byte by byte. A folder of shards has a manifest that says in which order they belong.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .docnos import write_docnos
from .extras import load_extra
from .identity import EncoderIdentity, EncoderMismatchError
from .index import SelfDistillIndex
from .index_files import DOCNOS_FILE, VECTORS_FILE, is_index, write_encoder, write_metadata
from .io import atomic_folder

MANIFEST_FILE = "shards.json"
"""The file in a folder of shards that lists them in the order of their documents."""

COPY_BYTES = 1 << 20
"""How many bytes are copied at once."""


def load_ray() -> Any:
    """Import Ray, with Ray Data.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed.
    """
    load_extra("ray.data")
    return load_extra("ray")


def join_shards(shards: Sequence[SelfDistillIndex], path: Path, *, overwrite: bool = False) -> None:
    """Write one index of the documents of several, in their order; atomically, and in memory for one part at a time.

    The system copies the vectors from file to file. The shards stay as they are.

    Args:
        shards: The shards.
        path: The folder of the index.
        overwrite: Whether to replace an index that is there.

    Raises:
        FileExistsError: If there is an index already, and it is not to be replaced, or something else.
        EncoderMismatchError: If several encoders made the shards.
        ValueError: If two documents have the same identifier, or a shard is damaged.
    """
    parts = [describe(shard) for shard in shards]
    require_same_encoder(parts)
    with atomic_folder(path, overwrite=overwrite, recognize=is_index, doing="joining shards") as folder:
        with (folder / VECTORS_FILE).open("wb", buffering=0) as file:
            for shard in shards:
                append_file(shard.index_path / VECTORS_FILE, file)
        number = write_docnos(folder / DOCNOS_FILE, _docnos_of(shards))
        write_metadata(folder, parts[0].dimension, number)
        if parts[0].encoder is not None:
            write_encoder(folder, parts[0].encoder)


def _docnos_of(shards: Sequence[SelfDistillIndex]) -> Iterator[str]:
    for shard in shards:
        yield from map(str, shard.docnos())


def append_file(source: Path, target: Any) -> None:
    """Append a file to another one, without its bytes passing through this process where the system can do so.

    Args:
        source: The file.
        target: The other one, open for writing without a buffer.
    """
    with source.open("rb", buffering=0) as file:
        # not on every system, nor between any two file systems
        with suppress(AttributeError, OSError):
            while os.copy_file_range(file.fileno(), target.fileno(), COPY_BYTES):
                pass
        # what is left: both files are where the system has stopped
        shutil.copyfileobj(file, target, COPY_BYTES)


# --- what shards are ------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """What a shard says of itself.

    Attributes:
        name: What to call it in errors.
        documents: The number of its documents.
        dimension: The length of its vectors.
        encoder: The encoder that built it, if it is known.
    """

    name: str
    documents: int
    dimension: int
    encoder: EncoderIdentity | None


def describe(shard: SelfDistillIndex) -> Part:
    """Read what a shard says of itself."""
    metadata = shard.payload(return_dvecs=False, return_docnos=False)[0]
    return Part(str(shard.index_path), metadata["doc_count"], metadata["vec_size"], shard.encoder)


def require_same_encoder(parts: Sequence[Part]) -> None:
    """Check that the vectors of shards compare.

    Args:
        parts: What the shards say of themselves.

    Raises:
        EncoderMismatchError: If different encoders built two of them.
        ValueError: If their vectors have different lengths.
    """
    first = parts[0]
    for part in parts[1:]:
        if getattr(part.encoder, "checksum", None) != getattr(first.encoder, "checksum", None):
            raise EncoderMismatchError(
                f"the shard {first.name!r} was built by {first.encoder}, and {part.name!r} by {part.encoder}; encode "
                "all documents with one encoder"
            )
        if part.dimension != first.dimension:
            raise ValueError(
                f"the vectors of the shard {part.name!r} have {part.dimension} dimensions, and those of {first.name!r} "
                f"have {first.dimension}; encode all documents with one encoder"
            )


def write_manifest(folder: Path, names: Sequence[str]) -> None:
    """List the shards of a folder once all of them are complete, and remove other shards.

    Args:
        folder: The folder.
        names: The names of the shards, in the order of their documents.
    """
    unfinished = folder / f".{MANIFEST_FILE}.unfinished"
    unfinished.write_text(json.dumps({"shards": list(names)}) + "\n")
    unfinished.replace(folder / MANIFEST_FILE)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in names and is_index(path):
            shutil.rmtree(path)


def read_manifest(folder: Path) -> list[Path]:
    """List the paths of the shards of a folder.

    Args:
        folder: The folder.

    Returns:
        The paths, in the order of their documents.

    Raises:
        FileNotFoundError: If the folder lists none.
        ValueError: If the list is damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {MANIFEST_FILE}; give the folder of complete shards, or a list of the paths of "
            "shards"
        )
    try:
        return [folder / name for name in json.loads(path.read_text())["shards"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(
            f"{str(path)!r} is damaged; encode the corpus again, which takes the shards that are there"
        ) from None
