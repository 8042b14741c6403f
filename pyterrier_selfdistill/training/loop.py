"""The training loop of sentence-transformers with this package's additions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd
import sentence_transformers
import torch
import transformers
from accelerate.utils import broadcast, gather_object
from datasets import DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.util import get_world_size
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints

from ..data.triples import TrainingSet, Triples
from ..encoder.biencoder import SelfDistillBiEncoder
from ..losses import SelfDistillationLoss, without_matryoshka
from ..utils.compat import no_transformers_progress_bars, no_widget_examples, remove_autocast
from ..utils.folders import explained_errors
from ..utils.processes import PartBatchSampler, in_turn, is_first
from .callbacks import (
    AGAINST_DIVERGENCE,
    BestCheckpoint,
    CheckpointGuard,
    ProgressBar,
    SavedPrecision,
    SimilarityMonitor,
    require_finite_weights,
)
from .evaluation import Evaluator
from .history import milestones, warn_if_not_improved
from .mining import HardNegativeMiner
from .run_folder import SETTINGS, TRAINER_STATE, is_over


def read_in_turn(read: Callable[[], Triples]) -> Triples:
    """Read triples in all processes, which must be the same ones; the first writes the cache that others find."""
    with in_turn():
        triples = read()
    fingerprints = gather_object([triples.summary["fingerprint"]])
    if len(set(fingerprints)) > 1:
        raise ValueError(
            f"the processes were given different triples: their fingerprints are {fingerprints}; give all the same "
            "source, in the same order. Each process gets its part of a batch from the trainer"
        )
    return triples


def sees_global_batch(loss: nn.Module) -> bool:
    """Tell whether a loss gathers the batches of all processes, however large their parts are."""
    return isinstance(without_matryoshka(loss), SelfDistillationLoss)


def require_whole_models(arguments: SentenceTransformerTrainingArguments) -> None:
    """Check that each process has all weights, with which it encodes between the steps."""
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if arguments.fsdp or by_launcher or is_deepspeed_zero3_enabled():
        raise ValueError(
            "FSDP and the third stage of ZeRO divide the weights among processes, and encoding between the steps needs "
            "all of them; train without, or with the first or second stage of ZeRO, which divide what is larger: the "
            "gradients and the optimizer's state"
        )


def require_batches(triples: int, arguments: SentenceTransformerTrainingArguments, loss: nn.Module) -> None:
    """Check that there is a batch for several processes to share."""
    processes = get_world_size()
    if processes == 1:
        return
    needed = processes
    if arguments.dataloader_drop_last or not sees_global_batch(loss):
        needed = processes * arguments.train_batch_size
    if triples < needed:
        raise ValueError(
            f"{triples} triples make no batch for {processes} processes, which need {needed}; give more triples, lower "
            "per_device_train_batch_size, or start fewer processes"
        )


class TrainingLoop(SentenceTransformerTrainer):
    """The trainer of sentence-transformers, which keeps the best checkpoint, or the encoder before training."""

    def __init__(
        self,
        encoder: SelfDistillBiEncoder,
        start: SelfDistillBiEncoder,
        dataset: TrainingSet,
        loss: nn.Module,
        arguments: SentenceTransformerTrainingArguments,
        *,
        evaluator: Evaluator | None,
        miner: HardNegativeMiner | None,
        decay: float | None,
        patience: int,
        verbose: bool,
    ) -> None:
        self.decay = decay  # first, since the trainer may ask for a schedule while it is made
        with no_widget_examples(encoder.model):
            super().__init__(model=encoder.model, args=arguments, train_dataset=dataset, loss=loss, evaluator=evaluator)
        self.start = start
        self.folder = Path(cast(str, arguments.output_dir))
        self.seconds = 0.0
        self.unchecked: list[tuple[int, torch.Tensor]] = []
        self.monitor = SimilarityMonitor(encoder, dataset, self.log)
        self.miner = miner
        self.tokenize = self.data_collator
        # transformers adds it where its own bar is off, and it prints to the standard output
        self.remove_callback(PrinterCallback)
        self.add_callback(SavedPrecision())
        if verbose:
            self.add_callback(ProgressBar())
        self.add_callback(self.monitor)
        if miner is not None:
            # a loader fetches ahead, and its workers see no mined negatives: rows are tokenized when their step comes
            self.data_collator = RowCollator(self.tokenize)  # type: ignore[assignment]
            self.add_callback(miner)
        if evaluator is not None:
            self.add_callback(EarlyStoppingCallback(patience))
            self.add_callback(BestCheckpoint())
        # last, when it is known whether a checkpoint follows
        self.add_callback(CheckpointGuard(self.folder / SETTINGS))

    def run(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint if there is one, and leave the best weights in the model."""
        state = TrainerState()
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if checkpoint is not None and is_over(state):
            self._take_over(state)
        else:
            self._train_from(checkpoint)
        model = cast(nn.Module, self.model)
        broadcast(model.state_dict())
        remove_autocast(model)
        model.eval()
        require_finite_weights(model, self.state.global_step)
        # of the model that is kept, not of the last step
        self.monitor.compare(self.model_step)

    def _train_from(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self.args.eval_on_start = False  # the interrupted run did, and its log says so
        started = time.monotonic()
        with explained_errors(self.folder), no_transformers_progress_bars():
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self.seconds = time.monotonic() - started
        self.require_finite_losses()
        if self.model_step == 0:
            # better checkpoints were loaded by the training loop
            self._load(0)

    def _take_over(self, state: TrainerState) -> None:
        """Finish a run that ended after its last step."""
        self.state = state
        self._load(self.model_step)
        # the process may not have come to this; by step, since removing one changes its time
        best = None
        if state.best_global_step:
            best = str(self._checkpoint(state.best_global_step))
        if is_first():
            rotate_checkpoints(str(self.folder), self.args.save_total_limit, best_model_checkpoint=best)

    def _load(self, step: int) -> None:
        saved = self.start.model
        if step > 0:
            saved = SentenceTransformer(str(self._checkpoint(step)), device=str(self.model.device))
        self.model.load_state_dict(saved.state_dict())

    def _checkpoint(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    @property
    def model_step(self) -> int:
        """The step of the weights that are kept."""
        best = self.state.best_global_step
        if self.args.load_best_model_at_end and best is not None:
            return best
        return self.state.global_step

    def summary(self, settings: Mapping[str, Any], history: pd.DataFrame) -> dict[str, Any]:
        """Summarize the run, and warn if it did not improve the encoder."""
        best_step = best_measure = None
        if self.evaluator is not None:
            measure = str(self.args.metric_for_best_model).removeprefix("eval_")
            warn_if_not_improved(history, measure, bool(self.args.greater_is_better), self.model_step == 0)
            if self.args.load_best_model_at_end:
                best_step = self.state.best_global_step
                best_measure = {"name": measure, "value": self.state.best_metric}
        libraries = (sentence_transformers, transformers, torch)
        return {
            **settings,
            "steps": self.state.global_step,
            "best_step": best_step,
            "best_measure": best_measure,
            "seconds": round(self.seconds, 1),
            "similarity": dict(self.monitor.similarity),
            "history": milestones(history),
            "versions": {library.__name__: library.__version__ for library in libraries},
        }

    # --- what each step does ----------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """Take a step, and check the losses of the last steps now and then."""
        loss = super().training_step(*args, **options)
        self.unchecked.append((self.state.global_step + 1, loss))
        # asking a GPU for a result interrupts its work
        if loss.device.type == "cpu" or len(self.unchecked) >= 10:
            self.require_finite_losses()
        return loss

    def require_finite_losses(self) -> None:
        for step, loss in self.unchecked:
            if not loss.isfinite():
                raise FloatingPointError(f"the loss is {loss.item()} in step {step}: {AGAINST_DIVERGENCE}")
        self.unchecked.clear()

    def get_batch_sampler(  # type: ignore[override]
        self, dataset: Any, batch_size: int, drop_last: bool, **options: Any
    ) -> Any:
        """Make the batches of one process, or of several, which train together with those that one would have."""
        processes = get_world_size()
        if processes == 1:
            return super().get_batch_sampler(dataset, batch_size, drop_last, **options)
        size = batch_size * processes
        leaves_too_few = 0 < len(dataset) % size < processes
        drop_last = drop_last or leaves_too_few or not sees_global_batch(cast(nn.Module, self.loss))
        batches = super().get_batch_sampler(dataset, size, drop_last, **options)
        if isinstance(self.train_dataset, DatasetDict):
            # divided when those of all collections are in one order
            return batches
        return PartBatchSampler(batches, processes)

    def get_multi_dataset_batch_sampler(self, *args: Any, **options: Any) -> Any:
        """Put the batches of several collections in one order, and divide them among the processes."""
        batches = super().get_multi_dataset_batch_sampler(*args, **options)
        processes = get_world_size()
        if processes == 1:
            return batches
        return PartBatchSampler(batches, processes)

    def get_batch_samples(self, *args: Any, **options: Any) -> tuple[list[Any], Any]:
        """Fetch the batches of a step, with the negatives that were mined last."""
        batches, items = super().get_batch_samples(*args, **options)
        if self.miner is not None:
            batches = [self.tokenize(self.miner.replace(rows)) for rows in batches]
        return batches, items

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model of a checkpoint, without its arguments and its card, which may hold tokens and paths."""
        self.require_finite_losses()
        super().save_model(output_dir, _internal_call)
        if not is_first():
            return
        folder = Path(output_dir or self.folder)
        for name in (TRAINING_ARGS_NAME, "README.md"):
            (folder / name).unlink(missing_ok=True)

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        """Compute the loss, and log the margin and the target that made it."""
        loss = super().compute_loss(*args, **options)
        statistics = getattr(without_matryoshka(cast(nn.Module, self.loss)), "statistics", None)
        if statistics:
            self.track_loss_components(statistics)
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make the exponential schedule, if there is a decay."""
        if self.decay is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            optimizer = cast(torch.optim.Optimizer, optimizer or self.optimizer)
            self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)  # type: ignore[assignment]
        return self.lr_scheduler


class RowCollator:
    """Hands rows on, to be tokenized later."""

    def __init__(self, tokenize: Callable[..., Any]) -> None:
        self.valid_label_columns = tokenize.valid_label_columns  # type: ignore[attr-defined]

    def __call__(self, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return rows
