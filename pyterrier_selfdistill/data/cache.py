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
from .checksums import DistinctCount, Fingerprint
from .columns import text_columns

logger = logging.getLogger(__name__)

CACHE_FORMAT = 4
"""Changes when the same source and settings give other triples, or another summary."""

PAIR_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""What the checksum of a query is multiplied with, to combine it with that of a positive."""


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

    @property
    def room(self) -> int | None:
        """How many more triples are kept; any number if None."""
        if self._limit is None:
            return None
        return self._limit - self.triples

    def read(self, number: int) -> None:
        """Count rows that were read; each of them is to be dropped or added."""
        self._read += number

    def drop(self, reason: str, number: int) -> None:
        """Count rows that make no triple."""
        if number:
            self.dropped[reason] += number

    def add(self, rows: pa.Table) -> None:
        """Keep the rows that can be trained with, up to the limit, and drop others.

        Args:
            rows: Texts, and perhaps labels, in the columns of triples.
        """
        trimmed = {}
        for name in text_columns(rows):
            trimmed[name] = pc.utf8_trim_whitespace(pc.fill_null(rows[name], ""))
        # checked before the limit, so that it is of triples and not of rows
        usable = self.find_usable(pa.table(trimmed), "")
        kept = rows.filter(pa.array(usable)).slice(0, self.room)
        # checksums, since the texts themselves would fill the memory
        queries, positives = map(_checksums_of, (kept["query"], kept["positive"]))
        self.keep(kept, queries, positives)

    def find_usable(self, trimmed: pa.Table, empty: Any) -> np.ndarray:
        """Mark the rows that can be trained with; count the others under the first fault that they have.

        Args:
            trimmed: What stands for the texts, as :func:`find_faults` takes it.
            empty: What stands for no text.

        Returns:
            True for each row that can be kept.
        """
        usable = np.ones(len(trimmed), dtype=bool)
        for reason, is_faulty in find_faults(trimmed, empty):
            self.drop(reason, int((usable & is_faulty).sum()))
            usable &= ~is_faulty
        return usable

    def keep(
        self, rows: pa.Table, queries: np.ndarray, positives: np.ndarray, identifiers: pa.Table | None = None
    ) -> None:
        """Keep rows that can be trained with, no more than there is room for.

        Args:
            rows: Texts, and perhaps labels, in the columns of triples. They are counted and fingerprinted, and written
                if there are no identifiers.
            queries: The checksums of the texts of queries, uint64.
            positives: Those of positives.
            identifiers: What to write in place of the rows: as many, in the same order.
        """
        self._queries.add(queries)
        # one checksum of both; an odd factor, so that none is lost
        self._positives.add(queries * PAIR_FACTOR + positives)
        self._negatives = len(text_columns(rows)) - 2
        self.triples += len(rows)
        self._fingerprint.update(rows)
        if identifiers is None:
            self._write(rows)
        else:
            self._write(identifiers)

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


def find_faults(trimmed: pa.Table, empty: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Find out why rows cannot be trained with.

    Args:
        trimmed: What stands for the texts, without white space around, in the columns of triples: the texts, or their
            checksums.
        empty: What stands for no text.

    Yields:
        The reason, and which rows.

    Example:
        >>> rows = pa.table({"query": ["a", ""], "positive": ["c", "d"], "negative": ["c", "e"]})
        >>> [(reason, is_faulty.tolist()) for reason, is_faulty in find_faults(rows, "") if is_faulty.any()]
        [("no text in 'query'", [False, True]), ('negative with the text of the positive', [True, False])]
    """
    names = trimmed.column_names
    for name in names:
        yield f"no text in {name!r}", pc.equal(trimmed[name], empty).to_numpy(zero_copy_only=False)
    for name in names[2:]:
        is_equal = pc.equal(trimmed[name], trimmed["positive"])
        yield "negative with the text of the positive", is_equal.to_numpy(zero_copy_only=False)


def _checksums_of(texts: pa.ChunkedArray) -> np.ndarray:
    return pd.util.hash_array(texts.to_numpy(), categorize=False)


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
