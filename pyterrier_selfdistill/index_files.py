"""The files of an index: written, checked, and opened together.

The folder is that of a :class:`pyterrier_dr.FlexIndex`: the vectors, the identifiers, and the metadata, which count
both and name the encoder. What FlexIndex computes for approximate retrievers lies beside them. A folder is replaced as
a whole, so that its files belong together; :func:`open_index` sees to it that those it opens are of one folder.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from npids import Lookup
from pyterrier_dr import FlexIndex

from . import compat
from .docnos import open_docnos, write_docnos
from .identity import EncoderIdentity
from .io import METADATA_FILE, artifact_kind, recover
from .portable import portable_name

VECTORS_FILE = "vecs.f4"
DOCNOS_FILE = "docnos.npids"
FILES = (METADATA_FILE, VECTORS_FILE, DOCNOS_FILE)

KIND = {"type": FlexIndex.ARTIFACT_TYPE, "format": FlexIndex.ARTIFACT_FORMAT}

ATTEMPTS = 100
"""How often to read an index that is replaced each time while it is read."""

Signature = tuple[Any, ...]
Read = TypeVar("Read")


class IndexFiles(NamedTuple):
    """The open files of an index.

    Attributes:
        metadata: What the index says of itself: ``doc_count``, ``vec_size``, and perhaps ``encoder``.
        vectors: The vectors, mapped from disk, of shape ``(doc_count, vec_size)``.
        docnos: The identifiers of documents by position, and the positions by identifier.
        signature: What :func:`signature_of` said of the folder.
    """

    metadata: dict[str, Any]
    vectors: np.memmap
    docnos: Lookup
    signature: Signature


def write_index(folder: Path, documents: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write the files of an index to a folder that is there, as the documents come.

    Args:
        folder: The folder.
        documents: Identifiers and vectors, float32, all of one length; at least one.

    Raises:
        ValueError: If two identifiers are the same, once all documents are written.
    """
    dimension = 0
    with (folder / VECTORS_FILE).open("wb") as file:

        def docnos() -> Iterator[str]:
            nonlocal dimension
            for docno, vector in documents:
                dimension = len(vector)
                file.write(vector.tobytes())
                yield docno

        number = write_docnos(folder / DOCNOS_FILE, docnos())
    write_metadata(folder, dimension, number)


def write_metadata(folder: Path, dimension: int, count: int) -> None:
    """Write what an index says of its other files, which are there, and of the length and the number of its vectors."""
    checksum = _checksum(folder / DOCNOS_FILE)
    metadata = {**KIND, "vec_size": dimension, "doc_count": count, "docnos_checksum": checksum}
    (folder / METADATA_FILE).write_text(json.dumps(metadata) + "\n")


def write_encoder(folder: Path, encoder: EncoderIdentity) -> None:
    """Have an index remember its encoder, by its checksum and by the name that others know."""
    metadata = json.loads((folder / METADATA_FILE).read_text())
    metadata["encoder"] = {"name": portable_name(encoder.name), "checksum": encoder.checksum}
    (folder / METADATA_FILE).write_text(json.dumps(metadata) + "\n")


def is_index(folder: Path) -> bool:
    """Tell whether a folder is an index, be it a damaged one, and nothing else."""
    if artifact_kind(folder) == tuple(KIND.values()):
        return True
    own = {folder / name for name in FILES} | set(compat.files_of_retrievers(folder))
    content = set(folder.iterdir())
    return folder / VECTORS_FILE in content and content <= own


def signature_of(folder: Path) -> Signature:
    """Describe the files of an index by what changes when they are replaced or damaged."""
    signature: list[Any] = []
    for name in FILES:
        try:
            status = (folder / name).stat()
        except OSError:
            signature.append(None)
        else:
            signature.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(signature)


def open_index(folder: Path) -> IndexFiles:
    """Open the files of an index, all of one even if it is replaced meanwhile.

    The vectors are not read, only counted.

    Args:
        folder: The folder.

    Returns:
        The open files.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If there is something else, or a file is damaged.
    """
    return read_unchanged(folder, lambda signature: _open(folder, signature))


def read_unchanged(folder: Path, read: Callable[[Signature], Read]) -> Read:
    """Read an index, again if it was replaced meanwhile.

    Args:
        folder: The folder of the index.
        read: Reads the index of a signature.

    Returns:
        What it read of one index.

    Raises:
        ValueError: If the index is replaced each time.
    """
    for _ in range(ATTEMPTS):
        recover(folder)
        signature = signature_of(folder)
        try:
            result = read(signature)
        except Exception:
            # files of two indexes give errors of all kinds
            if signature_of(folder) == signature:
                raise
            continue
        if signature_of(folder) == signature:
            return result
    raise ValueError(f"the index at {str(folder)!r} is replaced again and again; read it when that is done")


def _open(folder: Path, signature: Signature) -> IndexFiles:
    """Open the files of an index that is not replaced meanwhile."""
    if not folder.exists():
        raise FileNotFoundError(f"there is no index at {str(folder)!r}; build it: (encoder >> index).index(corpus)")
    metadata = _read_metadata(folder)
    count, dimension = metadata["doc_count"], metadata["vec_size"]
    path = folder / VECTORS_FILE
    size = count * dimension * np.dtype(np.float32).itemsize
    _require(path.is_file(), folder, f"it has no {VECTORS_FILE}")
    found = path.stat().st_size
    _require(found == size, folder, f"{VECTORS_FILE} has {found} bytes, not the {size} of {count} vectors")
    vectors = np.memmap(path, mode="r", dtype=np.float32, shape=(count, dimension))
    return IndexFiles(metadata, vectors, _open_docnos(folder, metadata), signature)


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Read the metadata of an index, and check what other files are checked with."""
    if not folder.is_dir():
        raise ValueError(f"expected the folder of an index, got the file {str(folder)!r}; choose another path")
    path = folder / METADATA_FILE
    _require(path.is_file(), folder, f"it is no index, or building it was interrupted: it has no {METADATA_FILE}")
    try:
        metadata = json.loads(path.read_text())
    except (ValueError, RecursionError):
        metadata = None
    _require(isinstance(metadata, dict), folder, f"{METADATA_FILE} is not a JSON object")
    kind = {name: metadata.get(name) for name in KIND}
    if kind != KIND and None not in kind.values():
        raise ValueError(f"expected an index, a {KIND}, got {str(folder)!r}: a {kind}")
    _require(kind == KIND, folder, f"{METADATA_FILE} does not say that it is one")
    for name in ("doc_count", "vec_size"):
        number = metadata.get(name)
        is_positive = isinstance(number, int) and not isinstance(number, bool) and number > 0
        _require(is_positive, folder, f"{METADATA_FILE} has the {name} {number!r}")
    encoder = metadata.get("encoder", {"name": None, "checksum": ""})
    is_identity = isinstance(encoder, dict) and encoder.keys() == set(EncoderIdentity._fields)
    is_identity = is_identity and isinstance(encoder["checksum"], str)
    _require(is_identity, folder, f"{METADATA_FILE} has the encoder {encoder!r}")
    return metadata


def _open_docnos(folder: Path, metadata: dict[str, Any]) -> Lookup:
    """Open the identifiers of an index."""
    path = folder / DOCNOS_FILE
    _require(path.is_file(), folder, f"it has no {DOCNOS_FILE}")
    # the index of another package has none
    checksum = metadata.get("docnos_checksum")
    is_same = checksum in (None, _checksum(path))
    _require(is_same, folder, f"{DOCNOS_FILE} was changed or cut off")
    try:
        docnos = open_docnos(path)
    except Exception as error:
        # whatever becomes of the bytes of another file
        raise ValueError(_damage(folder, f"{DOCNOS_FILE} cannot be read ({error})")) from error
    count = metadata["doc_count"]
    _require(len(docnos) == count, folder, f"{DOCNOS_FILE} has {len(docnos)} identifiers for {count} documents")
    return docnos


def _checksum(path: Path) -> int:
    """Compute a checksum of a file, for damage and not for malice."""
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _require(holds: bool, folder: Path, damage: str) -> None:
    """Raise an error that says what is wrong with an index, unless a condition holds."""
    if not holds:
        raise ValueError(_damage(folder, damage))


def _damage(folder: Path, damage: str) -> str:
    again = "build it again: (encoder >> index.indexer(mode='overwrite')).index(corpus)"
    return f"the index at {str(folder)!r} is damaged: {damage}; {again}"
