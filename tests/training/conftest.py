"""What the tests of training share: a way to make trainers, and one to interrupt them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

import pandas as pd
import pytest

from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillTrainer
from pyterrier_selfdistill.training.run_folder import RunFolder


@pytest.fixture
def make(encoder, tmp_path) -> Callable[..., SelfDistillTrainer]:
    """Make a trainer that trains in five steps an epoch on the small collection: ``make("folder", option=value)``."""

    def make(folder: str = "run", **options: Any) -> SelfDistillTrainer:
        defaults = {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "verbose": False}
        return SelfDistillTrainer(encoder, tmp_path / folder, **{**defaults, **options})

    return make


@pytest.fixture
def satisfied(encoder, collection) -> pd.DataFrame:
    """Judgements that no encoder can rank better by: of each query, what the first encoder finds first is relevant."""
    ranked = encoder(collection.results)
    return ranked[["qid", "docno"]].assign(label=(ranked["rank"] == 0).astype(int))


@pytest.fixture
def interrupted(monkeypatch) -> Callable[[], AbstractContextManager[None]]:
    """Interrupt what is trained in ``with interrupted():`` after seven steps."""

    @contextmanager
    def interrupted() -> Iterator[None]:
        compute = SelfDistillationLoss.forward
        steps = count()

        def forward(*args: Any, **options: Any) -> Any:
            if next(steps) == 7:
                raise KeyboardInterrupt
            return compute(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(SelfDistillationLoss, "forward", forward)
            with pytest.raises(KeyboardInterrupt):
                yield

    return interrupted


@pytest.fixture
def ended_before_saving(monkeypatch) -> Callable[[], AbstractContextManager[None]]:
    """Interrupt what is trained in ``with ended_before_saving():`` after its last step, before its model is saved."""

    @contextmanager
    def ended_before_saving() -> Iterator[None]:
        def save(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "save", save)
            with pytest.raises(KeyboardInterrupt):
                yield

    return ended_before_saving
