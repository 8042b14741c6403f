"""Recipes and options of training: presets, precision, checks, and the arguments of the training loop."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from torch import nn

from ..biencoder import SelfDistillBiEncoder
from ..data.cache import Triples
from ..data.columns import LABEL
from ..data.corpus import Corpus
from ..losses import AdaptiveMarginLoss, SelfDistillationLoss
from ..validate import require_positive_integer

LossMaker: TypeAlias = Callable[[SentenceTransformer], nn.Module]
"""Makes a loss on texts for a model, such as a class of sentence-transformers' losses does."""


PAPER_OPTIMIZER = "adamw_8bit" if importlib.util.find_spec("bitsandbytes") else "adamw_torch"
"""The paper's, where its library is installed; it needs a GPU."""


class Preset(NamedTuple):
    """A recipe of training.

    Attributes:
        arguments: Training arguments of sentence-transformers.
        patience: After how many evaluations without improvement training stops.
        decay: What the learning rate is multiplied with each step; None for the schedule of the arguments.
    """

    arguments: dict[str, Any]
    patience: int
    decay: float | None = None


PRESETS = {
    "default": Preset(
        {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 32,
            "learning_rate": 2e-5,
            "warmup_steps": 0.1,
            "weight_decay": 0.01,
            "eval_steps": 0.1,
            "logging_steps": 0.02,
        },
        patience=5,
    ),
    # The experiments of the paper, section 4. Queries are cut at 20 and documents at 200 tokens there, and at most 128
    # pairs a query are trained with; both are set where encoders and triples are made.
    "paper": Preset(
        {
            "per_device_train_batch_size": 128,
            "learning_rate": 5e-7,
            "weight_decay": 1e-6,
            "optim": PAPER_OPTIMIZER,
            "eval_steps": 500,
            "logging_steps": 50,
        },
        patience=16,
        decay=0.99999,
    ),
}
"""Recipes by name; any argument of one can be overridden."""


def mixed_precision(device: torch.device) -> dict[str, bool]:
    """Choose the fastest precision that a device has in hardware.

    A GPU trains in bfloat16, or in float16 if it is too old for that. A CPU trains in bfloat16 only where it has
    instructions for it (AVX512-BF16 or AMX): others emulate it many times slower than float32.

    Args:
        device: The device to train on.

    Returns:
        The training arguments for it, none for float32.

    Example:
        >>> mixed_precision(torch.device("meta"))
        {}
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return {"bf16": True}
        return {"fp16": True}
    if device.type == "cpu" and _cpu_has_bfloat16():
        return {"bf16": True}
    return {}


def exponential_decay(preset: Preset, overrides: Mapping[str, Any]) -> float | None:
    """Choose what to multiply the learning rate with each step: what the preset says, unless a schedule was given.

    Args:
        preset: The recipe.
        overrides: The training arguments that were given.

    Returns:
        The factor, or None for the schedule of the training arguments.

    Example:
        >>> exponential_decay(PRESETS["paper"], {"learning_rate": 1e-6})
        0.99999
    """
    if overrides.keys() & {"lr_scheduler_type", "warmup_steps", "warmup_ratio"}:
        return None
    return preset.decay


def make_training_arguments(
    encoder: SelfDistillBiEncoder,
    dataset: Dataset,
    folder: Path,
    *,
    preset: Preset,
    seed: int,
    metric: str | None,
    overrides: Mapping[str, Any],
) -> SentenceTransformerTrainingArguments:
    """Make the arguments of the training loop.

    Args:
        encoder: The encoder to train.
        dataset: The triples.
        folder: The folder for checkpoints.
        preset: The recipe.
        seed: The seed of everything random.
        metric: The measure that decides which checkpoint is best; None without evaluation, where it is the last one.
        overrides: Arguments that were given, which come before all others.

    Returns:
        The arguments.

    Raises:
        ValueError: If an argument has a value that transformers does not know.

    Example:
        >>> triples = Dataset.from_dict({"query": ["sort"], "positive": ["sort rows"], "negative": ["plot a file"]})
        >>> overrides = {"per_device_train_batch_size": 8}
        >>> options = {"preset": PRESETS["paper"], "seed": 42, "metric": None}
        >>> arguments = make_training_arguments(encoder, triples, Path("run"), **options, overrides=overrides)
        >>> arguments.learning_rate, arguments.per_device_train_batch_size
        (5e-07, 8)
    """
    texts = [name for name in dataset.column_names if name != LABEL]
    roles = dict.fromkeys(texts, "document")
    roles["query"] = "query"
    on_cpu = encoder.device.type == "cpu"
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": seed,
        "prompts": _prompts(encoder, roles),
        "router_mapping": roles,  # cuts queries and documents at their own lengths
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,  # torch warns where there is nothing to copy to
        "disable_tqdm": True,
        "save_strategy": overrides.get("eval_strategy", "steps"),  # the best checkpoint must be there
        "save_total_limit": 2,  # the best and the last
        "restore_callback_states_from_checkpoint": True,  # the patience that is left
        "report_to": "none",  # otherwise to whatever is installed
        **preset.arguments,
    }
    if not overrides.keys() & {"bf16", "fp16"}:
        arguments |= mixed_precision(encoder.device)
    if metric is not None:
        arguments |= {
            "eval_strategy": "steps",
            "eval_on_start": True,
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{metric}",
            "greater_is_better": True,
        }
    arguments |= overrides
    arguments.setdefault("save_steps", arguments["eval_steps"])
    if metric is None:
        del arguments["eval_steps"]
    return SentenceTransformerTrainingArguments(**arguments)


def loss_maker(
    loss: LossMaker | AdaptiveMarginLoss | None,
    target: Literal["distributed", "adaptive", "trusting"] | float,
    in_batch: bool,
    error: Literal["l2", "l1", "soft"],
) -> LossMaker:
    """Return the function that makes the loss of a training for its model.

    Args:
        loss: A loss on embeddings, a function that makes a loss for a model, or None for the three options.
        target: The target of :class:`AdaptiveMarginLoss`.
        in_batch: Whether it has in-batch negatives.
        error: Its error function.

    Returns:
        The function.

    Raises:
        ValueError: If a loss is given and one of the options too, or if options contradict each other.
        TypeError: If the loss is something else.

    Example:
        >>> loss_maker(None, 0.5, True, "l1")(encoder.model).loss
        AdaptiveMarginLoss(target=0.5, in_batch=True, error='l1', detach_target=False, pairing='query')
    """
    if loss is None:
        loss = AdaptiveMarginLoss(target, in_batch, error)
    elif (target, in_batch, error) != ("distributed", False, "l2"):
        raise ValueError(f"loss={loss!r} was given beside target, in_batch or error; set those in the loss itself")
    if isinstance(loss, AdaptiveMarginLoss):
        return partial(SelfDistillationLoss, loss=loss)
    if isinstance(loss, nn.Module) or not callable(loss):
        raise TypeError(
            f"expected an AdaptiveMarginLoss or a function of the model, got loss={loss!r}; for another loss give its "
            "class, such as MultipleNegativesRankingLoss, or lambda model: TheLoss(model, ...)"
        )
    return loss


def run_settings(
    data: Triples,
    loss: nn.Module,
    base: SelfDistillBiEncoder,
    *,
    preset: str,
    rounds: int,
    seed: int,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect what makes a run: a run is resumed only with the same settings, and its model's card shows them.

    Args:
        data: The triples.
        loss: The loss on texts.
        base: The encoder that training starts with.
        preset: The name of the recipe.
        rounds: Into how many parts the steps are divided.
        seed: The seed of everything random.
        arguments: The training arguments that were given.

    Returns:
        The settings, by name.
    """
    described = {"name": type(loss).__name__}
    get_options = getattr(loss, "get_config_dict", None)
    if get_options is not None:
        described |= get_options()
    return {
        "data": data.summary,
        "loss": described,
        "preset": preset,
        "rounds": rounds,
        "arguments": arguments,
        "seed": seed,
        "base_model": {"name": base.name, "checksum": base.model_name},
    }


def require_encoder(encoder: object) -> None:
    """Check that an encoder is one of this package.

    Args:
        encoder: What was given.

    Raises:
        TypeError: If it is something else, such as a model of sentence-transformers.
    """
    if not isinstance(encoder, SelfDistillBiEncoder):
        raise TypeError(
            f"expected a SelfDistillBiEncoder, got a {type(encoder).__name__}; make one, for instance with "
            "SelfDistillBiEncoder.from_pretrained(name)"
        )


def require_options(preset: str, min_label: int, patience: int | None, *, resume: bool, overwrite: bool) -> None:
    """Check the options of a trainer that stand alone.

    Args:
        preset: The name of a recipe.
        min_label: The lowest label of a positive.
        patience: After how many evaluations without improvement to stop, if not as the recipe says.
        resume: Whether to go on with a run.
        overwrite: Whether to replace a run.

    Raises:
        ValueError: If the preset is unknown, a number is not positive, or two options contradict each other.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {tuple(PRESETS)}, got {preset!r}")
    require_positive_integer("min_label", min_label)
    if patience is not None:
        require_positive_integer("patience", patience)
    if resume and overwrite:
        raise ValueError("resume=True goes on with a run and overwrite=True replaces it; choose one")


def require_known_arguments(arguments: Mapping[str, Any]) -> None:
    """Check that sentence-transformers knows all arguments.

    Args:
        arguments: The training arguments that were given.

    Raises:
        TypeError: If it does not know some.
    """
    fields = dataclasses.fields(SentenceTransformerTrainingArguments)
    known = {field.name for field in fields if field.init}
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise TypeError(
            f"unknown arguments {unknown}: neither of SelfDistillTrainer nor of sentence-transformers' "
            "SentenceTransformerTrainingArguments"
        )


def require_rounds(rounds: int, corpus: Corpus | None, arguments: Mapping[str, Any]) -> None:
    """Check that steps can be divided into rounds, between which hard negatives are mined.

    Args:
        rounds: How many rounds.
        corpus: What to search.
        arguments: The training arguments that were given.

    Raises:
        ValueError: If it is not a positive integer, or hard negatives cannot be mined.

    Example:
        >>> require_rounds(2, None, {})
        Traceback (most recent call last):
        ValueError: rounds=2 mines hard negatives, which needs a corpus to search; give it as corpus=
    """
    require_positive_integer("rounds", rounds)
    if rounds == 1:
        return
    if corpus is None:
        raise ValueError(f"rounds={rounds} mines hard negatives, which needs a corpus to search; give it as corpus=")
    if arguments.get("dataloader_num_workers"):
        raise ValueError(
            f"rounds={rounds} mines hard negatives, which the workers of a data loader would not see; leave "
            "dataloader_num_workers out"
        )


def _prompts(encoder: SelfDistillBiEncoder, roles: Mapping[str, str]) -> dict[str, str]:
    """Find the prompt of each column, where the encoder has one for its role."""
    prompts = {}
    for column, role in roles.items():
        prompt = encoder.model.prompts.get(role)
        if prompt:
            prompts[column] = prompt
    return prompts


def _cpu_has_bfloat16() -> bool:
    """Tell whether the CPU has instructions for bfloat16, as far as this version of torch knows."""
    # the older of the versions that are supported have no public way to ask
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
