"""The losses that a study compares, and the teachers of MarginMSE."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import (
    MarginMSELoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import nn

from pyterrier_selfdistill import AdaptiveMarginLoss, SelfDistillBiEncoder, SoftmaxLoss
from pyterrier_selfdistill.training.arguments import mixed_precision
from pyterrier_selfdistill.utils.compat import remove_autocast

from .config import Run


def make_loss(run: Run) -> nn.Module | Callable[[Any], nn.Module]:
    """Make what ``SelfDistillTrainer`` takes as ``loss``."""
    margin = 1.0 if run.margin is None else run.margin
    if run.loss in ("listwise", "softmax"):
        return SoftmaxLoss(run.loss, run.scale)
    if run.loss == "infonce":
        return partial(MultipleNegativesRankingLoss, scale=20.0 if run.scale is None else run.scale)
    if run.loss == "triplet":
        return partial(TripletLoss, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=margin)
    if run.loss == "margin_mse":
        return MarginMSELoss
    target: Any = margin if run.loss == "static" else run.loss
    return AdaptiveMarginLoss(target, run.in_batch, run.error, detach_target=run.detach_target)


class Teacher:
    """A cross-encoder made from the student's language model, and trained on all the data that a study may use.

    Offline there is no cross-encoder that others have trained. ``seconds`` is the cost of its training.
    """

    def __init__(self, model: str, length: int, seconds: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model = CrossEncoder(model, num_labels=1, max_length=length)
        self.seconds = seconds

    def fit(self, triples: Dataset, folder: str) -> Teacher:
        """Train it to tell positives from negatives; ``folder`` is for temporary files."""
        started = time.monotonic()
        rows = triples.to_pandas()
        columns = []
        for name in rows.columns[1:]:
            label = float(name == "positive")
            columns.append(pd.DataFrame({"query": rows["query"], "text": rows[name], "label": label}))
        pairs = pd.concat(columns).sample(frac=1, random_state=0)
        precision: dict[str, Any] = {**mixed_precision(self.model.device)}
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            warmup_steps=0.1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
            use_cpu=self.model.device.type == "cpu",
            **precision,
        )
        dataset = Dataset.from_pandas(pairs, preserve_index=False)
        loss = BinaryCrossEntropyLoss(self.model)
        CrossEncoderTrainer(model=self.model, args=arguments, train_dataset=dataset, loss=loss).train()
        remove_autocast(self.model)
        self.seconds = time.monotonic() - started
        return self

    def margins(self, triples: Dataset) -> tuple[np.ndarray, float]:
        """Return the margins of triples, and the seconds they took.

        Scores are probabilities, so margins are between -1 and 1, like those of cosines.
        """
        started = time.monotonic()
        rows = triples[:]
        scores = []
        for name in ("positive", "negative"):
            pairs = list(zip(rows["query"], rows[name], strict=True))
            scores.append(np.asarray(self.model.predict(pairs, batch_size=64, show_progress_bar=False), dtype=float))
        return scores[0] - scores[1], time.monotonic() - started


class BiEncoderTeacher:
    """A bi-encoder that others have trained. It encodes each text once, and runs share the vectors and their cost."""

    seconds = 0.0

    def __init__(self, encoder: SelfDistillBiEncoder) -> None:
        self.encoder = encoder
        self.vectors: dict[str, np.ndarray] = {}
        self.encoding_seconds = 0.0

    def margins(self, triples: Dataset) -> tuple[np.ndarray, float]:
        """Return the margins of triples, and the seconds it takes to encode their texts."""
        columns = [triples[name][:] for name in ("query", "positive", "negative")]
        texts = list(dict.fromkeys(itertools.chain(*columns)))
        started = time.monotonic()
        missing = [text for text in texts if text not in self.vectors]
        self.vectors.update(zip(missing, self.encoder.encode_docs(missing), strict=True))
        self.encoding_seconds += time.monotonic() - started
        queries, positives, negatives = (np.array([self.vectors[text] for text in column]) for column in columns)
        share = len(texts) / len(self.vectors)
        return np.einsum("ij,ij->i", queries, positives - negatives), share * self.encoding_seconds
