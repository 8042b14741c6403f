"""Rows of texts in files, read a part at a time: TSV, CSV, JSON lines and Parquet, the first three also with gzip.

A line that is not as the others are is an error with the file's name and the line's number.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from more_itertools import chunked

ROWS = 10_000
"""How many rows are read at once."""


def read_tables(path: Path) -> Iterator[pa.Table]:
    r"""Reads a file.

    Args:
        path: The file; its suffix says what it holds.

    Yields:
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
    match [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]:
        case [*_, ".parquet"]:
            return (pa.Table.from_batches([batch]) for batch in pq.ParquetFile(path).iter_batches(ROWS))
        case [*_, ".jsonl" | ".json"]:
            return tables_of(_json_rows(path))
        case [*_, ".csv"]:
            return tables_of(_separated_rows(path, ","))
        case [*_, ".tsv"]:
            return tables_of(_separated_rows(path, "\t"))
    raise ValueError(f"{str(path)!r} is none of .tsv, .csv, .jsonl and .parquet (.gz may follow)")


def tables_of(rows: Iterable[tuple[str, Any]]) -> Iterator[pa.Table]:
    """Makes tables of rows that come with a word on where they stand.

    Args:
        rows: Where a row stands, and the row: a mapping, or a sequence of texts without names.

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
        columns: list[tuple[str | None, ...]] = []
        for where, row in chunk:
            named = _named(where, row)
            names = names or list(named)
            if not isinstance(row, Mapping) and len(row) != len(names):
                raise ValueError(f"{where} has {len(row)} texts, the first one has {len(names)}; make them the same")
            if missing := [name for name in names if name not in named]:
                raise ValueError(f"{where} has {list(named)}; {missing} of the first row is missing")
            columns.append(tuple(named[name] for name in names))
        for (where, _), texts in zip(chunk, columns, strict=True):
            for name, text in zip(names, texts, strict=True):
                if name.startswith(("query", "anchor", "positive", "negative", "qid")) or name.isdecimal():
                    _require_text(where, name, text)
        yield pa.table(
            {n: pa.array(_texts(c), pa.string()) for n, c in zip(names, zip(*columns, strict=True), strict=True)}
        )


def _named(where: str, row: Any) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    if isinstance(row, str) or not isinstance(row, Sequence):
        raise TypeError(f"{where} is {row!r}; give tuples or dictionaries of query, positive and negative texts")
    return {str(position): text for position, text in enumerate(row)}


def _require_text(where: str, name: str, text: Any) -> None:
    missing = text is None or text != text  # NaN is how pandas writes None
    if not missing and not isinstance(text, str):
        raise TypeError(f"{where}, column {name!r}, holds {text!r}, a {type(text).__name__}; training needs texts")


def _texts(column: Sequence[Any]) -> list[str | None]:
    return [text if isinstance(text, str) else None for text in column]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                yield where, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{where} is not UTF-8 ({error.reason} at byte {error.start}); convert the file"
                ) from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON ({error}); write one object a line") from None
        if isinstance(row, list) and any(isinstance(item, dict | list) for item in row):
            raise ValueError(f"{where} is a JSON array of rows; write one object a line")
        yield where, row


def _separated_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    if delimiter == "\t":
        rows: Iterator[tuple[str, list[str]]] = ((where, line.split("\t")) for where, line in _lines(path))
    else:
        rows = _csv_rows(path)
    header: list[str] | None = None
    for position, (where, row) in enumerate(rows):
        lowered = [cell.strip().lower() for cell in row]
        if position == 0 and "positive" in lowered:
            header = lowered
        elif header is None:
            yield where, row
        elif len(row) != len(header):
            raise ValueError(f"{where} has {len(row)} columns, the header has {len(header)}; make them the same")
        else:
            yield where, dict(zip(header, row, strict=True))


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader((f"{line}\n" for _, line in _lines(path)), strict=True)
    while True:
        try:
            yield f"{path}, line {reader.line_num + 1}", next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
