"""Training triples from docpairs, identifiers, texts and files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import math
import numbers
import re
import reprlib
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pyterrier as pt
from datasets import Dataset, DatasetDict
from ir_datasets.formats import GenericDocPair, TsvDocPairs
from more_itertools import always_iterable, chunked, duplicates_everseen, sliced

from ..utils.checks import (
    FieldNames,
    PositiveInteger,
    Seed,
    checked,
    is_missing,
    require_distinct_columns,
    require_topics,
)
from ..utils.compat import combine_checksums
from ..utils.folders import atomic_folder
from ..utils.processes import is_first
from .corpus import Corpus, Documents

LABEL = "label"
"""The column of numbers beside the texts, as sentence-transformers names what it gives to losses."""

TEXT_QUERY = ("query", "anchor")
"""How the first column of texts may be called, best first."""

IDENTIFIER_QUERY = ("qid", "query")
"""How the first column of identifiers may be called, best first."""

NEGATIVE = r"negative(_\d+)?"
"""How columns of negatives are called."""


def column_names(number: int) -> list[str]:
    """Name the columns of triples.

    Args:
        number: How many columns there are: 2 + K, for K negatives.

    Returns:
        The names.

    Raises:
        ValueError: If there are fewer than three.

    Example:
        >>> column_names(4)
        ['query', 'positive', 'negative_1', 'negative_2']
    """
    if number < 3:
        raise ValueError(
            f"expected rows of a query, a positive and one or more negatives, got rows of {number} texts; "
            "check what separates the columns, or name them"
        )
    if number == 3:
        return ["query", "positive", "negative"]
    negatives = [f"negative_{position}" for position in range(1, number - 1)]
    return ["query", "positive", *negatives]


def select_columns(table: pa.Table, query_names: Sequence[str] = TEXT_QUERY) -> pa.Table:
    """Select the columns of triples, in the order that losses expect, as strings.

    Args:
        table: Columns with names of triples, or numbered ones (``"0"``, ``"1"``, ...) in the order of triples.
        query_names: How the first column may be called; the first of these that the table has is taken.

    Returns:
        A table with the columns ``query``, ``positive`` and those of negatives.

    Raises:
        ValueError: If a column is missing, or two have the same name.
        TypeError: If a column holds something else than strings.

    Example:
        >>> table = pa.table({"negative": ["plot"], "anchor": ["sort"], "positive": ["sort rows"], "score": [0.5]})
        >>> select_columns(table).to_pylist()
        [{'query': 'sort', 'positive': 'sort rows', 'negative': 'plot'}]
    """
    repeated = sorted(duplicates_everseen(table.column_names))
    if repeated:
        raise ValueError(f"triples must have distinct columns, got {repeated} more than once; rename or drop some")
    # readers number the columns of files and tuples without names
    if all(name.isdecimal() for name in table.column_names):
        table = table.rename_columns(column_names(table.num_columns))
    queries = [name for name in query_names if name in table.column_names]
    negatives = [name for name in table.column_names if re.fullmatch(NEGATIVE, name)]
    if not queries or not negatives or "positive" not in table.column_names:
        raise ValueError(
            "triples must have the columns 'query' (or 'anchor'; 'qid' for identifiers), 'positive', and 'negative' or "
            f"'negative_1', 'negative_2', ..., got {table.column_names}"
        )
    # not as strings, where negative_10 is before negative_2
    negatives.sort(key=_negative_number)
    names = ["query", "positive", *negatives]
    table = table.select([queries[0], "positive", *negatives]).rename_columns(names)
    for field in table.schema:
        if not _holds_strings(field.type):
            raise TypeError(f"column {field.name!r} must hold texts, got {field.type}; training needs texts in {names}")
    # readers and fingerprints know one type of strings only
    return table.cast(pa.schema(dict.fromkeys(names, pa.string())))


def add_label(texts: pa.Table, table: pa.Table) -> pa.Table:
    """Add the labels of a table to its texts, if it has some.

    Args:
        texts: The texts.
        table: The table that they were selected from, perhaps with labels.

    Returns:
        The texts, with a column :data:`LABEL` of float32 if there are labels.

    Raises:
        TypeError: If a label is not a finite number, or missing.
    """
    if LABEL not in table.column_names:
        return texts
    labels = table.column(LABEL)
    try:
        numbers = labels.cast(pa.float32())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = pa.nulls(len(labels), pa.float32())
    is_number = pc.fill_null(pc.is_finite(numbers), False)
    if pa.types.is_boolean(labels.type) or not pc.all(is_number).as_py():
        raise label_error(f"{labels.type}, {labels.null_count} missing")
    return texts.append_column(LABEL, numbers)


def label_error(got: str, where: str = "") -> TypeError:
    """Make the error of a label that is not a number."""
    return TypeError(
        f"{where}column {LABEL!r} must hold a number in every row, got {got}; drop the rows without one, or the column "
        "if the loss needs none"
    )


def text_columns(table: pa.Table) -> list[str]:
    """List the columns of a table of triples, without the label."""
    return [name for name in table.column_names if name != LABEL]


def string_table(columns: Mapping[str, Sequence[str | float | None]]) -> pa.Table:
    """Make a table of columns of strings, with the label as numbers."""
    types = dict.fromkeys(columns, pa.string())
    if LABEL in types:
        types[LABEL] = pa.float64()
    try:
        return pa.table(dict(columns), schema=pa.schema(types))
    except UnicodeEncodeError as error:
        half = error.object
    names = [name for name, texts in columns.items() if half in texts]
    raise ValueError(
        f"column {', '.join(names)} must hold whole characters, got half of one in {reprlib.repr(half)}; read texts as "
        "UTF-8"
    )


def _negative_number(name: str) -> int:
    """Return K of ``negative_K``, and 0 of ``negative``."""
    number = name.partition("_")[2]
    return int(number or 0)


def _holds_strings(kind: pa.DataType) -> bool:
    """Say whether a type is of strings; a column without any value has the type null."""
    if pa.types.is_dictionary(kind):
        # how pandas writes categories
        kind = kind.value_type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in kinds)


MERGE_SIZE = 100_000
"""How many new checksums are kept before they are merged into those that were seen."""


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
        work: list[tuple[Any, list[Any]]] = []
        for name in table.column_names:
            parts = _column_bytes(table[name])
            if name not in self._columns:
                self._columns[name] = [hashlib.sha256() for _ in parts]
            # a checksum for each column, so that the size of parts does not matter
            work += zip(self._columns[name], parts, strict=True)
        # hashlib computes without the lock of the interpreter
        with ThreadPoolExecutor(len(work)) as pool:
            list(pool.map(_update_checksum, work))

    def hexdigest(self) -> str:
        """Return the checksum of all, of 16 characters."""
        fingerprint = hashlib.sha256()
        for name, checksums in self._columns.items():
            fingerprint.update(name.encode())
            for checksum in checksums:
                fingerprint.update(checksum.digest())
        return fingerprint.hexdigest()[:16]


def _update_checksum(work: tuple[Any, list[Any]]) -> None:
    checksum, buffers = work
    for buffer in buffers:
        checksum.update(buffer)


def _column_bytes(column: pa.ChunkedArray) -> list[list[Any]]:
    """Return the bytes of numbers; or of texts one after another, and of their lengths, which tell them apart."""
    if not pa.types.is_string(column.type):
        return [[column.to_numpy().tobytes()]]
    texts, lengths = [], []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        places = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        lengths.append(np.diff(places).astype("<i4").tobytes())
        # there is no buffer where all texts are empty
        if data is not None:
            texts.append(memoryview(data)[places[0] : places[-1]])
    return [texts, lengths]


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
            - ``dropped``, how many did not;
            - ``queries``, ``positives`` (of a query) and ``negatives`` (of a triple);
            - ``fingerprint``, a checksum of all texts, and labels, in their order.
    """

    dataset: Dataset | DatasetDict
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
        1
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
            "dropped": self.dropped.total(),
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


ROWS = 10_000
"""How many rows are read at once."""

TEXT_COLUMNS = ("query", "anchor", "positive", "negative", "qid")
"""How the names of columns begin that must hold texts, beside columns without names."""


LONGEST_CELL = 2**24
"""How many characters a cell of a CSV file may have, so that a quote without its end does not fill the memory."""

GZIP = b"\x1f\x8b"
"""How gzip files begin, and no text in UTF-8 does."""


def read_tables(path: Path, *, labels: bool = True) -> Iterator[pa.Table]:
    r"""Read a file.

    Args:
        path: The file; its suffix says what it holds.
        labels: Whether labels are read, if the file has some.

    Returns:
        Tables of strings, and labels as numbers. Columns without names are called ``0``, ``1`` and so on.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If it is a folder.
        ValueError: If the file is of another kind or damaged, or a line is malformed.
        TypeError: If a line holds something else than texts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "triples.tsv"
        ...     _ = path.write_text("sort\tsort rows\tplot a file\n")
        ...     next(read_tables(path)).to_pylist()
        [{'0': 'sort', '1': 'sort rows', '2': 'plot a file'}]
    """
    if path.is_dir():
        raise IsADirectoryError(
            f"expected a file to read triples from, got the folder {str(path)!r}; give a file in it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} to read triples from")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet_tables(path)
    if name.endswith((".jsonl", ".json")):
        return tables_of(_json_rows(path), labels=labels)
    if name.endswith(".csv"):
        return tables_of(_with_header(_csv_rows(path)), labels=labels)
    if name.endswith(".tsv"):
        return tables_of(_with_header(_tsv_rows(path)), labels=labels)
    raise ValueError(f"expected a file named .tsv, .csv, .jsonl or .parquet (.gz may follow), got {str(path)!r}")


def tables_of(rows: Iterable[tuple[str, Any]], *, labels: bool = True) -> Iterator[pa.Table]:
    """Make tables of rows.

    Args:
        rows: Where a row stands, for errors, and the row: a mapping, or a sequence of texts without names.
        labels: Whether labels are kept, if the rows have some.

    Yields:
        Tables with the columns of the first row; other columns of later rows are left out.

    Raises:
        TypeError: If a row is something else, or holds something else than texts and a number as label.
        ValueError: If a row lacks a column that the first one has, or has more texts without names than that; or if a
            text cannot be encoded.

    Example:
        >>> next(tables_of([("row 0", ("sort", "sort rows"))])).to_pylist()
        [{'0': 'sort', '1': 'sort rows'}]
    """
    names: list[str] = []
    for chunk in chunked(rows, ROWS):
        columns: dict[str, list[str | float | None]] = {}
        for where, row in chunk:
            record = _to_record(where, row)
            # the first row decides for all parts, so that their tables have the same columns
            names = names or [name for name in record if labels or name != LABEL]
            _require_same_columns(where, row, record, names)
            for name in names:
                columns.setdefault(name, []).append(_to_value(where, name, record[name]))
        yield string_table(columns)


def _to_record(where: str, row: Any) -> Mapping[str, Any]:
    """Return a row as a mapping; texts without names are numbered."""
    if isinstance(row, str) or not isinstance(row, Mapping | Sequence):
        raise TypeError(f"{where} is {row!r}; give tuples or dictionaries of query, positive and negative texts")
    if not row:
        raise ValueError(f"{where} is empty; give a query, a positive and a negative text")
    if isinstance(row, Mapping):
        others = [name for name in row if not isinstance(name, str)]
        if others:
            raise TypeError(f"{where} must have names of columns that are strings, got {others}")
        return row
    return {str(position): text for position, text in enumerate(row)}


def _require_same_columns(where: str, row: Any, record: Mapping[str, Any], names: Sequence[str]) -> None:
    if not isinstance(row, Mapping) and len(row) != len(names):
        raise ValueError(f"{where} has {len(row)} texts, the first one has {len(names)}; make them the same")
    missing = sorted(set(names) - record.keys())
    if missing:
        raise ValueError(f"{where} has {list(record)}; {missing} of the first row is missing")


def _to_value(where: str, name: str, value: Any) -> str | float | None:
    """Return a text or a label, or None where it is missing or of a column that is not used."""
    if name == LABEL:
        return _to_label(where, value)
    if isinstance(value, str):
        if not value.isascii():
            _require_characters(where, name, value)
        return value
    is_used = name.startswith(TEXT_COLUMNS) or name.isdecimal()
    if is_used and not is_missing(value):
        raise TypeError(f"{where}, column {name!r}, holds {value!r}, a {type(value).__name__}; training needs texts")
    return None


def _to_label(where: str, value: Any) -> float:
    """Return a label as a number; those of text files are strings."""
    number = math.nan
    if isinstance(value, numbers.Real | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise label_error(repr(value), f"{where}, ")
    return number


def _require_characters(where: str, name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{where}, column {name!r}, has half a character, {half!r}, at position {error.start}; write whole ones"
        ) from None


def _parquet_tables(path: Path) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS):
                # strings that are not UTF-8 would be an error only when they are used
                batch.validate(full=True)
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); write it anew") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for where, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_distinct_keys)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}); write one object a line") from None
        if isinstance(row, list) and any(isinstance(item, dict | list) for item in row):
            raise ValueError(f"{where} is a JSON array of rows; write one object a line")
        yield where, row


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"the keys {[key for key, _ in pairs]} are not distinct")
    return record


def _with_header(rows: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[str, Any]]:
    """Name the cells of rows where the first row is a header."""
    header: list[str] = []
    for position, (where, row) in enumerate(rows):
        if position == 0:
            names = [cell.strip().lower() for cell in row]
            if _is_header(names):
                header = _distinct_names(where, names)
                continue
        if not header:
            yield where, row
            continue
        if len(row) != len(header):
            raise ValueError(f"{where} has {len(row)} columns, the header has {len(header)}; make them the same")
        yield where, dict(zip(header, row, strict=True))


def _is_header(names: Sequence[str]) -> bool:
    """Say whether cells are names of columns; if ``positive`` is missing, that is an error later."""
    names_query = bool({*TEXT_QUERY, *IDENTIFIER_QUERY}.intersection(names))
    names_negative = any(re.fullmatch(NEGATIVE, name) for name in names)
    return "positive" in names or (names_query and names_negative)


def _distinct_names(where: str, names: list[str]) -> list[str]:
    repeated = list(duplicates_everseen(names))
    if repeated:
        raise ValueError(f"{where}, the header, has {repeated} more than once; rename or drop some")
    return names


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    lines = (f"{line}\n" for _, line in _lines(path))
    # of the whole process; cells that are this long are documents, which TSV may have as well
    csv.field_size_limit(max(LONGEST_CELL, csv.field_size_limit()))
    reader = csv.reader(lines, strict=True)
    # a quoted cell may span lines
    first_line = 1
    try:
        for row in reader:
            if row:
                yield f"{path}, line {first_line}", row
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {first_line}: not CSV ({error}); quote cells with commas, quotes or line breaks"
        ) from None


def _tsv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    for where, line in _lines(path):
        # quotes are texts here, as in the files of MS MARCO
        if line:
            yield where, line.split("\t")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Read the lines of a text file, and where each stands."""
    # the first line may begin with a byte order mark
    encoding = "utf-8-sig"
    number = 0
    with _open_text(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield f"{path}, line {number}", _decode(f"{path}, line {number}", line, encoding)
                encoding = "utf-8"
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged or cut off after line {number} ({error}); compress it anew") from None


def _open_text(path: Path) -> BinaryIO:
    """Open a file, whether it is compressed or not."""
    if is_gzip(path):
        return cast(BinaryIO, gzip.open(path))
    return path.open("rb")


def is_gzip(path: Path) -> bool:
    """Say whether a file is compressed, by what it begins with, since names are changed."""
    with path.open("rb") as file:
        return file.read(len(GZIP)) == GZIP


def _decode(where: str, line: bytes, encoding: str) -> str:
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 ({error.reason} at byte {error.start}); convert the file to it"
        ) from None
    if "\0" in text:
        raise ValueError(f"{where} has a NUL, which no text has; convert the file to UTF-8, or write it anew")
    return text.rstrip("\r\n")


DOCPAIRS = 200_000
"""How many docpairs of an iterator are read at once."""

BLOCK = 2**23
"""How many bytes of a file are read at once."""


class Docpairs:
    """The training pairs of a dataset, in parts, which can be read again.

    Args:
        reference: The dataset of ir_datasets, which has docpairs.
        verbose: Whether to show a progress bar.
    """

    def __init__(self, reference: Any, *, verbose: bool = False) -> None:
        self._reference = reference
        self._verbose = verbose

    def __iter__(self) -> Iterator[pa.Table]:
        """Read all pairs, from the first one on.

        Yields:
            Tables of identifiers: ``query``, ``positive``, ``negative``.

        Raises:
            ValueError: If the file of the pairs is damaged.
        """
        tables = self._tables_of_iterator()
        if has_own_file(self._reference):
            tables = _tables_of_file(Path(self._reference.docpairs_path()))
        with pt.tqdm(desc="Reading docpairs", unit="pair", disable=not self._verbose) as bar:
            for table in tables:
                yield table
                bar.update(len(table))

    def _tables_of_iterator(self) -> Iterator[pa.Table]:
        identifiers = attrgetter("query_id", "doc_id_a", "doc_id_b")
        names = column_names(3)
        for chunk in chunked(self._reference.docpairs_iter(), DOCPAIRS):
            columns = zip(*map(identifiers, chunk), strict=True)
            yield string_table(dict(zip(names, columns, strict=True)))


def has_own_file(reference: Any) -> bool:
    """Say whether a dataset's pairs are the lines of a file, all of them and as they are.

    Args:
        reference: The dataset of ir_datasets, which has docpairs.

    Returns:
        True for the class of ir_datasets that reads such files. A class that is made of it may leave lines out, and
        ``msmarco-passage/train/medical`` has no such class.
    """
    handler = reference.docpairs_handler()
    return type(handler) is TsvDocPairs and handler.docpairs_cls() is GenericDocPair


def _tables_of_file(path: Path) -> Iterator[pa.Table]:
    """Read lines of three identifiers, compressed or not."""
    if path.stat().st_size == 0:
        return
    names = column_names(3)
    compression = None
    if is_gzip(path):
        compression = "gzip"
    try:
        with (
            pa.input_stream(path, compression=compression) as stream,
            pyarrow.csv.open_csv(
                stream,
                pyarrow.csv.ReadOptions(column_names=names, block_size=BLOCK),
                # quotes are part of identifiers, as for ir_datasets
                pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
                pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            ) as batches,
        ):
            for batch in batches:
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as lines of query, positive and negative with tabs between ({error}); remove it, "
            "so that ir_datasets downloads it again"
        ) from None


BUCKETS = 256
"""Into how many files rows are sorted on disk; the rows of one file are in memory at once."""

BUCKET_SHIFT = np.uint64(64 - 8)
"""By how many bits a checksum is shifted to leave the number of its bucket."""


class Part(NamedTuple):
    """Rows in their new order.

    Attributes:
        rows: The rows.
        checksums: The checksums of each column, uint64, of shape ``(rows,)``.
    """

    rows: pa.Table
    checksums: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> Part:
        """Take some of the rows, by position."""
        checksums = {name: column[rows] for name, column in self.checksums.items()}
        return Part(self.rows.take(pa.array(rows)), checksums)

    def slice(self, start: int, size: int) -> Part:
        """Take the rows of a range."""
        checksums = {name: column[start : start + size] for name, column in self.checksums.items()}
        return Part(self.rows.slice(start, size), checksums)

    def distinct(self) -> Part:
        """Leave out rows that are equal to the one before."""
        is_equal = np.ones(max(len(self.rows) - 1, 0), dtype=bool)
        for column in self.checksums.values():
            is_equal &= column[1:] == column[:-1]
        if not is_equal.any():
            return self
        return self.take(np.flatnonzero(np.append(True, ~is_equal)))


class ExternalShuffle:
    """Rows of strings on disk, in an order that looks random.

    Rows are added a table at a time, then read a part at a time. All parts one after another are in the order of the
    checksums; equal rows have the same checksum, and are next to each other in the same part. Leaving the context
    removes the files.

    Whoever needs the first rows only says how many are ``enough``: only these, and the few others of their last file,
    are ever kept. Where they turn out to be too few, another shuffle of the same rows goes on with the file after.

    Args:
        seed: Which of the orders.
        start: The first file, of :data:`BUCKETS`, whose rows are kept.
        enough: How many rows suffice; all if None.

    Attributes:
        rows: How many rows were added, kept or not.
        stop: The file after the last one whose rows are kept.

    Example:
        >>> with ExternalShuffle(seed=1) as shuffle:
        ...     shuffle.add(pa.table({"query": ["q1", "q2", "q3", "q4"]}))
        ...     parts = [part.rows for part in shuffle.parts()]
        >>> pa.concat_tables(parts)["query"].to_pylist()
        ['q3', 'q4', 'q2', 'q1']
    """

    def __init__(self, seed: int, *, start: int = 0, enough: int | None = None) -> None:
        # pandas takes a key of exactly 16 characters
        self._hash_key = f"{seed:016d}"[-16:]
        self._start = start
        self._enough = enough
        self._sizes = np.zeros(BUCKETS, dtype=int)
        self.stop = BUCKETS
        self.rows = 0

    def __enter__(self) -> ExternalShuffle:
        self._folder = tempfile.TemporaryDirectory(prefix="triples-")
        self._open_files = ExitStack()
        self._buckets: dict[int, pa.RecordBatchStreamWriter] = {}
        return self

    def __exit__(self, *error: object) -> None:
        self._open_files.close()
        self._folder.cleanup()

    @property
    def kept(self) -> int:
        """How many rows there are to read."""
        return int(self._sizes.sum())

    def add(self, table: pa.Table) -> None:
        """Add rows; a missing value becomes an empty string."""
        self.rows += len(table)
        names = table.column_names
        columns = {name: pc.fill_null(table.column(name), "") for name in names}
        checksums = {name: self._checksums(column) for name, column in columns.items()}
        # the first bits of the checksum, so that the order of buckets is that of their checksums
        buckets = (combine_checksums(list(checksums.values())) >> BUCKET_SHIFT).astype(np.uint8)
        kept = np.flatnonzero((buckets >= self._start) & (buckets < self.stop))
        by_bucket = kept[np.argsort(buckets[kept], kind="stable")]
        sizes = np.bincount(buckets[kept], minlength=BUCKETS)
        for name, column in checksums.items():
            columns[f"{name} checksum"] = pa.array(column)
        self._write(pa.table(columns).take(pa.array(by_bucket)), sizes)
        self._sizes += sizes
        self._drop_last()

    def parts(self) -> Iterator[Part]:
        """Read all rows in their new order; nothing can be added after.

        Yields:
            The rows of one file, which is removed.
        """
        self._open_files.close()
        for path in sorted(Path(self._folder.name).iterdir()):
            with pa.ipc.open_stream(path) as stream:
                table = stream.read_all()
            # while triples are written, so that the disk never holds all pairs twice
            path.unlink()
            yield _sort(table)

    def _checksums(self, column: pa.ChunkedArray) -> np.ndarray:
        texts = column.to_numpy(zero_copy_only=False)
        return pd.util.hash_array(texts, hash_key=self._hash_key, categorize=False)

    def _write(self, rows: pa.Table, sizes: np.ndarray) -> None:
        """Write rows, of which the next ``sizes`` belong to each bucket, to the file of it."""
        start = 0
        for bucket in np.flatnonzero(sizes).tolist():
            if bucket not in self._buckets:
                file = pa.ipc.new_stream(self._path(bucket), rows.schema)
                self._buckets[bucket] = self._open_files.enter_context(file)
            self._buckets[bucket].write_table(rows.slice(start, sizes[bucket]))
            start += sizes[bucket]

    def _drop_last(self) -> None:
        """Remove the last files, as long as those before have enough rows."""
        if self._enough is None:
            return
        has_enough = np.cumsum(self._sizes) >= self._enough
        if not has_enough.any():
            return
        stop = int(np.argmax(has_enough)) + 1
        for bucket in range(stop, self.stop):
            if bucket in self._buckets:
                self._buckets[bucket].close()
                self._path(bucket).unlink()
        self._sizes[stop:] = 0
        self.stop = stop

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:03}.arrow"


def _sort(table: pa.Table) -> Part:
    """Sort the rows of a file."""
    names = table.column_names[: table.num_columns // 2]
    checksums = {name: table[f"{name} checksum"].to_numpy() for name in names}
    combined = combine_checksums(list(checksums.values()))
    order = np.argsort(combined)
    by_checksum = combined[order]
    if (by_checksum[1:] == by_checksum[:-1]).any():
        # the columns decide among rows of the same checksum
        keys = [("checksum", "ascending"), *((name, "ascending") for name in names)]
        with_checksum = table.select(names).append_column("checksum", pa.array(combined))
        order = pc.sort_indices(with_checksum, sort_keys=keys).to_numpy()
    return Part(table.select(names), checksums).take(order)


TEXT_LOOKUPS = 20_000
"""How many texts are looked up at once."""


class TextTable:
    """Texts by the checksums of their identifiers, in a file that goes with the context.

    A text has a position, by which arrays of numpy say what is to be known of it: 36 bytes for each text. Checksums
    stand for identifiers: of ten million, two have the same with a probability of 3 in a million.

    Args:
        read: Looks texts up, by identifiers; what it does not know has no text.

    Attributes:
        checksums: A checksum of each text, uint64.
        trimmed: A checksum of each text without white space around, uint64; 0 if nothing is left.

    Example:
        >>> known = {"d1": "sort rows", "d2": "plot "}
        >>> with TextTable(lambda identifiers: known) as table:
        ...     rows = table.find(pa.array(["d2", "d1", "d9"]), np.array([7, 3, 5], dtype=np.uint64))
        ...     texts = table.take(rows)
        >>> texts.to_pylist()
        ['plot ', 'sort rows', '']
    """

    def __init__(self, read: Callable[[list[str]], Mapping[str, str]]) -> None:
        self._read = read
        # of identifiers, sorted, and the positions of their texts
        self._identifiers = np.empty(0, dtype=np.uint64)
        self._positions = np.empty(0, dtype=np.int32)
        self._ends = np.zeros(1, dtype=np.int64)
        self.checksums = np.empty(0, dtype=np.uint64)
        self.trimmed = np.empty(0, dtype=np.uint64)

    def __enter__(self) -> TextTable:
        self._folder = tempfile.TemporaryDirectory(prefix="texts-")
        self._path = Path(self._folder.name) / "texts"
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._folder.cleanup()

    def __len__(self) -> int:
        return len(self.checksums)

    def find(self, identifiers: pa.Array | pa.ChunkedArray, checksums: np.ndarray) -> np.ndarray:
        """Find the positions of texts, which are looked up if they are not there.

        Args:
            identifiers: The identifiers.
            checksums: Their checksums, uint64, of shape ``(len(identifiers),)``.

        Returns:
            The positions, of the same shape; also for identifiers without a text.
        """
        distinct, first, which = np.unique(checksums, return_index=True, return_inverse=True)
        places = np.searchsorted(self._identifiers, distinct)
        is_known = np.zeros(len(distinct), dtype=bool)
        is_inside = places < len(self._identifiers)
        is_known[is_inside] = self._identifiers[places[is_inside]] == distinct[is_inside]
        if not is_known.all():
            self._append(identifiers.take(pa.array(first[~is_known])))
            new = np.arange(len(self) - int((~is_known).sum()), len(self), dtype=np.int32)
            self._identifiers = np.insert(self._identifiers, places[~is_known], distinct[~is_known])
            self._positions = np.insert(self._positions, places[~is_known], new)
            places = np.searchsorted(self._identifiers, distinct)
        return self._positions[places][which]

    def take(self, positions: np.ndarray) -> pa.Array:
        """Take texts by their positions; those that are not there are empty."""
        if self._ends[-1] == 0:
            return pa.array([""] * len(positions), pa.string())
        self._file.flush()
        data = pa.py_buffer(np.memmap(self._path, mode="r"))
        texts = pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(self._ends), data)
        return texts.take(pa.array(positions)).cast(pa.string())

    def _append(self, identifiers: pa.Array | pa.ChunkedArray) -> None:
        """Look texts up and write them, in the order of their identifiers."""
        for some in sliced(identifiers.to_pylist(), TEXT_LOOKUPS):
            found = self._read(some)
            texts = string_table({"text": list(map(found.get, some))})["text"].fill_null("")
            lengths = pc.binary_length(texts).to_numpy().astype(np.int64)
            for chunk in texts.chunks:
                self._file.write(_bytes_of(chunk))
            self._ends = np.append(self._ends, self._ends[-1] + np.cumsum(lengths))
            checksums = _text_checksums(texts)
            trimmed = pc.utf8_trim_whitespace(texts)
            trimmed_checksums = _text_checksums(trimmed)
            trimmed_checksums[pc.equal(trimmed, "").to_numpy()] = 0
            self.checksums = np.append(self.checksums, checksums)
            self.trimmed = np.append(self.trimmed, trimmed_checksums)


def _bytes_of(texts: pa.Array) -> memoryview:
    """Return the bytes of all texts of an array that is no part of another."""
    data = texts.buffers()[2]
    if data is None:
        # where all are empty
        return memoryview(b"")
    return memoryview(data)


def _text_checksums(texts: pa.ChunkedArray) -> np.ndarray:
    return pd.util.hash_array(texts.to_numpy(zero_copy_only=False), categorize=False)


TEXTS = 20_000
"""How many triples get their texts at once."""

LOOKUPS = 200_000
"""Of how many pairs the texts are looked up at once."""

MARGIN = 2
"""How many times as many pairs as triples are wanted are shuffled, at least: some have no text, or too many others."""

NO_TEXT = pa.scalar(0, pa.uint64())
"""What stands for no text where checksums stand for texts."""


@checked
@dataclass(frozen=True)
class PairOptions:
    """How pairs of identifiers become triples.

    Args:
        max_pairs_per_query: How many pairs to keep of each query, of those that can be trained with; all if None.
        limit: How many triples to keep in all; all if None.
        seed: Which pairs are kept, and their order.
        fields: The fields that make the text of a document, such as ``("title", "text")``, joined by a space.
        store_texts: Whether the texts are stored. If not, only identifiers are, and each batch looks its texts up while
            training goes on: the same triples, from a tenth of the disk and less.
        verbose: Whether to show progress bars.

    Raises:
        ValueError: If an option is not of its type, or a number not positive.

    Example:
        >>> PairOptions(limit=0)
        Traceback (most recent call last):
        ValueError: limit must be a positive integer, got 0
    """

    max_pairs_per_query: PositiveInteger | None = None
    limit: PositiveInteger | None = None
    seed: Seed = 42
    fields: FieldNames = ("text",)
    store_texts: bool = True
    verbose: bool = False

    def settings(self) -> dict[str, Any]:
        """Return what the triples depend on, for their summary."""
        return {
            "max_pairs_per_query": self.max_pairs_per_query,
            "limit": self.limit,
            "seed": self.seed,
            "fields": list(self.fields),
        }


ALL_PAIRS = PairOptions()
"""All pairs, in the order of the default seed."""


class TextLookup:
    """Replaces identifiers by texts.

    It is also the transform of a dataset whose texts are not stored. Queries are read, and a docstore is opened, when
    the first batch needs them.

    Args:
        topics: The queries: a frame with ``qid`` and ``query``, or a dataset of ir_datasets.
        documents: The documents.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> lookup = TextLookup(topics, Documents([{"docno": "d1", "text": "sort rows"}], ["text"]))
        >>> lookup({"query": ["1"], "positive": ["d1"], "negative": ["d2"]})
        {'query': ['sort'], 'positive': ['sort rows'], 'negative': [None]}
    """

    def __init__(self, topics: pd.DataFrame | pt.datasets.Dataset, documents: Documents) -> None:
        self.topics = topics
        self.documents = documents

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str | None]]:
        """Look up the texts of a batch of identifiers.

        Args:
            batch: Columns of identifiers: ``query``, ``positive`` and those of negatives.

        Returns:
            The same columns of texts; None for what is not known.
        """
        docnos: set[str] = set()
        for name, identifiers in batch.items():
            if name != "query":
                docnos.update(identifiers)
        # once for all columns, since reading the docstore takes most of the time
        documents = self.documents.texts(docnos)
        texts = {}
        for name, identifiers in batch.items():
            known = documents
            if name == "query":
                known = self.queries
            texts[name] = list(map(known.get, identifiers))
        return texts

    def signature(self) -> Signature:
        """Describe queries and documents by what changes when they do; None if nothing says what the documents are."""
        documents = part_signature(self.documents.corpus, "docs")
        if documents is None:
            return None
        queries = part_signature(self.topics, "queries")
        if queries is None:
            queries = texts_signature(self.queries)
        return [queries, documents]

    def __deepcopy__(self, memo: dict[int, Any]) -> TextLookup:
        # datasets copies a transform with each view of a dataset; a corpus in memory is not to be copied
        return self

    @cached_property
    def queries(self) -> dict[str, str]:
        """The texts of all queries."""
        if isinstance(self.topics, pd.DataFrame):
            return dict(zip(self.topics["qid"], self.topics["query"], strict=True))
        reference = cast(Any, self.topics).irds_ref()
        return {query.query_id: query.default_text() for query in reference.queries_iter()}


def triples_of_pairs(
    tables: Iterable[pa.Table], pairs: Signature, lookup: TextLookup, options: PairOptions, origin: Mapping[str, Any]
) -> Triples:
    """Make triples of pairs of identifiers, or find those that were made of the same pairs and texts.

    Args:
        tables: The pairs: ``query``, ``positive`` and the columns of negatives. Those of an iterator all go to disk;
            what can be read again is read more than once if need be, so that a ``limit`` needs little disk.
        pairs: What identifies the pairs; None if nothing does.
        lookup: The texts.
        options: Which pairs to keep, and how.
        origin: The source and the settings, with which the summary begins.

    Returns:
        The triples.

    Raises:
        ValueError: If no pair has all its texts.

    Example:
        >>> pairs = pa.table({"query": ["1", "1"], "positive": ["d1", "d1"], "negative": ["d2", "d9"]})
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> lookup = TextLookup(topics, Documents(corpus, ["text"]))
        >>> triples = triples_of_pairs([pairs], None, lookup, PairOptions(), {"source": "a table"})
        >>> triples.dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
        >>> triples.summary["dropped"]
        1
    """
    cache = _find_cache(pairs, lookup, options, origin)
    if not cache.exists():
        # a docstore is built, and documents downloaded, only now that they are needed; then it has a signature
        lookup.documents.texts([])
        cache = _find_cache(pairs, lookup, options, origin)
    if not cache.exists():
        _write_pairs(tables, lookup, options, cache)
    triples = cache.load()
    if options.store_texts:
        return triples
    return Triples(triples.dataset.with_transform(lookup), triples.summary)


def _find_cache(pairs: Signature, lookup: TextLookup, options: PairOptions, origin: Mapping[str, Any]) -> TripleCache:
    texts = lookup.signature()
    if pairs is None or texts is None:
        return TripleCache(None, origin)
    return TripleCache([origin, options.store_texts, pairs, texts], origin)


def _write_pairs(tables: Iterable[pa.Table], lookup: TextLookup, options: PairOptions, cache: TripleCache) -> None:
    """Sample and shuffle pairs of identifiers, look up their texts, and write them."""
    with cache.writer(options.limit) as writer, PairTexts(lookup) as texts:
        sample = QuerySample(options.max_pairs_per_query)
        start = 0
        while start < BUCKETS and not writer.full:
            with ExternalShuffle(options.seed, start=start, enough=_enough(writer, tables)) as shuffle:
                for table in tables:
                    shuffle.add(table)
                if start == 0:
                    writer.read(shuffle.rows)
                _write_parts(shuffle, texts, sample, writer, options)
            # where the limit is not reached yet, the pairs are read again
            start = shuffle.stop


def _enough(writer: TripleWriter, tables: Iterable[pa.Table]) -> int | None:
    """Return how many pairs will probably do; all, if there is no limit, or they cannot be read again."""
    if writer.room is None or isinstance(tables, Iterator):
        return None
    return MARGIN * writer.room


def _write_parts(
    shuffle: ExternalShuffle, texts: PairTexts, sample: QuerySample, writer: TripleWriter, options: PairOptions
) -> None:
    with pt.tqdm(total=shuffle.kept, desc="Making triples", unit="pair", disable=not options.verbose) as bar:
        for part in shuffle.parts():
            # equal rows are in the same part, so that no other needs to be looked at
            distinct = part.distinct()
            writer.drop("duplicate row", len(part.rows) - len(distinct.rows))
            for start in range(0, len(distinct.rows), LOOKUPS):
                _write_rows(distinct.slice(start, LOOKUPS), texts, sample, writer, options)
                if writer.full:
                    return
            bar.update(len(part.rows))


def _write_rows(part: Part, texts: PairTexts, sample: QuerySample, writer: TripleWriter, options: PairOptions) -> None:
    """Write the rows of a part, and count those that are not kept."""
    queries = texts.find("query", part)
    has_room = sample.has_room(queries)
    positions = {"query": queries}
    for name in part.rows.column_names[1:]:
        positions[name] = np.zeros(len(queries), dtype=np.int32)
        # reading documents takes most of the time
        positions[name][has_room] = texts.find(name, part.take(np.flatnonzero(has_room)))
    for start in range(0, len(queries), TEXTS):
        block = np.arange(start, min(start + TEXTS, len(queries)))
        wanted = block[has_room[block]]
        is_first = sample.take(queries[wanted], texts.usable(positions, wanted))
        writer.drop(f"pair beyond {sample.number} of its query", len(block) - int(is_first.sum()))
        first = wanted[is_first]
        # identifiers without a text are dropped now, not while training
        usable = writer.find_usable(texts.trimmed(positions, first), NO_TEXT)
        kept = first[usable][: writer.room]
        identifiers = None
        if not options.store_texts:
            identifiers = part.rows.take(pa.array(kept))
        query_checksums = texts.checksums("query", queries[kept])
        positive_checksums = texts.checksums("positive", positions["positive"][kept])
        writer.keep(texts.take(positions, kept), query_checksums, positive_checksums, identifiers)
        if writer.full:
            break


class PairTexts:
    """The texts of pairs, each looked up once; the files that they are in go with the context.

    A text of a pair has a position, an integer. ``positions`` are those of each column, of shape ``(pairs,)``.

    Args:
        lookup: What looks them up.
    """

    def __init__(self, lookup: TextLookup) -> None:
        self._queries = TextTable(lambda identifiers: lookup.queries)
        self._documents = TextTable(lookup.documents.texts)

    def __enter__(self) -> PairTexts:
        self._stack = ExitStack()
        self._stack.enter_context(self._queries)
        self._stack.enter_context(self._documents)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def find(self, name: str, part: Part) -> np.ndarray:
        """Find the positions of the texts of a column."""
        return self._table(name).find(part.rows[name], part.checksums[name])

    def checksums(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Return the checksums of texts of a column."""
        return self._table(name).checksums[positions]

    def trimmed(self, positions: Mapping[str, np.ndarray], rows: np.ndarray) -> pa.Table:
        """Return the checksums of the texts of some rows, without white space around; :data:`NO_TEXT` if none is."""
        columns = {name: self._table(name).trimmed[column[rows]] for name, column in positions.items()}
        return pa.table(columns)

    def usable(self, positions: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Mark those of some rows that can be trained with."""
        usable = np.ones(len(rows), dtype=bool)
        for _, is_faulty in find_faults(self.trimmed(positions, rows), NO_TEXT):
            usable &= ~is_faulty
        return usable

    def take(self, positions: Mapping[str, np.ndarray], rows: np.ndarray) -> pa.Table:
        """Return the texts of some rows."""
        return pa.table({name: self._table(name).take(column[rows]) for name, column in positions.items()})

    def _table(self, name: str) -> TextTable:
        if name == "query":
            return self._queries
        return self._documents


class QuerySample:
    """The first pairs of each query that can be trained with, over all parts.

    Queries are integers from 0.

    Args:
        number: How many pairs to keep of each; all if None.

    Example:
        >>> sample = QuerySample(1)
        >>> sample.take(np.array([0, 1, 0, 1]), np.array([True, False, True, True])).tolist()
        [True, True, False, True]
        >>> sample.has_room(np.array([0, 1, 2])).tolist()
        [False, False, True]
    """

    def __init__(self, number: int | None) -> None:
        self.number = number
        self._taken = np.zeros(0, dtype=int)

    def has_room(self, queries: np.ndarray) -> np.ndarray:
        """Mark the pairs of queries that do not have enough yet."""
        if self.number is None:
            return np.ones(len(queries), dtype=bool)
        return self._count_taken(queries) < self.number

    def take(self, queries: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Mark the pairs up to those with which their queries have enough, usable or not."""
        if self.number is None:
            return np.ones(len(queries), dtype=bool)
        number = pd.Series(usable.astype(int))
        before = self._count_taken(queries) + (number.groupby(queries).cumsum() - number).to_numpy()
        is_first = before < self.number
        np.add.at(self._taken, queries[is_first & usable], 1)
        return is_first

    def _count_taken(self, queries: np.ndarray) -> np.ndarray:
        size = int(queries.max(initial=-1)) + 1
        if size > len(self._taken):
            self._taken = np.append(self._taken, np.zeros(size - len(self._taken), dtype=int))
        return self._taken[queries]


TrainingSet: TypeAlias = Dataset | DatasetDict
"""The dataset of either."""


def read_triples(
    source: Any,
    *,
    topics: pd.DataFrame | None = None,
    corpus: Corpus | None = None,
    fields: FieldNames = ("text",),
    max_pairs_per_query: PositiveInteger | None = None,
    limit: PositiveInteger | None = None,
    seed: Seed = 42,
    store_texts: bool = True,
    verbose: bool = False,
) -> Triples:
    """Read triples that are there already, whatever holds them.

    Args:
        source: A PyTerrier dataset with docpairs, identifiers if there are ``topics``, or texts; or several of these,
            by the names of their collections.
        topics: The queries of identifiers.
        corpus: The documents of identifiers.
        fields: The fields that make the text of a document, joined by a space.
        max_pairs_per_query: How many pairs of docpairs or identifiers to keep of each query.
        limit: How many triples to keep, of each collection.
        seed: Which pairs are kept, and their order.
        store_texts: Whether to store texts, or to look them up in each batch.
        verbose: Whether to show progress bars.

    Returns:
        The triples.

    Raises:
        ValueError: If identifiers come without a corpus, or an option does not fit the source.

    Example:
        >>> read_triples([("sort", "sort rows", "plot a file")]).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    options = PairOptions(max_pairs_per_query, limit, seed, fields, store_texts, verbose and is_first())
    if not isinstance(source, Mapping):
        return _read_one(source, topics, corpus, options)
    require_names(source, "source")
    if isinstance(source, DatasetDict):
        raise ValueError(
            f"a DatasetDict may hold splits of one collection, got {list(source)}: name the split to train with, such "
            "as source['train'], or give dict(source) if these are collections"
        )
    parts = {}
    for name, part in source.items():
        with in_collection(name):
            parts[name] = _read_one(part, topics, corpus, options)
    return join_collections(parts)


def _read_one(source: Any, topics: pd.DataFrame | None, corpus: Corpus | None, options: PairOptions) -> Triples:
    """Read the triples of one collection."""
    if isinstance(source, pt.datasets.Dataset):
        return from_docpairs(source, options)
    if topics is not None:
        if corpus is None:
            raise ValueError("topics= says that the source holds identifiers; give their documents as corpus=")
        return from_identifiers(source, topics, corpus, options)
    if options.max_pairs_per_query is not None:
        raise ValueError(
            f"max_pairs_per_query={options.max_pairs_per_query} needs a PyTerrier dataset with docpairs, or topics= "
            f"for identifiers; the source is a {type(source).__name__}, whose triples have no query identifiers"
        )
    return from_texts(source, limit=options.limit)


def join_collections(parts: Mapping[str, Triples]) -> Triples:
    """Put the triples of collections side by side.

    Args:
        parts: The triples of each collection, by its name.

    Returns:
        The triples of all.

    Raises:
        ValueError: If only some collections have labels.
    """
    _require_labels_in_all_or_none(parts)
    dataset = DatasetDict({name: part.dataset for name, part in parts.items()})
    return Triples(dataset, _join_summaries({name: part.summary for name, part in parts.items()}))


def require_names(collections: Mapping[Any, Any], option: str) -> None:
    """Check that there are collections, and that their names can be written.

    Args:
        collections: What is given for each collection.
        option: What it was given as.

    Raises:
        ValueError: If there is none, or a name is not a string, or empty.

    Example:
        >>> require_names({}, "source")
        Traceback (most recent call last):
        ValueError: source must name at least one collection, such as {'a': ...}, got none
    """
    if not collections:
        raise ValueError(f"{option} must name at least one collection, such as {{'a': ...}}, got none")
    wrong = [name for name in collections if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise ValueError(f"the names of collections in {option} must be strings such as 'a', got {wrong}")


@contextmanager
def in_collection(name: str) -> Iterator[None]:
    """Have errors say which collection they are of."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the collection {name!r}")
        raise


def parts_of(dataset: TrainingSet) -> list[Dataset]:
    """List the datasets that batches are made of.

    Args:
        dataset: The dataset of one collection, or those of several.

    Returns:
        One or more datasets.
    """
    if isinstance(dataset, DatasetDict):
        return list(dataset.values())
    return [dataset]


def _require_labels_in_all_or_none(parts: Mapping[str, Triples]) -> None:
    """Check labels now: a loss that needs them would fail in the first batch of the collection without them."""
    labelled = [name for name, part in parts.items() if LABEL in part.dataset.column_names]
    others = [name for name in parts if name not in labelled]
    if labelled and others:
        raise ValueError(
            f"a column {LABEL!r} must be in all collections or in none, got it in {labelled} and not in {others}; add "
            "it there, or drop it here"
        )


def _join_summaries(summaries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Add up what became of the rows of all collections."""
    fingerprints = [(name, summary["fingerprint"]) for name, summary in summaries.items()]
    totals = {}
    for count in ("read", "triples", "dropped", "queries", "positives"):
        totals[count] = sum(summary[count] for summary in summaries.values())
    checksum = hashlib.sha256(json.dumps(fingerprints).encode())
    return {
        "collections": dict(summaries),
        **totals,
        "fingerprint": checksum.hexdigest()[:16],
    }


@checked
def from_docpairs(dataset: pt.datasets.Dataset, options: PairOptions = ALL_PAIRS) -> Triples:
    """Make triples of a dataset's own training pairs, in a shuffled order.

    All pairs are read once and shuffled; those kept, of a query and in all, are the first in this order: a uniform
    sample, the same on every machine. The texts then go into an Arrow file in PyTerrier's home, which the same call
    finds again, until pairs, queries or documents change.

    Args:
        dataset: A PyTerrier dataset from ir_datasets that has docpairs, such as ``irds:msmarco-passage/train``.
        options: Which pairs to keep, and how.

    Returns:
        The triples.

    Raises:
        ValueError: If the dataset has no docpairs, or its documents lack a field.

    Example:
        ::

            options = PairOptions(max_pairs_per_query=128)
            from_docpairs(pt.get_dataset("irds:msmarco-passage/train"), options)
    """
    reference = _docpairs_reference(dataset)
    origin = {"source": repr(dataset), "kind": "docpairs", **options.settings()}
    lookup = TextLookup(dataset, Documents(dataset, options.fields))
    tables = Docpairs(reference, verbose=options.verbose)
    return triples_of_pairs(tables, part_signature(dataset, "docpairs"), lookup, options, origin)


@checked
def from_identifiers(
    source: Any,
    topics: pd.DataFrame,
    corpus: Corpus,
    options: PairOptions = ALL_PAIRS,
) -> Triples:
    """Make triples of identifiers, of a query, its positive and its negatives, in a shuffled order.

    Triples of a file are kept in PyTerrier's home, as by :func:`from_docpairs`, where the corpus is of ir_datasets.

    Args:
        source: Rows of identifiers, as :func:`from_texts` takes texts: without names in the order query, positive,
            negatives; with names in ``qid`` (or ``query``), ``positive`` and ``negative`` or ``negative_1``, ...
        topics: The queries: ``qid``, ``query``.
        corpus: The documents.
        options: Which rows to keep, and how.

    Returns:
        The triples.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If columns are missing, a line is malformed, or no row has all its texts.
        TypeError: If an identifier or a text is not a string.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> from_identifiers([("1", "d1", "d2")], topics, corpus, PairOptions(store_texts=False)).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    require_topics(topics)
    tables = _read_source(source, identifiers=True)
    origin = {"source": _source_name(source), "kind": "identifiers", **options.settings()}
    lookup = TextLookup(topics, Documents(corpus, options.fields))
    # what is in memory has no signature that is quicker than making the triples again
    signature = None
    if isinstance(source, str | Path):
        signature = file_signature(Path(source))
    return triples_of_pairs(tables, signature, lookup, options, origin)


@checked
def from_texts(source: Any, *, limit: PositiveInteger | None = None) -> Triples:
    """Make triples of texts, in their order.

    The columns are ``query`` (or ``anchor``), ``positive``, and ``negative`` or ``negative_1``, ``negative_2``, ...; a
    column ``label`` of numbers is kept for losses that need one, such as a teacher's margins for ``MarginMSELoss``;
    others are left out. Rows without names are taken in this order. Rows without a text are dropped and counted;
    duplicate rows are kept as they are.

    Args:
        source: A frame, a ``datasets.Dataset``, an iterable of tuples or dictionaries, or a file: TSV (with a header
            or without), CSV, JSON lines or Parquet, the text formats also with ``.gz``. A file is read in parts and
            stored as Arrow in PyTerrier's home, where the same call finds it again.
        limit: How many triples to keep, the first ones.

    Returns:
        The triples.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the columns are not those above, a line is malformed, or no row has all its texts.
        TypeError: If a column holds something else than texts, or ``label`` something else than numbers.

    Example:
        >>> from_texts([("sort", "sort rows", "plot a file")]).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    tables = _read_source(source)
    origin = {"source": _source_name(source), "kind": "texts", "limit": limit}
    signature = None
    if isinstance(source, str | Path):
        signature = [origin, file_signature(Path(source))]
    cache = TripleCache(signature, origin)
    if not cache.exists():
        with cache.writer(limit) as writer:
            for table in tables:
                writer.read(len(table))
                writer.add(table)
                if writer.full:
                    break
    return cache.load()


def _docpairs_reference(dataset: pt.datasets.Dataset) -> Any:
    """Return the dataset of ir_datasets, which must have docpairs and their texts."""
    parts = []
    if hasattr(dataset, "irds_ref"):
        reference = dataset.irds_ref()
        kinds = ("docs", "queries", "qrels", "scoreddocs", "docpairs")
        parts = [kind for kind in kinds if getattr(reference, f"has_{kind}")()]
    missing = sorted({"docs", "queries", "docpairs"} - set(parts))
    if missing:
        raise ValueError(
            f"expected a dataset with docs, queries and docpairs, got {dataset!r} with no {' or '.join(missing)} "
            f"(it has {parts}); give its topics and qrels to fit, behind a retriever or with corpus= at the trainer"
        )
    return reference


def _source_name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return type(source).__name__


def _read_source(source: Any, *, identifiers: bool = False) -> Iterator[pa.Table]:
    """Read the columns of triples in parts, whatever holds them; a file that is not there is an error at once."""
    if isinstance(source, str | Path):
        tables = read_tables(Path(source), labels=not identifiers)
    elif isinstance(source, pd.DataFrame):
        require_distinct_columns(source, "triples")
        if source.empty:
            raise ValueError(f"no triples are there to train with: the frame has no rows, of {list(source.columns)}")
        tables = iter([_table_of_frame(source)])
    elif isinstance(source, Dataset):
        tables = iter(source.with_format("arrow").iter(batch_size=ROWS))
    elif isinstance(source, Iterable):
        tables = tables_of(_number_rows(source), labels=not identifiers)
    else:
        raise TypeError(
            f"source must be a frame, a datasets.Dataset, an iterable of rows, or the path of a file, got {source!r}"
        )
    return _select(tables, _source_name(source), identifiers)


def _select(tables: Iterable[pa.Table], name: str, identifiers: bool) -> Iterator[pa.Table]:
    """Select the columns of triples; errors begin with the name of the source."""
    for table in tables:
        try:
            if identifiers:
                selected = select_columns(table, IDENTIFIER_QUERY)
            else:
                selected = add_label(select_columns(table, TEXT_QUERY), table)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        yield selected


def _table_of_frame(frame: pd.DataFrame) -> pa.Table:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise TypeError(
            f"triples must have columns of one type each, such as texts, got {list(frame.columns)} with others: {error}"
        ) from None


def _number_rows(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for position, row in enumerate(rows):
        yield f"row {position}", row
