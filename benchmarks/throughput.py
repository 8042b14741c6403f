"""Write the page on speed: training, encoding, searching and growth, each compared with the peers.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import arithmetic, encoding_speed, retrieval, sharding, training_speed, triples
from benchmarks.harness import DATA, exponents
from benchmarks.pages import SPEED, records_table, section, write_section

logger = logging.getLogger("throughput")


def training(data: Path) -> str:
    """Time training, each measure alone and together, and count the padding."""
    parts = (training_speed.peers_table, training_speed.measures_table, training_speed.padding_table)
    return "\n\n".join(part(data) for part in parts)


def searching(data: Path) -> str:
    """Time exact search, without encoding, for indexes of several sizes: a row an index and backend."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for measured in retrieval.measure_searching():
        size, backend = measured["size"], measured["backend"]
        row = rows.setdefault((size, backend), {"vectors": size, "backend": backend})
        row.setdefault("first search, s", measured["cold s"])
        queries = "one query" if measured["queries"] == 1 else f"each of {measured['queries']}"
        row[f"{measured['k']} results: {queries}, ms"] = measured["ms/query"]
    return records_table(list(rows.values()))


def growth(data: Path) -> str:
    """Measure how time and memory grow with triples, vectors, the batch and the negatives of a query."""
    with tempfile.TemporaryDirectory() as folder:
        made = triples.measure_growth(Path(folder), (10_000, 100_000, 1_000_000))
    whole = [row for row in made if row["texts"] == "stored" and row["limit"] == "none"]
    built = retrieval.measure_growth((10_000, 100_000, 1_000_000, 10_000_000))
    steps = training_speed.measure_growth()
    grown = {"pairs": whole, "documents": built, **steps}
    fitted = [{"of": name, **exponents(rows, name, ("seconds", "peak, MB"))} for name, rows in grown.items()]
    return "\n\n".join(map(records_table, (fitted, made, built, *steps.values())))


def workers(data: Path) -> str:
    """Measure encoding on Ray, and joining shards."""
    *encoding, joining = sharding.measure(data)
    return f"{records_table(encoding)}\n\n{records_table([joining])}"


SECTIONS: dict[str, Callable[[Path], str]] = {
    "training": training,
    "memory": training_speed.memory_table,
    "encoding": encoding_speed.rates_tables,
    "precision": encoding_speed.precision_table,
    "searching": searching,
    "growth": growth,
    "sharding": workers,
    "arithmetic": arithmetic.arithmetic_table,
}
"""The measurements, given the folder of collections, by the name of their section."""


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, and write the sections."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of collections")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--page", type=Path, default=SPEED, help="the page whose sections are written")
    options = parser.parse_args(arguments)
    if len(options.only) > 1:
        for name in options.only:
            # in a process of its own, whose memory is only its own
            command = [sys.executable, "-m", "benchmarks.throughput", "--only", name]
            subprocess.run([*command, "--data", options.data, "--page", options.page], check=True)
        return
    (name,) = options.only
    started = time.monotonic()
    text = SECTIONS[name](options.data)
    logger.info("measured %s in %.0f s", name, time.monotonic() - started)
    write_section(name, section(f"python -m benchmarks.throughput --only {name}", text), options.page)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    main()
