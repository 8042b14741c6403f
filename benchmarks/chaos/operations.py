"""What is done while things go wrong: training, saving and indexing, with a tiny encoder and a small collection."""

from __future__ import annotations

import functools
import hashlib
import json
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel, BertTokenizer

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer

VERBS = ["sort", "read", "write", "return", "plot"]
THINGS = ["table", "matrix", "file", "array", "row", "column", "value", "data"]
DIMENSION = 32
TRIPLES = 20_000  # writing them takes long enough to be interrupted
REPEATS = 4
SIZES = {"old": 12_000, "new": 10_000}
"""How many documents the two versions of an index have."""
FIRST_COMPONENT = {"old": 0.25, "new": 0.75}
"""The first component of the unit vectors of a version, which tells its scores from the other's."""
BROKEN = "broken: "

States = dict[str, str | None]
"""The version of each result, None if it is missing, or what is wrong with it after :data:`BROKEN`."""


def corpus() -> pd.DataFrame:
    documents = [(f"{verb}-{thing}", f"{verb} the {thing} by mean") for verb in VERBS for thing in THINGS]
    return pd.DataFrame(documents, columns=["docno", "text"])


def topics() -> pd.DataFrame:
    return pd.DataFrame([(f"q{n}", f"mean {thing}") for n, thing in enumerate(THINGS)], columns=["qid", "query"])


def results() -> pd.DataFrame:
    return topics().merge(corpus(), how="cross")


def qrels() -> pd.DataFrame:
    """Judge the documents about the thing of a query relevant, and all others not."""
    pairs = results()
    is_relevant = pairs["query"].str.removeprefix("mean ") == pairs["docno"].str.partition("-")[2]
    return pairs[["qid", "docno"]].assign(label=is_relevant.astype(int))


@functools.cache
def vectors(version: str) -> np.ndarray:
    """Draw the unit vectors of a version of an index, all with its first component."""
    drawn = np.random.default_rng(list(SIZES).index(version)).normal(size=(SIZES[version], DIMENSION))
    first = FIRST_COMPONENT[version]
    drawn[:, 0] = 0
    drawn *= np.sqrt(1 - first**2) / np.linalg.norm(drawn, axis=1, keepdims=True)
    drawn[:, 0] = first
    return drawn.astype(np.float32)


def records(version: str) -> list[dict[str, Any]]:
    """Make the documents of a version of an index, named by it."""
    return [{"docno": f"{version}-{row}", "doc_vec": vector} for row, vector in enumerate(vectors(version))]


def write_materials(folder: Path) -> None:
    """Write a language model with random weights and a file of triples, unless they are there."""
    if (folder / "triples.tsv").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    characters = string.ascii_lowercase + string.digits
    words = [*VERBS, *THINGS, "the", "by", "mean", "-", *characters, *(f"##{character}" for character in characters)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": DIMENSION, "intermediate_size": 64, "max_position_embeddings": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(vocabulary), initializer_range=0.2, **sizes)).save_pretrained(folder)
    lines = []
    for number in range(TRIPLES):
        thing, other = THINGS[number % len(THINGS)], THINGS[(number + 1) % len(THINGS)]
        lines.append(f"mean {thing} {number}\tsort the {thing} by {number}\tplot the {other} by {number}\n")
    (folder / "triples.tsv").write_text("".join(lines))


@dataclass(frozen=True)
class Operation:
    """An operation that writes for a while in a folder."""

    name: str
    materials: Path

    def prepare(self, folder: Path) -> None:
        """Write the earlier result, which the operation replaces, if it does."""
        folder.mkdir(parents=True)

    def setup(self, folder: Path) -> Callable[[], Any]:
        """Load everything, and return the work; doing it again goes on after an interruption."""
        raise NotImplementedError

    def inspect(self, folder: Path, reference: Path | None = None) -> States:
        """See the results in a folder; that of an undisturbed run, the reference, counts as whole too."""
        raise NotImplementedError

    def fingerprint(self, folder: Path) -> str:
        """Compute a checksum of the result, which is the same after all undisturbed runs."""
        raise NotImplementedError

    def encoder(self, version: str = "old") -> SelfDistillBiEncoder:
        """Load the encoder; the new version has other weights."""
        encoder = SelfDistillBiEncoder.from_pretrained(self.materials, device="cpu")
        if version == "new":
            weights = next(encoder.model.parameters())
            with torch.no_grad():
                weights.add_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
        return encoder


@dataclass(frozen=True)
class Fit(Operation):
    """Train and resume, or train over a model."""

    method: str = "fit"
    evaluates: bool = False
    from_topics: bool = False
    overwrite: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        if self.overwrite:
            self.encoder("old").save(folder / "run" / "model")

    def setup(self, folder: Path) -> Callable[[], Any]:
        options: dict[str, Any] = {
            "eval_steps": 4,
            "logging_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
        }
        options |= {"resume": not self.overwrite, "overwrite": self.overwrite, "corpus": corpus(), **self.options}
        trainer = SelfDistillTrainer(self.encoder(), folder / "run", verbose=False, **options)
        evaluated = (results(), qrels()) if self.evaluates else ()
        if self.method == "fit_triples":
            return partial(trainer.fit_triples, self.materials / "triples.tsv", *evaluated)
        return partial(trainer.fit, topics() if self.from_topics else results(), qrels(), *evaluated)

    def inspect(self, folder: Path, reference: Path | None = None) -> States:
        known = {"old": self.encoder("old")}
        if reference is not None:
            known["new"] = SelfDistillBiEncoder(reference / "run" / "model", device="cpu")
        run, history = folder / "run", partial(_read_history, reference=reference)
        states = {
            "model": state(run / "model", partial(version_of_model, known=known)),
            "history": state(run / "history.csv", history),
            "drawing": state(run / "history.png", lambda path: str(matplotlib.image.imread(path).shape)),
        }
        for path in folder.glob("pyterrier/selfdistill/triples/[!.]*"):
            states[f"triples {path.name}"] = state(path, _read_triples)
        return states

    def fingerprint(self, folder: Path) -> str:
        return hashlib.sha256((folder / "run" / "model" / "model.safetensors").read_bytes()).hexdigest()


@dataclass(frozen=True)
class Save(Operation):
    """Save a model over another one, again and again."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self.encoder("old").save(folder / "model")

    def setup(self, folder: Path) -> Callable[[], Any]:
        encoders = [self.encoder("old"), self.encoder("new")] * REPEATS
        return lambda: [encoder.save(folder / "model", overwrite=True) for encoder in encoders]

    def inspect(self, folder: Path, reference: Path | None = None) -> States:
        known = {version: self.encoder(version) for version in ("old", "new")}
        return {"model": state(folder / "model", partial(version_of_model, known=known))}

    def fingerprint(self, folder: Path) -> str:
        return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@dataclass(frozen=True)
class Index(Operation):
    """Build an index, or replace one again and again."""

    overwrite: bool = False
    pause: float = 0.0

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        if self.overwrite:
            open_index(folder).index(records("old"))

    def setup(self, folder: Path) -> Callable[[], Any]:
        index, old, new = open_index(folder), records("old"), records("new")
        if self.overwrite:
            return lambda: [index.indexer(mode="overwrite").index(each) for each in [old, new] * REPEATS]
        return lambda: index.built() or index.index(slowly(new, self.pause) if self.pause else new)

    def inspect(self, folder: Path, reference: Path | None = None) -> States:
        return {"index": state(folder / "index.flex", version_of_index)}

    def fingerprint(self, folder: Path) -> str:
        index = open_index(folder)
        return hashlib.sha256(index.np_vecs().tobytes() + repr(list(index.docnos())).encode()).hexdigest()


def open_index(folder: Path) -> SelfDistillIndex:
    return SelfDistillIndex(folder / "index.flex", verbose=False)


def slowly(rows: list[Any], seconds: float) -> Any:
    yield from rows[: len(rows) // 2]
    time.sleep(seconds)
    yield from rows[len(rows) // 2 :]


def state(path: Path, read: Callable[[Path], str]) -> str | None:
    """Tell the version of a result, None if there is nothing, or why it cannot be read."""
    if not path.exists():
        return None
    try:
        return read(path)
    except Exception as error:
        return f"{BROKEN}{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def version_of_model(path: Path, known: Mapping[str, SelfDistillBiEncoder]) -> str:
    """Load a model, and tell which of the known ones has its vectors."""
    probes = ["sort the table", "plot a matrix", "read"]
    model: Any = pt.Artifact.load(str(path))
    found = model.encode_docs(probes)
    for version, encoder in known.items():
        if np.allclose(found, encoder.encode_docs(probes), atol=1e-5):
            return version
    raise ValueError(f"the model has the vectors of none of {list(known)}")


def version_of_index(path: Path) -> str:
    """Open an index, read all of it, search it, and tell its version."""
    index = open_index(path.parent)
    docnos = list(index.docnos())
    version = docnos[0].partition("-")[0]
    if docnos != [record["docno"] for record in records(version)]:
        raise ValueError(f"the {len(docnos)} identifiers are not those of the version {version!r}")
    if not np.array_equal(index.np_vecs(), vectors(version)):
        raise ValueError(f"the vectors are not those of the version {version!r}")
    queries = pd.DataFrame({"qid": ["q"], "query_vec": [vectors(version)[7]]})
    best = index.retriever(num_results=3).transform(queries)["docno"].iloc[0]
    if best != f"{version}-7":
        raise ValueError(f"the nearest to the vector of {version}-7 is {best}")
    return version


def _read_history(path: Path, reference: Path | None) -> str:
    history = pd.read_csv(path)
    if reference is not None and not history.equals(pd.read_csv(reference / "run" / "history.csv")):
        raise ValueError(f"the history of {len(history)} rows is not that of an undisturbed run")
    return f"{len(history)} rows"


def _read_triples(path: Path) -> str:
    expected = json.loads((path / "summary.json").read_text())["triples"]
    found = len(Dataset.from_file(str(path / "triples.arrow")))
    if found != expected:
        raise ValueError(f"expected {expected} triples, got {found}")
    return f"{found} triples"
