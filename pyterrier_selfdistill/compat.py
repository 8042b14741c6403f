"""Work around faults of other libraries, one function each.

A docstring says what the fault is, in which version it was seen, and what to delete when it is mended. The test of the
function shows the fault in the plain library, and fails with that advice once it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import Trainer
from transformers.utils import logging


@contextmanager
def no_checkpoint_progress_bars() -> Iterator[None]:
    """Hide the progress bars that transformers draws when it saves a checkpoint.

    Fault: ``save_pretrained`` draws a bar for the files that it writes, also in a training with ``disable_tqdm=True``,
    so that each checkpoint breaks the bar of training in two. Seen in transformers 5.23.

    When it is mended: delete this function and the ``with`` around the training loop in ``training/trainer.py``.
    """
    were_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


def remove_autocast(trainer: Trainer, model: nn.Module) -> None:
    """Let a model compute in the precision of its weights again after mixed-precision training.

    Fault: accelerate replaces the ``forward`` of the model that it is given by one in 16 bits, and neither it nor the
    trainer of transformers puts the first one back. The trained model then computes something else than the same model
    saved and loaded. Seen in accelerate 1.15 with transformers 5.23.

    When it is mended: delete this function and its call in ``training/trainer.py``.

    Args:
        trainer: The trainer, after training.
        model: The model that it was given.
    """
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
