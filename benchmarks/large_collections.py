"""The time, disk and memory of collections of 1,000,000 to 100,000,000 documents, computed from measured rates.

    python -m benchmarks.large_collections                                    # with the rates of benchmarks/SPEED.md
    python -m benchmarks.large_collections --encoding 2000 --dimension 768    # with your rates
    python -m benchmarks.large_collections --price 0.5 --machines 1 8         # with the price of an hour of a machine
    python -m benchmarks.large_collections --write                            # into the page on large collections

Rates are measured, and the rest is arithmetic: the time of encoding and exact search is proportional to the number of
documents, and machines share the encoding evenly. The page names the costs that this leaves out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.pages import SPEED, write_section

PAGE = Path(__file__).parents[1] / "pyterrier_selfdistill" / "pt_docs" / "large_collections.rst"

DOCUMENTS = (10**6, 10**7, 10**8)
MACHINES = (1, 8, 64)

FLOAT_BYTES = 4
NEIGHBOUR_BYTES = 4

HNSW_NEIGHBOURS = 32
"""The default of ``faiss_hnsw_retriever``; the lowest layer of the graph has twice as many."""

SPACE = "\N{NO-BREAK SPACE}"
"""Keeps a number and its unit in one line."""

UNITS = ((1000, "ms"), (60, "s"), (60, "min"), (24, "h"))
"""Units of time, and how many of each make one of the next."""


class Rates(NamedTuple):
    """The measured rates."""

    encoding: float
    """Documents a second that are encoded into an index."""
    int8: float
    """The same with ``dtype="int8"``."""
    one_query: float
    """Milliseconds of an exact search of a million documents, one query at a time."""
    hundred_queries: float
    """The same for each of a hundred queries at once."""
    joining: float
    """Bytes a second of vectors that are joined from shards to an index."""
    start: float
    """Seconds to start workers of Ray."""
    dimension: int = 384
    """The dimensions of a vector, of which exact searches are."""


def main() -> None:
    """Read the command line, compute, and print the tables or write them to the page."""
    measured = read_rates(SPEED)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_collections", description=__doc__.partition("\n")[0]
    )
    for name, value in measured._asdict().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"as measured: {value}"
        )
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS, help="how many documents")
    parser.add_argument("--machines", type=int, nargs="+", default=MACHINES, help="how many machines")
    parser.add_argument("--price", type=float, help="the price of an hour of a machine")
    parser.add_argument("--write", action="store_true", help="write the tables to the page")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in Rates._fields}
    tables = make_tables(Rates(**given), options.documents, options.machines, options.price)
    for name, text in tables.items():
        if options.write:
            write_section(name, text, PAGE)
        else:
            print(text, end="\n\n")


def make_tables(
    rates: Rates, documents: Sequence[int] = DOCUMENTS, machines: Sequence[int] = MACHINES, price: float | None = None
) -> dict[str, str]:
    """Compute the tables of the page, in reStructuredText, by the names of their sections."""
    return {
        "rates": rates_table(rates),
        "one machine": one_machine(rates, documents, price),
        "several machines": several_machines(rates, documents, machines, price),
    }


def rates_table(rates: Rates) -> str:
    """Write down the rates that the other tables rest on."""
    rows = [
        ("encoding into an index", f"{rates.encoding:,.1f} documents/s", "Encoding"),
        ('encoding with ``dtype="int8"``', f"{rates.int8:,.1f} documents/s", "Encoding"),
        ("exact search of 1,000,000 documents, one query", f"{rates.one_query:,.1f} ms", "Searching"),
        ("each of 100 queries at once", f"{rates.hundred_queries:,.1f} ms", "Searching"),
        ("joining shards", f"{rates.joining / 1e6:,.0f} MB/s", "Several workers"),
        ("starting Ray workers", f"{rates.start:,.1f} s", "Several workers"),
    ]
    return csv_table(["Measured", "Rate", "Table in ``benchmarks/SPEED.md``"], rows)


def one_machine(rates: Rates, documents: Sequence[int], price: float | None) -> str:
    """Compute the time, disk and memory of one machine."""
    header = ["Documents", "Index on disk", "HNSW in memory", "Encoding", "Encoding, int8", "One query", "Each of 100"]
    rows = []
    for number in documents:
        vectors = number * rates.dimension * FLOAT_BYTES
        graph = number * 2 * HNSW_NEIGHBOURS * NEIGHBOUR_BYTES
        seconds = number / rates.encoding
        searches = (number / 1e6 * milliseconds / 1e3 for milliseconds in (rates.one_query, rates.hundred_queries))
        times = map(duration, (seconds, number / rates.int8, *searches))
        rows.append([f"{number:,}", size(vectors), size(vectors + graph), *times, *cost(seconds, price)])
    return csv_table(header if price is None else [*header, "Cost"], rows)


def several_machines(rates: Rates, documents: Sequence[int], machines: Sequence[int], price: float | None) -> str:
    """Compute the time and disk of several machines that encode shards, which one of them joins."""
    header = ["Documents", "Machines", "Encoding", "Joining", "Machine-hours", "Disk while joining", "One query"]
    rows = []
    for number in documents:
        vectors = number * rates.dimension * FLOAT_BYTES
        for count in machines:
            encoding = rates.start + number / rates.encoding / count
            joining = vectors / rates.joining
            seconds = encoding * count + joining
            query = number / 1e6 * rates.one_query / 1e3 / count
            times = duration(encoding), duration(joining), f"{seconds / 3600:,.1f}"
            row = [f"{number:,}", str(count), *times, size(2 * vectors), duration(query), *cost(seconds, price)]
            rows.append(row)
    return csv_table(header if price is None else [*header, "Cost"], rows)


def cost(seconds: float, price: float | None) -> list[str]:
    """Return the cell of the column of costs, if there is one."""
    return [] if price is None else [f"{seconds / 3600 * price:,.2f}"]


def duration(seconds: float) -> str:
    """Write a time in a unit that suits it, with two digits.

    Example:
        >>> [duration(seconds) for seconds in (0.0174, 90, 8230, 823045)]
        ['17 ms', '90 s', '2.3 h', '9.5 days']
    """
    value = seconds * 1000
    for following, unit in UNITS:
        if value < 2 * following:
            return f"{digits(value)} {unit}"
        value /= following
    return f"{digits(value)} days"


def size(number: float) -> str:
    """Write a number of bytes.

    Example:
        >>> size(153_600_000), size(1_536e9)
        ('0.15 GB', '1.5 TB')
    """
    if number >= 1e12:
        return f"{digits(number / 1e12)} TB"
    return f"{digits(number / 1e9)} GB"


def digits(value: float) -> str:
    """Write two digits of a number, or all before the point."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.2g}"


def csv_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in reStructuredText.

    Example:
        >>> print(csv_table(["documents", "machines"], [["100,000", "16"]]))
        .. csv-table::
            :header: "documents", "machines"
        <BLANKLINE>
            "100,000", "16"
    """
    lines = [", ".join(map(quoted, row)) for row in (header, *rows)]
    body = "\n    ".join(lines[1:])
    return f".. csv-table::\n    :header: {lines[0]}\n\n    {body}"


def quoted(cell: str) -> str:
    """Quote a cell of a table, and keep numbers and their units in one line."""
    doubled = re.sub(r"(?<=\d) (?=\w)", SPACE, cell).replace('"', '""')
    return f'"{doubled}"'


def read_rates(page: Path) -> Rates:
    """Read the measured rates from ``benchmarks/SPEED.md``."""
    text = page.read_text(encoding="utf-8")
    ours = "SelfDistillBiEncoder >> SelfDistillIndex"
    alone = find(text, {"backend": "np_retriever", "vectors": "1,000,000"})
    together = find(text, {"backend": "retriever", "vectors": "1,000,000"})
    joined = find(text, {"measured": "joining"})
    return Rates(
        encoding=leading(find(text, {"encoding into an index": f"{ours}, auto"})["documents/s"]),
        int8=leading(find(text, {"encoding into an index": f"{ours}, int8"})["documents/s"]),
        one_query=leading(alone["1000 results: one query, ms"]),
        hundred_queries=leading(together["1000 results: each of 100, ms"]),
        joining=leading(joined["disk, MB"]) * 1e6 / leading(joined["seconds"]),
        start=leading(find(text, {"measured": "RayIndexer, workers: 2"})["start, s"]),
    )


def find(text: str, values: dict[str, str]) -> dict[str, str]:
    """Find the row of the tables of a page in Markdown that has some values."""
    for row in rows_of(text):
        if values.items() <= row.items():
            return row
    raise ValueError(f"expected a row with {values} in a table of the page; does `make speed` still write it?")


def rows_of(text: str) -> Iterator[dict[str, str]]:
    """Iterate over the rows of the tables of a page in Markdown, each by the names of its columns."""
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if header:
            yield dict(zip(header, cells, strict=True))
        else:
            header = cells


def leading(cell: str) -> float:
    """Read the number that a cell begins with."""
    found = re.match(r"[\d,.]+", cell)
    if found is None:
        raise ValueError(f"expected a number, got {cell!r}")
    return float(found[0].replace(",", ""))


if __name__ == "__main__":
    main()
