"""Run a study, list its runs, or write its report.

python -m benchmarks.study run benchmarks/study/configs/small.yaml --records runs/study-small/records
python -m benchmarks.study report benchmarks/study/configs/small.yaml --records runs/study-small/records
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import datasets
import transformers

from .comparison import Results
from .config import Study, read_study
from .records import Records
from .report import Report
from .runner import Runner


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and do what it says.

    Returns:
        How many runs failed.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["run", "report", "list"])
    parser.add_argument("study", help="the YAML file")
    parser.add_argument("--records", required=True, help="the folder of the records, one JSON-lines file a grid")
    parser.add_argument("--data", default="../shared/data", help="the folder of the test collections")
    parser.add_argument("--work", default="runs/study", help="the folder for TREC runs, teachers and what is temporary")
    parser.add_argument("--grids", nargs="*", help="which grids of the study to run, if not all")
    parser.add_argument("--to", default="runs/study", help="the folder of the report")
    parser.add_argument("--template", help="the report, in Jinja, if not just tables and figures")
    options = parser.parse_args(arguments)
    records = Records(options.records)
    study = read_study(options.study).follow_up(records.read())
    grids = options.grids or list(study.grids)
    unknown = sorted(set(grids) - study.grids.keys())
    if unknown:
        parser.error(f"--grids names {unknown}; {options.study} has {list(study.grids)}")
    if options.command == "run":
        return Runner(study, Path(options.data), Path(options.work), records).run_grids(grids)
    if options.command == "list":
        list_runs(study, records)
    else:
        report = Report(Results(study, records), Path(options.to))
        report.write(options.template)
    return 0


def list_runs(study: Study, records: Records) -> None:
    """Print a line a run, which says whether it has a record."""
    recorded = records.read()
    for run in study.runs:
        state = "done" if run.key in recorded else "open"
        print(run.key, state, run.collection, run.loss_name, run.negatives, f"seed {run.seed}")


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    raise SystemExit(main())
