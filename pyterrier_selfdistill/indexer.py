"""The building of an index: documents are checked as they pass, and replace nothing before all of them have."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt
from more_itertools import chunked
from pyterrier_dr import FlexIndex
from pyterrier_dr.flex import IndexingMode
from pyterrier_dr.flex.core import FlexIndexer

from .compat import schematic
from .identity import EncoderIdentity, EncoderMismatchError, encoders_of
from .index_files import is_index, write_encoder, write_index
from .io import atomic_folder
from .vectors import require_vector

NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
"""What identifiers cannot have in them: NUL, which ends them, and halves of characters."""


DOCUMENTS = 1_000
"""How many documents are checked at once."""


class Indexer(FlexIndexer):
    """Builds an index beside the place where it will be, and moves it there when it is complete.

    Args:
        index: The index to build, a :class:`SelfDistillIndex`.
        mode: Whether to replace an index that is there.
    """

    schematic: ClassVar = schematic("Indexer")

    def __init__(self, index: FlexIndex, mode: IndexingMode | str) -> None:
        super().__init__(index, mode=mode)
        self.target: Any = index

    def index(self, inp: Iterable[dict[str, Any]]) -> FlexIndex:
        """Build the index.

        Args:
            inp: Records with ``docno`` and ``doc_vec``, or a frame.

        Returns:
            The index.

        Raises:
            FileExistsError: If there is an index already, and it is not to be replaced, or something else.
            FolderInUseError: If another process is building it.
            ValueError: If a document has no identifier or no vector of floats, or there are no documents; and once all
                were read, if two have the same identifier.
            TypeError: If an identifier is not a string.
            EncoderMismatchError: If several encoders made the vectors.
        """
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
            write_index(folder, pt.tqdm(documents, desc="indexing", unit="dvec", disable=not self.target.verbose))
            # vectors of other packages do not say who made them
            if documents.encoders:
                write_encoder(folder, next(iter(documents.encoders)))
        self.target.close()
        return self.target


class CheckedDocuments:
    """Documents that are checked as they pass.

    Args:
        records: Records with ``docno`` and ``doc_vec``.

    Attributes:
        encoders: The encoder of the vectors, once it is known.

    Example:
        >>> records = [{"docno": "d1", "doc_vec": np.ones(3)}, {"docno": "d2", "doc_vec": np.ones(4)}]
        >>> list(CheckedDocuments(records))
        Traceback (most recent call last):
        ValueError: the doc_vec of 'd2' has 4 dimensions, and those before have 3; ...
    """

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
