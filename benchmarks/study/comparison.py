"""Compare systems by their records, with confidence intervals.

The unit is a *system*: the runs that differ in nothing but the seed. Two systems are compared query by query, on the
values averaged over seeds: the p-value is of a paired t-test over queries, and the interval holds 95 % of 2,000
bootstrap samples of both queries and seeds, so it also says how much seeds matter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from pyterrier_selfdistill.training.similarity import has_collapsed, has_forgotten

from .config import Run, Study
from .records import Record, Records

SAMPLES = 2000
"""How many bootstrap samples make an interval."""

HARM = 0.01
"""How much of nDCG@10 a run must lose on test to count as harmed."""


class Difference(NamedTuple):
    """How much better one system is than another.

    Attributes:
        mean: The mean difference.
        low: Where the 95 % interval begins.
        high: Where it ends.
        p: The p-value of a paired t-test over queries.
    """

    mean: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def compare(one: np.ndarray, other: np.ndarray) -> Difference:
    """Compare two systems query by query.

    Args:
        one: A measure of one system, ``(seeds, queries)``.
        other: That of the other, of the same queries; the number of seeds may differ.

    Returns:
        How much better the one is.
    """
    generator = np.random.default_rng(0)  # a report that is written again must say the same
    difference = one.mean(axis=0) - other.mean(axis=0)
    queries = generator.integers(len(difference), size=(SAMPLES, len(difference)))
    resampled = _resampled_means(one, queries, generator) - _resampled_means(other, queries, generator)
    low, high = np.quantile(resampled, [0.025, 0.975])
    p = 1.0
    if difference.any():  # without any, the test divides 0 by 0
        p = float(stats.ttest_1samp(difference, 0).pvalue)
    return Difference(float(difference.mean()), float(low), float(high), p)


def _resampled_means(values: np.ndarray, queries: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw seeds with replacement, and average over them and over queries that are drawn already."""
    drawn = generator.integers(len(values), size=(SAMPLES, len(values)))
    means = np.zeros(SAMPLES)
    for seed, row in enumerate(values):
        weight = (drawn == seed).mean(axis=1)
        means += weight * row[queries].mean(axis=1)
    return means


class System:
    """Runs that differ in nothing but the seed, and their records.

    Args:
        records: The records.

    Attributes:
        records: The records in the order of their seeds.
        run: The run with the lowest seed.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = sorted(records, key=_seed)
        self.run = Run.from_settings(self.records[0]["run"])

    def values(self, where: str, measure: str) -> np.ndarray:
        """Return the measure of each query, of shape ``(seeds, queries)``."""
        rows = [record["queries"][where][measure] for record in self.records]
        return np.array(rows)

    def mean(self, where: str, measure: str) -> float:
        """Return the mean over queries and seeds."""
        return float(np.mean(self._means(where, measure)))

    def deviation(self, where: str, measure: str) -> float:
        """Return the standard deviation over seeds."""
        return float(np.std(self._means(where, measure)))

    def cost(self, name: str) -> float:
        """Return the mean of a cost over seeds, 0 where a record does not have it."""
        return self._average("cost", name, missing=0.0)

    def space(self, name: str) -> float:
        """Return the mean over seeds of what describes the vectors of documents; NaN where a record lacks it."""
        return self._average("space", name, missing=math.nan)

    @property
    def training(self) -> float:
        """The seconds of training, mean over seeds."""
        return self.cost("training_seconds")

    @property
    def total(self) -> float:
        """The seconds of training, those of the teacher and its labels included."""
        return self.cost("training_seconds") + self.cost("teacher_seconds") + self.cost("labelling_seconds")

    @property
    def agreement(self) -> float:
        """The share of triples whose positive the teacher scores above the negative."""
        return self._average("training", "teacher_agreement", missing=math.nan)

    @property
    def final_target(self) -> float:
        """The mean target in the last tenth of the recorded steps; NaN for losses without."""
        final = []
        for record in self.records:
            targets = np.array(record["training"]["history"]["target"], dtype=float)
            tenth = max(1, len(targets) // 10)
            final.append(targets[-tenth:])
        return float(np.mean(final))

    @property
    def dev(self) -> float:
        """The mean nDCG@10 on dev, by which systems are chosen."""
        return self.mean(f"{self.run.collection}/dev", "nDCG@10")

    @property
    def test(self) -> str:
        """The name of the split that the study is about."""
        return f"{self.run.collection}/test"

    def better_than(self, other: System, measure: str = "nDCG@10", where: str | None = None) -> Difference:
        """Compare with another system, on test if not said otherwise."""
        where = where or self.test
        return compare(self.values(where, measure), other.values(where, measure))

    def _means(self, where: str, measure: str) -> list[float]:
        return [record["means"][where][measure] for record in self.records]

    def _average(self, part: str, name: str, missing: float) -> float:
        """Average a value of a part of the records over seeds."""
        values = [record[part].get(name, missing) for record in self.records]
        return float(np.mean(values))


class Results:
    """The systems of a study.

    Args:
        study: The study.
        records: Where its records are.

    Attributes:
        study: The study.
        records: The records of its runs by key.

    Raises:
        FileNotFoundError: If there are none.
    """

    def __init__(self, study: Study, records: Records) -> None:
        self.study = study
        self.records: dict[str, Record] = {}
        found = records.read()
        for run in study.runs:
            if run.key in found:
                self.records[run.key] = found[run.key]
        if not self.records:
            raise FileNotFoundError(f"{str(records.folder)!r} has no records of {study.name!r}; run the study first")

    @cached_property
    def systems(self) -> list[System]:
        """All systems."""
        return self._group(self.study.runs)

    def grid(self, name: str, **settings: Any) -> list[System]:
        """Return the systems of a grid that have the given settings; a list is for one of several values."""
        return _select(self._group(self.study.grids[name]), settings)

    def one(self, grid: str, **settings: Any) -> System:
        """Return the only system of a grid with the given settings.

        Raises:
            KeyError: If there is none, or more than one.
        """
        found = self.grid(grid, **settings)
        if len(found) != 1:
            raise KeyError(f"{len(found)} systems of {grid!r} have {settings}")
        return found[0]

    def untouched(self, run: Run) -> System:
        """Return the model as it was before a run: of several records, the one that searched most collections.

        Raises:
            KeyError: If there is no record of it.
        """
        settings: dict[str, Any] = {"loss": "untouched"}
        for name in ("collection", "model", "pooling", "query_length", "document_length"):
            settings[name] = getattr(run, name)
        found = _select(self.systems, settings)
        if not found:
            raise KeyError(f"no record of the untouched model of {run}")
        return max(found, key=_number_of_transfers)

    def best_static(self, **settings: Any) -> System:
        """Return the static margin that is best on dev."""
        static = _select(self.systems, {"loss": "static", **settings})
        return max(static, key=attrgetter("dev"))

    def cheapest(self, grid: str, quality: float, **settings: Any) -> System | None:
        """Return the system of a grid that reaches an nDCG@10 on dev at the lowest total cost, if any does."""
        found = [system for system in self.grid(grid, **settings) if system.dev >= quality]
        return min(found, key=attrgetter("total"), default=None)

    def plain(self, system: System) -> System:
        """Return the system with l2 and the gradient through the target, in all else the same."""
        return self._changed(system, error="l2", detach_target=False)

    def random(self, system: System) -> System:
        """Return the system with random negatives, in all else the same."""
        return self._changed(system, negatives="random")

    def infonce(self, system: System) -> System:
        """Return InfoNCE with the settings of a system."""
        return self._changed(system, loss="infonce", margin=None, in_batch=False, error="l2", detach_target=False)

    @property
    def open(self) -> dict[str, int]:
        """The number of runs without a record, by grid; grids without such runs are left out."""
        counts = {}
        for name, runs in self.study.grids.items():
            missing = {run.key for run in runs} - self.records.keys()
            if missing:
                counts[name] = len(missing)
        return counts

    def alarms(self) -> pd.DataFrame:
        """Count the runs in which a warning of the trainer is due, and those of them that training harmed.

        Returns:
            A row a warning, and one for runs with neither: ``runs`` in which it was measured, those in which it is
            due, and how many of these training harmed: they lost more than :data:`HARM` of nDCG@10.
        """
        rows = []
        for system in self.systems:
            if system.run.loss != "untouched":
                rows += self._diagnoses(system)
        runs = pd.DataFrame(rows)
        neither = runs["measured"] & ~runs["collapsed"] & ~runs["forgotten"]
        table = [
            _count("documents become alike", runs["collapsed"], runs["harmed"], len(runs)),
            _count("the encoder forgets", runs["forgotten"], runs["harmed"], runs["measured"].sum()),
            _count("neither", neither, runs["harmed"], runs["measured"].sum()),
        ]
        return pd.DataFrame(table)

    def machine(self) -> str:
        """Describe where the records are from."""
        kinds = set()
        for record in self.records.values():
            machine = record["machine"]
            gpu = machine["gpu"] or "no GPU"
            kinds.add(f"{machine['processor']}, {machine['cores']} cores, {gpu}, {machine['precision']}")
        return "; ".join(sorted(kinds))

    def _diagnoses(self, system: System) -> list[dict[str, bool]]:
        """Tell for each run of a system what training did to the space of vectors and to nDCG@10 on test."""
        before = self.untouched(system.run)
        quality_before = before.mean(system.test, "nDCG@10")
        similarity_before = before.records[0]["space"]["similarity"]
        rows = []
        for record in system.records:
            change = record["means"][system.test]["nDCG@10"] - quality_before
            agreement = record["space"].get("representational_similarity", math.nan)
            diagnosis = {
                "harmed": change < -HARM,
                "collapsed": has_collapsed(similarity_before, record["space"]["similarity"]),
                "forgotten": has_forgotten(agreement),
                "measured": not math.isnan(agreement),
            }
            rows.append(diagnosis)
        return rows

    def _changed(self, system: System, **changes: Any) -> System:
        """Return the system that differs in these settings, with the seeds of this one where it has them."""
        # grids differ in their seeds: a seed that only one of two systems has would count as a difference of theirs
        wanted = dataclasses.replace(system.run, **changes, seed=0)
        seeds = {_seed(record) for record in system.records}
        for other in self.systems:
            if dataclasses.replace(other.run, seed=0) == wanted:
                same = [record for record in other.records if _seed(record) in seeds]
                return System(same or other.records)
        raise KeyError(f"no record of {wanted}")

    def _group(self, runs: Sequence[Run]) -> list[System]:
        """Make systems of the runs that have a record."""
        groups: dict[Run, list[Record]] = {}
        for run in runs:
            if run.key in self.records:
                without_seed = dataclasses.replace(run, seed=0)
                groups.setdefault(without_seed, []).append(self.records[run.key])
        return [System(records) for records in groups.values()]


def collections_of(systems: Sequence[System]) -> list[str]:
    """Name the collections of some systems once each, in their order."""
    return list(dict.fromkeys(system.run.collection for system in systems))


def _seed(record: Record) -> int:
    return record["run"]["seed"]


def _select(systems: Sequence[System], settings: dict[str, Any]) -> list[System]:
    """Select the systems that have the settings."""
    return [system for system in systems if _matches(system.run, settings)]


def _matches(run: Run, settings: dict[str, Any]) -> bool:
    """Tell whether a run has the settings, or one of several values of a setting."""
    for name, wanted in settings.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        if getattr(run, name) not in values:
            return False
    return True


def _number_of_transfers(system: System) -> int:
    return len(system.run.transfer)


def _count(warning: str, due: pd.Series, harmed: pd.Series, runs: int) -> dict[str, Any]:
    return {"warning": warning, "runs": runs, "due in": due.sum(), "of these harmed": (due & harmed).sum()}
