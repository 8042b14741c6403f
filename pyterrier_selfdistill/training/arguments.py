"""Make the loss and the training arguments of a run from the options of the trainer."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_type_hints

import torch
from datasets import DatasetDict
from pydantic import Field
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.util import batch_to_device, get_world_size
from torch import nn
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import flatten_dict

from ..data.triples import LABEL, TrainingSet, parts_of
from ..encoder.biencoder import PromptsByCollection, SelfDistillBiEncoder
from ..encoder.precision import has_bfloat16
from ..losses import (
    SOFTMAX_TARGETS,
    TARGETS,
    AdaptiveMarginLoss,
    ParameterFree,
    SoftmaxTarget,
    of_embeddings,
    without_matryoshka,
)
from ..utils.checks import (
    Count,
    Expected,
    NotNegative,
    PositiveInteger,
    PositiveNumber,
    checked,
    require_type,
    unknown_argument,
)
from ..utils.compat import use_one_gpu
from ..utils.folders import portable_settings
from .evaluation import CollectionsEvaluator, Evaluator

# --- presets --------------------------------------------------------------------------------------------------------

TrainingTarget = Annotated[
    Literal[SoftmaxTarget, ParameterFree] | Annotated[float, Field(gt=0, le=2)],
    Expected(f"one of {(*SOFTMAX_TARGETS, *TARGETS)} or a number in (0, 2]"),
]


class Preset(NamedTuple):
    """A recipe: training arguments, patience, target, and the learning rate's decay per step, if any."""

    arguments: dict[str, Any]
    patience: int
    target: TrainingTarget
    decay: float | None = None


# recipes by name; you can override each of their arguments
PRESETS = {
    "default": Preset(
        {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 32,
            "learning_rate": 1e-4,
            "warmup_steps": 0.1,
            "weight_decay": 0.01,
            "eval_steps": 0.1,
            "logging_steps": 0.02,
        },
        patience=5,
        target="listwise",
    ),
    # The recipe of the experiments in section 4 of the paper. The paper also truncates queries to 20 and documents to
    # 200 tokens (set this in the encoder) and uses at most 128 pairs per query (set this when you read the triples).
    "paper": Preset(
        {
            "per_device_train_batch_size": 128,
            "learning_rate": 5e-7,
            "weight_decay": 1e-6,
            # the paper's optimizer, if its library is installed; it needs a GPU
            "optim": "adamw_8bit" if importlib.util.find_spec("bitsandbytes") else "adamw_torch",
            "eval_steps": 500,
            "logging_steps": 50,
        },
        patience=16,
        target="distributed",
        decay=0.99999,
    ),
}


# --- the loss -------------------------------------------------------------------------------------------------------

# makes a loss for a model, like the loss classes of sentence-transformers
LossMaker: TypeAlias = Callable[[SentenceTransformer], nn.Module]

Dimensions = Annotated[
    Sequence[PositiveInteger], Field(min_length=1), Expected("a list of numbers of dimensions such as [384, 192, 96]")
]
Weights = Annotated[Sequence[PositiveNumber], Expected("a list of positive numbers such as [1, 1, 0.5]")]


def matryoshka_loss(
    make: LossMaker, dims: Sequence[int], weights: Sequence[float] | None, model: SentenceTransformer
) -> nn.Module:
    """Make a MatryoshkaLoss that also trains the full vectors, which MatryoshkaLoss itself does not require."""
    dimension = model.get_embedding_dimension()
    if dimension is not None and max(dims) != dimension:
        raise ValueError(
            f"matryoshka_dims={list(dims)} must include the {dimension} dimensions of the model, and no larger number"
        )
    return MatryoshkaLoss(model, make(model), dims, weights)


# --- training arguments ---------------------------------------------------------------------------------------------


class TrackedArguments(SentenceTransformerTrainingArguments):
    """Training arguments that also send the settings of the run to trackers, without secrets and absolute paths."""

    settings: Mapping[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        told = portable_settings(super().to_dict())
        own = {name: value for name, value in self.settings.items() if name not in ("arguments", "seed")}
        portable = portable_settings(own)
        if "base_model" in portable:
            # otherwise, trackers take it from the model, where it may be a path
            told["_name_or_path"] = portable["base_model"]["name"]
        return told | flatten_dict(portable, parent_key="selfdistill", delimiter="/")


def mixed_precision(device: torch.device) -> dict[str, bool]:
    """Return the arguments for the fastest precision that the device supports in hardware (emulation is slow)."""
    if has_bfloat16(device):
        return {"bf16": True}
    return {"fp16": True} if device.type == "cuda" else {}


def make_training_arguments(
    encoder: SelfDistillBiEncoder,
    dataset: TrainingSet,
    folder: Path,
    evaluator: Evaluator | None,
    *,
    preset: Preset,
    seed: int,
    overrides: Mapping[str, Any],
    prompts: PromptsByCollection,
) -> TrackedArguments:
    """Make the arguments of the training loop: our defaults, overridden by the preset, then by the user's arguments."""
    collections = list(dataset) if isinstance(dataset, DatasetDict) else []
    known = [*collections, *(evaluator.evaluators if isinstance(evaluator, CollectionsEvaluator) else ())]
    unknown = [name for name in prompts if name not in known]
    if unknown:
        raise ValueError(
            f"prompts must be for the collections given to fit_triples, {known}, got prompts for {unknown}; for "
            "prompts that apply to all texts, give query_prompt and document_prompt to "
            "SelfDistillBiEncoder.from_pretrained"
        )
    roles = {name: "document" for part in parts_of(dataset) for name in part.column_names if name != LABEL}
    roles["query"] = "query"
    by_column: dict[str, Any] = {}
    for name in (collections if prompts else []) or [""]:
        by_role = {**encoder.model.prompts, **prompts.get(name, {})}
        by_column[name] = {column: by_role[role] for column, role in roles.items() if by_role.get(role)}
    on_cpu = encoder.device.type == "cpu"
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": seed,
        "prompts": by_column.get("", by_column),
        "router_mapping": roles,  # truncates queries and documents to different lengths
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,  # on the CPU, torch would warn
        "disable_tqdm": True,
        "save_strategy": overrides.get("eval_strategy", "steps"),  # so that the best checkpoint is saved
        "save_total_limit": 2,  # the best and the last
        "restore_callback_states_from_checkpoint": True,  # the remaining patience
        "logging_nan_inf_filter": False,  # it would hide a loss that is not finite
        "report_to": "none",  # otherwise, all installed trackers
        "run_name": folder.resolve().parent.name,  # the folder of the run
        **preset.arguments,
    }
    if not overrides.keys() & {"bf16", "fp16"}:
        arguments |= mixed_precision(encoder.device)
    if evaluator is not None:
        arguments |= {
            "eval_strategy": "steps",
            "eval_on_start": True,
            "load_best_model_at_end": True,
            "metric_for_best_model": evaluator.primary_metric,
            "greater_is_better": True,
        }
    arguments |= overrides
    arguments.setdefault("save_steps", arguments["eval_steps"])
    strategy, batch = arguments.get("eval_strategy", "no"), arguments["per_device_train_batch_size"]
    if evaluator is None:
        del arguments["eval_steps"]
        if strategy != "no":
            raise ValueError(
                f"eval_strategy={strategy!r} needs validation queries; give validation topics "
                "and qrels to fit, or omit eval_strategy"
            )
    else:
        measures = list(map(str, evaluator.measures))
        named = arguments["metric_for_best_model"]
        deciding = str(named).removeprefix("eval_")
        if deciding not in measures:
            raise ValueError(
                f"metric_for_best_model must be one of the measures {measures}, got {named!r}; give it in measures= "
                "too, or omit metric_for_best_model to use the first measure"
            )
        arguments["metric_for_best_model"] = f"eval_{deciding}"
    drop_last = arguments.get("dataloader_drop_last", False)
    smallest = min(map(len, parts_of(dataset)))
    if drop_last and smallest < batch:
        raise ValueError(
            f"dataloader_drop_last=True drops all of {smallest} triples, since a batch has {batch}; set a lower "
            "per_device_train_batch_size, or omit dataloader_drop_last"
        )
    if get_world_size() > 1:
        # otherwise, sentence-transformers sets it with a warning; here, the last batch is split among the processes
        arguments["dataloader_drop_last"] = True
    try:
        made = TrackedArguments(**arguments)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ValueError(f"transformers cannot train with the arguments {dict(overrides)}: {error}") from error
    made.dataloader_drop_last = drop_last
    use_one_gpu(made)
    return made


@checked
def require_arguments(
    *,
    options: Sequence[str],
    resume: bool,
    overwrite: bool,
    dataloader_num_workers: Count = 0,
    save_steps: PositiveNumber = 1,
    save_total_limit: PositiveInteger | None = None,
    adam_epsilon: NotNegative = 0,
    max_grad_norm: NotNegative = 0,
    report_to: str | list[str] = "none",
    **others: Any,
) -> None:
    """Check training arguments early, including values on which transformers would fail late."""
    types = get_type_hints(SentenceTransformerTrainingArguments)
    known = [field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments) if field.init]
    known.remove("resume_from_checkpoint")  # only scripts read it
    for name, value in others.items():
        if name not in known:
            raise unknown_argument(name, [*options, *known])
        require_type(name, value, types[name])
    if resume and overwrite:
        raise ValueError("resume=True continues a run and overwrite=True replaces it; choose one")
    if resume and others.get("save_only_model"):
        raise ValueError(
            "resume=True needs the optimizer's state in a checkpoint, which save_only_model=True does not save; "
            "choose one"
        )
    trackers = [report_to] if isinstance(report_to, str) else report_to
    for name in trackers if trackers not in (["all"], ["none"]) else []:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except ValueError as error:
            raise ValueError(f"report_to={report_to!r}: {error}") from error
        except (ImportError, RuntimeError) as error:
            raise ImportError(
                f"report_to={report_to!r} needs {name}, which is not installed or not set up: pip install {name}, or "
                f"omit report_to ({error})"
            ) from error


def require_columns_of(loss: nn.Module, model: SentenceTransformer, dataset: TrainingSet) -> None:
    """Check that triples have the columns that the loss needs, such as negatives or labels."""
    own, name = of_embeddings(loss), type(without_matryoshka(loss)).__name__
    for part in parts_of(dataset):
        columns = [column for column in part.column_names if column != LABEL]
        if isinstance(own, AdaptiveMarginLoss) and len(columns) == 2:
            raise ValueError(
                f"target={own.target!r} compares positives with negatives, but your triples have a query and a "
                "positive only; add negatives, or choose target='listwise' or 'softmax'"
            )
        if own is not None:
            continue
        rows = part[:2]
        features = [batch_to_device(model.preprocess(rows[column]), model.device) for column in columns]
        labels = torch.tensor(rows[LABEL], device=model.device) if LABEL in rows else None
        try:
            with torch.no_grad():
                loss(features, labels)
        except Exception as error:
            # training will report any other error
            if labels is None and "NoneType" in str(error):
                raise ValueError(
                    f"the loss {name} needs a column {LABEL!r}, but the triples have {columns}; add it, or choose a "
                    f"loss without labels, such as target='listwise' ({error})"
                ) from error
            if isinstance(error, ValueError):
                raise ValueError(
                    f"the loss {name} cannot use the columns {columns}: {error}; choose another loss or other columns"
                ) from error
