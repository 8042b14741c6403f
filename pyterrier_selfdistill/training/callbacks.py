"""What happens beside the steps of training: a progress bar, evaluation at the end, a monitor, hard-negative mining.

Each is a callback of transformers' training loop, which calls ``on_train_begin``, ``on_step_end`` and the like.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pyterrier as pt
from datasets import Dataset
from transformers import IntervalStrategy, ProgressCallback, TrainerCallback

from ..biencoder import SelfDistillBiEncoder
from ..data.columns import LABEL
from .similarity import has_collapsed, has_forgotten, mean_cosine, representational_similarity
from .sources import JudgedQueries

logger = logging.getLogger(__name__)

MONITORED_DOCUMENTS = 32
"""How many documents of the training data are encoded now and then, to see what becomes of their similarity."""

MONITORED_TIMES = 5
"""How often they are encoded while training, at equal distances."""


class ProgressBar(ProgressCallback):
    """Show a bar with the loss, the mean margin, the mean target and the measures beside it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self.training_bar = pt.tqdm(total=state.max_steps, initial=state.global_step, desc="Training", unit="step")
            self.shown: dict[str, str] = {}
        self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
        """Show what was logged beside the bar."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        for key, value in logs.items():
            is_measure = key.startswith("eval_") and "@" in key
            if is_measure or key in ("loss", "margin", "target"):
                self.shown[key.removeprefix("eval_")] = f"{value:.3f}"
        self.training_bar.set_postfix(self.shown)


class EvaluateAtEnd(TrainerCallback):
    """Evaluate after the last step too, so that the end of training can be the best checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Ask for an evaluation if this was the last step."""
        is_last = state.global_step >= state.max_steps
        # an evaluation at the end of each epoch comes after the last step anyway
        if is_last and args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate = True


class SimilarityMonitor(TrainerCallback):
    """Compare the cosines of some documents with those before training, and warn of collapse and forgetting.

    Their mean rises when scores are pulled up together, or documents are pushed to where queries are: the space of
    vectors collapses, whatever the loss says. Where they do not correlate with what they were, the encoder has
    forgotten which documents are alike.

    Args:
        encoder: The encoder to train, as it is before training.
        dataset: The triples, whose first documents are monitored.

    Attributes:
        similarity: The mean cosine ``before`` training and ``after`` the last comparison, and the ``representational``
            similarity between the two, None for fewer than three documents.
    """

    def __init__(self, encoder: SelfDistillBiEncoder, dataset: Dataset) -> None:
        self.encoder = encoder
        self.texts = _first_documents(dataset, MONITORED_DOCUMENTS)
        # here and not when training begins, since a checkpoint to resume from is loaded before that
        self.vectors = encoder.encode_docs(self.texts)
        self.similarity: dict[str, float | None] = {"before": round(mean_cosine(self.vectors), 4)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Choose the steps after which to compare."""
        parts = range(1, MONITORED_TIMES + 1)
        self.steps = {math.ceil(state.max_steps * part / MONITORED_TIMES) for part in parts}
        self.warned: set[str] = set()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Compare, if it is time."""
        if state.global_step not in self.steps:
            return
        vectors = self.encoder.encode_docs(self.texts)
        before = mean_cosine(self.vectors)
        after = mean_cosine(vectors)
        representational = representational_similarity(self.vectors, vectors)
        self.similarity["after"] = round(after, 4)
        if math.isnan(representational):
            self.similarity["representational"] = None
        else:
            self.similarity["representational"] = round(representational, 4)
        if has_collapsed(before, after):
            self._warn_once(
                "collapse",
                f"the mean cosine of documents was {before:.2f} before training and is {after:.2f} after "
                f"{state.global_step} steps. Try another target, negatives that are not unjudged positives, or a lower "
                "learning_rate",
            )
        if has_forgotten(representational):
            self._warn_once(
                "forgetting",
                f"the cosines of documents correlate with those before training by {representational:.2f} after "
                f"{state.global_step} steps. That does no harm to a raw language model; for an encoder that could "
                "already search, try a lower learning_rate, and evaluate on validation queries",
            )

    def _warn_once(self, harm: str, message: str) -> None:
        """Warn of a kind of harm, once a training."""
        if harm not in self.warned:
            self.warned.add(harm)
            logger.warning("%s: %s", harm, message)


class HardNegativeMiner(TrainerCallback):
    """Draw the negatives of later rounds from what the encoder as trained so far finds in the corpus.

    What is mined is stored beside the checkpoints, for a run that is resumed.

    Args:
        encoder: The encoder to train.
        queries: What to search for, and how to draw from what is found.
        rounds: Into how many equal parts to divide the steps of training; each but the first begins with mining.
        folder: Where to store what is mined.
    """

    def __init__(self, encoder: SelfDistillBiEncoder, queries: JudgedQueries, rounds: int, folder: Path) -> None:
        self.encoder = encoder
        self.queries = queries
        self.rounds = rounds
        self.folder = folder
        self.mined: dict[tuple[str, str], tuple[str, ...]] = {}

    def replace(self, batch: dict[str, list[str]]) -> dict[str, list[str]]:
        """Put the negatives that were mined last into a batch of triples.

        Args:
            batch: The columns of the triples.

        Returns:
            The batch with other negatives. A positive for which none were mined keeps those it had.
        """
        # a batch is a view of the dataset, which must stay as it is
        replaced = {name: list(texts) for name, texts in batch.items()}
        names = _negative_columns(replaced)
        pairs = zip(batch["query"], batch["positive"], strict=True)
        for row, pair in enumerate(pairs):
            if pair in self.mined:
                for name, text in zip(names, self.mined[pair], strict=True):
                    replaced[name][row] = text
        return replaced

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Choose the steps after which to mine, and read what a run that is resumed mined last."""
        self.steps_per_round = math.ceil(state.max_steps / self.rounds)
        mined = {int(path.stem.rpartition("-")[2]): path for path in self.folder.glob("mined-*.parquet")}
        earlier = [step for step in mined if step <= state.global_step]
        if earlier:
            path = mined[max(earlier)]
            self._use(Dataset.from_parquet(str(path), keep_in_memory=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Mine if a round is over and another one follows."""
        step = state.global_step
        if step % self.steps_per_round != 0 or step >= state.max_steps:
            return
        logger.info("mining hard negatives after %d steps", step)
        triples = self.queries.mine(self.encoder, step).dataset
        # atomic, since a run that is resumed reads whatever is there
        with pt.io.finalized_open(str(self.folder / f"mined-{step}.parquet"), "b") as file:
            triples.to_parquet(file)
        self._use(triples)

    def _use(self, triples: Dataset) -> None:
        """Take the negatives of triples for the batches that follow."""
        columns = triples[:]
        pairs = zip(columns["query"], columns["positive"], strict=True)
        names = _negative_columns(columns)
        negatives = zip(*(columns[name] for name in names), strict=True)
        self.mined = dict(zip(pairs, negatives, strict=True))


def _first_documents(dataset: Dataset, number: int) -> list[str]:
    """Take the first distinct documents of as many triples."""
    rows = dataset[:number]
    documents: dict[str, None] = {}  # a set that keeps the order
    for name, texts in rows.items():
        if name not in ("query", LABEL):
            documents |= dict.fromkeys(texts)
    return list(documents)[:number]


def _negative_columns(columns: dict[str, list[str]]) -> list[str]:
    """List the columns with negatives, in their order."""
    return [name for name in columns if name.startswith("negative")]
