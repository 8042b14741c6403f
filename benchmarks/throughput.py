"""Write the page on speed: training, encoding, searching and growth, each beside the peers.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --only encoding

Each section of ``benchmarks/SPEED.md`` is written as soon as it is measured. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.encoding_speed import encoding_tables
from benchmarks.pages import SPEED, section, write_section

logger = logging.getLogger("throughput")

SECTIONS: dict[str, Callable[[Path], str]] = {
    "encoding": encoding_tables,
}
"""What is measured, given the folder of collections, by the name of the section."""


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
    for name in options.only.split(","):
        started = time.monotonic()
        text = SECTIONS[name](options.data)
        took = time.monotonic() - started
        logger.info("measured %s in %.0f s", name, took)
        write_section(name, section(f"python -m benchmarks.throughput --only {name}", text), options.page)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    main()
