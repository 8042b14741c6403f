"""The files of an index: written whole, opened and checked."""

from __future__ import annotations

import json
import re
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from more_itertools import chunked
from npids import Lookup
from npids.builder import FwdLookupBuilder, InvLookupBuilder
from npids.codecs import FwdFixedBytes
from npids.lookup import InvLookup
from pyterrier_dr import FlexIndex
from pyterrier_dr.flex import IndexingMode
from pyterrier_dr.flex.core import FlexIndexer

from ..utils import compat
from ..utils.checks import require_vector
from ..utils.compat import schematic
from ..utils.folders import METADATA_FILE, artifact_kind, atomic_folder, portable_name, recover
from .identity import EncoderIdentity, EncoderMismatchError, encoders_of

DOCNOS_OF_A_BLOCK = 1 << 16  # how many identifiers, at least, are stored with as many bytes as the longest of them
CHECKSUMS = 1 << 16  # how many checksums have their identifiers compared at once


def write_docnos(path: Path, docnos: Iterable[str]) -> int:
    """Write identifiers of documents to a file that ``npids.Lookup`` reads, as they come."""
    builder = FwdLookupBuilder(path, min_block=DOCNOS_OF_A_BLOCK)
    builder.formats = {PlainBytes.NAME: PlainBytes()}
    builder.seeded_formats = builder.formats.copy()
    number = 0
    for docno in docnos:
        builder.add(docno)
        number += 1
    builder.close()
    if number:
        InvLookupBuilder.build(path)
        _require_distinct(path)
    return number


def _require_distinct(path: Path) -> None:
    """Check that no two identifiers of a file are the same."""
    with Lookup(path) as lookup:
        codec = lookup.inv.codec
        ends = codec.hash_offsets
        for first in range(0, len(ends) - 1, CHECKSUMS):
            bounds = np.asarray(ends[first : first + CHECKSUMS + 1], dtype=np.int64)
            positions = codec.dids[bounds[0] : bounds[-1]]
            if not len(positions):
                continue
            docnos = lookup.fwd.lookup(positions, as_bytes=True)
            group = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
            for distance in range(1, int(np.diff(bounds).max())):
                is_same = (group[distance:] == group[:-distance]) & (docnos[distance:] == docnos[:-distance])
                if is_same.any():
                    docno = docnos[distance:][is_same][0].decode()
                    raise ValueError(f"duplicate docno {docno!r}; each document needs an identifier of its own")


class PlainBytes(FwdFixedBytes):
    """The format of npids that stores all bytes of identifiers."""

    prefix: bytes | None
    length: int | None

    def seed(self, id: str) -> bool:
        """Note the length of an identifier, and no common prefix."""
        self.prefix = b""
        self.length = max(self.length or 0, len(id.encode()))
        return True


def open_docnos(path: Path) -> Lookup:
    """Open identifiers of documents."""
    lookup = Lookup(path)
    lookup.inv = KnownDocnos(lookup.inv.codec)
    return lookup


class KnownDocnos(InvLookup):
    """The positions of identifiers, all of which are to be known."""

    def lookup(self, keys: Any) -> Any:
        """Look up one identifier or many."""
        if hasattr(keys, "dtype"):
            keys = np.asarray(keys, dtype=str)
        positions = super().lookup(keys)
        is_unknown = np.asarray(positions) < 0
        if is_unknown.any():
            unknown = np.asarray(keys)[is_unknown]
            raise LookupError(
                f"{len(unknown)} of {is_unknown.size} documents are not in the index, such as the docno "
                f"{str(unknown[0])!r}; search and score the same corpus"
            )
        return positions


VECTORS_FILE = "vecs.f4"
DOCNOS_FILE = "docnos.npids"
FILES = (METADATA_FILE, VECTORS_FILE, DOCNOS_FILE)
KIND = {"type": FlexIndex.ARTIFACT_TYPE, "format": FlexIndex.ARTIFACT_FORMAT}
ATTEMPTS = 100  # how often to read an index that is replaced each time while it is read
Signature = tuple[Any, ...]
Read = TypeVar("Read")


class IndexFiles(NamedTuple):
    """The open files of an index."""

    metadata: dict[str, Any]
    vectors: np.memmap
    docnos: Lookup
    signature: Signature


def write_index(folder: Path, documents: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write the files of an index to a folder that is there, as the documents come."""
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
    """Open the files of an index, all of one even if it is replaced meanwhile."""
    return read_unchanged(folder, lambda signature: _open(folder, signature))


def read_unchanged(folder: Path, read: Callable[[Signature], Read]) -> Read:
    """Read an index, again if it was replaced meanwhile."""
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


# what identifiers cannot have in them: NUL, which ends them, and halves of characters
NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
DOCUMENTS = 1_000  # how many documents are checked at once


class Indexer(FlexIndexer):
    """Builds an index beside the place where it will be, and moves it there when it is complete."""

    schematic: ClassVar = schematic("Indexer")

    def __init__(self, index: FlexIndex, mode: IndexingMode | str) -> None:
        super().__init__(index, mode=mode)
        self.target: Any = index

    def index(self, inp: Iterable[dict[str, Any]]) -> FlexIndex:
        """Build the index."""
        path = self.target.index_path
        if path.exists() and self.mode is IndexingMode.create:
            raise FileExistsError(
                f"there is an index at {str(path)!r} already; search it, choose another path, or replace it with "
                "index.indexer(mode='overwrite')"
            )
        if isinstance(inp, pd.DataFrame):
            inp = inp.to_dict(orient="records")
        documents = CheckedDocuments(inp)
        overwrite = self.mode is IndexingMode.overwrite
        with atomic_folder(path, overwrite=overwrite, recognize=is_index, doing="building an index") as folder:
            bar = compat.progress_bar(documents, desc="indexing", unit="dvec", disable=not self.target.verbose)
            write_index(folder, bar)
            # vectors of other packages do not say who made them
            if documents.encoders:
                write_encoder(folder, next(iter(documents.encoders)))
        self.target.close()
        return self.target


class CheckedDocuments:
    """Documents that are checked as they pass."""

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self._records = records
        self._dimension: int | None = None
        self.encoders: set[EncoderIdentity] = set()

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Iterate over the identifiers and the vectors, as they are stored."""
        if not isinstance(self._records, Iterable):
            raise TypeError(
                f"expected documents, records with docno and doc_vec, got {self._records!r}, a "
                f"{type(self._records).__name__}; give a list or another iterable of them"
            )
        is_empty = True
        for records in chunked(self._records, DOCUMENTS):
            is_empty = False
            yield from self._checked(records)
        if is_empty:
            raise ValueError("there are no documents to index; the iterable is empty, or was read before")

    def _checked(self, records: list[Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Check some documents, together where they are sound, since one after another takes ten times as long."""
        docnos, vectors = [], []
        for record in records:
            _require_document(record)
            _require_docno(record["docno"])
            docnos.append(record["docno"])
            vectors.append(record["doc_vec"])
        self._check_encoders(vectors)
        stored = self._store_together(vectors)
        if stored is None:
            # one of them is at fault, or they are floats of several sizes
            return zip(docnos, map(self._store, docnos, vectors), strict=True)
        return zip(docnos, stored, strict=True)

    def _check_encoders(self, vectors: list[Any]) -> None:
        self.encoders |= encoders_of(vectors)
        checksums = {encoder.checksum for encoder in self.encoders}
        if len(checksums) > 1:
            raise EncoderMismatchError(f"vectors of several encoders: {' and '.join(map(str, self.encoders))}; use one")

    def _store_together(self, vectors: list[Any]) -> np.ndarray | None:
        """Make vectors what is stored, if they are all alike and finite; None if one is not."""
        if not all(isinstance(vector, np.ndarray) for vector in vectors):
            return None
        kinds = {(vector.dtype, vector.shape) for vector in vectors}
        dtype, shape = kinds.pop()
        is_alike = not kinds and dtype.kind == "f" and len(shape) == 1 and shape[0] > 0
        if not is_alike or self._dimension not in (None, shape[0]):
            return None
        # what float32 cannot hold becomes infinite
        with np.errstate(over="ignore"):
            stored = np.stack(vectors).view(np.ndarray).astype(np.float32)
        if not np.isfinite(stored).all():
            return None
        self._dimension = shape[0]
        return stored

    def _store(self, docno: str, vector: Any) -> np.ndarray:
        """Make a vector what is stored: finite, float32, of the length of all."""
        require_vector(f"the doc_vec of {docno!r}", vector)
        if self._dimension is None:
            self._dimension = len(vector)
        if len(vector) != self._dimension:
            raise ValueError(
                f"the doc_vec of {docno!r} has {len(vector)} dimensions, and those before have {self._dimension}; "
                "encode all documents with one encoder"
            )
        return vector.astype(np.float32)


def _require_document(record: Any) -> None:
    if not isinstance(record, Mapping):
        raise TypeError(
            f"expected documents, records with docno and doc_vec, got {reprlib.repr(record)} among them, a "
            f"{type(record).__name__}; give dictionaries"
        )
    if "docno" not in record or "doc_vec" not in record:
        missing = [name for name in ("docno", "doc_vec") if name not in record]
        raise ValueError(
            f"a document has {list(record)}, and {' and '.join(missing)} missing; documents need a docno, and an "
            "encoder before the index: (encoder >> index).index(corpus)"
        )


def _require_docno(docno: Any) -> None:
    if not isinstance(docno, str):
        raise TypeError(f"the docno {docno!r} is of type {type(docno).__name__}; identifiers are strings")
    if not docno or NOT_STORABLE.search(docno):
        raise ValueError(f"the docno {docno!r} is empty, or has a character in it that is none; choose another one")
