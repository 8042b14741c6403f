"""Callbacks of the training loop: progress, the best checkpoint, checks before saving, and the similarity monitor."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import IntervalStrategy, ProgressCallback, TrainerCallback

from ..data.triples import LABEL, TrainingSet, parts_of
from ..encoder.biencoder import SelfDistillBiEncoder
from ..utils.compat import limit_autocast_to_training, progress_bar
from ..utils.processes import agree
from .history import is_better

logger = logging.getLogger(__name__)
MONITORED_DOCUMENTS = 32  # how many documents of the training data the monitor encodes
MONITORED_TIMES = 5  # how often it encodes them while training, at equal distances

# the share of the mean cosine distance of documents that must be left; ``benchmarks/RESULTS.md`` says why, under
# "What goes wrong, and what shows it early"
COLLAPSE = 2 / 3
FORGETTING = 0.4  # how much the cosines of documents must correlate with those before training; likewise

AGAINST_DIVERGENCE = (
    "try a lower learning_rate, more warmup_steps, a lower max_grad_norm, or float32 with bf16=False and fp16=False. "
    "Checkpoints from before are kept, and no model was written"
)


class ProgressBar(ProgressCallback):
    """A bar of PyTerrier's with the last loss, margin and measures."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.is_world_process_zero:
            told = {"initial": state.global_step, "desc": "Training", "unit": "step"}
            self.training_bar = progress_bar(total=state.max_steps, **told)
            self.shown: dict[str, str] = {}
        self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None:
            return
        for key, value in logs.items():
            is_measure = key.startswith("eval_") and "@" in key
            if is_measure or key in ("loss", "margin", "target", "scale"):
                self.shown[key.removeprefix("eval_")] = f"{value:.3f}"
        self.training_bar.set_postfix(self.shown, refresh=False)


class SavedPrecision(TrainerCallback):
    """Disables autocast outside training steps, so that validation measures the weights that are saved."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        limit_autocast_to_training(model)


class CheckpointGuard(TrainerCallback):
    """Stops a run before it saves or evaluates weights that are not finite, or saves in a folder that was removed."""

    def __init__(self, settings_file: Path) -> None:
        self.settings_file = settings_file

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        if control.should_evaluate or control.should_save:
            require_finite_weights(model, state.global_step)
        if control.should_save:
            agree(lambda: self._require_folder(state.global_step))

    on_epoch_end = on_step_end

    def _require_folder(self, step: int) -> None:
        if not self.settings_file.exists():
            raise FileNotFoundError(
                f"the folder of this run was removed while it trained: {str(self.settings_file)!r} is missing after "
                f"{step} steps; train again, and leave the folder alone until then"
            )


def require_finite_weights(model: nn.Module, step: int) -> None:
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise FloatingPointError(f"the weights of {name!r} are not finite after step {step}: {AGAINST_DIVERGENCE}")


class BestCheckpoint(TrainerCallback):
    """Evaluates after the last step too, lets the encoder before training compete, and saves each best checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.best_global_step:
            # a folder that was moved
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.best_global_step}")

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        # an evaluation at the end of each epoch comes after the last step anyway
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **options: Any) -> None:
        value = metrics[args.metric_for_best_model]
        if state.global_step == 0:
            # the trainer evaluates on start, but compares only later evaluations
            state.best_metric = value
            state.best_global_step = 0
        elif args.load_best_model_at_end and is_better(value, state.best_metric, args.greater_is_better):
            # the trainer saves by save_steps alone, and would find no checkpoint of a best step between
            control.should_save = True


class SimilarityMonitor(TrainerCallback):
    """Logs how similar documents are, and how their similarities correlate with those before training."""

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
        self.steps = {math.ceil(state.max_steps * part / MONITORED_TIMES) for part in range(1, MONITORED_TIMES + 1)}
        if state.global_step == 0:
            self._log(control, similarity=self.similarity["before"])

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step in self.steps:
            self.compare(state.global_step)
            after, representational = self.similarity["after"], self.similarity["representational"]
            self._log(control, similarity=after, representational_similarity=representational)

    def compare(self, step: int) -> None:
        """Compare documents with those before training."""
        vectors = self.encoder.encode_docs(self.texts)
        before, after = mean_cosine(self.vectors), mean_cosine(vectors)
        representational = representational_similarity(self.vectors, vectors)
        self.similarity["after"] = round(after, 4)
        self.similarity["representational"] = None
        if not math.isnan(representational):
            self.similarity["representational"] = round(representational, 4)
        if has_collapsed(before, after):
            self._warn_once(
                f"collapse: the mean cosine of documents was {before:.2f} before training and is {after:.2f} after "
                f"{step} steps. Try another target, negatives that are not unjudged positives, or a lower "
                "learning_rate",
            )
        if has_forgotten(representational):
            self._warn_once(
                f"forgetting: the cosines of documents correlate with those before training by {representational:.2f} "
                f"after {step} steps. That does no harm to a raw language model; for an encoder that could already "
                "search, try a lower learning_rate, and evaluate on validation queries",
            )

    def _log(self, control: Any, **values: float | None) -> None:
        should_log = control.should_log
        self.log({name: value for name, value in values.items() if value is not None})
        # transformers would take the loss of this step, which follows, for logged too
        control.should_log = should_log

    def _warn_once(self, message: str) -> None:
        harm = message.partition(":")[0]
        if harm not in self.warned:
            self.warned.add(harm)
            logger.warning(message)


def _first_documents(dataset: TrainingSet, number: int) -> list[str]:
    """Take the first documents, as many of each data set."""
    parts = parts_of(dataset)
    of_each = math.ceil(number / len(parts))
    documents: dict[str, None] = {}  # a set that keeps the order
    for part in parts:
        rows = part[:of_each]
        # not all names of the rows, to which sentence-transformers adds the name of the data set
        names = [name for name in part.column_names if name not in ("query", LABEL)]
        of_part = dict.fromkeys(text for name in names for text in rows[name])
        documents |= dict.fromkeys(list(of_part)[:of_each])
    return list(documents)[:number]


def mean_cosine(vectors: np.ndarray) -> float:
    """Compute the mean cosine between two of ``(N, D)`` unit vectors."""
    number = len(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)
    return float((total @ total - number) / max(number * (number - 1), 1))


def representational_similarity(before: np.ndarray, after: np.ndarray) -> float:
    """Correlate the cosines between ``(N, D)`` unit vectors with those between the same texts' vectors before."""
    if len(before) < 3:
        return math.nan
    pairs = np.triu_indices(len(before), k=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.corrcoef((before @ before.T)[pairs], (after @ after.T)[pairs])[0, 1])


def has_collapsed(before: float, after: float) -> bool:
    return 1 - after < COLLAPSE * (1 - before)


def has_forgotten(similarity: float) -> bool:
    return similarity < FORGETTING
