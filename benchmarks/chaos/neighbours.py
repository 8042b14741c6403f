"""Processes that get into each other's way: searching an index that is replaced, and doing the same at once."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.pages import table
from pyterrier_selfdistill import SelfDistillIndex

from . import materials
from .kills import has_result_of, run_undisturbed
from .materials import Materials
from .operations import Fit, Index, Operation
from .processes import Child, Outcome, Setup
from .report import fault_list

SEARCHERS = 8
"""How many processes search."""

DEPTH = 10
"""How many documents they find."""

EXPLANATION = (
    "An answer is mixed if its documents and scores are not those of one version of the index. Of two processes at "
    "once, one should fail with an error that names the other."
)

ROUNDS = 3
"""How often two processes do the same at once."""

PAUSE = 1.0
"""The seconds that building an index pauses, so that two buildings meet."""


@dataclass
class Count:
    """What a process, or some of them, did and saw.

    Attributes:
        processes: How many processes.
        done: How many answers they got, or indexes they built.
        mixed: The answers that are of no version, by what they were.
        errors: The errors, by class and message.
    """

    processes: int = 1
    done: int = 0
    mixed: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, other: Count) -> None:
        """Add what another process saw."""
        self.processes += other.processes
        self.done += other.done
        self.mixed += other.mixed
        self.errors += other.errors


@dataclass
class Meetings:
    """What came of two processes that did the same in one folder.

    Attributes:
        name: What they did.
        both: How often both came to their end.
        one: How often one did, and the other one failed.
        named: How often the error names the other process.
        whole: How often the result is that of an undisturbed run.
        errors: All errors, by class and message.
    """

    name: str
    both: int = 0
    one: int = 0
    named: int = 0
    whole: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, first: Meeting, second: Meeting) -> None:
        """Add how the two ended."""
        failed = [meeting for meeting in (first, second) if meeting.outcome.error]
        self.both += not failed
        self.one += len(failed) == 1
        for meeting in failed:
            self.named += str(meeting.other) in meeting.outcome.message
            self.errors[meeting.outcome.first_line] += 1


@dataclass(frozen=True)
class Meeting:
    """How a process ended that met another.

    Attributes:
        outcome: How it ended.
        other: The identifier of the other process.
    """

    outcome: Outcome
    other: int


def measure_searching(work: Path, seconds: float) -> dict[str, Count]:
    """Have processes search an index that another one replaces again and again.

    Args:
        work: The folder to work in, which is removed before.
        seconds: How long.

    Returns:
        What they saw, by what they did.
    """
    shutil.rmtree(work, ignore_errors=True)
    folder = work / "results"
    Index(Materials(work), overwrite=True).prepare(folder)
    path = folder / "index.flex"
    setups: list[tuple[str, Setup]] = [("replaces the index", partial(prepare_replacing, path, seconds))]
    for number in range(SEARCHERS):
        keeps_open = number % 2 == 0
        name = "searches, and keeps the index open" if keeps_open else "opens the index for each search"
        setups.append((name, partial(prepare_searching, path, seconds, keeps_open)))
    counts: dict[str, Count] = {}
    with ExitStack() as stack:
        children = []
        for number, (name, setup) in enumerate(setups):
            child = Child(setup, work / f"process-{number}", work / "log")
            children.append((name, stack.enter_context(child)))
        for name, child in children:
            outcome = child.end()
            count = outcome.value or Count(errors=Counter([outcome.first_line]))
            counts.setdefault(name, Count(processes=0)).add(count)
    return counts


def prepare_replacing(path: Path, seconds: float) -> Callable[[], Count]:
    """Prepare to replace an index again and again."""
    versions = [materials.records("new"), materials.records("old")]
    index = SelfDistillIndex(path, verbose=False)

    def build(number: int) -> None:
        index.indexer(mode="overwrite").index(versions[number % 2])

    return partial(repeat, build, seconds)


def prepare_searching(path: Path, seconds: float, keeps_open: bool) -> Callable[[], Count]:
    """Prepare to search an index again and again."""
    kept = SelfDistillIndex(path, verbose=False)
    queries = pd.DataFrame({"qid": ["q"], "query_vec": [query_vector()]})

    def search(number: int) -> str | None:
        index = kept if keeps_open else SelfDistillIndex(path, verbose=False)
        return mixture(index.retriever(num_results=DEPTH)(queries))

    return partial(repeat, search, seconds)


def repeat(work: Callable[[int], str | None], seconds: float) -> Count:
    """Do something again and again, and count what comes of it.

    Args:
        work: What to do; it is given the number of the time, and returns what is wrong with the answer, if it is.
        seconds: How long.

    Returns:
        The count.
    """
    count = Count()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            mixed = work(count.done)
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            count.errors[f"{type(error).__name__}: {first_line}"] += 1
            continue
        count.done += 1
        if mixed:
            count.mixed[mixed] += 1
    return count


def mixture(results: pd.DataFrame) -> str | None:
    """Say how an answer differs from that of each version of the index; nothing, if it is one version's."""
    found = dict(zip(results["docno"], results["score"], strict=True))
    versions = {docno.partition("-")[0] for docno in found}
    if len(versions) > 1:
        return "documents of two versions"
    expected = best_scores(versions.pop())
    if not np.allclose(sorted(found.values()), sorted(expected.values()), atol=1e-5):
        return "documents of one version with the scores of another"
    if found.keys() != expected.keys():
        return "other documents with the right scores"
    return None


@cache
def best_scores(version: str) -> dict[str, float]:
    """Compute what a version of the index answers."""
    scores = materials.vectors(version) @ query_vector()
    best = np.argsort(-scores)[:DEPTH]
    return {f"{version}-{row}": float(scores[row]) for row in best}


def query_vector() -> np.ndarray:
    """Make the vector of the query that is searched for: between documents of both versions."""
    vector = materials.vectors("old")[7] + materials.vectors("new")[7]
    return vector / np.linalg.norm(vector)


def measure_meetings(materials: Materials, work: Path) -> list[Meetings]:
    """Have two processes build one index, and train in one folder.

    Args:
        materials: The files that are trained with.
        work: The folder to work in, which is removed before.

    Returns:
        What came of it.
    """
    shutil.rmtree(work, ignore_errors=True)
    fit = {"num_train_epochs": 3}
    operations: dict[str, Operation] = {
        'build with mode="create"': SlowIndex(materials),
        "fit with resume=True": Fit(materials, "fit", options=fit),
        "fit with overwrite=True": Fit(materials, "fit", options=fit, overwrite=True),
    }
    return [meet(name, operation, work / str(number)) for number, (name, operation) in enumerate(operations.items())]


class SlowIndex(Index):
    """Building an index that takes a while."""

    def setup(self, folder: Path) -> Callable[[], Any]:
        """Make the documents come slowly."""
        index = SelfDistillIndex(folder / "index.flex", verbose=False)

        def work() -> None:
            index.index(slowly(materials.records("new")))

        return work


def slowly(records: Sequence[Any]) -> Iterator[Any]:
    """Pause in the middle."""
    half = len(records) // 2
    yield from records[:half]
    time.sleep(PAUSE)
    yield from records[half:]


def meet(name: str, operation: Operation, work: Path) -> Meetings:
    """Have two processes do the same in one folder, again and again.

    Args:
        name: What tables call it.
        operation: What they do.
        work: The folder to work in.

    Returns:
        What came of it.
    """
    work.mkdir(parents=True)
    log = work / "log"
    reference = run_undisturbed(operation, work / "undisturbed", log)
    meetings = Meetings(name)
    for number in range(ROUNDS):
        folder = work / f"results-{number}"
        operation.prepare(folder)
        setup = partial(operation.setup, folder)
        with Child(setup, work / "first", log) as first, Child(setup, work / "second", log) as second:
            meetings.add(Meeting(first.end(), second.pid), Meeting(second.end(), first.pid))
        meetings.whole += has_result_of(operation, folder, reference)
        print(meetings, flush=True)
    return meetings


def summarize(counts: Mapping[str, Count], meetings: Sequence[Meetings]) -> str:
    """Write a table of who searched and replaced, one of who did the same at once, and the faults."""
    searching = table(
        ["processes", "what each does", "done", "mixed answers", "errors"],
        [
            [count.processes, name, count.done, count.mixed.total(), count.errors.total()]
            for name, count in counts.items()
        ],
    )
    header = ["two processes at once", "times", "both ended", "one failed", "error names the other", "result whole"]
    rows = [[each.name, ROUNDS, each.both, each.one, each.named, each.whole] for each in meetings]
    faults: Counter[str] = Counter()
    for name, count in counts.items():
        faults += Counter({f"{name}: {fault}": number for fault, number in (count.mixed + count.errors).items()})
    for each in meetings:
        faults += Counter({f"{each.name}: {error}": number for error, number in each.errors.items()})
    return "\n\n".join(
        filter(None, [EXPLANATION, searching, table(header, rows), fault_list(faults, "Errors that were raised")])
    )
