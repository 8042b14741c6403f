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

A grid is the product of its lists, and several grids may share points.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        collection: Where the training data comes from, and what is searched.
        loss: A name of :data:`methods.LOSSES`, or ``untouched`` for the model as it is.
        margin: The constant of the losses ``static`` and ``triplet``, and what a teacher's margins, which are between
            -1 and 1, are multiplied with for ``margin_mse`` (1 if not given).
        in_batch: Whether negatives of other queries count, in the losses of the paper.
        error: ``l2``, ``l1`` or ``soft``, in the losses of the paper.
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
        query_length: Tokens of a query.
        document_length: Tokens of a document.
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

    @property
    def key(self) -> str:
        """What identifies the run: a checksum of the settings that are not the defaults above."""
        settings = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def method(self) -> str:
        """What tables call the loss."""
        name = {"margin_mse": "MarginMSE", "infonce": "InfoNCE"}.get(self.loss, self.loss)
        details = [
            f" {self.margin:g}" if self.margin is not None else "",
            ", in-batch" if self.in_batch else "",
            f", {self.error}" if self.error != "l2" else "",
            ", detached" if self.detach_target else "",
        ]
        return name + "".join(details)


@dataclass(frozen=True)
class Study:
    """A study as its file says.

    Attributes:
        name: Its name.
        collections: Where each collection is, by name.
        grids: The runs of each grid, by name.
    """

    name: str
    collections: dict[str, str]
    grids: dict[str, list[Run]]

    @property
    def runs(self) -> list[Run]:
        """All runs once, in the order of the file."""
        return list(dict.fromkeys(run for grid in self.grids.values() for run in grid))


def read_study(path: str | Path) -> Study:
    """Reads a study.

    Raises:
        ValueError: If a setting or a collection is unknown.
    """
    content = yaml.safe_load(Path(path).read_text())
    known = {field.name for field in dataclasses.fields(Run)}
    grids: dict[str, list[Run]] = {}
    for name, grid in content["grids"].items():
        points = list(_points({**content.get("defaults", {}), **grid}))
        if unknown := sorted({setting for point in points for setting in point} - known):
            raise ValueError(f"grid {name!r} of {path} has the settings {unknown}; known are {sorted(known)}")
        # YAML 1.1 reads 1e-4 as a string
        runs = [
            Run(**{**point, "learning_rate": float(point.get("learning_rate", Run.learning_rate))}) for point in points
        ]
        named = {collection for run in runs for collection in (run.collection, *run.transfer)}
        if unknown := sorted(named - content["collections"].keys()):
            raise ValueError(f"grid {name!r} of {path} names {unknown}; collections are {list(content['collections'])}")
        grids[name] = runs
    return Study(content["name"], content["collections"], grids)


def _points(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Multiplies a grid out; ``transfer`` is a list of its own."""
    common = dict(grid)
    alternatives = common.pop("any_of", [{}])
    for alternative in alternatives:
        settings = {**common, **alternative}
        transfer = tuple(settings.pop("transfer", ()))
        lists = [value if isinstance(value, list) else [value] for value in settings.values()]
        for values in itertools.product(*lists):
            yield {**dict(zip(settings, values, strict=True)), "transfer": transfer}
