"""Compare systems by their records.

The unit is a *system*: the runs that differ in nothing but the seed. :class:`Results` finds the systems of a study, and
:mod:`.significance` says what a difference of two allows to claim.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_selfdistill.training.callbacks import has_collapsed, has_forgotten

from .config import Study
from .records import Record, Records
from .run import Run
from .significance import Difference, compare, pooled_seed_variance

HARM = 0.01
"""How much of nDCG@10 a run must lose on test to count as harmed."""


class System:
    """Runs that differ in nothing but the seed, and their records.

    Args:
        records: The records.
        study: The systems of the study, which say how much seeds matter where this one has a single seed.

    Attributes:
        records: The records in the order of their seeds.
        run: The run with the lowest seed.
    """

    def __init__(self, records: Sequence[Record], study: Results | None = None) -> None:
        self.records = sorted(records, key=_seed)
        self.run = Run.from_settings(self.records[0]["run"])
        self.study = study

    def values(self, where: str, measure: str) -> np.ndarray:
        """Return the measure of each query, of shape ``(seeds, queries)``."""
        rows = [record["queries"][where][measure] for record in self.records]
        return np.array(rows)

    def means(self, where: str, measure: str) -> list[float]:
        """Return the mean over queries, for each seed."""
        return [record["means"][where][measure] for record in self.records]

    def mean(self, where: str, measure: str) -> float:
        """Return the mean over queries and seeds."""
        return float(np.mean(self.means(where, measure)))

    def deviation(self, where: str, measure: str) -> float:
        """Return the standard deviation over seeds."""
        return float(np.std(self.means(where, measure)))

    def cost(self, name: str) -> float:
        """Return the mean of a cost over seeds, 0 where a record does not have it."""
        return self._average("cost", name, missing=0.0)

    def space(self, name: str) -> float:
        """Return the mean over seeds of what describes the vectors of documents; NaN where a record lacks it."""
        return self._average("space", name, missing=math.nan)

    def margins(self, when: str, name: str) -> np.ndarray:
        """Return what describes the margins of test queries ``before`` or ``after`` training, mean over seeds.

        Args:
            when: ``before`` or ``after``.
            name: ``margin``, ``target`` or ``above``, as :func:`.changes.describe_margins` has them.

        Returns:
            A value a query.
        """
        rows = [record["margins"][when][name] for record in self.records]
        return np.mean(rows, axis=0)

    @property
    def scale(self) -> float:
        """The scale that the calibrated loss took, mean over the recorded steps and seeds."""
        scales = [record["training"]["history"]["scale"] for record in self.records]
        return float(np.mean(scales))

    @property
    def pulled_back(self) -> float:
        """The share of the gradient that made margins smaller, mean over the recorded steps and seeds."""
        shares = []
        for record in self.records:
            steps = record["training"]["distributions"].values()
            shares += [step["pulled_back"] for step in steps]
        return float(np.mean(shares))

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

    @property
    def is_tested(self) -> bool:
        """Whether the records have more than measures on dev, which is all that the search of settings needs."""
        return all(self.test in record["queries"] for record in self.records)

    @property
    def is_trained(self) -> bool:
        """Whether this is not the model as it is."""
        return self.run.loss != "untouched"

    def better_than(self, other: System, measure: str = "nDCG@10", where: str | None = None) -> Difference:
        """Compare with another system, on test if not said otherwise."""
        where = where or self.test
        return compare(
            self.values(where, measure),
            other.values(where, measure),
            self._borrowed_variance(where, measure),
            other._borrowed_variance(where, measure),
        )

    def _borrowed_variance(self, where: str, measure: str) -> float:
        """Return how much seeds matter as other systems say, where the records of this one do not tell."""
        if self.study is None or not self.is_trained or len(self.records) > 1:
            return 0.0
        return self.study.seed_variance(where, measure)

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

        Args:
            grid: The grid.
            **settings: The settings; a list is for one of several values.

        Returns:
            The system.

        Raises:
            KeyError: If there is none, or more than one.
        """
        found = self.grid(grid, **settings)
        if len(found) != 1:
            raise KeyError(f"{len(found)} systems of {grid!r} have {settings}")
        return found[0]

    def untouched(self, run: Run) -> System:
        """Return the model as it was before a run: of several records, the one that searched most collections.

        Args:
            run: The run.

        Returns:
            The untouched model, searched for the same collection.

        Raises:
            KeyError: If there is no record of it.
        """
        tested = [system for system in self.systems if system.is_tested]
        settings = {**run.start._asdict(), "loss": "untouched", "collection": run.collection}
        found = _select(tested, settings)
        if not found:
            raise KeyError(f"no record of the untouched model of {run}")
        return max(found, key=_number_of_transfers)

    def tuned(self, grid: str, **settings: Any) -> System:
        """Return the system of a grid with the given settings that is best on dev, whatever else varies.

        Args:
            grid: The grid in which settings were searched, such as ``learning_rate``.
            **settings: What is not searched: the collection, the encoder, the loss.

        Returns:
            The system.

        Raises:
            KeyError: If there is no such system.
        """
        found = self.grid(grid, **settings)
        if not found:
            raise KeyError(f"no systems of {grid!r} have {settings}")
        return max(found, key=attrgetter("dev"))

    def best(self, collection: str) -> list[System]:
        """Return the best system of each loss and encoder on a collection: of those that were tested, by dev.

        Args:
            collection: The collection.

        Returns:
            The systems, best on dev first. A margin or a scale makes no other loss, and is chosen too.
        """
        chosen: dict[tuple[Any, ...], System] = {}
        for system in sorted(self.systems, key=attrgetter("dev"), reverse=True):
            run = system.run
            if run.collection == collection and system.is_tested:
                loss = dataclasses.replace(run, margin=None, scale=None).loss_name
                chosen.setdefault((run.start, loss), system)
        return list(chosen.values())

    def has_untouched(self, run: Run) -> bool:
        """Tell whether there is a record of the model as it was before a run."""
        try:
            self.untouched(run)
        except KeyError:
            return False
        return True

    def search_cost(self, grid: str, **settings: Any) -> float:
        """Return the seconds of all trainings of a search, those of all seeds included."""
        seconds = 0.0
        for system in self.grid(grid, **settings):
            seconds += system.training * len(system.records)
        return seconds

    def seed_variance(self, where: str, measure: str) -> float:
        """Estimate how much a measure varies over seeds, for systems that have a single one.

        Args:
            where: A collection and its split.
            measure: The measure.

        Returns:
            The variance of the mean over queries, pooled over the systems with several seeds: those trained on this
            collection, or else on any, each where it was tested; 0 if there are none.
        """
        repeated = [system for system in self.systems if system.is_tested and len(system.records) > 1]
        here = [system for system in repeated if system.test == where]
        means = [system.means(system.test, measure) for system in here or repeated]
        return pooled_seed_variance(means)

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
            if system.is_trained and system.is_tested:
                rows += self._diagnoses(system)
        runs = pd.DataFrame(rows)
        neither = runs["measured"] & ~runs["collapsed"] & ~runs["forgotten"]
        table = [
            _count("documents become alike", runs["collapsed"], runs["harmed"], len(runs)),
            _count("the encoder forgets", runs["forgotten"], runs["harmed"], runs["measured"].sum()),
            _count("neither", neither, runs["harmed"], runs["measured"].sum()),
        ]
        return pd.DataFrame(table)

    def machine(self, *grids: str) -> str:
        """Describe where the records of some grids, or of all, were made."""
        keys: set[str] = set()
        for name in grids or self.study.grids:
            keys |= {run.key for run in self.study.grids[name]}
        kinds = set()
        for key in keys & self.records.keys():
            machine = self.records[key]["machine"]
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
                return System(same or other.records, self)
        raise KeyError(f"no record of {wanted}")

    def _group(self, runs: Sequence[Run]) -> list[System]:
        """Make systems of the runs that have a record."""
        groups: dict[Run, list[Record]] = {}
        for run in runs:
            if run.key in self.records:
                without_seed = dataclasses.replace(run, seed=0)
                groups.setdefault(without_seed, []).append(self.records[run.key])
        return [System(records, self) for records in groups.values()]


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
