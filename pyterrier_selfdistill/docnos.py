"""The identifiers of the documents of an index, in a file of npids, without its faults.

npids packs identifiers as tightly as it can, which takes some of them for what they are not. ``tests/test_docnos.py``
fails with the advice to delete this module when its faults are gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from npids import Lookup
from npids.builder import FwdLookupBuilder, InvLookupBuilder
from npids.codecs import FwdFixedBytes
from npids.lookup import InvLookup

DOCNOS_OF_A_BLOCK = 1 << 16
"""How many identifiers, at least, are stored with as many bytes as the longest of them."""

CHECKSUMS = 1 << 16
"""How many checksums have their identifiers compared at once."""


def write_docnos(path: Path, docnos: Iterable[str]) -> int:
    """Write identifiers of documents to a file that ``npids.Lookup`` reads, as they come.

    npids 0.1.3 packs identifiers as tightly as it can. It fails where there is only one, where the bytes of a character
    differ, and where some look like hexadecimal digits and others do not; and it finds no numbers with leading zeros
    again. Plain bytes with a checksum of each take some bytes more, and have none of these faults. Delete, and call
    ``npids.Lookup.build``, when that stores ``["d0"]``, ``["dé", "dè"]``, ``["e8c5d3", "2301"]`` and
    ``["007", "008"]``.

    Args:
        path: The file.
        docnos: The identifiers: none is empty, or has a NUL in it.

    Returns:
        How many there are.

    Raises:
        ValueError: If two are the same, once all are written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_docnos(Path(folder) / "docnos.npids", iter(["d1", "d2"]))
        2
    """
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
    """Check that no two identifiers of a file are the same.

    Equal ones have the same checksum, by which the file has sorted them already, so that only neighbours are compared,
    and nothing is kept in memory.
    """
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
    """Open identifiers of documents.

    npids 0.1.3 gives the position -1 to identifiers that it does not have, and whoever takes the vector there has that
    of the last document. In arrays of objects, as frames have them, it knows ASCII only. Delete, and call
    ``npids.Lookup``, when it raises a LookupError for the first and takes the others.
    """
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
