"""Kill, fill, get in the way, and wait; and write what came of it into the page on reliability.

python -m benchmarks.chaos --kills 200
python -m benchmarks.chaos --only memory --minutes 60

Kills that an earlier call has made of the same commit with the same seed are not made again, so that a call that was
interrupted goes on.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from benchmarks.pages import RELIABILITY, section, version, write_section

from . import disks, kills, memory, neighbours, operations
from .materials import Materials

Measure = Callable[[argparse.Namespace, Materials], str]
"""Does what the options say in the folder of the materials, and returns Markdown."""


def measure_kills(options: argparse.Namespace, materials: Materials) -> str:
    """Kill processes."""
    campaign = kills.Campaign(operations.operations(materials), options.work / "kills", version(), options.seed)
    return kills.summarize(campaign.run(dict.fromkeys(kills.KINDS, options.kills)))


def measure_disks(options: argparse.Namespace, materials: Materials) -> str:
    """Write to bad disks."""
    return disks.summarize(disks.measure(disks.operations(materials), options.work / "disks"))


def measure_neighbours(options: argparse.Namespace, materials: Materials) -> str:
    """Have processes get into each other's way."""
    counts = neighbours.measure_searching(options.work / "searching", options.seconds)
    meetings = neighbours.measure_meetings(materials, options.work / "meetings")
    return neighbours.summarize(counts, meetings)


def measure_memory(options: argparse.Namespace, materials: Materials) -> str:
    """Search for a long time."""
    return memory.summarize(memory.measure(materials, options.work / "memory", options.minutes))


MEASURES: dict[str, Measure] = {
    "kills": measure_kills,
    "disks": measure_disks,
    "neighbours": measure_neighbours,
    "memory": measure_memory,
}
"""What is measured, by the section of the page, in its order."""


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how many at a moment, and as many before a change")
    parser.add_argument("--seconds", type=float, default=60, help="how long neighbours search")
    parser.add_argument("--minutes", type=float, default=60, help="how long memory is watched")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default="runs/chaos", help="the folder for all that is temporary")
    parser.add_argument("--only", type=_sections, default=",".join(MEASURES), help="some of these")
    parser.add_argument("--page", type=Path, default=RELIABILITY, help="the page whose sections are written")
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # as in the processes whose vectors are compared
    materials = Materials(options.work / "materials")
    materials.write()
    chosen = {"kills": options.kills, "seconds": options.seconds, "minutes": options.minutes, "seed": options.seed}
    given = [f"--{name}={value:g}" for name, value in chosen.items()]
    command = shlex.join(["python", "-m", "benchmarks.chaos", "--only", ",".join(options.only), *given])
    for name in options.only:
        text = section(command, MEASURES[name](options, materials))
        print(text, flush=True)
        write_section(name, text, options.page)


def _sections(names: str) -> list[str]:
    """Read the names of sections."""
    chosen = names.split(",")
    unknown = sorted(set(chosen) - MEASURES.keys())
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown} are not among {list(MEASURES)}")
    return chosen


if __name__ == "__main__":
    main()
