"""Read rows of texts from files, a part at a time: TSV, CSV, JSON lines and Parquet, the first three also with gzip.

A line that is not as the others are is an error with the file's name and the line's number; an empty one is no row.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import numbers
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from more_itertools import chunked, duplicates_everseen

from .columns import IDENTIFIER_QUERY, LABEL, NEGATIVE, TEXT_QUERY, is_missing, label_error, string_table

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
