"""The teacher of MarginMSE: a cross-encoder."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

from pyterrier_selfdistill.training.arguments import mixed_precision
from pyterrier_selfdistill.utils.compat import remove_autocast


class Teacher:
    """A cross-encoder, made of the same model as the student, and trained on all the data that a study may use.

    No cross-encoder that others have trained can be had offline; this one is as good as the collection makes it, and
    what it costs is counted.

    Args:
        model: The folder of the language model, or of a teacher.
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
        """Train it to tell positives from negatives.

        Args:
            triples: Texts: ``query``, ``positive``, and one or more columns of negatives.
            folder: Where the training may write.

        Returns:
            The teacher.
        """
        started = time.monotonic()
        pairs = _labelled_pairs(triples).sample(frac=1, random_state=self.seed)
        precision: dict[str, Any] = {**mixed_precision(self.model.device)}
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
            **precision,
        )
        trainer = CrossEncoderTrainer(
            model=self.model,
            args=arguments,
            train_dataset=Dataset.from_pandas(pairs, preserve_index=False),
            loss=BinaryCrossEntropyLoss(self.model),
        )
        trainer.train()
        # as it is when it is loaded
        remove_autocast(self.model)
        self.seconds = time.monotonic() - started
        return self

    def scores(self, queries: list[str], texts: list[str]) -> np.ndarray:
        """Score pairs by the probability of relevance, so that margins are between -1 and 1, as those of cosines are.

        Args:
            queries: The queries.
            texts: A document for each.

        Returns:
            The scores, ``(pairs,)``.
        """
        pairs = list(zip(queries, texts, strict=True))
        return self.model.predict(pairs, batch_size=64, show_progress_bar=False)

    def label(self, triples: Dataset, scale: float) -> Dataset:
        """Put the margin of each triple beside it, multiplied with a constant.

        Args:
            triples: Texts: ``query``, ``positive``, ``negative``.
            scale: The constant.

        Returns:
            The triples with the column ``label``.
        """
        rows = triples[:]
        positive_scores = self.scores(rows["query"], rows["positive"])
        negative_scores = self.scores(rows["query"], rows["negative"])
        margins = (positive_scores - negative_scores).astype(float)
        return triples.add_column("label", (scale * margins).tolist())


def _labelled_pairs(triples: Dataset) -> pd.DataFrame:
    """Make pairs of queries and documents, labelled 1 for positives and 0 for negatives."""
    rows = triples.to_pandas()
    columns = []
    for name in rows.columns[1:]:
        label = float(name == "positive")
        columns.append(pd.DataFrame({"query": rows["query"], "text": rows[name], "label": label}))
    return pd.concat(columns)
