"""Keep triples, and account for every row on the way to them.

A :class:`TripleCache` is there already, or is written::

    cache = TripleCache(signature, origin)
    if not cache.exists():
        with cache.writer(limit) as writer:
            for batch in batches:
                writer.read(len(batch))
                writer.add(batch)
                if writer.full:
                    break
    triples = cache.load()

The :class:`TripleWriter` checks texts, counts what it drops and why, fingerprints what it keeps, and writes it. The
folder is there when all was written, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyterrier as pt
from datasets import Dataset

from ..io import atomic_folder
from .columns import text_columns

logger = logging.getLogger(__name__)

CACHE_FORMAT = 4
"""Changes when the same source and settings give other triples, or another summary."""

MERGE_SIZE = 100_000
"""How many new checksums are kept before they are merged into those that were seen."""


class Triples(NamedTuple):
    """Training data and where it came from.

    Attributes:
        dataset: The texts, in the columns ``query``, ``positive``, ``negative`` or ``negative_1``, ..., ``negative_K``;
            and ``label``, if the source has it.
        summary: Where the triples come from and what became of every row of it:

            - ``source`` and the settings;
            - ``read``, how many rows there were, which is the sum of
            - ``triples``, how many became triples, and
            - ``dropped``, how many did not, by reason;
            - ``queries``, ``positives`` (of a query) and ``negatives`` (of a triple);
            - ``fingerprint``, a checksum of all texts, and labels, in their order.
    """

    dataset: Dataset
    summary: dict[str, Any]


class TripleCache:
    """Triples that the same source and settings find again.

    Args:
        signature: All that the triples depend on, as JSON takes it. None keeps them in memory, for this object only.
        origin: The source and the settings, with which the summary begins.

    Attributes:
        folder: Where the triples are, below PyTerrier's home; None in memory.

    Example:
        >>> cache = TripleCache(None, {"source": "two rows"})
        >>> with cache.writer() as writer:
        ...     writer.read(2)
        ...     writer.drop("duplicate row", 1)
        ...     writer.add(pa.table({"query": ["sort"], "positive": ["sort rows"], "negative": ["plot a file"]}))
        >>> triples = cache.load()
        >>> triples.dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
        >>> triples.summary["dropped"]
        {'duplicate row': 1}
    """

    def __init__(self, signature: Sequence[Any] | None, origin: Mapping[str, Any]) -> None:
        self.origin = dict(origin)
        self.folder: Path | None = None
        self._in_memory: Triples | None = None
        if signature is not None:
            key = json.dumps([CACHE_FORMAT, signature])
            checksum = hashlib.sha256(key.encode()).hexdigest()[:16]
            self.folder = Path(pt.io.pyterrier_home()) / "selfdistill" / "triples" / checksum

    def exists(self) -> bool:
        """Say whether the triples are written already."""
        if self.folder is None:
            return self._in_memory is not None
        return self.folder.exists()

    def load(self) -> Triples:
        """Read the triples; files are mapped, not read into memory.

        Returns:
            The triples.

        Raises:
            FileNotFoundError: If nothing was written.
        """
        if self._in_memory is not None:
            return self._in_memory
        if self.folder is None or not self.folder.exists():
            raise FileNotFoundError(f"there are no triples of {self.origin} yet; write them with writer()")
        logger.info("reading triples from %s", self.folder)
        summary = json.loads((self.folder / "summary.json").read_text())
        dataset = Dataset.from_file(str(self.folder / "triples.arrow"))
        return Triples(dataset, summary)

    @contextmanager
    def writer(self, limit: int | None = None) -> Iterator[TripleWriter]:
        """Give a writer; on exit without an error what it wrote is there to load.

        Args:
            limit: How many triples to keep.

        Raises:
            ValueError: On exit, if no triple was kept.
        """
        if self.folder is None:
            tables: list[pa.Table] = []
            writer = TripleWriter(self.origin, limit, tables.append)
            yield writer
            summary = writer.finish()
            self._in_memory = Triples(Dataset(pa.concat_tables(tables)), summary)
            return
        with _shared_folder(self.folder) as folder:
            with closing(_ArrowFile(folder / "triples.arrow")) as file:
                writer = TripleWriter(self.origin, limit, file.write)
                yield writer
            summary = writer.finish()
            (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


class TripleWriter:
    """Checks, counts, fingerprints and writes triples.

    Args:
        origin: The source and the settings.
        limit: How many triples to keep.
        write: Where tables go.

    Attributes:
        triples: How many triples were kept.
        dropped: How many rows were not, by reason.
    """

    def __init__(self, origin: Mapping[str, Any], limit: int | None, write: Callable[[pa.Table], Any]) -> None:
        self._origin = origin
        self._limit = limit
        self._write = write
        self._read = 0
        self.triples = 0
        self.dropped: Counter[str] = Counter()
        self._queries = DistinctCount()
        self._positives = DistinctCount()
        self._negatives = 0
        self._fingerprint = Fingerprint()

    @property
    def full(self) -> bool:
        """Whether the limit is reached, so that nothing more needs to be read."""
        return self.triples == self._limit

    def read(self, number: int) -> None:
        """Count rows that were read; each of them is to be dropped or added."""
        self._read += number

    def drop(self, reason: str, number: int) -> None:
        """Count rows that make no triple."""
        if number:
            self.dropped[reason] += number

    def add(self, rows: pa.Table, identifiers: pa.Table | None = None) -> None:
        """Keep the rows that can be trained with, up to the limit, and drop others.

        Args:
            rows: Texts, and perhaps labels, in the columns of triples. They are checked, counted and fingerprinted, and
                written if there are no identifiers.
            identifiers: What to write in place of the rows: as many, in the same order.
        """
        # checked before the limit, so that it is of triples and not of rows
        usable = pa.array(self._find_usable(rows))
        kept = self._up_to_limit(rows.filter(usable))
        self._count(kept)
        self._fingerprint.update(kept)
        if identifiers is None:
            self._write(kept)
        else:
            self._write(identifiers.filter(usable).slice(0, len(kept)))

    def finish(self) -> dict[str, Any]:
        """Account for all rows, when nothing more is added.

        Returns:
            The summary of the triples.

        Raises:
            ValueError: If no triple was kept.
        """
        if not self.triples:
            raise ValueError(self._describe_nothing())
        # what was read last, or not at all, after the limit was reached
        beyond = self._read - self.triples - self.dropped.total()
        self.drop(f"row beyond the first {self._limit}", beyond)
        if self.dropped:
            reasons = describe_dropped(self.dropped)
            logger.warning("%d of %d rows were dropped: %s", self.dropped.total(), self._read, reasons)
        return {
            **self._origin,
            "read": self._read,
            "triples": self.triples,
            "dropped": dict(self.dropped),
            "queries": self._queries.number,
            "positives": self._positives.number,
            "negatives": self._negatives,
            "fingerprint": self._fingerprint.hexdigest(),
        }

    def _describe_nothing(self) -> str:
        """Say that there is nothing to train with, and why."""
        message = f"no triples are there to train with, of {self._read} rows"
        if "source" in self._origin:
            message = f"{self._origin['source']}: {message}"
        if self.dropped:
            return f"{message}: {describe_dropped(self.dropped)}"
        return f"{message}; give rows of a query, a positive and one or more negatives"

    def _find_usable(self, rows: pa.Table) -> np.ndarray:
        """Mark the rows that can be trained with; count the others under the first fault that they have."""
        usable = np.ones(len(rows), dtype=bool)
        for reason, is_faulty in _find_faults(rows):
            self.drop(reason, int((usable & is_faulty).sum()))
            usable &= ~is_faulty
        return usable

    def _up_to_limit(self, rows: pa.Table) -> pa.Table:
        if self._limit is None:
            return rows
        return rows.slice(0, self._limit - self.triples)

    def _count(self, rows: pa.Table) -> None:
        # checksums, since the texts themselves would fill the memory
        pairs = rows.select(["query", "positive"]).to_pandas()
        self._queries.add(pd.util.hash_array(pairs["query"].to_numpy(), categorize=False))
        self._positives.add(pd.util.hash_pandas_object(pairs, index=False, categorize=False).to_numpy())
        self._negatives = len(text_columns(rows)) - 2
        self.triples += len(rows)


def usable_rows(rows: pa.Table) -> np.ndarray:
    """Mark the rows that can be trained with.

    Args:
        rows: Texts, in the columns of triples.

    Returns:
        True for each row that has all texts, none of the negatives that of the positive.

    Example:
        >>> usable_rows(pa.table({"query": ["a", "b"], "positive": ["c", "d"], "negative": ["e", "d"]})).tolist()
        [True, False]
    """
    usable = np.ones(len(rows), dtype=bool)
    for _, is_faulty in _find_faults(rows):
        usable &= ~is_faulty
    return usable


def _find_faults(rows: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """Find out why rows cannot be trained with: the reason, and which rows."""
    trimmed = {}
    for name in text_columns(rows):
        trimmed[name] = pc.utf8_trim_whitespace(pc.fill_null(rows[name], ""))
        yield f"no text in {name!r}", pc.equal(trimmed[name], "").to_numpy()
    for name in text_columns(rows)[2:]:
        yield "negative with the text of the positive", pc.equal(trimmed[name], trimmed["positive"]).to_numpy()


class DistinctCount:
    """Counts distinct values by their checksums, at 8 bytes each.

    Example:
        >>> count = DistinctCount()
        >>> count.add(np.array([3, 5, 3], dtype=np.uint64))
        >>> count.add(np.array([5, 7], dtype=np.uint64))
        >>> count.number
        3
    """

    def __init__(self) -> None:
        self._seen = np.empty(0, dtype=np.uint64)
        self._new: list[np.ndarray] = []

    def add(self, checksums: np.ndarray) -> None:
        """Add checksums, of type uint64."""
        self._new.append(np.unique(checksums))
        # rarely, since merging sorts all
        if sum(map(len, self._new)) > max(len(self._seen), MERGE_SIZE):
            self._merge()

    @property
    def number(self) -> int:
        """The number of distinct checksums."""
        self._merge()
        return len(self._seen)

    def _merge(self) -> None:
        self._seen = np.unique(np.concatenate([self._seen, *self._new]))
        self._new = []


class Fingerprint:
    """A checksum of the columns of a table that comes in parts, whatever their size.

    Example:
        >>> whole, parts = Fingerprint(), Fingerprint()
        >>> table = pa.table({"query": ["sort", "plot"]})
        >>> whole.update(table)
        >>> parts.update(table[:1])
        >>> parts.update(table[1:])
        >>> whole.hexdigest() == parts.hexdigest()
        True
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {}

    def update(self, table: pa.Table) -> None:
        """Add rows, always with the same columns."""
        for name in table.column_names:
            parts = _column_bytes(table[name])
            if name not in self._columns:
                self._columns[name] = [hashlib.sha256() for _ in parts]
            # a checksum for each column, so that the size of parts does not matter
            for checksum, part in zip(self._columns[name], parts, strict=True):
                checksum.update(part)

    def hexdigest(self) -> str:
        """Return the checksum of all, of 16 characters."""
        fingerprint = hashlib.sha256()
        for name, checksums in self._columns.items():
            fingerprint.update(name.encode())
            for checksum in checksums:
                fingerprint.update(checksum.digest())
        return fingerprint.hexdigest()[:16]


def _column_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """Return the bytes of numbers; or of texts one after another, and of their lengths, which tell them apart."""
    if not pa.types.is_string(column.type):
        return [column.to_numpy().tobytes()]
    texts, lengths = [], []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        places = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        lengths.append(np.diff(places).astype("<i4").tobytes())
        # there is no buffer where all texts are empty
        if data is not None:
            texts.append(data.to_pybytes()[places[0] : places[-1]])
    return [b"".join(texts), b"".join(lengths)]


class _ArrowFile:
    """An Arrow file with the columns of the first table that is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: pa.RecordBatchStreamWriter | None = None

    def write(self, table: pa.Table) -> None:
        if self._stream is None:
            self._stream = pa.ipc.new_stream(self._path, table.schema)
        self._stream.write_table(table)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


@contextmanager
def _shared_folder(folder: Path) -> Iterator[Path]:
    """Make a folder atomically; where another process made the same one meanwhile, that one stays."""
    with ExitStack() as stack:
        try:
            unfinished = stack.enter_context(atomic_folder(folder, doing="making triples", wait=True))
        except FileExistsError:
            # the process that was waited for has made them
            unfinished = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield unfinished


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """Say how many rows were dropped, and why.

    Args:
        dropped: How many rows were dropped, by reason.

    Returns:
        Numbers and reasons, for a sentence.

    Example:
        >>> describe_dropped({"duplicate row": 2, "no text in 'query'": 1})
        "2 x duplicate row, 1 x no text in 'query'"
    """
    return ", ".join(f"{number} x {reason}" for reason, number in dropped.items())
