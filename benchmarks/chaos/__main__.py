"""Kill runs, fill disks, run competing processes, watch memory, and write the outcomes to the page on robustness.

python -m benchmarks.chaos --kills 200
python -m benchmarks.chaos --only memory --minutes 60
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

import torch
import transformers

from benchmarks.pages import RELIABILITY, section, write_section

from .experiments import measure_disks, measure_kills, measure_memory, measure_neighbours
from .operations import Fit, Index, Operation, Save, write_materials

SECTIONS = ["kills", "disks", "neighbours", "memory"]


def operations_to_kill(materials: Path) -> list[Operation]:
    """List the operations that are killed."""
    steps = {"num_train_epochs": 3}
    few = {
        "max_steps": 12,
        "lr_scheduler_type": "constant",
    }  # a rate that does not end at 0, so that a step too many shows
    return [
        Fit("fit with validation", materials, evaluates=True, options=steps),
        Fit("fit with two rounds", materials, from_topics=True, options={**steps, "rounds": 2}),
        Fit("fit with gradient accumulation", materials, options={**steps, "gradient_accumulation_steps": 2}),
        Fit("fit with triples of a file", materials, method="fit_triples", options=few),
        Save("save over a model", materials),
        Index("build an index", materials),
        Index("build over an index", materials, overwrite=True),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, and write the sections."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how many at a moment, and as many before a change")
    parser.add_argument("--seconds", type=float, default=60, help="how long neighbours search")
    parser.add_argument("--minutes", type=float, default=60, help="how long memory is watched")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default="runs/chaos", help="the folder for temporary files")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--page", type=Path, default=RELIABILITY, help="the page whose sections are written")
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # as in the processes whose vectors are compared
    work = options.work.resolve()
    materials = work / "materials"
    write_materials(materials)
    given = [f"--{name}={getattr(options, name):g}" for name in ("kills", "seconds", "minutes", "seed")]
    command = shlex.join(["python", "-m", "benchmarks.chaos", "--only", *options.only, *given])
    measures = {
        "kills": lambda folder: measure_kills(operations_to_kill(materials), folder, options.kills, options.seed),
        "disks": lambda folder: measure_disks(materials, folder),
        "neighbours": lambda folder: measure_neighbours(materials, folder, options.seconds),
        "memory": lambda folder: measure_memory(materials, folder, options.minutes),
    }
    for name in options.only:
        shutil.rmtree(work / name, ignore_errors=True)
        text = section(command, measures[name](work / name))
        print(text, flush=True)
        write_section(name, text, options.page)


if __name__ == "__main__":
    main()
