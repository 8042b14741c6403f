"""What a study runs: the points of its grids, each of them a :class:`.run.Run`.

A study is a YAML file::

    name: small
    collections:                    # a folder below --data, a PyTerrier dataset, or one for each split
      nfcorpus: nfcorpus
      docstrings: docstrings:scipy,pandas,scikit-learn,numpy
      fiqa: {corpus: irds:beir/fiqa, train: irds:beir/fiqa/train, dev: irds:beir/fiqa/dev, test: irds:beir/fiqa/test}
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

Which these are is known when the other grids have their records (:meth:`Study.follow_up`). A study may bring losses of
its own (:func:`.losses.load_losses`)::

    losses: {margin_ranking: my_losses:margin_ranking}
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyterrier_selfdistill.utils.checks import Expected

from .collection import Source
from .losses import LOSSES
from .run import SETTINGS, Run, Start, check_settings

FileName = Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$"), Expected("a name that a file can have")]
"""The name of a study, a collection or a grid, which files and folders are called after."""


NAMED = ("collection", "loss", "margin", "scale", "in_batch", "error", "detach_target")
"""The settings that a run is named after anyhow."""


class StudyFile(BaseModel):
    """The keys of the YAML file, and what they hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: FileName
    collections: dict[FileName, Source]
    losses: dict[str, Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]] = {}
    defaults: dict[str, Any] = {}
    grids: dict[FileName, dict[str, Any]]


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
        losses: Where the losses are that the study brings along, ``module:function`` by name.
    """

    name: str
    collections: dict[str, Source]
    grids: dict[str, list[Run]]
    follow_ups: dict[str, FollowUp] = field(default_factory=dict)
    losses: dict[str, str] = field(default_factory=dict)

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


def varying(runs: Sequence[Run]) -> list[str]:
    """Name the settings in which some runs differ.

    Args:
        runs: The runs.

    Returns:
        The names, in the order of the fields of a run.

    Example:
        >>> varying([Run("mine", seed=1), Run("mine", seed=2)])
        ['seed']
    """
    names = []
    for name in SETTINGS:
        values = {getattr(run, name) for run in runs}
        if len(values) > 1:
            names.append(name)
    return names


def describe(run: Run, among: Sequence[Run]) -> str:
    """Describe a run by its collection, its loss and the settings in which it differs from others.

    Args:
        run: The run.
        among: The runs that it is to be told from.

    Returns:
        The description.

    Example:
        >>> describe(Run("mine", seed=2), [Run("mine", seed=1), Run("mine", seed=2)])
        'mine: distributed, seed 2'
    """
    parts = [run.loss_name]
    for name in varying(among):
        if name not in NAMED:
            parts.append(f"{name.replace('_', ' ')} {getattr(run, name)}")
    return f"{run.collection}: {', '.join(parts)}"


def describe_start(run: Run, among: Sequence[Run]) -> str:
    """Describe the encoder that a run starts from by the settings in which it differs from those of others.

    Args:
        run: The run.
        among: The runs that it is to be told from.

    Returns:
        The description; empty if all start from the same.

    Example:
        >>> describe_start(Run("mine", pooling="cls"), [Run("mine"), Run("mine", pooling="cls", document_length=32)])
        'cls, document length 64'
    """
    parts = []
    for name in varying(among):
        value = getattr(run, name)
        if name in ("model", "pooling"):
            parts.append(Path(value).name)
        elif name in Start._fields:
            parts.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)


def read_study(path: str | Path) -> Study:
    """Read a study from its YAML file.

    Args:
        path: The file.

    Returns:
        The study, without the runs of grids that follow up others.

    Raises:
        ValueError: If the file is not YAML, or has a key, a setting, a loss or a collection that is unknown, or a value
            that is not allowed.
    """
    content = _read_file(Path(path))
    names = {"loss": ["untouched", *LOSSES, *content.losses], "collection": list(content.collections)}
    grids: dict[str, list[Run]] = {}
    follow_ups: dict[str, FollowUp] = {}
    for name, settings in content.grids.items():
        try:
            if "best_of" in settings:
                follow_ups[name] = _read_follow_up(settings, [*grids, *follow_ups], names)
            else:
                grids[name] = _expand({**content.defaults, **settings}, names)
        except ValueError as error:
            raise ValueError(f"grid {name!r} of {path}: {error}") from error
    return Study(content.name, content.collections, grids, follow_ups, content.losses)


def _read_file(path: Path) -> StudyFile:
    """Read the file, and check all but the settings of its grids."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    try:
        return StudyFile.model_validate(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    raise ValueError(f"{path} is not a study, whose keys are {list(StudyFile.model_fields)}: {'; '.join(faults)}")


def _read_follow_up(settings: Mapping[str, Any], grids: list[str], names: Mapping[str, list[str]]) -> FollowUp:
    """Read a grid that follows up some of those before it."""
    changes = dict(settings)
    searched = _as_list(changes.pop("best_of"))
    unknown = [grid for grid in searched if grid not in grids]
    if unknown:
        raise ValueError(f"best_of names {unknown}; the grids before it are {grids}")
    if "over" not in changes:
        raise ValueError("best_of needs over, the settings that were searched, such as over: [learning_rate]")
    over = tuple(_as_list(changes.pop("over")))
    unsearched = [name for name in over if name not in SETTINGS]
    if unsearched:
        raise ValueError(f"over names {unsearched}; expected some of {sorted(SETTINGS)}")
    points = list(_points(changes))
    for point in points:
        _check_point(point, names)
    return FollowUp(tuple(searched), over, points)


def _dev_quality(record: Mapping[str, Any], run: Run) -> float:
    """Return nDCG@10 on dev, by which settings are chosen."""
    return record["means"][f"{run.collection}/dev"]["nDCG@10"]


def _expand(grid: Mapping[str, Any], names: Mapping[str, list[str]]) -> list[Run]:
    """Make the runs of a grid."""
    runs = []
    for point in _points(grid):
        _check_point(point, names)
        if "collection" not in point:
            raise ValueError(f"no collection; give one of {names['collection']}, here or in defaults")
        run = Run(**point)
        if run.loss in LOSSES:
            LOSSES[run.loss](run)  # which checks what only several settings together make wrong
        runs.append(run)
    return runs


def _check_point(point: Mapping[str, Any], names: Mapping[str, list[str]]) -> None:
    """Check the settings of a run, and that the study has the collections and the loss that it names."""
    check_settings(point)
    named = {"collection": [*point["transfer"]], "loss": []}
    for setting, known in names.items():
        if setting in point:
            named[setting].append(point[setting])
        unknown = sorted(set(named[setting]) - set(known))
        if unknown:
            raise ValueError(f"unknown {setting} {unknown}; expected some of {known}")


def _points(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Multiply the lists of a grid out; ``transfer`` is a list of its own."""
    alternatives = [_alternatives(name, grid[name]) for name in grid if name.startswith("any_of")]
    common = {name: value for name, value in grid.items() if not name.startswith("any_of")}
    for chosen in itertools.product(*alternatives):
        settings = dict(common)
        for alternative in chosen:
            settings |= alternative
        transfer = tuple(_as_list(settings.pop("transfer", [])))
        lists = [_as_list(value) for value in settings.values()]
        for values in itertools.product(*lists):
            point = dict(zip(settings, values, strict=True))
            yield _typed({**point, "transfer": transfer})


def _alternatives(name: str, value: Any) -> list[dict[str, Any]]:
    """Check that there is a list of alternatives."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{name} must be a list such as [{{loss: untouched}}, {{loss: infonce}}], got {value!r}")
    return value


def _typed(point: dict[str, Any]) -> dict[str, Any]:
    """Make numbers of learning rates: YAML 1.1 reads 1e-4, which has no dot, as a string."""
    rate = point.get("learning_rate")
    if not isinstance(rate, str):
        return point
    try:
        return {**point, "learning_rate": float(rate)}
    except ValueError as error:
        raise ValueError(f"learning_rate must be a positive number, got {rate!r}") from error


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
