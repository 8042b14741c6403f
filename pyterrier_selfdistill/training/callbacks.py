"""Callbacks of the training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt
from datasets import Dataset
from torch import nn
from transformers import IntervalStrategy, ProgressCallback, TrainerCallback

from ..data.triples import LABEL, TrainingSet, parts_of
from ..encoder.biencoder import SelfDistillBiEncoder
from ..utils.compat import limit_autocast_to_training
from ..utils.processes import agree, is_first
from .history import deciding_measure, is_better
from .mining import JudgedQueries

COLLAPSE = 2 / 3
"""What must be left of the mean cosine distance of documents. ``benchmarks/RESULTS.md`` says what became of runs above
and below it, under "What goes wrong, and what shows it early"."""

FORGETTING = 0.4
"""How much the cosines of documents must correlate with those before training; likewise."""


def mean_cosine(vectors: np.ndarray) -> float:
    """Compute the mean cosine of two different vectors, 1 where all are the same.

    Args:
        vectors: Unit vectors, of shape ``(number, dimension)``.

    Returns:
        The mean, 0 for a single vector.

    Example:
        >>> mean_cosine(np.eye(3))
        0.0
    """
    number = len(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)
    pairs = number * (number - 1)
    return float((total @ total - number) / max(pairs, 1))


def representational_similarity(before: np.ndarray, after: np.ndarray) -> float:
    """Compute how much two encoders agree on which of some texts are alike: 1 for wholly, 0 for not at all.

    It is the correlation of the cosines of all pairs, as in representational similarity analysis (Kriegeskorte et al.,
    2008), so it does not see rotations, or cosines that rise or fall together.

    Args:
        before: Unit vectors of some texts by one encoder, of shape ``(number, dimension)``.
        after: Those of the same texts by the other encoder; their dimension may differ.

    Returns:
        The correlation; NaN for fewer than three texts, or where all cosines are the same.

    Example:
        >>> vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]])
        >>> round(representational_similarity(vectors, -vectors), 6)
        1.0
    """
    if len(before) < 3:
        return math.nan
    pairs = np.triu_indices(len(before), k=1)
    cosines_before = (before @ before.T)[pairs]
    cosines_after = (after @ after.T)[pairs]
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.corrcoef(cosines_before, cosines_after)[0, 1])


def has_collapsed(before: float, after: float) -> bool:
    """Tell whether documents became too much alike.

    Args:
        before: Their mean cosine before training.
        after: Their mean cosine now.

    Returns:
        Whether less than :data:`COLLAPSE` of their mean cosine distance is left.

    Example:
        >>> has_collapsed(0.1, 0.3), has_collapsed(0.1, 0.7)
        (False, True)
    """
    return 1 - after < COLLAPSE * (1 - before)


def has_forgotten(similarity: float) -> bool:
    """Tell whether an encoder has forgotten which documents are alike.

    Args:
        similarity: The representational similarity of the encoder before training and now; NaN if unknown.

    Returns:
        Whether it is below :data:`FORGETTING`. What is unknown is not forgotten.

    Example:
        >>> has_forgotten(0.9), has_forgotten(0.2)
        (False, True)
    """
    return similarity < FORGETTING


logger = logging.getLogger(__name__)

MONITORED_DOCUMENTS = 32
"""How many documents of the training data are encoded now and then, to see what becomes of their similarity."""

MONITORED_TIMES = 5
"""How often they are encoded while training, at equal distances."""


AGAINST_DIVERGENCE = (
    "try a lower learning_rate, more warmup_steps, a lower max_grad_norm, or float32 with bf16=False and fp16=False. "
    "Checkpoints from before are kept, and no model was written"
)
"""What to do about a training that diverged."""


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
            if is_measure or key in ("loss", "margin", "target", "scale"):
                self.shown[key.removeprefix("eval_")] = f"{value:.3f}"
        self.training_bar.set_postfix(self.shown)


class SavedPrecision(TrainerCallback):
    """Have all that encodes beside the steps do so in the precision in which the model is saved."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        """Keep autocast to the steps."""
        limit_autocast_to_training(model)


class CheckpointGuard(TrainerCallback):
    """Check before a checkpoint is evaluated or saved that it is worth it.

    Args:
        settings_file: A file of the run that is there as long as nobody removes the folder.
    """

    def __init__(self, settings_file: Path) -> None:
        self.settings_file = settings_file

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        """Check if a checkpoint follows."""
        self._check(state, control, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        """Check if a checkpoint follows."""
        self._check(state, control, model)

    def _check(self, state: Any, control: Any, model: nn.Module) -> None:
        if not (control.should_evaluate or control.should_save):
            return
        require_finite_weights(model, state.global_step)
        if control.should_save:
            agree(partial(self._require_folder, state.global_step))

    def _require_folder(self, step: int) -> None:
        if not self.settings_file.exists():
            raise FileNotFoundError(
                f"the folder of this run was removed while it trained: {str(self.settings_file)!r} is missing after "
                f"{step} steps; train again, and leave the folder alone until then"
            )


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Check that training has not destroyed a model.

    Args:
        model: The model.
        step: How many steps it was trained.

    Raises:
        FloatingPointError: If a weight is not finite.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> _ = layer.weight.data.fill_(float("nan"))
        >>> require_finite_weights(layer, step=7)
        Traceback (most recent call last):
        FloatingPointError: the weights of 'weight' are not finite after step 7: try a lower learning_rate, ...
    """
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise FloatingPointError(f"the weights of {name!r} are not finite after step {step}: {AGAINST_DIVERGENCE}")


class EvaluateAtEnd(TrainerCallback):
    """Evaluate after the last step too, so that the end of training can be the best checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Ask for an evaluation if this was the last step."""
        is_last = state.global_step >= state.max_steps
        # an evaluation at the end of each epoch comes after the last step anyway
        if is_last and args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate = True


class BestCheckpoint(TrainerCallback):
    """Let the encoder before training compete for the best checkpoint, and have the best one at hand.

    It comes after early stopping, which compares with the best value before.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Name the folder as it is now: the trainer forgets the best checkpoint of a folder that was moved."""
        if state.best_global_step:
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.best_global_step}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **options: Any) -> None:
        """Take the value before training for the one to beat, and ask for a checkpoint where it is beaten."""
        value = metrics[f"eval_{deciding_measure(args)}"]
        if state.global_step == 0:
            # the trainer evaluates on start, but compares only what comes later
            state.best_metric = value
            state.best_global_step = 0
        elif args.load_best_model_at_end and is_better(value, state.best_metric, args.greater_is_better):
            # the trainer saves by save_steps alone, and would find no checkpoint of the best step between
            control.should_save = True


class SimilarityMonitor(TrainerCallback):
    """Compare the cosines of some documents with those before training, and warn of collapse and forgetting.

    Their mean rises when scores are pulled up together, or documents are pushed to where queries are: the space of
    vectors collapses, whatever the loss says. Where they do not correlate with what they were, the encoder has
    forgotten which documents are alike.

    Args:
        encoder: The encoder to train, as it is before training.
        dataset: The triples, whose first documents are monitored, as many of each collection.
        log: What takes down each comparison while training.

    Attributes:
        similarity: The mean cosine ``before`` training and ``after`` the last comparison, and the ``representational``
            similarity between the two, None for fewer than three documents.
    """

    def __init__(
        self, encoder: SelfDistillBiEncoder, dataset: TrainingSet, log: Callable[[dict[str, float]], None]
    ) -> None:
        self.encoder = encoder
        self.log = log
        self.texts = _first_documents(dataset, MONITORED_DOCUMENTS)
        # here and not when training begins, since a checkpoint to resume from is loaded before that
        self.vectors = encoder.encode_docs(self.texts)
        self.similarity: dict[str, float | None] = {"before": round(mean_cosine(self.vectors), 4)}
        self.warned: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Choose the steps after which to compare."""
        parts = range(1, MONITORED_TIMES + 1)
        self.steps = {math.ceil(state.max_steps * part / MONITORED_TIMES) for part in parts}
        if state.global_step == 0:
            self._take_down(control, similarity=self.similarity["before"])

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Compare, if it is time."""
        if state.global_step in self.steps:
            self.compare(state.global_step)
            self._take_down(
                control,
                similarity=self.similarity["after"],
                representational_similarity=self.similarity["representational"],
            )

    def compare(self, step: int) -> None:
        """Compare now, and warn if the encoder has been harmed.

        Args:
            step: How many steps the encoder was trained.
        """
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
                f"{step} steps. Try another target, negatives that are not unjudged positives, or a lower "
                "learning_rate",
            )
        if has_forgotten(representational):
            self._warn_once(
                "forgetting",
                f"the cosines of documents correlate with those before training by {representational:.2f} after "
                f"{step} steps. That does no harm to a raw language model; for an encoder that could "
                "already search, try a lower learning_rate, and evaluate on validation queries",
            )

    def _take_down(self, control: Any, **values: float | None) -> None:
        """Log what is known, and leave the rest of the log as it is."""
        should_log = control.should_log
        self.log({name: value for name, value in values.items() if value is not None})
        # transformers takes the loss of this step, which follows, for logged too
        control.should_log = should_log

    def _warn_once(self, harm: str, message: str) -> None:
        """Warn of a kind of harm, once a training."""
        if harm not in self.warned:
            self.warned.add(harm)
            logger.warning("%s: %s", harm, message)


class HardNegativeMiner(TrainerCallback):
    """Draw the negatives of later rounds from what the encoder as trained so far finds in the corpus.

    What is mined is stored beside the checkpoints, for a run that is resumed. Batches are fetched ahead, so that
    negatives are replaced at the very step that trains with them, and not in the dataset.

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

    def describe(self) -> dict[str, Any]:
        """Describe what decides on what is mined: a run is resumed only with the same."""
        return {"rounds": self.rounds, **self.queries.describe()}

    def replace(self, rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """Put the negatives that were mined last into rows of triples.

        Args:
            rows: The triples.

        Returns:
            Triples with other negatives. A positive for which none were mined keeps those it had.
        """
        replaced = []
        for row in rows:
            mined = self.mined.get((row["query"], row["positive"]), ())
            replaced.append(row | dict(zip(_negative_columns(row), mined, strict=False)))
        return replaced

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Choose the steps after which to mine, and go on with what a run that is resumed mined last."""
        self.steps_per_round = math.ceil(state.max_steps / self.rounds)
        last = state.global_step - state.global_step % self.steps_per_round
        if last == 0:
            return
        if agree(self._path(last).exists):
            self._read(last)
        elif last == state.global_step:
            # the run ended between the checkpoint and mining
            self._mine(last)
        else:
            raise FileNotFoundError(
                f"the negatives that were mined after {last} steps are not in {str(self.folder)!r}, so that the run "
                "cannot be resumed as it was; begin anew with overwrite=True"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Mine if a round is over and another one follows."""
        step = state.global_step
        if step % self.steps_per_round == 0 and step < state.max_steps:
            self._mine(step)

    def _mine(self, step: int) -> None:
        """Mine in the first process, store what was mined, and use it in all."""
        agree(partial(self._search, step))
        if not is_first():
            self._read(step)

    def _search(self, step: int) -> None:
        logger.info("mining hard negatives after %d steps", step)
        triples = self.queries.mine(self.encoder, step, self.folder).dataset
        # atomic, since a run that is resumed reads whatever is there
        with pt.io.finalized_open(str(self._path(step)), "b") as file:
            triples.to_parquet(file)
        self._use(triples)

    def _read(self, step: int) -> None:
        """Use what was mined and stored."""
        self._use(Dataset.from_parquet(str(self._path(step)), keep_in_memory=True))

    def _path(self, step: int) -> Path:
        return self.folder / f"mined-{step}.parquet"

    def _use(self, triples: Dataset) -> None:
        """Take the negatives of triples for the batches that follow."""
        columns = triples[:]
        pairs = zip(columns["query"], columns["positive"], strict=True)
        names = _negative_columns(columns)
        negatives = zip(*(columns[name] for name in names), strict=True)
        self.mined = dict(zip(pairs, negatives, strict=True))


def make_miner(
    encoder: SelfDistillBiEncoder, queries: JudgedQueries | None, rounds: int, folder: Path
) -> HardNegativeMiner | None:
    """Make a miner, if there is more than one round.

    Args:
        encoder: As :class:`HardNegativeMiner` takes it, and so are the others.
        queries: What to search for; None if triples were there already.
        rounds: Into how many parts to divide the steps.
        folder: Where to store what is mined.

    Returns:
        The miner, or None.
    """
    if queries is None or rounds == 1:
        return None
    return HardNegativeMiner(encoder, queries, rounds, folder)


def _first_documents(dataset: TrainingSet, number: int) -> list[str]:
    """Take the first distinct documents of as many triples, and as many of each collection."""
    parts = parts_of(dataset)
    of_each = math.ceil(number / len(parts))
    documents: dict[str, None] = {}  # a set that keeps the order
    for part in parts:
        rows = part[:of_each]
        of_part: dict[str, None] = {}
        # not all that rows have, to which sentence-transformers adds the name of the collection
        for name in part.column_names:
            if name not in ("query", LABEL):
                of_part |= dict.fromkeys(rows[name])
        documents |= dict.fromkeys(list(of_part)[:of_each])
    return list(documents)[:number]


def _negative_columns(columns: Iterable[str]) -> list[str]:
    """List the columns with negatives, in their order."""
    return [name for name in columns if name.startswith("negative")]
