"""The files of an index, which are written atomically and checked when opened, and vectors that know their encoder."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from more_itertools import chunked
from npids import Lookup
from npids.builder import FwdLookupBuilder, InvLookupBuilder
from npids.codecs import FwdFixedBytes
from npids.lookup import InvLookup
from pyterrier_dr import FlexIndex
from pyterrier_dr.flex import IndexingMode
from pyterrier_dr.flex.core import FlexIndexer

from ..data.corpus import records_of, require_document
from ..utils import compat
from ..utils.checks import require_vector
from ..utils.folders import (
    METADATA_FILE,
    artifact_kind,
    atomic_file,
    atomic_folder,
    checksum,
    explained_errors,
    portable_name,
)

logger = logging.getLogger(__name__)
VECTORS_FILE = "vecs.f4"
DOCNOS_FILE = "docnos.npids"
FILES = (METADATA_FILE, VECTORS_FILE, DOCNOS_FILE)
GRAPHS_FILE = "graphs.json"  # the checksums of graphs and of their vectors
GRAPH_KIND = "corpus_graph", "np_topk"
KIND = {"type": FlexIndex.ARTIFACT_TYPE, "format": FlexIndex.ARTIFACT_FORMAT}

DOCUMENTS = 1_000  # how many documents are checked at once
DOCNOS_OF_A_BLOCK = 1 << 16  # the fewest identifiers in a block, which are padded to the longest one
SAMPLE = 1_000  # how many vectors, at least, are hashed to check the origin of a graph
CHECKSUMS = 1 << 16  # for how many checksums identifiers are compared at once
NOT_STORABLE = re.compile("[\0\ud800-\udfff]")  # NUL, which ends identifiers, and unpaired surrogates

Signature = tuple[Any, ...]


# --- who made a vector ----------------------------------------------------------------------------------------------


class EncoderMismatchError(ValueError):
    """You tried to compare vectors of different encoders."""


class EncoderIdentity(NamedTuple):
    """The name and the checksum of an encoder."""

    name: str | None
    checksum: str

    def __str__(self) -> str:
        name = "an encoder without a name" if self.name is None else repr(self.name)
        return f"{name} [{self.checksum[:12]}]"


class EncodedVector(np.ndarray):
    """A vector of shape ``(dimension,)`` that remembers its encoder."""

    encoder: EncoderIdentity | None

    @classmethod
    def rows(cls, vectors: np.ndarray, encoder: EncoderIdentity) -> list[EncodedVector]:
        marked = vectors.view(cls)
        marked.encoder = encoder
        return list(marked)

    def __array_finalize__(self, source: np.ndarray | None) -> None:
        self.encoder = getattr(source, "encoder", None)

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        # a sum over a vector is a number
        return array[()] if array.ndim == 0 else super().__array_wrap__(array, context, return_scalar)

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments, state = cast(tuple[Any, ...], super().__reduce__())
        return make, arguments, (state, self.encoder)

    def __setstate__(self, state: tuple[Any, EncoderIdentity | None]) -> None:  # type: ignore[override]
        super().__setstate__(state[0])
        self.encoder = state[1]


def encoders_of(vectors: Iterable[Any]) -> set[EncoderIdentity]:
    identities = {vector.encoder for vector in vectors if isinstance(vector, EncodedVector)}
    return cast(set[EncoderIdentity], identities - {None})


class ComparedByKey:
    """Base class for objects that are equal if their keys are equal."""

    def _key(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


# --- reading --------------------------------------------------------------------------------------------------------


def signature_of(folder: Path) -> Signature:
    """Describe the files of an index by properties that change if a file is replaced or damaged."""
    signature: list[Any] = []
    for name in FILES:
        with suppress(OSError):
            status = (folder / name).stat()
            signature.append((name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(signature)


def open_index(folder: Path) -> tuple[dict[str, Any], np.memmap, Lookup]:
    """Open the metadata, vectors and identifiers of an index, and check that they belong together."""
    if not folder.exists():
        raise FileNotFoundError(f"there is no index at {str(folder)!r}; build it: (encoder >> index).index(corpus)")
    name = METADATA_FILE
    try:
        metadata = json.loads((folder / name).read_text())
        kind = {name: metadata.get(name) for name in KIND}
        _require(kind == KIND, f"expected an index, {KIND}, got {kind}")
        for number in ("doc_count", "vec_size"):
            given = metadata.get(number)
            _require(type(given) is int and given > 0, f"it has the {number} {given!r}")
        encoder = metadata.get("encoder")
        is_known = isinstance(encoder, dict) and encoder.keys() == set(EncoderIdentity._fields)
        _require(encoder is None or is_known, f"it has the encoder {encoder!r}")

        name = VECTORS_FILE
        shape = (metadata["doc_count"], metadata["vec_size"])
        size = 4 * shape[0] * shape[1]
        found = (folder / name).stat().st_size
        _require(found == size, f"it has {found} bytes, not the {size} of {shape[0]} vectors")
        vectors = np.memmap(folder / name, mode="r", dtype=np.float32, shape=shape)

        name = DOCNOS_FILE
        # indexes of other packages have no checksum
        found = zlib.crc32(np.memmap(folder / name, mode="r").data)
        _require(metadata.setdefault("docnos_checksum", found) == found, "it was changed or cut off")
        docnos = Lookup(folder / name)
        docnos.inv = KnownDocnos(docnos.inv.codec)
        _require(len(docnos) == shape[0], f"it has {len(docnos)} identifiers for {shape[0]} documents")
    except Exception as error:
        # files of other programs can raise any error
        raise ValueError(
            f"the index at {str(folder)!r} is damaged, or building it was interrupted: {name}: {error}; build it "
            "again: (encoder >> index.indexer(mode='overwrite')).index(corpus)"
        ) from error
    return metadata, vectors, docnos


def _require(holds: bool, damage: str) -> None:
    if not holds:
        raise ValueError(damage)


class KnownDocnos(InvLookup):
    """The positions of identifiers; unknown identifiers raise ``LookupError``."""

    def lookup(self, keys: Any) -> Any:
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


def own_files(folder: Path) -> set[str]:
    """List the files of an index and its retrievers, if the folder is an index, even a damaged one."""
    if artifact_kind(folder) != tuple(KIND.values()) and not (folder / VECTORS_FILE).exists():
        return set()
    return {*FILES, GRAPHS_FILE, *(file.name for file in compat.files_of_retrievers(folder))}


@contextmanager
def sound_graphs(index: FlexIndex, pattern: str) -> Iterator[None]:
    """Remove graphs that are damaged or were computed from other vectors, and record the checksums of new graphs."""
    folder, vectors = index.index_path, index.np_vecs()
    origin = hashlib.sha256((folder / METADATA_FILE).read_bytes())
    origin.update(vectors[:: max(len(vectors) // SAMPLE, 1)].tobytes())
    file = folder / GRAPHS_FILE
    noted: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        noted = dict(json.loads(file.read_text()))
    sound = set()
    for graph in folder.glob(pattern):
        if graph.is_dir() and artifact_kind(graph) != GRAPH_KIND:
            raise ValueError(f"{str(graph)!r} is not a graph, but a folder of kind {artifact_kind(graph)}; remove it")
        if noted.get(graph.name) == [origin.hexdigest(), checksum(graph)]:
            sound.add(graph)
            continue
        logger.warning("%s is computed again, since it was changed or belongs to another index", graph)
        with explained_errors(graph):
            remove: Any = shutil.rmtree if graph.is_dir() else Path.unlink
            remove(graph)
    yield
    made = {graph.name: [origin.hexdigest(), checksum(graph)] for graph in set(folder.glob(pattern)) - sound}
    if made:
        with atomic_file(file, overwrite=True) as unfinished:
            unfinished.write_text(json.dumps({**noted, **made}) + "\n")


# --- writing --------------------------------------------------------------------------------------------------------


class Indexer(FlexIndexer):
    """Builds an index next to its place, and moves it there when it is complete."""

    schematic: ClassVar = compat.schematic("Indexer")

    def __init__(self, index: FlexIndex, mode: IndexingMode | str) -> None:
        super().__init__(index, mode=mode)
        self.target: Any = index

    def index(self, inp: Iterable[dict[str, Any]]) -> FlexIndex:
        path = self.target.index_path
        overwrite = self.mode is IndexingMode.overwrite
        if path.exists() and not overwrite:
            raise FileExistsError(
                f"there already is an index at {str(path)!r}; search it with encoder >> SelfDistillIndex(path), choose "
                "another path, or replace it with index.indexer(mode='overwrite') or overwrite=True of build_retriever"
            )
        bar = compat.progress_bar(records_of(inp), desc="indexing", unit="dvec", disable=not self.target.verbose)
        count = dimension = vectors_checksum = 0
        encoders: set[EncoderIdentity] = set()
        with atomic_folder(path, overwrite=overwrite, own=own_files, doing="building an index") as folder:
            docnos = FwdLookupBuilder(folder / DOCNOS_FILE, min_block=DOCNOS_OF_A_BLOCK)
            docnos.formats = {PlainBytes.NAME: PlainBytes()}
            docnos.seeded_formats = docnos.formats.copy()
            with (folder / VECTORS_FILE).open("wb") as file:
                for records in chunked(bar, DOCUMENTS):
                    vectors = checked_vectors(records, dimension)
                    encoders |= encoders_of(record["doc_vec"] for record in records)
                    if len({encoder.checksum for encoder in encoders}) > 1:
                        both = " and ".join(map(str, encoders))
                        raise EncoderMismatchError(f"the vectors come from several encoders: {both}; use one")
                    file.write(vectors.data)
                    vectors_checksum = zlib.crc32(vectors.data, vectors_checksum)
                    for record in records:
                        docnos.add(record["docno"])
                    count += len(records)
                    dimension = vectors.shape[1]
            if not count:
                raise ValueError("there are no documents to index; the iterable is empty or already consumed")
            docnos.close()
            InvLookupBuilder.build(folder / DOCNOS_FILE)
            require_distinct(folder / DOCNOS_FILE)
            docnos_checksum = zlib.crc32(np.memmap(folder / DOCNOS_FILE, mode="r").data)
            checksums = {"docnos_checksum": docnos_checksum, "vectors_checksum": vectors_checksum}
            metadata: dict[str, Any] = {**KIND, "vec_size": dimension, "doc_count": count, **checksums}
            # vectors of other packages do not record their encoder
            for encoder in encoders:
                metadata["encoder"] = {"name": portable_name(encoder.name), "checksum": encoder.checksum}
            (folder / METADATA_FILE).write_text(json.dumps(metadata) + "\n")
        self.target.close()
        return self.target


class PlainBytes(FwdFixedBytes):
    """The npids format that stores all bytes of identifiers."""

    prefix: bytes | None
    length: int | None

    def seed(self, id: str) -> bool:
        self.prefix = b""
        self.length = max(self.length or 0, len(id.encode()))
        return True


def checked_vectors(records: Sequence[Any], dimension: int) -> np.ndarray:
    """Check some documents, and return their vectors for storage: finite, float32, of equal length."""
    for record in records:
        require_document(record, ["doc_vec"])
        docno = record["docno"]
        if not isinstance(docno, str):
            raise TypeError(f"docno must be a string, got {docno!r} of type {type(docno).__name__}; convert with str")
        if not docno or NOT_STORABLE.search(docno):
            raise ValueError(f"the docno {docno!r} is empty or has NUL or an unpaired surrogate; choose another one")
    vectors = [record["doc_vec"] for record in records]
    dimension = dimension or np.size(vectors[0])
    # all at once, which is ten times as fast as one by one
    is_sound = all(isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.shape == (dimension,) for v in vectors)
    if is_sound:
        # numbers too large for float32 become infinite
        with np.errstate(over="ignore"):
            stored = np.array(vectors, dtype=np.float32)
        is_sound = bool(stored.size and np.isfinite(stored).all())
    if not is_sound:
        for record in records:
            require_vector(f"the doc_vec of {record['docno']!r}", record["doc_vec"])
            if len(record["doc_vec"]) != dimension:
                raise ValueError(
                    f"the doc_vec of {record['docno']!r} has {len(record['doc_vec'])} dimensions, but earlier vectors "
                    f"have {dimension}; encode all documents with one encoder"
                )
    return stored


def require_distinct(path: Path) -> None:
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
                    raise ValueError(f"duplicate docno {docno!r}; each document needs a unique identifier")
