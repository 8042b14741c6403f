"""The systems of a study, from its records. A *system* is the runs that differ only in the seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_selfdistill.training.loop import FORGETTING, has_collapsed

from .config import Run, Study
from .records import Record, Records
from .statistics import Difference, compare, pooled_seed_variance

HARM = 0.01
"""The loss of nDCG@10 on test from which a run counts as harmed."""


class System:
    """Runs that differ only in the seed; ``run`` is the one with the lowest."""

    def __init__(self, records: Sequence[Record], results: Results) -> None:
        self.records = sorted(records, key=_seed)
        settings = self.records[0]["run"]
        self.run = Run(**{**settings, "transfer": tuple(settings["transfer"])})
        self.results = results

    def means(self, where: str, measure: str = "nDCG@10") -> list[float]:
        """Return the mean over queries, for each seed."""
        return [record["means"][where][measure] for record in self.records]

    def mean(self, where: str, measure: str = "nDCG@10") -> float:
        """Return the mean over queries and seeds."""
        return float(np.mean(self.means(where, measure)))

    def average(self, part: str, name: str, missing: float = math.nan) -> float:
        """Average a value of a part of the records (``cost``, ``space``, ``training``) over seeds."""
        return float(np.mean([record[part].get(name, missing) for record in self.records]))

    @property
    def seconds(self) -> float:
        """The seconds of training, mean over seeds."""
        return self.average("cost", "training_seconds", 0.0)

    @property
    def total_seconds(self) -> float:
        """The seconds of training with those of the teacher and its labels."""
        return self.seconds + sum(self.average("cost", f"{part}_seconds", 0.0) for part in ("teacher", "labelling"))

    @property
    def scale(self) -> float:
        """The scale of a softmax, mean over seeds; NaN for other losses."""
        return float(np.mean([record["training"]["loss"].get("scale", math.nan) for record in self.records]))

    @property
    def dev(self) -> float:
        """nDCG@10 on dev, by which systems are chosen."""
        return self.mean(f"{self.run.collection}/dev")

    @property
    def test(self) -> str:
        """The collection and the split that the study is about."""
        return f"{self.run.collection}/test"

    @property
    def is_tested(self) -> bool:
        """Whether the records have more than measures on dev."""
        return all(self.test in record["queries"] for record in self.records)

    @property
    def is_trained(self) -> bool:
        """Whether this is not the untrained encoder."""
        return self.run.loss != "untouched"

    def better_than(self, other: System, where: str | None = None) -> Difference:
        """Compare nDCG@10 with another system, on test by default."""
        mine, my_variance = self._values(where or self.test)
        theirs, their_variance = other._values(where or self.test)
        return compare(mine, theirs, my_variance, their_variance)

    def _values(self, where: str) -> tuple[np.ndarray, float]:
        """Return nDCG@10, ``(seeds, queries)``, and the variance over seeds if a single seed does not tell it."""
        values = np.array([record["queries"][where]["nDCG@10"] for record in self.records])
        is_single = self.is_trained and len(self.records) == 1
        return values, self.results.seed_variance(where) if is_single else 0.0


class Results:
    """A study with its follow-up grids, the records of its runs by key, and its systems."""

    def __init__(self, study: Study, records: Records) -> None:
        found = records.read()
        self.study = study.follow_up(found)
        self.records: dict[str, Record] = {}
        for run in self.study.grid_of:
            if run.key in found:
                self.records[run.key] = found[run.key]
        if not self.records:
            raise FileNotFoundError(f"{str(records.folder)!r} has no records of {study.name!r}; run the study first")

    @cached_property
    def systems(self) -> list[System]:
        """All systems."""
        return self._group(list(self.study.grid_of))

    @property
    def open(self) -> dict[str, int]:
        """The number of runs without a record, by grid."""
        counts = {name: sum(run.key not in self.records for run in runs) for name, runs in self.study.grids.items()}
        return {name: count for name, count in counts.items() if count}

    def grid(self, name: str, **settings: Any) -> list[System]:
        """Return the systems of a grid that have the given settings; a list is for one of several values."""
        return _select(self._group(self.study.grids[name]), settings)

    def one(self, grid: str, **settings: Any) -> System:
        """Return the only system of a grid with the given settings."""
        found = self.grid(grid, **settings)
        if len(found) != 1:
            raise KeyError(f"{len(found)} systems of {grid!r} have {settings}")
        return found[0]

    def untouched(self, run: Run) -> System | None:
        """Return the untrained encoder of a run, if it has a record: of several, the one that searched most."""
        settings = {**run.start._asdict(), "loss": "untouched", "collection": run.collection}
        found = _select([system for system in self.systems if system.is_tested], settings)
        return max(found, key=lambda system: len(system.run.transfer), default=None)

    def tuned(self, grid: str, **settings: Any) -> System:
        """Return the system of a grid with the given settings that is best on dev."""
        return max(self.grid(grid, **settings), key=attrgetter("dev"))

    def best(self, collection: str) -> list[System]:
        """Return the best tested system on dev of each loss and encoder, whatever its margin or scale; best first."""
        chosen: dict[tuple[Any, ...], System] = {}
        for system in sorted(self.systems, key=attrgetter("dev"), reverse=True):
            if system.run.collection == collection and system.is_tested:
                loss = dataclasses.replace(system.run, margin=None, scale=None).loss_name
                chosen.setdefault((system.run.start, loss), system)
        return list(chosen.values())

    def search_cost(self, grid: str, **settings: Any) -> float:
        """Return the seconds of all trainings of a search."""
        return sum(system.seconds * len(system.records) for system in self.grid(grid, **settings))

    def cheapest(self, grid: str, quality: float, **settings: Any) -> System | None:
        """Return the system of a grid that reaches an nDCG@10 on dev at the lowest total cost, if any does."""
        found = [system for system in self.grid(grid, **settings) if system.dev >= quality]
        return min(found, key=attrgetter("total_seconds"), default=None)

    def seed_variance(self, where: str) -> float:
        """Estimate how much nDCG@10 varies over seeds, pooled over the systems with several seeds.

        These are the ones that were trained on this collection, or else on any, each where it was tested.
        """
        repeated = [system for system in self.systems if system.is_tested and len(system.records) > 1]
        here = [system for system in repeated if system.test == where]
        return pooled_seed_variance([system.means(system.test) for system in here or repeated])

    def alarms(self) -> pd.DataFrame:
        """Count the runs in which a warning of the trainer is due, and how many of them training harmed."""
        rows = []
        for system in self.systems:
            before = self.untouched(system.run)
            # random vectors have nothing to forget
            if before is None or not system.is_trained or not system.is_tested or system.run.model == "static":
                continue
            for record in system.records:
                agreement = record["space"].get("representational_similarity", math.nan)
                collapsed = has_collapsed(before.average("space", "similarity"), record["space"]["similarity"])
                harmed = record["means"][system.test]["nDCG@10"] - before.mean(system.test) < -HARM
                rows.append((harmed, collapsed, agreement < FORGETTING, not math.isnan(agreement)))
        harmed, collapsed, forgotten, measured = np.array(rows, dtype=bool).T
        table = []
        for warning, due, runs in [
            ("documents become alike", collapsed, len(rows)),
            ("the encoder forgets", forgotten, measured.sum()),
            ("no warning", measured & ~collapsed & ~forgotten, measured.sum()),
        ]:
            table.append((warning, runs, due.sum(), (due & harmed).sum()))
        return pd.DataFrame(table, columns=["warning", "runs", "with this warning", "harmed runs among them"])

    def machine(self, *grids: str) -> str:
        """Describe where the records of some grids, or of all, were made."""
        kinds = set()
        for name in grids or self.study.grids:
            for run in self.study.grids[name]:
                if run.key in self.records:
                    machine = self.records[run.key]["machine"]
                    gpu = machine["gpu"] or "no GPU"
                    kinds.add(f"{machine['processor']}, {machine['cores']} cores, {gpu}, {machine['precision']}")
        return "; ".join(sorted(kinds))

    def _group(self, runs: Sequence[Run]) -> list[System]:
        """Make systems of the runs that have a record."""
        groups: dict[Run, list[Record]] = {}
        for run in runs:
            if run.key in self.records:
                groups.setdefault(dataclasses.replace(run, seed=0), []).append(self.records[run.key])
        return [System(records, self) for records in groups.values()]


def _seed(record: Record) -> int:
    return record["run"]["seed"]


def _select(systems: Sequence[System], settings: dict[str, Any]) -> list[System]:
    """Select the systems that have the settings, or one of several values of a setting."""

    def has_all(system: System) -> bool:
        wanted = [(getattr(system.run, name), value) for name, value in settings.items()]
        return all(have in (value if isinstance(value, list) else [value]) for have, value in wanted)

    return [system for system in systems if has_all(system)]
