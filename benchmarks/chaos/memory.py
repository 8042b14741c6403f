"""Whether memory or open files grow while a process searches and re-ranks for a long time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scipy.stats import linregress

from benchmarks.pages import table
from benchmarks.study.memory import resident
from pyterrier_selfdistill import SelfDistillIndex

from . import materials
from .materials import Materials
from .processes import Child

SAMPLES = 240
"""How often memory is read."""

EXPLANATION = "The growth is the slope of a line through resident memory after the warm-up, with its standard error."

WARM_UP = 0.1
"""The share of the time that is not counted: caches fill, and the allocator finds its size."""


@dataclass(frozen=True)
class Growth:
    """What a long time of searching takes.

    Attributes:
        seconds: How long it was.
        iterations: How often it searched and re-ranked.
        before: The resident memory after the warm-up, in MB.
        after: That in the end.
        slope: The growth after the warm-up, in MB an hour.
        error: The standard error of the slope.
        files_before: How many file descriptors were open after the first time.
        files_after: How many were in the end.
    """

    seconds: float
    iterations: int
    before: float
    after: float
    slope: float
    error: float
    files_before: int
    files_after: int


def measure(materials: Materials, work: Path, minutes: float) -> Growth:
    """Search and re-rank in a process of its own, whose memory is only its own.

    Args:
        materials: The encoder.
        work: The folder to work in, which is removed before.
        minutes: How long.

    Returns:
        What it took.

    Raises:
        RuntimeError: If the process fails.
    """
    shutil.rmtree(work, ignore_errors=True)
    log = work / "log"
    with Child(partial(prepare, materials, work, 60 * minutes), work, log) as child:
        outcome = child.begin() or child.wait(60 * minutes + 60)
    if outcome is None or outcome.value is None:
        reason = "it hangs" if outcome is None else outcome.first_line
        raise RuntimeError(f"searching for {minutes} minutes failed: {reason}; see {str(log)!r}")
    return outcome.value


def prepare(files: Materials, work: Path, seconds: float) -> Callable[[], Growth]:
    """Build an index, and make what searches and re-ranks with it."""
    encoder = files.encoder()
    corpus, topics = materials.corpus(), materials.topics()
    index = SelfDistillIndex(work / "index.flex", verbose=False)
    indexing: Any = encoder >> index
    indexing.index(corpus.to_dict(orient="records"))
    search = encoder >> index.retriever(num_results=20)
    texts = corpus.set_index("docno")["text"]

    def work_once() -> None:
        results = search.transform(topics)
        index.scorer().transform(results)
        pairs = results[["qid", "query", "docno"]].assign(text=results["docno"].map(texts))
        encoder.text_scorer().transform(pairs)

    return partial(watch, work_once, seconds)


def watch(work: Callable[[], None], seconds: float) -> Growth:
    """Do something again and again, and read memory at equal distances.

    Args:
        work: What to do.
        seconds: How long.

    Returns:
        What it took.
    """
    work()  # files are opened when they are needed
    files_before = open_files()
    started = time.monotonic()
    times: list[float] = []
    sizes: list[float] = []
    iterations = 0
    while (passed := time.monotonic() - started) < seconds:
        work()
        iterations += 1
        if passed >= len(times) * seconds / SAMPLES:
            times.append(passed)
            sizes.append(resident("VmRSS"))
    warm = [number for number, passed in enumerate(times) if passed >= WARM_UP * seconds]
    slope, error = slope_per_hour(times[warm[0] :], sizes[warm[0] :])
    return Growth(seconds, iterations, sizes[warm[0]], sizes[-1], slope, error, files_before, open_files())


def slope_per_hour(times: Sequence[float], sizes: Sequence[float]) -> tuple[float, float]:
    """Fit a line to what was measured.

    Args:
        times: When, in seconds.
        sizes: What, in MB.

    Returns:
        The growth in MB an hour, and its standard error.

    Example:
        >>> slope, error = slope_per_hour([0, 60, 120, 180], [100, 101, 102, 103])
        >>> round(slope), round(error)
        (60, 0)
    """
    line = linregress(times, sizes)
    return 3600 * float(line.slope), 3600 * float(line.stderr)


def open_files() -> int:
    """Count the open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def summarize(growth: Growth) -> str:
    """Write a table of one row."""
    header = ["minutes", "iterations", "MB after warm-up", "MB at the end", "MB an hour", "open files, start and end"]
    row = [
        f"{growth.seconds / 60:g}",
        f"{growth.iterations:,}",
        f"{growth.before:.1f}",
        f"{growth.after:.1f}",
        f"{growth.slope:.2f} ± {growth.error:.2f}",
        f"{growth.files_before} and {growth.files_after}",
    ]
    return f"{EXPLANATION}\n\n{table(header, [row])}"
