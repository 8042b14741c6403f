"""The training loop of sentence-transformers, extended by this package, and its callbacks."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pandas as pd
import sentence_transformers
import torch
import transformers
from accelerate.utils import broadcast, gather_object
from datasets import DatasetDict
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.util import get_world_size
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    IntervalStrategy,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints

from ..data.triples import LABEL, TrainingSet, Triples, parts_of
from ..encoder.biencoder import SelfDistillBiEncoder
from ..encoder.storage import load_pretrained
from ..losses import of_embeddings, without_matryoshka
from ..utils.compat import limit_autocast_to_training, no_transformers_progress_bars, progress_bar, remove_autocast
from ..utils.folders import explained_errors
from ..utils.processes import PartBatchSampler, agree, is_first
from .evaluation import Evaluator
from .mining import HardNegativeMiner
from .run_folder import SETTINGS, TRAINER_STATE, milestones, warn_if_not_improved

logger = logging.getLogger(__name__)
MONITORED_DOCUMENTS = 32  # how many training documents the monitor encodes
MONITORED_TIMES = 5  # how often it encodes them during training, at equal intervals
MANY_ROWS = 10_000  # of embeddings with more rows, one per token of the vocabulary, a batch uses few

# warn if the mean cosine distance of documents shrinks below this share; see "Early warnings" in
# ``benchmarks/RESULTS.md`` for the reasons
COLLAPSE = 2 / 3
FORGETTING = 0.4  # warn if the cosines of documents correlate less than this with the cosines before training; likewise

AGAINST_DIVERGENCE = (
    "try a lower learning_rate, more warmup_steps, a lower max_grad_norm, or float32 with bf16=False and fp16=False. "
    "Earlier checkpoints are kept, and no model was saved"
)


def require_processes(triples: Triples, arguments: SentenceTransformerTrainingArguments, loss: nn.Module) -> None:
    """Check that each process has all weights and the same triples, and that there are enough triples to share."""
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if arguments.fsdp or by_launcher or is_deepspeed_zero3_enabled():
        raise ValueError(
            "FSDP and ZeRO stage 3 split the weights among processes, but encoding between steps needs all weights in "
            "each process; train without them, or use ZeRO stage 1 or 2, which split the gradients and the optimizer's "
            "state"
        )
    processes = get_world_size()
    if processes == 1:
        return
    fingerprints = gather_object([triples.summary["fingerprint"]])
    if len(set(fingerprints)) > 1:
        raise ValueError(
            f"the processes got different triples: their fingerprints are {fingerprints}; give all processes the same "
            "triples in the same order. The trainer splits each batch among the processes"
        )
    needed = processes
    # only the losses of this package take parts of different sizes
    if arguments.dataloader_drop_last or of_embeddings(loss) is None:
        needed = processes * arguments.train_batch_size
    smallest = min(map(len, parts_of(triples.dataset)))
    if smallest < needed:
        raise ValueError(
            f"{smallest} triples are too few for {processes} processes, which need {needed}; give more triples, "
            "lower per_device_train_batch_size, or start fewer processes"
        )


class TrainingLoop(SentenceTransformerTrainer):
    """The sentence-transformers trainer, extended to keep the best checkpoint or the encoder before training."""

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
        self.decay = decay  # first, since super().__init__ may create the schedule
        card: Any = encoder.model.model_card_data
        card.widget = ["none"]  # otherwise, sentence-transformers picks example texts and shows a progress bar
        super().__init__(model=encoder.model, args=arguments, train_dataset=dataset, loss=loss, evaluator=evaluator)
        card.widget = []
        self.start = start
        self.folder = Path(cast(str, arguments.output_dir))
        self.seconds = 0.0
        self.unchecked: list[tuple[int, torch.Tensor]] = []
        self.monitor = SimilarityMonitor(encoder, dataset, self.log)
        self.miner = miner
        self.tokenize = self.data_collator
        # transformers adds it if its progress bar is off, and it prints to the standard output
        self.remove_callback(PrinterCallback)
        if evaluator is not None:
            # before Checkpoints sets the start as the best, which would count as a step without improvement
            self.add_callback(EarlyStoppingCallback(patience))
        self.add_callback(Checkpoints())
        if verbose:
            self.add_callback(ProgressBar())
        self.add_callback(self.monitor)
        if miner is not None:
            # the loader prefetches in workers that lack the mined negatives, so tokenize rows when their step comes
            pass_on: Any = partial(list)
            pass_on.valid_label_columns = self.tokenize.valid_label_columns
            self.data_collator = pass_on
            self.add_callback(miner)

    def run(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint if given, and load the best weights into the model."""
        is_over = False
        if checkpoint is not None:
            self.args.eval_on_start = False  # the interrupted run did it already and logged the result
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
            if is_first():
                # if a killed process removed half a checkpoint, it is the youngest, which the trainer would keep
                kept = str(self.folder / f"checkpoint-{state.best_global_step}") if state.best_global_step else None
                rotate_checkpoints(str(self.folder), self.args.save_total_limit, best_model_checkpoint=kept)
            # after loading, these are states instead of callbacks
            states = cast(dict[str, Any], state.stateful_callbacks or {})
            control = states.get("TrainerControl", {}).get("args", {})
            is_over = state.global_step >= state.max_steps or control.get("should_training_stop", False)
        if is_over:
            self.state = state
        else:
            started = time.monotonic()
            with explained_errors(self.folder), no_transformers_progress_bars():
                self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            self.seconds = time.monotonic() - started
            self.require_finite_losses()
        best = self.state.best_global_step
        self.kept_step = self.state.global_step
        if self.args.load_best_model_at_end and best is not None:
            self.kept_step = best
        model = cast(nn.Module, self.model)
        if is_over and self.kept_step > 0:
            self._load_from_checkpoint(str(self.folder / f"checkpoint-{self.kept_step}"))
        elif self.kept_step == 0:
            # the training loop has loaded any better checkpoint
            model.load_state_dict(self.start.model.state_dict())
        broadcast(model.state_dict())
        remove_autocast(model)
        model.eval()
        require_finite_weights(model, self.state.global_step)
        # compare the kept model, not the model of the last step
        self.monitor.compare(self.kept_step)

    def summary(self, settings: Mapping[str, Any], history: pd.DataFrame) -> dict[str, Any]:
        """Summarize the run and warn if it did not improve the encoder."""
        best_step = best_measure = None
        if self.evaluator is not None:
            measure = str(self.args.metric_for_best_model).removeprefix("eval_")
            warn_if_not_improved(history, measure, bool(self.args.greater_is_better), self.kept_step == 0)
            if self.args.load_best_model_at_end:
                best_step = self.state.best_global_step
                best_measure = {"name": measure, "value": self.state.best_metric}
        skipped = int(getattr(without_matryoshka(cast(nn.Module, self.loss)), "skipped", 0))
        if skipped:
            logger.warning("skipped %d batches with fewer than two different positives", skipped)
        libraries = (sentence_transformers, transformers, torch)
        return {
            **settings,
            "steps": self.state.global_step,
            "best_step": best_step,
            "best_measure": best_measure,
            "skipped_batches": skipped,
            "seconds": round(self.seconds, 1),
            "similarity": dict(self.monitor.similarity),
            "history": milestones(history),
            "versions": {library.__name__: library.__version__ for library in libraries},
        }

    # --- the steps --------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """Take a step, and check recent losses at intervals."""
        with sparse_embedding_gradients(cast(nn.Module, self.model)):
            loss = super().training_step(*args, **options)
        self.unchecked.append((self.state.global_step + 1, loss))
        # reading a result interrupts the GPU
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
        """Make the batches: several processes share the batches that a single process would have."""
        processes = get_world_size()
        if processes == 1:
            return super().get_batch_sampler(dataset, batch_size, drop_last, **options)
        size = batch_size * processes
        leaves_too_few = 0 < len(dataset) % size < processes
        drop_last = drop_last or leaves_too_few or of_embeddings(cast(nn.Module, self.loss)) is None
        batches = super().get_batch_sampler(dataset, size, drop_last, **options)
        # get_multi_dataset_batch_sampler splits the batches of several collections
        return batches if isinstance(self.train_dataset, DatasetDict) else PartBatchSampler(batches, processes)

    def get_multi_dataset_batch_sampler(self, *args: Any, **options: Any) -> Any:
        """Put the batches of several collections in one order, and split them among the processes."""
        batches = super().get_multi_dataset_batch_sampler(*args, **options)
        processes = get_world_size()
        return batches if processes == 1 else PartBatchSampler(batches, processes)

    def get_batch_samples(self, *args: Any, **options: Any) -> tuple[list[Any], Any]:
        """Fetch the batches of a step, with the negatives mined last."""
        batches, items = super().get_batch_samples(*args, **options)
        if self.miner is not None:
            batches = [self.tokenize(self.miner.replace(rows)) for rows in batches]
        return batches, items

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model without training arguments and model card, which may contain tokens and paths."""
        self.require_finite_losses()
        model: Any = self.model
        model.save_pretrained = partial(model.save_pretrained, create_model_card=False)
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            del model.save_pretrained
        if is_first():
            (Path(output_dir or self.folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]
        # sentence-transformers would leave weights random that a checkpoint lacks
        model: Any = self.model
        model = getattr(model, "_orig_mod", model)
        model.load_state_dict(load_pretrained(checkpoint_path, pooling=None, device=model.device).state_dict())

    def _load_best_model(self) -> None:
        # sentence-transformers would log an error, and keep the weights of the last step
        self._load_from_checkpoint(cast(str, self.state.best_model_checkpoint))

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        """Compute the loss, and log its margin and target."""
        loss = super().compute_loss(*args, **options)
        statistics = getattr(without_matryoshka(cast(nn.Module, self.loss)), "statistics", None)
        if statistics:
            self.track_loss_components(statistics)
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Create an exponential schedule if there is a decay, or else the default schedule."""
        if self.decay is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            optimizer = cast(torch.optim.Optimizer, optimizer or self.optimizer)
            self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)  # type: ignore[assignment]
        return self.lr_scheduler


@contextmanager
def sparse_embedding_gradients(model: nn.Module) -> Iterator[None]:
    """Compute the gradients of large embeddings for the tokens of a batch only, then make them dense for optimizers."""

    def make_dense(weight: torch.Tensor) -> None:
        weight.grad = cast(torch.Tensor, weight.grad).to_dense()

    # a GPU fills matrices fast, and several processes exchange dense gradients
    is_slow = model.device.type == "cpu" and get_world_size() == 1
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Embedding | nn.EmbeddingBag)]
    with ExitStack() as stack:
        for layer in layers if is_slow else []:
            if layer.weight.requires_grad and layer.num_embeddings > MANY_ROWS and not layer.scale_grad_by_freq:
                stack.enter_context(patch.object(layer, "sparse", True))
                stack.callback(layer.weight.register_post_accumulate_grad_hook(make_dense).remove)
        yield


# --- callbacks --------------------------------------------------------------------------------------------------------


class ProgressBar(ProgressCallback):
    """A PyTerrier progress bar with the latest loss, margin and measures."""

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
            if is_measure or key in ("loss", "margin", "target"):
                self.shown[key.removeprefix("eval_")] = f"{value:.3f}"
        self.training_bar.set_postfix(self.shown, refresh=False)


class Checkpoints(TrainerCallback):
    """Lets the encoder before training compete, saves each best checkpoint, and evaluates after the last step.

    Stops a run before it saves or evaluates weights that are not finite, or saves to a folder that was removed.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        # evaluate the weights as they are saved
        limit_autocast_to_training(model)
        if state.best_global_step:
            # the folder may have been moved
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.best_global_step}")

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        # evaluation at the end of each epoch covers the last step anyway
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate = True
        self.on_epoch_end(args, state, control, **options)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        if control.should_evaluate or control.should_save:
            require_finite_weights(model, state.global_step)
        settings_file = Path(args.output_dir) / SETTINGS
        if control.should_save and not agree(settings_file.exists):
            raise FileNotFoundError(
                f"the folder of this run was removed during training: {str(settings_file)!r} is missing after "
                f"{state.global_step} steps; train again, and keep the folder until training ends"
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **options: Any) -> None:
        value, best = metrics[args.metric_for_best_model], state.best_metric
        if state.global_step == 0:
            # the trainer also evaluates at the start, but compares later evaluations only
            state.best_metric = value
            state.best_global_step = 0
        elif args.load_best_model_at_end:
            # the trainer saves every save_steps only, so the best step in between would lack a checkpoint
            control.should_save |= best is None or (value > best if args.greater_is_better else value < best)


def require_finite_weights(model: nn.Module, step: int) -> None:
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise FloatingPointError(f"the weights of {name!r} are not finite after step {step}: {AGAINST_DIVERGENCE}")


class SimilarityMonitor(TrainerCallback):
    """Logs the mean cosine of documents, and the correlation of their cosines with the cosines before training."""

    def __init__(
        self, encoder: SelfDistillBiEncoder, dataset: TrainingSet, log: Callable[[dict[str, float]], None]
    ) -> None:
        self.encoder = encoder
        self.log = log
        parts = parts_of(dataset)
        of_each = math.ceil(MONITORED_DOCUMENTS / len(parts))
        texts: dict[str, None] = {}  # an ordered set
        for part in parts:
            rows = part[:of_each]
            # not the keys of rows, to which sentence-transformers adds the name of the data set
            columns = [rows[name] for name in part.column_names if name not in ("query", LABEL)]
            texts |= dict.fromkeys(list(dict.fromkeys(itertools.chain(*columns)))[:of_each])
        self.texts = list(texts)[:MONITORED_DOCUMENTS]
        # here, since a resumed checkpoint is loaded before training begins
        self.vectors = encoder.encode_docs(self.texts)
        self.similarity: dict[str, float | None] = {"before": round(mean_cosine(self.vectors), 4)}
        self.warned: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.steps = {math.ceil(state.max_steps * part / MONITORED_TIMES) for part in range(1, MONITORED_TIMES + 1)}
        if state.global_step == 0:
            self.log({"similarity": cast(float, self.similarity["before"])})

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step not in self.steps:
            return
        self.compare(state.global_step)
        after, representational = self.similarity["after"], self.similarity["representational"]
        values = {"similarity": after, "representational_similarity": representational}
        should_log = control.should_log
        self.log({name: value for name, value in values.items() if value is not None})
        # otherwise, transformers would not log the loss of this step
        control.should_log = should_log

    def compare(self, step: int) -> None:
        """Compare the vectors of documents with their vectors before training."""
        vectors = self.encoder.encode_docs(self.texts)
        before, after = mean_cosine(self.vectors), mean_cosine(vectors)
        representational = representational_similarity(self.vectors, vectors)
        self.similarity["after"] = round(after, 4)
        self.similarity["representational"] = None if math.isnan(representational) else round(representational, 4)
        harms = {}
        if has_collapsed(before, after):
            harms["collapse"] = (
                f"the mean cosine of documents was {before:.2f} before training and is {after:.2f} after {step} steps. "
                "Try another target, a lower learning_rate, or negatives that are less likely to be unjudged positives"
            )
        if representational < FORGETTING:
            harms["forgetting"] = (
                f"the cosines of documents correlate by only {representational:.2f} with the cosines before training, "
                f"after {step} steps. This is harmless if you started from a raw language model. If you started from a "
                "trained encoder, try a lower learning_rate, and evaluate on validation queries"
            )
        for harm in harms.keys() - self.warned:
            logger.warning("%s: %s", harm, harms[harm])
        self.warned |= harms.keys()


def mean_cosine(vectors: np.ndarray) -> float:
    """Compute the mean cosine between pairs of ``(N, D)`` unit vectors."""
    number = len(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)
    return float((total @ total - number) / max(number * (number - 1), 1))


def representational_similarity(before: np.ndarray, after: np.ndarray) -> float:
    """Correlate the pairwise cosines of ``(N, D)`` unit vectors before and after training."""
    if len(before) < 3:
        return math.nan
    pairs = np.triu_indices(len(before), k=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.corrcoef((before @ before.T)[pairs], (after @ after.T)[pairs])[0, 1])


def has_collapsed(before: float, after: float) -> bool:
    return 1 - after < COLLAPSE * (1 - before)
