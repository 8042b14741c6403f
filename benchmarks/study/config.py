"""The YAML file of a study, and the runs that it describes.

A study names collections, and grids of settings::

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

A grid is the product of its lists, and of all lists of alternatives whose names begin with ``any_of``. A grid with
``best_of`` follows up earlier grids: of their runs that differ only in the settings ``over``, it takes the one with the
highest nDCG@10 on dev, and changes its other settings::

      tune: {learning_rate: [1.0e-5, 3.0e-5, 1.0e-4], loss: [distributed, infonce], dev_documents: 1500}
      compare: {best_of: tune, over: [learning_rate], seed: [1, 2, 3], dev_documents: null}
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic.dataclasses
import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from .collection import Source

LOSS_NAMES = {"margin_mse": "MarginMSE", "infonce": "InfoNCE", "untouched": "untrained"}
"""The names of losses in tables, where they differ from those in the file."""

NAMED = ("collection", "seed", "loss", "margin", "scale", "in_batch", "error", "detach_target", "transfer")
"""The settings that tables show in any case, or never."""

Loss = Literal[
    "untouched", "listwise", "softmax", "distributed", "adaptive", "static", "infonce", "triplet", "margin_mse"
]

FileName = Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$")]


class Start(NamedTuple):
    """The encoder before training; the settings of :class:`Run` with these names."""

    model: str
    pooling: str
    reinitialized: int
    query_length: int
    document_length: int


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    The keys of records are checksums of these names and values, so they must never change. A new setting needs a
    default, which keeps the keys of earlier records.

    Attributes:
        collection: The collection to train with and to search.
        loss: The loss, or ``untouched`` for the untrained encoder.
        margin: The constant of ``static`` and ``triplet``; for ``margin_mse`` the factor of the teacher's margins.
        in_batch: Whether the negatives of other queries count, in the losses of the paper.
        triples: The number of judged positives to train with, drawn at random.
        negatives: ``random``, ``bm25`` (of its first 100 results) or ``re-mined`` (random, then the encoder's own).
        number: The negatives of a triple.
        min_label: The lowest label of a positive.
        learning_rate: The highest rate; it falls linearly after a tenth of the steps.
        model: ``minilm``; ``static``, random vectors for the words of MiniLM, which trains a hundred times faster; a
            folder or a hub name.
        pooling: ``mean`` or ``cls``. MiniLM was trained with mean, so with ``cls`` it starts as a raw language model.
        transfer: Other collections to search, to see what the encoder forgets.
        seed: The seed of the sample, the negatives, the order and dropout.
        scale: The factor of cosines in InfoNCE; 20 by default.
        teacher: The teacher of ``margin_mse``: a ``cross-encoder`` that is trained on the collection, or ``minilm`` as
            its authors trained it, on a billion pairs.
        reinitialized: The number of upper layers that start with random weights.
        dev_documents: In a search for settings, measure only dev, on its relevant documents and a sample of others, so
            many in all.
    """

    collection: str
    loss: Loss = "distributed"
    margin: float | None = None
    in_batch: bool = False
    error: Literal["l2", "l1", "soft"] = "l2"
    detach_target: bool = False
    triples: PositiveInt = 1024
    negatives: Literal["random", "bm25", "re-mined"] = "random"
    number: PositiveInt = 1
    min_label: int = 1
    batch_size: PositiveInt = 16
    batch_sampler: Literal["batch_sampler", "no_duplicates"] = "batch_sampler"
    learning_rate: PositiveFloat = 1e-4
    epochs: PositiveFloat = 1
    model: str = "minilm"
    pooling: Literal["mean", "cls"] = "mean"
    query_length: PositiveInt = 32
    document_length: PositiveInt = 64
    transfer: tuple[str, ...] = ()
    seed: NonNegativeInt = 1
    scale: PositiveFloat | None = None
    reinitialized: NonNegativeInt = 0
    dev_documents: NonNegativeInt | None = None
    teacher: Literal["cross-encoder", "minilm"] = "cross-encoder"

    @property
    def key(self) -> str:
        """The checksum that identifies the run, of the settings that differ from the defaults."""
        changed = {}
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if value != setting.default:
                changed[setting.name] = value
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def start(self) -> Start:
        """The encoder that training starts from."""
        return Start(*[getattr(self, name) for name in Start._fields])

    @property
    def loss_name(self) -> str:
        """The loss with its options, as tables name it."""
        name = LOSS_NAMES.get(self.loss, self.loss)
        for value in (self.margin, self.scale):
            name += "" if value is None else f" {value:g}"
        name += ", in-batch" if self.in_batch else ""
        name += "" if self.error == "l2" else f", {self.error}"
        return name + (", detached" if self.detach_target else "")


SETTINGS = tuple(setting.name for setting in dataclasses.fields(Run))

CheckedRun = pydantic.dataclasses.dataclass(Run, config=ConfigDict(strict=True, extra="forbid"), frozen=True)


class StudyFile(BaseModel):
    """The keys of the YAML file, and their types."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: FileName
    collections: dict[FileName, Source]
    defaults: dict[str, Any] = {}
    grids: dict[FileName, dict[str, Any]]


@dataclass(frozen=True)
class FollowUp:
    """A grid of the systems that are best on dev in other grids over some settings, with changes, one run each."""

    grids: list[str]
    over: list[str]
    changes: list[dict[str, Any]]

    def choose(self, runs: list[Run], records: Mapping[str, Mapping[str, Any]]) -> list[Run]:
        """Return the runs, for those searches whose runs all have records."""
        searches: dict[Run, list[Run]] = {}
        ignored: dict[str, Any] = dict.fromkeys(self.over)
        for run in runs:
            searches.setdefault(dataclasses.replace(run, **ignored), []).append(run)
        chosen: dict[Run, None] = {}
        for candidates in searches.values():
            if all(run.key in records for run in candidates):
                best = max(candidates, key=lambda run: records[run.key]["means"][f"{run.collection}/dev"]["nDCG@10"])
                chosen |= dict.fromkeys(dataclasses.replace(best, **changes) for changes in self.changes)
        return list(chosen)


@dataclass(frozen=True)
class Study:
    """A study: its name, where its collections are, and the runs of its grids.

    ``grids`` has the runs of follow-up grids only after :meth:`follow_up`.
    """

    name: str
    collections: dict[str, Source]
    grids: dict[str, list[Run]]
    follow_ups: dict[str, FollowUp] = dataclasses.field(default_factory=dict)

    def follow_up(self, records: Mapping[str, Mapping[str, Any]]) -> Study:
        """Fill the follow-up grids, as far as their searches have records."""
        grids = dict(self.grids)
        for name, follow_up in self.follow_ups.items():
            grids[name] = follow_up.choose([run for grid in follow_up.grids for run in grids[grid]], records)
        return dataclasses.replace(self, grids=grids)

    @cached_property
    def grid_of(self) -> dict[Run, str]:
        """The first grid of each run, in the order of the file."""
        grids: dict[Run, str] = {}
        for name, runs in self.grids.items():
            grids |= {run: name for run in runs if run not in grids}
        return grids


def varying(runs: Sequence[Run]) -> list[str]:
    """Name the settings in which runs differ, except those in the name of the loss.

    Example:
        >>> varying([Run("mine", triples=256), Run("mine", triples=512, loss="infonce")])
        ['triples']
    """
    return [name for name in SETTINGS if name not in NAMED and len({getattr(run, name) for run in runs}) > 1]


def describe(run: Run, among: Sequence[Run]) -> str:
    """Describe a run by its collection, its loss and the settings in which it differs from others.

    Example:
        >>> describe(Run("mine", seed=2), [Run("mine", seed=1), Run("mine", seed=2)])
        'mine: distributed, seed 2'
    """
    names = varying(among) + (["seed"] if len({run.seed for run in among}) > 1 else [])
    parts = [f"{name.replace('_', ' ')} {getattr(run, name)}" for name in names]
    return f"{run.collection}: {', '.join([run.loss_name, *parts])}"


def describe_start(run: Run, among: Sequence[Run]) -> str:
    """Describe the encoder before training by the settings in which it differs from those of others.

    Example:
        >>> describe_start(Run("mine", pooling="cls"), [Run("mine"), Run("mine", pooling="cls", document_length=32)])
        'cls, document length 64'
    """
    parts = []
    for name in varying(among):
        if name in ("model", "pooling"):
            parts.append(Path(getattr(run, name)).name)
        elif name in Start._fields:
            parts.append(f"{name.replace('_', ' ')} {getattr(run, name)}")
    return ", ".join(parts)


def read_study(path: str | Path) -> Study:
    """Read a study from its YAML file.

    Raises:
        ValueError: If the file is not YAML, or has an unknown key, setting or collection, or a value that is not
            allowed.
    """
    try:
        content = StudyFile.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{path} is not a study: {_faults(error)}") from error
    grids: dict[str, list[Run]] = {}
    follow_ups: dict[str, FollowUp] = {}
    for name, settings in content.grids.items():
        try:
            if "best_of" in settings:
                follow_ups[name] = _read_follow_up(settings, list(grids))
                grids[name] = []
            else:
                grids[name] = [Run(**point) for point in _points({**content.defaults, **settings})]
            for run in grids[name]:
                unknown = {run.collection, *run.transfer} - content.collections.keys()
                if unknown:
                    raise ValueError(f"unknown collections {sorted(unknown)}; expected {list(content.collections)}")
        except ValueError as error:
            raise ValueError(f"grid {name!r} of {path}: {error}") from error
    return Study(content.name, content.collections, grids, follow_ups)


def _read_follow_up(settings: Mapping[str, Any], grids: list[str]) -> FollowUp:
    changes = dict(settings)
    searched, over = _as_list(changes.pop("best_of")), _as_list(changes.pop("over", []))
    if not set(searched) <= set(grids):
        raise ValueError(f"best_of names {searched}; the earlier grids are {grids}")
    if not over or not set(over) <= set(SETTINGS):
        raise ValueError(f"best_of needs over, the searched settings such as [learning_rate], got {over}")
    # a default stands in for the collection, which a follow-up takes from the other grids
    return FollowUp(searched, over, list(_points(changes, collection="any")))


def _points(grid: Mapping[str, Any], **missing: Any) -> Iterator[dict[str, Any]]:
    """Multiply the lists of a grid out, and check each point; ``transfer`` is a list anyhow."""
    alternatives = [value for name, value in grid.items() if name.startswith("any_of")]
    common = {name: value for name, value in grid.items() if not name.startswith("any_of")}
    for chosen in itertools.product(*alternatives):
        settings = dict(common)
        for alternative in chosen:
            settings |= alternative
        transfer = tuple(settings.pop("transfer", ()))
        for values in itertools.product(*map(_as_list, settings.values())):
            point = dict(zip(settings, values, strict=True)) | ({"transfer": transfer} if transfer else {})
            try:
                # a number keeps its type, since 10 and 10.0 have different keys
                CheckedRun(**{**missing, **point})
            except ValidationError as error:
                raise ValueError(_faults(error)) from error
            if point.get("loss") in ("static", "triplet") and point.get("margin") is None:
                raise ValueError(f"the loss {point['loss']!r} needs a margin, such as 0.3")
            yield point


def _faults(error: ValidationError) -> str:
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {fault['input']!r}" for fault in error.errors()]
    return "; ".join(faults)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
