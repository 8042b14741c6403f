"""What becomes of malformed input: the right answer or a clear error, and never a wrong one in silence."""

import importlib.metadata
import os
import platform
from datetime import date

import pytest

from benchmarks.pages import RELIABILITY, write_section

from . import encoding, folders, indexing, losses, options, training, training_data, triple_files
from .exploring import Outcome, Tally

ENTRY_POINTS = [
    options.TrainerOptions,
    training.Fit,
    training.TrainingArguments,
    training_data.FromResults,
    training_data.FromTopics,
    triple_files.FromMemory,
    triple_files.FromTSV,
    triple_files.FromCSV,
    triple_files.FromJSONL,
    triple_files.FromParquet,
    training_data.FromIdentifiers,
    training_data.FromDocpairs,
    training_data.SplitQueries,
    options.NegativesOptions,
    options.Pairs,
    options.LossOptions,
    losses.LossOfTensors,
    encoding.Evaluate,
    encoding.EncodeQueries,
    encoding.EncodeDocuments,
    encoding.TransformQueries,
    encoding.TransformDocuments,
    encoding.TransformResults,
    encoding.BuildRetriever,
    indexing.BuildIndex,
    indexing.Retrieve,
    indexing.ScoreResults,
    indexing.EncodeAndRetrieve,
    folders.OpenIndex,
    folders.OpenEncoder,
    options.PretrainedOptions,
    folders.LoadArtifact,
    folders.SaveEncoder,
]

VERSIONS = ["pandas", "numpy", "torch", "transformers", "sentence-transformers", "pyterrier", "pyterrier-dr"]
"""Whose versions the page names."""

HIDDEN_AT_MOST = 0.02
"""The share of all errors that may come from below the checks of the package."""


@pytest.mark.parametrize("entry_point", ENTRY_POINTS, ids=lambda entry_point: entry_point.name)
def test_input_gets_the_right_answer_or_an_error(tally, entry_point):
    findings = tally(entry_point).findings_of(Outcome.WRONG, Outcome.REFUSED, Outcome.HANGS)
    assert not findings, "\n" + "\n".join(findings)


def test_errors_say_what_was_given(tally):
    total = Tally("all")
    findings = []
    for entry_point in ENTRY_POINTS:
        total.counts += tally(entry_point).counts
        findings += tally(entry_point).findings_of(Outcome.HIDDEN)
    assert total.hidden <= HIDDEN_AT_MOST, f"{total.hidden:.1%} of errors hide their cause\n" + "\n".join(findings)


@pytest.mark.skipif("FUZZ_PAGE" not in os.environ, reason="make fuzz writes the page")
def test_the_counts_are_written(tally):
    text = section([tally(entry_point) for entry_point in ENTRY_POINTS])
    write_section("fuzz", text, RELIABILITY)
    print(f"\n{text}")


def section(tallies):
    """Say how the examples were made, and count what became of those of each entry point and of all."""
    total = Tally("all")
    for tally in tallies:
        total.counts += tally.counts
    rows = [["entry point", "examples", *(outcome.value for outcome in Outcome)]]
    for tally in [*tallies, total]:
        numbers = [tally.counts.total(), *(tally.counts[outcome] for outcome in Outcome)]
        rows.append([tally.name, *(f"{number:,}" for number in numbers)])
    rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in VERSIONS]
    return (
        f"`make fuzz FUZZ_EXAMPLES={os.environ['FUZZ_EXAMPLES']} FUZZ_SEED={os.environ['FUZZ_SEED']}` on "
        f"{date.today()}: {total.hidden:.1%} of errors come from below the checks of the package. Python "
        f"{platform.python_version()}, {', '.join(versions)}.\n\n{table}"
    )
