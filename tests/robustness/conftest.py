"""What examples share: an encoder, the vectors of texts, an index, and folders of their own."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt
import pytest
import torch

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex

from . import worlds
from .exploring import EntryPoint, Tally, explore

FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""How many examples of each entry point ``make fuzz`` makes."""

SUITE_MILLISECONDS = 1200
"""How long the test suite makes examples of an entry point, at most 300."""

SEED = int(os.environ.get("FUZZ_SEED", "0"))
"""Which examples; the test suite makes the same ones each time."""


@dataclass
class Tools:
    """What examples share.

    Attributes:
        encoder: A tiny encoder.
        saved: Its folder.
        language_model: The folder of a plain language model.
        indexed: The folder of an index of :data:`worlds.INDEXED`.
        root: Where examples have their folders.
        register_dataset: Registers a dataset of ir_datasets.
    """

    encoder: SelfDistillBiEncoder
    saved: Path
    language_model: str
    indexed: Path
    root: Path
    register_dataset: Callable[..., pt.datasets.Dataset] | None = None
    _numbers: Any = field(default_factory=itertools.count)
    _vectors: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def path(self, name: str = "") -> Path:
        """Return a path that no other example has, where nothing is yet."""
        folder = self.root / str(next(self._numbers))
        if not name:
            return folder
        folder.mkdir()
        return folder / name

    def register(self, **parts: Any) -> pt.datasets.Dataset:
        """Register a dataset of ir_datasets that no other example has."""
        assert self.register_dataset is not None
        return self.register_dataset(f"fuzz-{next(self._numbers)}", **parts)

    def vectors(self, role: str, texts: Sequence[str]) -> np.ndarray:
        """Encode texts with sentence-transformers, each by itself, and keep their vectors."""
        for text in texts:
            if (role, text) not in self._vectors:
                encode = getattr(self.encoder.model, f"encode_{role}")
                self._vectors[role, text] = encode([text])[0]
        return np.array([self._vectors[role, text] for text in texts]).reshape(len(texts), -1)

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Compute the cosines of queries and documents."""
        return self.vectors("query", queries) @ self.vectors("document", documents).T


@pytest.fixture(scope="session")
def _shared(language_model, tmp_path_factory) -> Tools:
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu")
    root = tmp_path_factory.mktemp("examples")
    saved = encoder.copy().save(root / "saved")
    indexed = root / "index.flex"
    records = [{"docno": docno, "text": text} for docno, text in worlds.INDEXED.items()]
    (encoder >> SelfDistillIndex(indexed, verbose=False)).index(records)
    return Tools(encoder, saved, language_model, indexed, root)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Encode with one thread, since texts are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _tallies() -> dict[str, Tally]:
    return {}


@pytest.fixture
def tally(_shared, _tallies, _one_thread, register, monkeypatch) -> Callable[[type[EntryPoint]], Tally]:
    """Explore an entry point, once a session."""

    def tally(entry_point: type[EntryPoint]) -> Tally:
        if entry_point.name not in _tallies:
            _shared.register_dataset = register
            monkeypatch.chdir(_shared.root)
            examples = FUZZ_EXAMPLES or min(300, SUITE_MILLISECONDS // entry_point.milliseconds)
            _tallies[entry_point.name] = explore(entry_point(_shared), examples, SEED)
        return _tallies[entry_point.name]

    return tally
