"""The training loop: that of sentence-transformers, with what this package adds to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformerTrainer
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from ..compat import no_checkpoint_progress_bars, remove_autocast
from .callbacks import EvaluateAtEnd, ProgressBar


class TrainingLoop(SentenceTransformerTrainer):
    """Train a model, with margins and targets in the log, early stopping, and an exponential schedule.

    Args:
        decay: What to multiply the learning rate with each step; None for the schedule of the arguments.
        patience: After how many evaluations without improvement to stop.
        callbacks: What else happens beside the steps.
        verbose: Whether to show a progress bar.
        **options: What sentence-transformers' trainer takes.

    Attributes:
        seconds: How long the training took.
    """

    def __init__(
        self, *, decay: float | None, patience: int, callbacks: Sequence[TrainerCallback], verbose: bool, **options: Any
    ) -> None:
        self.decay = decay  # first, since the trainer may ask for a schedule while it is made
        super().__init__(**options)
        self.seconds = 0.0
        # transformers adds it where its own bar is off, and it prints to the standard output
        self.remove_callback(PrinterCallback)
        if verbose:
            self.add_callback(ProgressBar())
        for callback in callbacks:
            self.add_callback(callback)
        if self.evaluator is not None:
            self.add_callback(EvaluateAtEnd())
            self.add_callback(EarlyStoppingCallback(patience))

    def run(self, checkpoint: Path | None) -> None:
        """Train from the beginning or from a checkpoint, and leave the model ready to encode.

        Args:
            checkpoint: The checkpoint to resume from; None for the beginning.
        """
        resumed = None
        if checkpoint is not None:
            resumed = str(checkpoint)
            self.args.eval_on_start = False  # the interrupted run did, and its log says so
        started = time.monotonic()
        with no_checkpoint_progress_bars():
            self.train(resume_from_checkpoint=resumed)
        self.seconds = time.monotonic() - started
        remove_autocast(self, cast(torch.nn.Module, self.model))
        self.model.eval()

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        """Compute the loss, and log the margin and the target that made it."""
        loss = super().compute_loss(*args, **options)
        statistics = getattr(self.loss, "statistics", None)
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
