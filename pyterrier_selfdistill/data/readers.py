"""Read rows of texts from files, a part at a time: TSV, CSV, JSON lines and Parquet, the first three also with gzip.

A line that is not as the others are is an error with the file's name and the line's number.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from more_itertools import chunked

from .columns import LABEL, string_table

ROWS = 10_000
"""How many rows are read at once."""

TEXT_COLUMNS = ("query", "anchor", "positive", "negative", "qid")
"""How the names of columns begin that must hold texts, beside columns without names."""


def read_tables(path: Path) -> Iterator[pa.Table]:
    r"""Read a file.

    Args:
        path: The file; its suffix says what it holds.

    Returns:
        Tables of strings. Columns without names are called ``0``, ``1`` and so on.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind, or a line is malformed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "triples.tsv"
        ...     _ = path.write_text("sort\tsort rows\tplot a file\n")
        ...     next(read_tables(path)).to_pylist()
        [{'0': 'sort', '1': 'sort rows', '2': 'plot a file'}]
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} to read triples from")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet_tables(path)
    if name.endswith((".jsonl", ".json")):
        return tables_of(_json_rows(path))
    if name.endswith(".csv"):
        return tables_of(_with_header(_csv_rows(path)))
    if name.endswith(".tsv"):
        return tables_of(_with_header(_tsv_rows(path)))
    raise ValueError(f"expected a file named .tsv, .csv, .jsonl or .parquet (.gz may follow), got {str(path)!r}")


def tables_of(rows: Iterable[tuple[str, Any]]) -> Iterator[pa.Table]:
    """Make tables of rows.

    Args:
        rows: Where a row stands, for errors, and the row: a mapping, or a sequence of texts without names.

    Yields:
        Tables with the columns of the first row; other columns of later rows are left out.

    Raises:
        TypeError: If a row is something else, or holds something else than texts.
        ValueError: If a row lacks a column that the first one has, or has more texts without names than that.

    Example:
        >>> next(tables_of([("row 0", ("sort", "sort rows"))])).to_pylist()
        [{'0': 'sort', '1': 'sort rows'}]
    """
    names: list[str] = []
    for chunk in chunked(rows, ROWS):
        columns: dict[str, list[str | None]] = {}
        for where, row in chunk:
            record = _to_record(where, row)
            # the first row decides for all parts, so that their tables have the same columns
            names = names or list(record)
            _require_same_columns(where, row, record, names)
            for name in names:
                columns.setdefault(name, []).append(_to_text(where, name, record[name]))
        yield string_table(columns)


def _to_record(where: str, row: Any) -> Mapping[str, Any]:
    """Return a row as a mapping; texts without names are numbered."""
    if isinstance(row, Mapping):
        return row
    if isinstance(row, str) or not isinstance(row, Sequence):
        raise TypeError(f"{where} is {row!r}; give tuples or dictionaries of query, positive and negative texts")
    return {str(position): text for position, text in enumerate(row)}


def _require_same_columns(where: str, row: Any, record: Mapping[str, Any], names: Sequence[str]) -> None:
    if not isinstance(row, Mapping) and len(row) != len(names):
        raise ValueError(f"{where} has {len(row)} texts, the first one has {len(names)}; make them the same")
    missing = sorted(set(names) - record.keys())
    if missing:
        raise ValueError(f"{where} has {list(record)}; {missing} of the first row is missing")


def _to_text(where: str, name: str, value: Any) -> str | None:
    """Return a text, a label in digits, or None where it is missing or of a column that is not used."""
    if isinstance(value, str):
        return value
    if name == LABEL and isinstance(value, int | float):
        return str(value)
    # NaN is how pandas writes None
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    if not is_missing and (name.startswith(TEXT_COLUMNS) or name.isdecimal()):
        raise TypeError(f"{where}, column {name!r}, holds {value!r}, a {type(value).__name__}; training needs texts")
    return None


def _parquet_tables(path: Path) -> Iterator[pa.Table]:
    for batch in pq.ParquetFile(path).iter_batches(ROWS):
        yield pa.Table.from_batches([batch])


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON ({error}); write one object a line") from None
        if isinstance(row, list) and any(isinstance(item, dict | list) for item in row):
            raise ValueError(f"{where} is a JSON array of rows; write one object a line")
        yield where, row


def _with_header(rows: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[str, Any]]:
    """Name the cells of rows where the first row is a header: one of its cells is ``positive``."""
    header: list[str] = []
    for position, (where, row) in enumerate(rows):
        if position == 0:
            names = [cell.strip().lower() for cell in row]
            if "positive" in names:
                header = names
                continue
        if not header:
            yield where, row
            continue
        if len(row) != len(header):
            raise ValueError(f"{where} has {len(row)} columns, the header has {len(header)}; make them the same")
        yield where, dict(zip(header, row, strict=True))


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    lines = (f"{line}\n" for _, line in _lines(path))
    reader = csv.reader(lines, strict=True)
    # a quoted cell may span lines
    first_line = 1
    try:
        for row in reader:
            yield f"{path}, line {first_line}", row
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _tsv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    for where, line in _lines(path):
        # quotes are texts here, as in the files of MS MARCO
        yield where, line.split("\t")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Read the lines of a text file, and where each stands."""
    open_bytes: Callable[..., Any] = open
    if path.suffix.lower() == ".gz":
        open_bytes = gzip.open
    # the first line may begin with a byte order mark
    encoding = "utf-8-sig"
    with open_bytes(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                yield where, line.decode(encoding).rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{where} is not UTF-8 ({error.reason} at byte {error.start}); convert the file"
                ) from None
            encoding = "utf-8"
