"""The losses that a study compares, and the teacher of one of them.

:data:`LOSSES` makes, of a run, what ``SelfDistillTrainer`` takes as ``loss``. All train through the same trainer with
the same triples, so that they differ in nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from candidates import CriticalLoss
from datasets import Dataset
from plan import Run
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import (
    MarginMSELoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import Tensor

from pyterrier_selfdistill import AdaptiveMarginLoss, SelfDistillationLoss
from pyterrier_selfdistill.losses import TARGETS, MarginTerms
from pyterrier_selfdistill.training.arguments import mixed_precision

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of margins and targets, in a record."""

Loss = AdaptiveMarginLoss | Callable[[Any], torch.nn.Module]


class RecordedLoss(AdaptiveMarginLoss):
    """The loss of the package, which remembers how margins and targets were distributed in each step."""

    def __init__(self, *options: Any, **more: Any) -> None:
        super().__init__(*options, **more)
        self.distributions: list[dict[str, list[float]]] = []

    def terms(self, query: Tensor, positive: Tensor, negative: Tensor) -> MarginTerms:
        """Computes the loss."""
        terms = super().terms(query, positive, negative)
        at = torch.tensor(QUANTILES)
        self.distributions.append(
            {
                name: [round(x, 4) for x in torch.quantile(values.detach().float().cpu().reshape(-1), at).tolist()]
                for name, values in {"margin": terms.margin, "target": terms.target}.items()
            }
        )
        return terms


def _ours(run: Run) -> Loss:
    target = run.margin if run.loss == "static" else run.loss
    return RecordedLoss(target, run.in_batch, run.error, detach_target=run.detach_target)  # type: ignore[arg-type]


def _candidate(run: Run) -> Loss:
    return lambda model: SelfDistillationLoss(model, CriticalLoss(run.loss))  # type: ignore[arg-type]


LOSSES: dict[str, Callable[[Run], Loss]] = {
    **dict.fromkeys((*TARGETS, "static"), _ours),
    "infonce": lambda run: MultipleNegativesRankingLoss,  # scale 20, the library's default
    "triplet": lambda run: lambda model: TripletLoss(model, TripletDistanceMetric.COSINE, run.margin),
    "margin_mse": lambda run: MarginMSELoss,
    **dict.fromkeys(CriticalLoss.FORMS, _candidate),
}
"""Losses by the name that a study gives them."""


class Teacher:
    """A cross-encoder, made of the same model as the student, and trained on all the data that a study may use.

    No cross-encoder that others have trained can be had offline; this one is as good as the collection makes it, and
    what it costs is counted.

    Args:
        model: The folder of the language model.
        length: Tokens of a query and a document together.
        seed: The seed of its training.

    Attributes:
        seconds: How long its training took.
    """

    def __init__(self, model: str, length: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = CrossEncoder(model, num_labels=1, max_length=length)
        self.seed = seed
        self.seconds = 0.0

    def fit(self, triples: Dataset, folder: str) -> Teacher:
        """Trains it to tell positives from negatives."""
        started = time.monotonic()
        rows = triples.to_pandas()
        pairs = pd.concat(
            [
                pd.DataFrame({"query": rows["query"], "text": rows[name], "label": float(name == "positive")})
                for name in rows.columns[1:]
            ]
        )
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            warmup_steps=0.1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=self.seed,
            use_cpu=self.model.device.type == "cpu",
            **mixed_precision(self.model.device),
        )
        CrossEncoderTrainer(
            model=self.model,
            args=arguments,
            train_dataset=Dataset.from_pandas(pairs.sample(frac=1, random_state=self.seed), preserve_index=False),
            loss=BinaryCrossEntropyLoss(self.model),
        ).train()
        self.seconds = time.monotonic() - started
        return self

    def scores(self, queries: list[str], texts: list[str]) -> np.ndarray:
        """Scores pairs: the probability of relevance, so that margins are between -1 and 1, as those of cosines are."""
        return self.model.predict(list(zip(queries, texts, strict=True)), batch_size=64, show_progress_bar=False)

    def label(self, triples: Dataset, scale: float) -> Dataset:
        """Puts the margin of each triple beside it, multiplied with a constant."""
        rows = triples[:]
        margins = self.scores(rows["query"], rows["positive"]) - self.scores(rows["query"], rows["negative"])
        return triples.add_column("label", (scale * margins.astype(float)).tolist())
