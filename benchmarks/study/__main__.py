"""Compare losses and settings on test collections: run a study, or write its report.

A run that has a record is not repeated, so you can stop a study and call it again, and several processes may share one.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import datasets
import transformers

from .config import read_study
from .records import Records
from .report import Report
from .results import Results
from .runner import Runner


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run or report a study; return 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study")
    common.add_argument("--records", type=Path, help="the folder of the records (default: runs/NAME/records)")
    run = commands.add_parser("run", parents=[common], help="do all runs without a record")
    run.add_argument("--data", type=Path, help="the folder of collections (default: the study's folder)")
    run.add_argument("--work", type=Path, help="the folder for teachers and temporary files (default: runs/NAME)")
    run.add_argument("--grids", nargs="+", metavar="GRID", help="the grids to run (default: all)")
    run.set_defaults(command=_run)
    report = commands.add_parser("report", parents=[common], help="write RESULTS.md from the records")
    report.add_argument("--to", type=Path, help="the folder of the page and its figures (default: runs/NAME)")
    report.add_argument("--template", type=Path, help="a page in Jinja to fill in (default: study/report.md.j2)")
    report.set_defaults(command=_report)
    options = parser.parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


def _run(options: argparse.Namespace) -> int:
    study = read_study(options.study)
    folder = Path("runs", study.name)
    grids = options.grids or list(study.grids)
    unknown = sorted(set(grids) - study.grids.keys())
    if unknown:
        raise ValueError(f"--grids names {unknown}; {options.study} has {list(study.grids)}")
    records = Records(options.records or folder / "records")
    runner = Runner(study, options.data or options.study.parent, options.work or folder, records)
    return int(runner.run_grids(grids) > 0)


def _report(options: argparse.Namespace) -> int:
    study = read_study(options.study)
    folder = Path("runs", study.name)
    results = Results(study, Records(options.records or folder / "records"))
    print(f"wrote {Report(results, options.to or folder).write(options.template)}")
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    # training sees a sample of the judgements, so queries without one are expected
    logging.getLogger("pyterrier_selfdistill.data").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    raise SystemExit(main())
