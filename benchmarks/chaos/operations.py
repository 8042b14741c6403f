"""What is done to the package while things go wrong: training, saving, indexing, running a study.

An :class:`Operation` knows how to begin in a folder, how to see whether what is in the folder is whole, and what to
compare with the folder of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib.image
import numpy as np
import pandas as pd
import pyterrier as pt
from datasets import Dataset

from benchmarks.study.__main__ import main as study
from benchmarks.study.records import Records
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer

from . import materials
from .materials import PROBES, Materials

States = dict[str, str | None]
"""What there is, by name: its version, None for nothing, or what is wrong with it."""

BROKEN = "broken: "
"""How the state of what is wrong begins."""

REPEATS = 8
"""How often a model or an index is replaced by an operation that does it again and again."""


@dataclass(frozen=True)
class Operation:
    """Something that takes a while and writes.

    Attributes:
        materials: The files that it reads.
    """

    materials: Materials

    name = ""

    def prepare(self, folder: Path) -> None:
        """Put what was there before into the folder."""
        folder.mkdir(parents=True)

    def setup(self, folder: Path) -> Callable[[], Any]:
        """Load what is needed, in a process of its own, and return the work.

        Doing the work again goes on after an interruption.
        """
        raise NotImplementedError

    def inspect(self, folder: Path, reference: Path | None = None) -> States:
        """See what is in the folder.

        Args:
            folder: The folder.
            reference: The folder of an undisturbed run, whose result counts as whole too.

        Returns:
            The states of what there is, or could be.
        """
        raise NotImplementedError

    def fingerprint(self, folder: Path) -> str:
        """Compute a checksum of the result, in which undisturbed runs agree."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fit(Operation):
    """Train, and resume.

    Attributes:
        name: What tables call it.
        method: ``fit`` with judged positives, or ``fit_triples`` with a file.
        evaluates: Whether it evaluates.
        from_topics: Whether negatives come from the corpus.
        overwrite: Whether there is a model already that is to be replaced.
        options: Options of the trainer.
    """

    name: str = "fit"
    method: Literal["fit", "fit_triples"] = "fit"
    evaluates: bool = False
    from_topics: bool = False
    overwrite: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, folder: Path) -> None:
        """Save the model that is to be replaced, if it is."""
        super().prepare(folder)
        if self.overwrite:
            self.materials.encoder("old").save(folder / "run" / "model")

    def setup(self, folder: Path) -> Callable[[], Any]:
        """Make the trainer."""
        options = {"eval_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
        resume = not self.overwrite
        trainer = SelfDistillTrainer(
            self.materials.encoder(),
            folder / "run",
            resume=resume,
            overwrite=self.overwrite,
            verbose=False,
            corpus=materials.corpus(),
            **{**options, **self.options},
        )
        evaluated = (materials.results(), materials.qrels()) if self.evaluates else ()
        trained = materials.topics() if self.from_topics else materials.results()

        def work() -> None:
            if self.method == "fit_triples":
                trainer.fit_triples(self.materials.triples, *evaluated)
            else:
                trainer.fit(trained, materials.qrels(), *evaluated)

        return work

    def inspect(self, folder: Path, reference: Path | None = None) -> States:
        """See the model, the history, its drawing, and triples that are stored."""
        known = {"old": self.materials.encoder("old")}
        if reference is not None:
            known["new"] = SelfDistillBiEncoder(reference / "run" / "model", device="cpu")
        run = folder / "run"
        states = {
            "model": state(run / "model", partial(version_of_model, known=known)),
            "history": state(run / "history.csv", partial(_read_history, reference=reference)),
            "drawing": state(run / "history.png", _read_drawing),
        }
        for path in folder.glob("pyterrier/selfdistill/triples/[!.]*"):
            states[f"triples {path.name}"] = state(path, _read_triples)
        return states

    def fingerprint(self, folder: Path) -> str:
        """Compute a checksum of the weights."""
        weights = (folder / "run" / "model" / "model.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest()


@dataclass(frozen=True)
class Save(Operation):
    """Save a model over another one, again and again."""

    name = "save over a model"

    def prepare(self, folder: Path) -> None:
        """Save the first model."""
        super().prepare(folder)
        self.materials.encoder("old").save(folder / "model")

    def setup(self, folder: Path) -> Callable[[], Any]:
        """Load the models."""
        encoders = [self.materials.encoder("old"), self.materials.encoder("new")]

        def work() -> None:
            for _ in range(REPEATS // 2):
                for encoder in encoders:
                    encoder.save(folder / "model", overwrite=True)

        return work

    def inspect(self, folder: Path, reference: Path | None = None) -> States:
        """See the model."""
        known = {version: self.materials.encoder(version) for version in ("old", "new")}
        return {"model": state(folder / "model", partial(version_of_model, known=known))}

    def fingerprint(self, folder: Path) -> str:
        """Compute a checksum of the weights."""
        return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@dataclass(frozen=True)
class Index(Operation):
    """Build an index: a new one, or one in the place of another, again and again.

    Attributes:
        overwrite: Whether there is one already.
    """

    overwrite: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """What tables call it."""
        return "build over an index" if self.overwrite else "build an index"

    def prepare(self, folder: Path) -> None:
        """Build the first index, if there is one."""
        super().prepare(folder)
        if self.overwrite:
            SelfDistillIndex(folder / "index.flex", verbose=False).index(materials.records("old"))

    def setup(self, folder: Path) -> Callable[[], Any]:
        """Draw the vectors."""
        index = SelfDistillIndex(folder / "index.flex", verbose=False)
        versions = [materials.records("old"), materials.records("new")]

        def create() -> None:
            if not index.built():
                index.index(versions[1])

        def replace() -> None:
            for _ in range(REPEATS // 2):
                for records in versions:
                    index.indexer(mode="overwrite").index(records)

        return replace if self.overwrite else create

    def inspect(self, folder: Path, reference: Path | None = None) -> States:
        """See the index."""
        return {"index": state(folder / "index.flex", version_of_index)}

    def fingerprint(self, folder: Path) -> str:
        """Compute a checksum of the vectors and the identifiers."""
        index = SelfDistillIndex(folder / "index.flex", verbose=False)
        checksum = hashlib.sha256(index.np_vecs().tobytes())
        checksum.update(repr(list(index.docnos())).encode())
        return checksum.hexdigest()


@dataclass(frozen=True)
class StudyRun(Operation):
    """Run a study."""

    name = "run a study"

    def setup(self, folder: Path) -> Callable[[], Any]:
        """Make the command line."""
        places = {
            "--records": folder / "records",
            "--work": folder / "work",
            "--data": self.materials.collections,
        }
        arguments = ["run", str(self.materials.study)]
        for option, place in places.items():
            arguments += [option, str(place)]

        def work() -> None:
            if study(arguments) != 0:
                raise RuntimeError("runs of the study failed")

        return work

    def inspect(self, folder: Path, reference: Path | None = None) -> States:
        """See the records."""
        try:
            keys = Records(folder / "records").read()
        except Exception as error:
            return {"records": f"{BROKEN}{error}"}
        return dict.fromkeys(keys, "new")

    def fingerprint(self, folder: Path) -> str:
        """Compute a checksum of what was measured."""
        records = Records(folder / "records").read()
        measured = []
        for key in sorted(records):
            record = records[key]
            measured.append([key, record["means"], record["queries"], record["space"], record["training"]])
        return hashlib.sha256(json.dumps(measured).encode()).hexdigest()


def operations(materials: Materials) -> list[Operation]:
    """List what is killed."""
    steps = {"num_train_epochs": 3}
    # a learning rate that does not end at 0, so that a step too many shows
    few_steps = {"max_steps": 12, "lr_scheduler_type": "constant"}
    return [
        Fit(materials, "fit with validation", evaluates=True, options=steps),
        Fit(materials, "fit with two rounds", from_topics=True, options={**steps, "rounds": 2}),
        Fit(materials, "fit with gradient accumulation", options={**steps, "gradient_accumulation_steps": 2}),
        Fit(materials, "fit with triples of a file", method="fit_triples", options=few_steps),
        Save(materials),
        Index(materials),
        Index(materials, overwrite=True),
        StudyRun(materials),
    ]


def state(path: Path, read: Callable[[Path], str]) -> str | None:
    """Tell the version of what is at a path, or what is wrong with it.

    Args:
        path: The path.
        read: How to read it, with an error if it is not whole.

    Returns:
        What reading returns; None if there is nothing.
    """
    if not path.exists():
        return None
    try:
        return read(path)
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        return f"{BROKEN}{type(error).__name__}: {first_line}"


def version_of_model(path: Path, known: Mapping[str, SelfDistillBiEncoder]) -> str:
    """Load a model, and tell which of the known ones has its vectors."""
    model = cast(SelfDistillBiEncoder, pt.Artifact.load(str(path)))
    found = model.encode_docs(PROBES)
    for version, encoder in known.items():
        if np.allclose(found, encoder.encode_docs(PROBES), atol=1e-5):
            return version
    raise ValueError(f"the model has the vectors of none of {list(known)}")


def version_of_index(path: Path) -> str:
    """Open an index, read all of it, search it, and tell which version it is."""
    index = SelfDistillIndex(path, verbose=False)
    docnos = list(index.docnos())
    version = docnos[0].partition("-")[0]
    if docnos != [str(record["docno"]) for record in materials.records(version)]:
        raise ValueError(f"the {len(docnos)} identifiers are not those of the version {version!r}")
    if not np.array_equal(index.np_vecs(), materials.vectors(version)):
        raise ValueError(f"the vectors are not those of the version {version!r}")
    queries = pd.DataFrame({"qid": ["q"], "query_vec": [materials.vectors(version)[7]]})
    best = index.retriever(num_results=3).transform(queries)["docno"].iloc[0]
    if best != f"{version}-7":
        raise ValueError(f"the nearest to the vector of {version}-7 is {best}")
    return version


def _read_history(path: Path, reference: Path | None) -> str:
    """Read a history, and tell how long it is."""
    history = pd.read_csv(path)
    if reference is not None and not history.equals(pd.read_csv(reference / "run" / "history.csv")):
        raise ValueError(f"the history of {len(history)} rows is not that of an undisturbed run")
    return f"{len(history)} rows"


def _read_drawing(path: Path) -> str:
    """Read a picture, and tell its size."""
    return str(matplotlib.image.imread(path).shape)


def _read_triples(path: Path) -> str:
    """Read stored triples, and tell how many there are."""
    expected = json.loads((path / "summary.json").read_text())["triples"]
    found = len(Dataset.from_file(str(path / "triples.arrow")))
    if found != expected:
        raise ValueError(f"expected {expected} triples, got {found}")
    return f"{found} triples"
