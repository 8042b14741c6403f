"""What a study runs: the points of its grids, each identified by what it computes.

A study is a YAML file::

    name: small
    collections:                    # a folder below --data, or a PyTerrier dataset
      nfcorpus: nfcorpus
      docstrings: docstrings:scipy,pandas,scikit-learn,numpy
    defaults: {triples: 1024, batch_size: 16}
    grids:
      variants:
        collection: [nfcorpus, docstrings]
        seed: [1, 2, 3]
        any_of:                     # alternatives, each with settings that belong together
          - {loss: untouched}
          - {loss: adaptive, in_batch: [true, false]}

A grid is the product of its lists, and of all lists of alternatives if their names begin with ``any_of``. Several grids
may share points. A grid may also follow up others: it takes the
systems that are best on dev there over some settings, a learning rate for each loss and so on, and changes others::

      tune: {learning_rate: [1.0e-5, 3.0e-5, 1.0e-4], loss: [distributed, infonce], dev_documents: 1500}
      compare: {best_of: tune, over: [learning_rate], seed: [1, 2, 3], dev_documents: null}

Which these are is known when the other grids have their records (:meth:`Study.follow_up`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

LOSS_NAMES = {"margin_mse": "MarginMSE", "infonce": "InfoNCE"}
"""What tables call losses, where it is not the name in the file."""


class Start(NamedTuple):
    """What training starts from; the settings of :class:`Run` with these names."""

    model: str
    pooling: str
    reinitialized: int
    query_length: int
    document_length: int


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    The names of these settings and of the losses are hashed into the keys of records, so they must never change.

    Attributes:
        collection: Where the training data comes from, and what is searched.
        loss: A name of :data:`~benchmarks.study.losses.LOSSES`, or ``untouched`` for the model as it is.
        margin: The constant of the losses ``static`` and ``triplet``, and what a teacher's margins, which are between
            -1 and 1, are multiplied with for ``margin_mse`` (1 if not given).
        scale: What InfoNCE multiplies cosines with, 20 if not given.
        in_batch: Whether negatives of other queries count, in the losses of the paper.
        error: ``l2``, ``l1``, ``soft`` or ``hinge``, in the losses of the paper.
        detach_target: Whether no gradient flows through the target.
        triples: How many judged positives to train with; a uniform sample of the collection's.
        negatives: ``random``, ``bm25`` (of the first 100 results) or ``re-mined`` (random, then the encoder's own).
        number: How many negatives a triple has.
        min_label: From which label on a judged document is a positive.
        batch_size: Triples a step.
        batch_sampler: As sentence-transformers names it.
        learning_rate: The highest one; it falls linearly after a tenth of the steps.
        epochs: How often each triple is seen.
        model: ``minilm``, or a folder or a hub name.
        pooling: ``mean`` or ``cls``. MiniLM was trained with mean: with ``cls`` it starts as a raw language model does,
            without a useful space of vectors.
        reinitialized: How many of the model's upper layers lose what they have learned, so that its vectors are of no
            use as they are.
        query_length: Tokens of a query.
        document_length: Tokens of a document.
        dev_documents: For a search for settings, where evaluation would take most of the time: only dev is measured,
            on its relevant documents and a sample of the others, so many in all or the relevant ones alone. None for
            whole collections, and test.
        transfer: Other collections that are searched too, to see what was forgotten.
        seed: Of the sample, the negatives, the order and dropout.
    """

    collection: str
    loss: str = "distributed"
    margin: float | None = None
    in_batch: bool = False
    error: str = "l2"
    detach_target: bool = False
    triples: int = 1024
    negatives: str = "random"
    number: int = 1
    min_label: int = 1
    batch_size: int = 16
    batch_sampler: str = "batch_sampler"
    learning_rate: float = 1e-4
    epochs: float = 1
    model: str = "minilm"
    pooling: str = "mean"
    query_length: int = 32
    document_length: int = 64
    transfer: tuple[str, ...] = ()
    seed: int = 1
    scale: float | None = None
    reinitialized: int = 0
    dev_documents: int | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Run:
        """Make a run of the settings in a record; JSON has lists in place of tuples."""
        return cls(**{**settings, "transfer": tuple(settings["transfer"])})

    @property
    def key(self) -> str:
        """The checksum that identifies the run, of the settings that differ from the defaults above."""
        settings = {}
        # defaults are left out, so that a setting that is added does not change the keys of earlier records
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if value != setting.default:
                settings[setting.name] = value
        content = json.dumps(settings, sort_keys=True)  # sorted, so that a field may be moved
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def start(self) -> Start:
        """The encoder that training starts from."""
        settings = [getattr(self, name) for name in Start._fields]
        return Start(*settings)

    @property
    def loss_name(self) -> str:
        """The loss with its options, as tables name it."""
        name = LOSS_NAMES.get(self.loss, self.loss)
        if self.margin is not None:
            name += f" {self.margin:g}"
        if self.scale is not None:
            name += f" {self.scale:g}"
        if self.in_batch:
            name += ", in-batch"
        if self.error != "l2":
            name += f", {self.error}"
        if self.detach_target:
            name += ", detached"
        return name


SETTINGS = tuple(setting.name for setting in dataclasses.fields(Run))


@dataclass(frozen=True)
class FollowUp:
    """A grid of the systems that are best on dev in other grids, with other settings.

    Attributes:
        grids: The other grids.
        over: The settings that are searched there: of the runs that differ in nothing else, the best is taken.
        changes: What to change in it, one run each.
    """

    grids: tuple[str, ...]
    over: tuple[str, ...]
    changes: list[dict[str, Any]]

    def choose(self, runs: list[Run], records: Mapping[str, Mapping[str, Any]]) -> list[Run]:
        """Make the runs, of searches that have all their records.

        Args:
            runs: Those of the other grids.
            records: All records, by the key of their run.

        Returns:
            The runs.
        """
        searches: dict[Run, list[Run]] = {}
        ignored: dict[str, Any] = dict.fromkeys(self.over)
        for run in runs:
            searches.setdefault(dataclasses.replace(run, **ignored), []).append(run)
        chosen = []
        for candidates in searches.values():
            if any(run.key not in records for run in candidates):
                continue
            quality = {run: _dev_quality(records[run.key], run) for run in candidates}
            best = max(candidates, key=quality.__getitem__)
            chosen += [dataclasses.replace(best, **changes) for changes in self.changes]
        return list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class Study:
    """A study as its file says.

    Attributes:
        name: Its name.
        collections: Where each collection is, by name.
        grids: The runs of each grid, by name.
        follow_ups: The grids whose runs depend on the records of others, by name.
    """

    name: str
    collections: dict[str, str]
    grids: dict[str, list[Run]]
    follow_ups: dict[str, FollowUp] = field(default_factory=dict)

    def follow_up(self, records: Mapping[str, Mapping[str, Any]]) -> Study:
        """Add the grids that follow up others, as far as the searches of these have their records.

        Args:
            records: All records, by the key of their run.

        Returns:
            The study with these grids.
        """
        grids = dict(self.grids)
        for name, follow_up in self.follow_ups.items():
            searched: list[Run] = []
            for grid in follow_up.grids:
                searched += grids[grid]
            grids[name] = follow_up.choose(searched, records)
        return dataclasses.replace(self, grids=grids)

    @property
    def runs(self) -> list[Run]:
        """All runs once, in the order of the file."""
        return list(self.grid_of)

    @property
    def grid_of(self) -> dict[Run, str]:
        """The grid that each run belongs to: the first one that has it."""
        grids: dict[Run, str] = {}
        for name, runs in self.grids.items():
            for run in runs:
                grids.setdefault(run, name)
        return grids


def read_study(path: str | Path) -> Study:
    """Read a study from its YAML file.

    Raises:
        ValueError: If a setting or a collection is unknown.
    """
    content = yaml.safe_load(Path(path).read_text())
    defaults = content.get("defaults", {})
    grids: dict[str, list[Run]] = {}
    follow_ups: dict[str, FollowUp] = {}
    for name, settings in content["grids"].items():
        where = f"grid {name!r} of {path}"
        if "best_of" in settings:
            follow_ups[name] = _read_follow_up(settings, [*grids, *follow_ups], where)
            continue
        runs = _expand({**defaults, **settings}, where)
        for run in runs:
            _require_collections(run, content["collections"], where)
        grids[name] = runs
    return Study(content["name"], content["collections"], grids, follow_ups)


def _read_follow_up(settings: Mapping[str, Any], grids: list[str], where: str) -> FollowUp:
    """Read a grid that follows up one of those before it."""
    changes = dict(settings)
    searched = _as_list(changes.pop("best_of"))
    over = tuple(changes.pop("over"))
    unknown = [grid for grid in searched if grid not in grids]
    if unknown:
        raise ValueError(f"{where} is of the best of {unknown}; the grids before it are {grids}")
    points = [_typed(point) for point in _points(changes)]
    _require_settings({*over, *points[0]}, where)
    return FollowUp(tuple(searched), over, points)


def _dev_quality(record: Mapping[str, Any], run: Run) -> float:
    """Return nDCG@10 on dev, by which settings are chosen."""
    return record["means"][f"{run.collection}/dev"]["nDCG@10"]


def _expand(grid: Mapping[str, Any], where: str) -> list[Run]:
    """Make the runs of a grid."""
    runs = []
    for point in _points(grid):
        _require_settings(point.keys(), where)
        runs.append(Run(**_typed(point)))
    return runs


def _require_settings(names: Iterable[str], where: str) -> None:
    """Check that runs have settings of these names."""
    unknown = sorted(set(names) - set(SETTINGS))
    if unknown:
        raise ValueError(f"{where} has the settings {unknown}; known are {sorted(SETTINGS)}")


def _typed(point: dict[str, Any]) -> dict[str, Any]:
    """Make numbers of learning rates: YAML 1.1 reads 1e-4, which has no dot, as a string."""
    if "learning_rate" not in point:
        return point
    return {**point, "learning_rate": float(point["learning_rate"])}


def _points(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Multiply the lists of a grid out; ``transfer`` is a list of its own."""
    alternatives = [values for name, values in grid.items() if name.startswith("any_of")]
    common = {name: value for name, value in grid.items() if not name.startswith("any_of")}
    for chosen in itertools.product(*alternatives):
        settings = dict(common)
        for alternative in chosen:
            settings |= alternative
        transfer = tuple(settings.pop("transfer", ()))
        lists = [_as_list(value) for value in settings.values()]
        for values in itertools.product(*lists):
            yield {**dict(zip(settings, values, strict=True)), "transfer": transfer}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _require_collections(run: Run, collections: Mapping[str, str], where: str) -> None:
    """Check that the study knows the collections of a run."""
    unknown = sorted({run.collection, *run.transfer} - collections.keys())
    if unknown:
        raise ValueError(f"{where} names {unknown}; collections are {list(collections)}")
