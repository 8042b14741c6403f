"""Recipes and options of training: presets, precision, checks, and the arguments of the training loop."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyterrier as pt
import torch
from datasets import DatasetDict
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.util import get_world_size
from transformers import TrainingArguments

from ..biencoder import SelfDistillBiEncoder
from ..compat import use_one_gpu
from ..data.columns import LABEL
from ..data.corpus import Corpus
from ..data.several import TrainingSet, parts_of
from ..options import Count, PositiveInteger, PositiveNumber, checked
from ..precision import has_bfloat16
from ..prompts import NO_PROMPTS, PromptsByCollection
from .evaluators import Evaluator
from .targets import TrainingTarget
from .trackers import TrackedArguments, require_trackers

PAPER_OPTIMIZER = "adamw_8bit" if importlib.util.find_spec("bitsandbytes") else "adamw_torch"
"""The paper's, where its library is installed; it needs a GPU."""


class Preset(NamedTuple):
    """A recipe of training.

    Attributes:
        arguments: Training arguments of sentence-transformers.
        patience: After how many evaluations without improvement training stops.
        target: What margins are trained for.
        decay: What the learning rate is multiplied with each step; None for the schedule of the arguments.
    """

    arguments: dict[str, Any]
    patience: int
    target: TrainingTarget
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
        target="calibrated",
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
        target="distributed",
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
    if has_bfloat16(device):
        return {"bf16": True}
    if device.type == "cuda":
        return {"fp16": True}
    return {}


def precision_of(arguments: SentenceTransformerTrainingArguments) -> str:
    """Name the precision of the steps.

    Args:
        arguments: The training arguments.

    Returns:
        ``bf16``, ``fp16`` or ``float32``.
    """
    for name in ("bf16", "fp16"):
        if getattr(arguments, name):
            return name
    return "float32"


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
    dataset: TrainingSet,
    folder: Path,
    evaluator: Evaluator | None,
    *,
    preset: Preset,
    seed: int,
    overrides: Mapping[str, Any],
    prompts: PromptsByCollection = NO_PROMPTS,
) -> TrackedArguments:
    """Make the arguments of the training loop.

    Args:
        encoder: The encoder to train.
        dataset: The triples, of one collection or of several.
        folder: The folder for checkpoints.
        evaluator: What decides which checkpoint is best; None without evaluation, where it is the last one.
        preset: The recipe.
        seed: The seed of everything random.
        overrides: Arguments that were given, which come before all others.
        prompts: The prompts of collections, where they are not the encoder's.

    Returns:
        The arguments.

    Raises:
        ValueError: If an argument has a value that transformers does not know, or names what is not measured.

    Example:
        >>> from datasets import Dataset
        >>> triples = Dataset.from_dict({"query": ["sort"], "positive": ["sort rows"], "negative": ["plot a file"]})
        >>> overrides = {"per_device_train_batch_size": 8}
        >>> options = {"preset": PRESETS["paper"], "seed": 42, "overrides": overrides}
        >>> arguments = make_training_arguments(encoder, triples, Path("run"), None, **options)
        >>> arguments.learning_rate, arguments.per_device_train_batch_size
        (5e-07, 8)
    """
    roles = _roles(dataset)
    on_cpu = encoder.device.type == "cpu"
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": seed,
        "prompts": _prompts_of(dataset, encoder, roles, prompts),
        "router_mapping": roles,  # cuts queries and documents at their own lengths
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,  # torch warns where there is nothing to copy to
        "disable_tqdm": True,
        "save_strategy": overrides.get("eval_strategy", "steps"),  # the best checkpoint must be there
        "save_total_limit": 2,  # the best and the last
        "restore_callback_states_from_checkpoint": True,  # the patience that is left
        "logging_nan_inf_filter": False,  # it would hide what the training loop stops at
        "report_to": "none",  # otherwise to whatever is installed
        "run_name": folder.resolve().parent.name,  # the folder of the run, which that of its checkpoints lies in
        **preset.arguments,
    }
    if not overrides.keys() & {"bf16", "fp16"}:
        arguments |= mixed_precision(encoder.device)
    arguments |= _evaluation_arguments(evaluator, overrides)
    arguments |= overrides
    arguments.setdefault("save_steps", arguments["eval_steps"])
    if evaluator is None:
        del arguments["eval_steps"]
    smallest = min(map(len, parts_of(dataset)))
    if arguments.get("dataloader_drop_last") and smallest < arguments["per_device_train_batch_size"]:
        raise ValueError(
            f"dataloader_drop_last=True leaves nothing of {smallest} triples to train with, since a batch has "
            f"{arguments['per_device_train_batch_size']}; lower per_device_train_batch_size, or leave it out"
        )
    drop_last = arguments.get("dataloader_drop_last", False)
    if get_world_size() > 1:
        # sentence-transformers would set it, with a warning; here the last batch is divided among the processes
        arguments["dataloader_drop_last"] = True
    try:
        made = TrackedArguments(**arguments)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        given = {name: arguments[name] for name in overrides}
        raise ValueError(f"transformers cannot train with the arguments {given}: {error}") from error
    made.dataloader_drop_last = drop_last
    use_one_gpu(made)
    return made


def deciding_measure(arguments: TrainingArguments) -> str:
    """Name the measure that decides which checkpoint is best.

    Args:
        arguments: The arguments of a training with evaluation.

    Returns:
        Its name, without the prefix that it is logged with.

    Example:
        >>> deciding_measure(TrainingArguments(metric_for_best_model="eval_RR", use_cpu=True))
        'RR'
    """
    return str(arguments.metric_for_best_model).removeprefix("eval_")


def _evaluation_arguments(evaluator: Evaluator | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Choose how the training loop evaluates, and check what was given against what there is to evaluate with."""
    if evaluator is None:
        strategy = overrides.get("eval_strategy", "no")
        if strategy != "no":
            raise ValueError(
                f"eval_strategy={strategy!r} evaluates, and there is nothing to evaluate with; give validation topics "
                "and qrels to fit, or leave it out"
            )
        return {}
    deciding = f"eval_{evaluator.primary_metric}"
    named = overrides.get("metric_for_best_model", deciding)
    measures = list(map(str, evaluator.measures))
    if str(named).removeprefix("eval_") not in measures:
        raise ValueError(
            f"metric_for_best_model must be one of the measures {measures}, got {named!r}; give it in measures= too, "
            "or leave it out for the first of them"
        )
    return {
        "eval_strategy": "steps",
        "eval_on_start": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": deciding,
        "greater_is_better": True,
    }


def require_arguments(arguments: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Check the training arguments that were given, as far as transformers does not.

    Args:
        arguments: The arguments.
        resume: Whether to go on with a run.
        overwrite: Whether to replace a run.

    Raises:
        TypeError: If sentence-transformers does not know some.
        ValueError: If one makes no sense, or contradicts another option.
        ImportError: If what the run is to be reported to is not installed.

    Example:
        >>> require_arguments({"max_steps": 0}, resume=False, overwrite=False)
        Traceback (most recent call last):
        ValueError: max_steps must be a positive integer or be -1, got 0
    """
    fields = dataclasses.fields(SentenceTransformerTrainingArguments)
    known = {field.name for field in fields if field.init}
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise TypeError(
            f"unknown arguments {unknown}: neither of SelfDistillTrainer nor of sentence-transformers' "
            "SentenceTransformerTrainingArguments"
        )
    _require_sense(**arguments)
    require_trackers(arguments.get("report_to", "none"))
    if resume and overwrite:
        raise ValueError("resume=True goes on with a run and overwrite=True replaces it; choose one")
    if resume and arguments.get("save_only_model"):
        raise ValueError(
            "resume=True goes on from the optimizer's state in a checkpoint, which save_only_model=True leaves out; "
            "choose one"
        )


@checked
def _require_sense(
    *,
    num_train_epochs: PositiveNumber = 1,
    max_steps: PositiveInteger | Literal[-1] = -1,
    per_device_train_batch_size: PositiveInteger = 1,
    gradient_accumulation_steps: PositiveInteger = 1,
    dataloader_num_workers: Count = 0,
    learning_rate: PositiveNumber = 1,
    eval_steps: PositiveNumber | None = None,
    save_steps: PositiveNumber = 1,
    logging_steps: PositiveNumber = 1,
    save_total_limit: PositiveInteger | None = None,
    **others: Any,
) -> None:
    """Check numbers that transformers takes as they are, and fails with later, or trains nothing."""


def require_rounds(rounds: int, corpus: Corpus | None, passages: pt.Transformer | None = None) -> None:
    """Check that steps can be divided into rounds, between which hard negatives are mined.

    Args:
        rounds: How many rounds.
        corpus: What to search.
        passages: What divides documents, if anything does.

    Raises:
        ValueError: If hard negatives cannot be mined.

    Example:
        >>> require_rounds(2, None)
        Traceback (most recent call last):
        ValueError: rounds=2 mines hard negatives, which needs a corpus to search; give it as corpus=
    """
    if rounds > 1 and corpus is None:
        raise ValueError(f"rounds={rounds} mines hard negatives, which needs a corpus to search; give it as corpus=")
    if rounds > 1 and passages is not None:
        raise ValueError(
            f"rounds={rounds} mines whole documents for triples of documents, and passages= trains with passages: "
            "choose one"
        )


def require_valid_share(valid_share: float | None, arguments: Mapping[str, Any]) -> None:
    """Check that queries that are held out are evaluated with.

    Args:
        valid_share: The share of the queries to hold out; None to hold out none.
        arguments: The training arguments that were given.

    Raises:
        ValueError: If nothing is to be evaluated.

    Example:
        >>> require_valid_share(0.1, {"eval_strategy": "no"})
        Traceback (most recent call last):
        ValueError: valid_share=0.1 holds out queries to evaluate with, and eval_strategy='no' evaluates nothing; ...
    """
    if valid_share is not None and arguments.get("eval_strategy") == "no":
        raise ValueError(
            f"valid_share={valid_share} holds out queries to evaluate with, and eval_strategy='no' evaluates nothing; "
            "leave one of them out"
        )


def _roles(dataset: TrainingSet) -> dict[str, str]:
    """Say of each column whether it holds queries or documents."""
    roles: dict[str, str] = {}
    for part in parts_of(dataset):
        roles |= dict.fromkeys(part.column_names, "document")
    roles.pop(LABEL, None)
    return roles | {"query": "query"}


def require_known(prompts: PromptsByCollection, dataset: TrainingSet, validation: Any) -> None:
    """Check that prompts are of collections that there are.

    Args:
        prompts: The prompts of collections.
        dataset: What is trained with.
        validation: What is evaluated with: topics or results, those of several collections by name, or None.

    Raises:
        ValueError: If there is no collection of a name.
    """
    named = [given for given in (dataset, validation) if isinstance(given, Mapping)]
    known = list(dict.fromkeys(itertools.chain(*named)))
    unknown = [name for name in prompts if name not in known]
    if unknown:
        raise ValueError(
            f"prompts must be of collections, got those of {unknown}, and fit_triples was given the collections "
            f"{known}; for prompts of all texts give query_prompt and document_prompt to "
            "SelfDistillBiEncoder.from_pretrained"
        )


def _prompts_of(
    dataset: TrainingSet,
    encoder: SelfDistillBiEncoder,
    roles: Mapping[str, str],
    prompts: PromptsByCollection,
) -> dict[str, Any]:
    """Find the prompts of columns, collection by collection if one has prompts of its own."""
    if not prompts or not isinstance(dataset, DatasetDict):
        return _prompts(encoder, roles)
    found = {}
    for name in dataset:
        found[name] = _prompts(encoder.with_prompts(**prompts.get(name, {})), roles)
    return found


def _prompts(encoder: SelfDistillBiEncoder, roles: Mapping[str, str]) -> dict[str, str]:
    """Find the prompt of each column, where the encoder has one for its role."""
    prompts = {}
    for column, role in roles.items():
        prompt = encoder.model.prompts.get(role)
        if prompt:
            prompts[column] = prompt
    return prompts
