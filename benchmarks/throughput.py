"""Write the page on speed: training, encoding, searching and growth, each beside the peers.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --only encoding

Each section of ``benchmarks/SPEED.md`` is written as soon as it is measured. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import retrieval, sharding, training_speed, triples
from benchmarks.arithmetic import arithmetic_table
from benchmarks.encoding_speed import encoding_tables
from benchmarks.pages import SPEED, section, table, write_section
from benchmarks.precision import precision_table

logger = logging.getLogger("throughput")


def training(data: Path) -> str:
    """Time training beside its peers, each measure alone and together, and count what is padding."""
    parts = [training_speed.peers_table, training_speed.measures_table, training_speed.padding_table]
    return "\n\n".join(part(data) for part in parts)


def searching(data: Path) -> str:
    """Time exact search, without encoding, for indexes of several sizes."""
    with tempfile.TemporaryDirectory() as folder:
        return records_table(retrieval.measure_searching(Path(folder)))


def growth(data: Path) -> str:
    """Measure time and memory of making triples and of building an index, for several sizes."""
    with tempfile.TemporaryDirectory() as folder:
        made = triples.measure_growth(Path(folder))
        built = retrieval.measure_growth(Path(folder))
    return f"{records_table(made)}\n\n{records_table(built)}"


def workers(data: Path) -> str:
    """Measure encoding on Ray, and joining shards."""
    return records_table(sharding.measure(data))


SECTIONS: dict[str, Callable[[Path], str]] = {
    "training": training,
    "memory": training_speed.memory_table,
    "encoding": encoding_tables,
    "precision": precision_table,
    "searching": searching,
    "growth": growth,
    "sharding": workers,
    "arithmetic": arithmetic_table,
}
"""What is measured, given the folder of collections, by the name of the section."""


def records_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Write records as a table with a column for each of their fields.

    Args:
        records: The records; what one lacks stays empty.

    Returns:
        The table, with numbers of three digits.

    Example:
        >>> print(records_table([{"backend": "retriever", "ms": 1.2345}, {"backend": "faiss"}]))
        | backend | ms |
        |---|---|
        | retriever | 1.23 |
        | faiss |  |
    """
    records = list(records)
    names: dict[str, None] = {}  # a set that keeps the order
    for record in records:
        names |= dict.fromkeys(record)
    rows = []
    for record in records:
        rows.append([written(record.get(name, "")) for name in names])
    return table(list(names), rows)


def written(value: object) -> str:
    """Write a value, numbers with three digits and without an exponent."""
    if not isinstance(value, float):
        return str(value)
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main() -> None:
    """Read the command line, measure, and write the sections."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of collections")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--page", type=Path, default=SPEED, help="the page whose sections are written")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - SECTIONS.keys()
    if unknown:
        parser.error(f"there are no sections {sorted(unknown)}; choose from {', '.join(SECTIONS)}")
    names = options.only.split(",")
    for name in names:
        if len(names) == 1:
            measure(name, options.data, options.page)
            continue
        # in a process of its own, whose memory is only its own
        command = [sys.executable, "-m", "benchmarks.throughput", "--only", name]
        subprocess.run([*command, "--data", options.data, "--page", options.page], check=True)


def measure(name: str, data: Path, page: Path) -> None:
    """Measure a section, and write it to the page."""
    started = time.monotonic()
    text = SECTIONS[name](data)
    took = time.monotonic() - started
    logger.info("measured %s in %.0f s", name, took)
    write_section(name, section(f"python -m benchmarks.throughput --only {name}", text), page)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    main()
