"""Compare losses and settings on collections of your own: run a study, list its runs, or write its report.

A study is a YAML file: collections, and grids of settings. Each run trains an encoder, searches with it, and leaves one
record. What has a record is not run again, so that a study that was stopped goes on where it was, and several processes
may run the same one.
"""

from __future__ import annotations

import argparse
import importlib.resources
import logging
import sys
from pathlib import Path

import datasets
import transformers

from .comparison import Results
from .config import Study, describe, read_study
from .records import Records
from .report import Report
from .runner import Runner

EXAMPLE = importlib.resources.files(__package__) / "example.yaml"
"""A study that says what can be in one."""


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and do what it says.

    Args:
        arguments: Those of the command line, if not the process's own.

    Returns:
        1 if a run failed, else 0.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        parser.error(str(error))


def make_parser() -> argparse.ArgumentParser:
    """Declare the commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("study", type=Path, metavar="STUDY.yaml", help="what to compare")
    common.add_argument("--records", type=Path, help="the folder of the records, by default runs/NAME/records")

    init = commands.add_parser("init", help="write a study to begin with, which says what can be in one")
    init.add_argument("study", type=Path, metavar="STUDY.yaml", help="the file, which must not be there")
    init.set_defaults(command=write_example)

    run = commands.add_parser("run", parents=[common], help="do all runs that have no record")
    run.add_argument("--data", type=Path, help="where folders of collections are, by default beside the study")
    run.add_argument("--work", type=Path, help="for TREC runs, teachers and what is temporary, by default runs/NAME")
    run.add_argument("--grids", nargs="+", metavar="GRID", help="which grids of the study, if not all")
    run.set_defaults(command=run_study)

    listing = commands.add_parser("list", parents=[common], help="list the runs, and which of them have a record")
    listing.set_defaults(command=list_runs)

    report = commands.add_parser("report", parents=[common], help="write a page, RESULTS.md, of the records there are")
    report.add_argument("--to", type=Path, help="the folder of the page and its figures, by default runs/NAME")
    report.add_argument("--template", type=Path, help="the page in Jinja, if not the best runs, tables and costs")
    report.set_defaults(command=write_report)
    return parser


def write_example(options: argparse.Namespace) -> int:
    """Write a study to begin with."""
    if options.study.exists():
        raise FileExistsError(f"{options.study} is there already; give another name")
    options.study.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    print(f"wrote {options.study}; run it: python -m benchmarks.study run {options.study}")
    return 0


def run_study(options: argparse.Namespace) -> int:
    """Do all runs that have no record."""
    study, records = _open(options)
    grids = options.grids or list(study.grids)
    unknown = sorted(set(grids) - study.grids.keys())
    if unknown:
        raise ValueError(f"--grids names {unknown}; {options.study} has {list(study.grids)}")
    data = options.data or options.study.parent
    work = options.work or _folder(study)
    failed = Runner(study, data, work, records).run_grids(grids)
    return int(failed > 0)


def list_runs(options: argparse.Namespace) -> int:
    """Print a line a run, which says whether it has a record, and how many have."""
    study, records = _open(options)
    recorded = records.read()
    for name, runs in study.grids.items():
        open_runs = [run for run in runs if run.key not in recorded]
        print(f"{name}: {len(runs) - len(open_runs)} of {len(runs)} runs have a record")
        for run in runs:
            state = "open" if run in open_runs else "done"
            print(f"  {run.key} {state} {describe(run, runs)}")
    return 0


def write_report(options: argparse.Namespace) -> int:
    """Write the page."""
    study, records = _open(options)
    report = Report(Results(study, records), options.to or _folder(study))
    page = report.write(options.template)
    print(f"wrote {page}")
    return 0


def _open(options: argparse.Namespace) -> tuple[Study, Records]:
    """Read a study, with what follows up its records, and find these."""
    study = read_study(options.study)
    records = Records(options.records or _folder(study) / "records")
    return study.follow_up(records.read()), records


def _folder(study: Study) -> Path:
    """Return where all goes that no option says a place for."""
    return Path("runs") / study.name


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger(__package__).setLevel(logging.INFO)
    # a run is trained with a sample of the judgements, so that queries without one are no surprise
    logging.getLogger("pyterrier_selfdistill.data.judgements").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    raise SystemExit(main())
