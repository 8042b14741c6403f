"""The loss, the arguments and the settings of a run, from the options of the trainer."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, cast, get_type_hints

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from more_itertools import chunked
from pydantic import Field
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.util import batch_to_device, get_world_size
from torch import nn
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import flatten_dict

from ..data.triples import LABEL, TrainingSet, Triples, parts_of
from ..encoder.adapters import describe_adapter
from ..encoder.biencoder import PromptsByCollection, SelfDistillBiEncoder
from ..encoder.card import read_license
from ..encoder.precision import has_bfloat16
from ..losses import (
    SOFTMAX_TARGETS,
    TARGETS,
    AdaptiveMarginLoss,
    EmbeddingLoss,
    ErrorName,
    ParameterFree,
    SelfDistillationLoss,
    SoftmaxLoss,
    SoftmaxTarget,
    maximum_likelihood_scale,
    of_embeddings,
    without_matryoshka,
)
from ..utils.checks import Count, Expected, NotNegative, PositiveInteger, PositiveNumber, checked, require_type
from ..utils.compat import progress_bar, use_one_gpu
from ..utils.folders import plain_settings, portable_settings
from .evaluation import CollectionsEvaluator, Evaluator

# --- presets --------------------------------------------------------------------------------------------------------

TrainingTarget = Annotated[
    SoftmaxTarget | ParameterFree | Annotated[float, Field(gt=0, le=2)],
    Expected(f"one of {(*SOFTMAX_TARGETS, *TARGETS)} or a number in (0, 2]"),
]


class Preset(NamedTuple):
    """A recipe: training arguments, patience, target, and the factor of the learning rate in each step, if any."""

    arguments: dict[str, Any]
    patience: int
    target: TrainingTarget
    decay: float | None = None


# recipes by name; any argument of one can be overridden
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
        target="listwise",
    ),
    # The experiments of the paper, section 4. It cuts queries at 20 and documents at 200 tokens, and takes at most 128
    # pairs a query; you set both where you make the encoder and read the triples.
    "paper": Preset(
        {
            "per_device_train_batch_size": 128,
            "learning_rate": 5e-7,
            "weight_decay": 1e-6,
            # the paper's, where its library is installed; it needs a GPU
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

# makes a loss on texts for a model, as the classes of sentence-transformers' losses do
LossMaker: TypeAlias = Callable[[SentenceTransformer], nn.Module]

Dimensions = Annotated[
    Sequence[PositiveInteger], Field(min_length=1), Expected("a list of numbers of dimensions such as [384, 192, 96]")
]
Weights = Annotated[Sequence[PositiveNumber], Expected("a list of positive numbers such as [1, 1, 0.5]")]


def loss_maker(
    loss: LossMaker | EmbeddingLoss | None,
    *,
    target: TrainingTarget | None,
    default: TrainingTarget,
    in_batch: bool,
    error: ErrorName,
    scale: float | None,
    mini_batch_size: int | None,
    matryoshka_dims: Sequence[int] | None,
    matryoshka_weights: Sequence[float] | None,
) -> LossMaker:
    """Return the function that makes the loss of a run for its model."""
    if loss is None:
        loss = _loss_of(target or default, in_batch, error, scale)
    elif (target, in_batch, error, scale) != (None, False, "l2", None):
        raise ValueError(f"loss={loss!r} was given with target, in_batch, error or scale; set those in the loss itself")
    if isinstance(loss, EmbeddingLoss):
        make: LossMaker = partial(SelfDistillationLoss, loss=loss, mini_batch_size=mini_batch_size)
    elif isinstance(loss, nn.Module) or not callable(loss):
        raise TypeError(
            f"expected an AdaptiveMarginLoss, a SoftmaxLoss or a function of the model, got loss={loss!r}; for "
            "another loss give its class, such as MultipleNegativesRankingLoss, or lambda model: TheLoss(model, ...)"
        )
    elif mini_batch_size is not None:
        raise ValueError(
            f"mini_batch_size={mini_batch_size} is for the losses of this package, got loss={loss!r}; omit it, and "
            "give a loss that has a gradient cache, such as "
            "lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=...)"
        )
    else:
        make = loss
    if matryoshka_dims is None:
        if matryoshka_weights is not None:
            raise ValueError(f"matryoshka_weights={matryoshka_weights} needs matryoshka_dims; give them too")
        return make
    if len(set(matryoshka_dims)) < len(matryoshka_dims):
        raise ValueError(f"matryoshka_dims={matryoshka_dims} has a number twice; give each once")
    if matryoshka_weights is not None and len(matryoshka_weights) != len(matryoshka_dims):
        raise ValueError(
            f"matryoshka_weights={matryoshka_weights} must have a number for each of matryoshka_dims={matryoshka_dims}"
        )
    return partial(_matryoshka_loss, make, matryoshka_dims, matryoshka_weights)


def _loss_of(target: TrainingTarget, in_batch: bool, error: ErrorName, scale: float | None) -> EmbeddingLoss:
    if target not in SOFTMAX_TARGETS:
        if scale is not None:
            raise ValueError(
                f"scale={scale} is for the targets {SOFTMAX_TARGETS}, got target={target!r}; choose one of these, or "
                "omit scale"
            )
        return AdaptiveMarginLoss(cast(Any, target), in_batch, error)
    if in_batch or error != "l2":
        raise ValueError(
            f"target={target!r} compares with the whole batch and has no error function, got in_batch={in_batch} and "
            f"error={error!r}; omit them, or choose the target that they are for, such as target='adaptive'"
        )
    return SoftmaxLoss(cast(SoftmaxTarget, target), scale)


def _matryoshka_loss(
    make: LossMaker, dims: Sequence[int], weights: Sequence[float] | None, model: SentenceTransformer
) -> nn.Module:
    """Train prefixes of vectors, and whole vectors, which MatryoshkaLoss does not ask for."""
    dimension = model.get_embedding_dimension()
    if dimension is not None and max(dims) != dimension:
        raise ValueError(
            f"matryoshka_dims={list(dims)} must contain the {dimension} dimensions of the model, and no larger number"
        )
    return MatryoshkaLoss(model, make(model), dims, weights)


SCALE_TRIPLES = 512  # how many triples the encoder measures its scale with


def measure_scale(
    encoder: SelfDistillBiEncoder,
    dataset: TrainingSet,
    prompts: PromptsByCollection,
    *,
    batch_size: int,
    seed: int,
    verbose: bool,
) -> float:
    """Measure the scale of a :class:`SoftmaxLoss` on batches as training will have them, to three digits."""
    # otherwise the trained weights would depend on the precision of encoding
    encoder = encoder.apply_attributes(dtype="float32")
    parts: Mapping[str, Dataset] = dataset if isinstance(dataset, DatasetDict) else {"": dataset}
    share = SCALE_TRIPLES / sum(map(len, parts.values()))
    generator = np.random.default_rng(seed)
    batches = []
    for name, part in parts.items():
        number = min(len(part), max(batch_size, round(share * len(part))))
        rows = generator.choice(len(part), number, replace=False).tolist()
        of_part = encoder.with_prompts(**prompts.get(name, {}))
        batches += [(of_part, part[some]) for some in chunked(rows, batch_size)]
    margins = []
    for of_part, batch in progress_bar(batches, desc="Measuring the scale", unit="batch", disable=not verbose):
        documents = [text for name, texts in batch.items() if name not in ("query", LABEL) for text in texts]
        scores = of_part.encode_queries(batch["query"]) @ of_part.encode_docs(documents).T
        judged = set(zip(batch["query"], batch["positive"], strict=True))
        for row, query in enumerate(batch["query"]):
            is_other = np.array([(query, document) not in judged for document in documents])
            margins.append(scores[row, row] - scores[row, is_other])
    margins = [margin for margin in margins if len(margin)]
    if not margins:
        raise ValueError(
            "expected batches with at least two different positives, got one positive in all; give more triples, or "
            "train with another target, such as target='distributed'"
        )
    return float(f"{maximum_likelihood_scale(margins):.3g}")


# --- training arguments ---------------------------------------------------------------------------------------------


class TrackedArguments(SentenceTransformerTrainingArguments):
    """Training arguments that tell trackers the settings of the run too, without secrets and absolute paths."""

    settings: Mapping[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        told = portable_settings(super().to_dict())
        own = {name: value for name, value in self.settings.items() if name not in ("arguments", "seed")}
        portable = portable_settings(own)
        if "base_model" in portable:
            # trackers add it from the model otherwise, where it may be a path
            told["_name_or_path"] = portable["base_model"]["name"]
        return told | flatten_dict(portable, parent_key="selfdistill", delimiter="/")


def mixed_precision(device: torch.device) -> dict[str, bool]:
    """Return the arguments for the fastest precision that a device has in hardware; emulation of bfloat16 is slow."""
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
    """Make the arguments of the training loop: our defaults, then the preset, then what the user gave."""
    collections = list(dataset) if isinstance(dataset, DatasetDict) else []
    known = [*collections, *(evaluator.evaluators if isinstance(evaluator, CollectionsEvaluator) else ())]
    unknown = [name for name in prompts if name not in known]
    if unknown:
        raise ValueError(
            f"prompts must be of collections, got those of {unknown}, and fit_triples was given the collections "
            f"{known}; for prompts of all texts give query_prompt and document_prompt to "
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
        "router_mapping": roles,  # cuts queries and documents at their own lengths
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,  # torch warns where there is nothing to copy to
        "disable_tqdm": True,
        "save_strategy": overrides.get("eval_strategy", "steps"),  # the best checkpoint must be there
        "save_total_limit": 2,  # the best and the last
        "restore_callback_states_from_checkpoint": True,  # the patience that is left
        "logging_nan_inf_filter": False,  # it would hide a loss that is not finite
        "report_to": "none",  # otherwise to whatever is installed
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
                f"eval_strategy={strategy!r} evaluates, and there is nothing to evaluate with; give validation topics "
                "and qrels to fit, or leave it out"
            )
    else:
        measures = list(map(str, evaluator.measures))
        named = arguments["metric_for_best_model"]
        deciding = str(named).removeprefix("eval_")
        if deciding not in measures:
            raise ValueError(
                f"metric_for_best_model must be one of the measures {measures}, got {named!r}; give it in measures= "
                "too, or leave it out for the first of them"
            )
        arguments["metric_for_best_model"] = f"eval_{deciding}"
    drop_last = arguments.get("dataloader_drop_last", False)
    smallest = min(map(len, parts_of(dataset)))
    if drop_last and smallest < batch:
        raise ValueError(
            f"dataloader_drop_last=True leaves nothing of {smallest} triples to train with, since a batch has {batch}; "
            "lower per_device_train_batch_size, or leave it out"
        )
    if get_world_size() > 1:
        # sentence-transformers would set it, with a warning; here the last batch is divided among the processes
        arguments["dataloader_drop_last"] = True
    try:
        made = TrackedArguments(**arguments)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ValueError(f"transformers cannot train with the arguments {dict(overrides)}: {error}") from error
    made.dataloader_drop_last = drop_last
    use_one_gpu(made)
    return made


# names of other libraries, and ours
OTHER_NAMES = {
    "lr": "learning_rate",
    **dict.fromkeys(["epochs", "num_epochs"], "num_train_epochs"),
    **dict.fromkeys(["batch_size", "train_batch_size"], "per_device_train_batch_size"),
    "num_negatives": "negatives",
    "max_length": "document_length of SelfDistillBiEncoder.from_pretrained",
}


@checked
def require_arguments(
    *,
    options: Sequence[str],
    resume: bool,
    overwrite: bool,
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
    weight_decay: NotNegative = 0,
    adam_epsilon: NotNegative = 0,
    max_grad_norm: NotNegative = 0,
    report_to: str | list[str] = "none",
    **others: Any,
) -> None:
    """Check training arguments before there is anything to train, also those that transformers fails on late."""
    types = get_type_hints(SentenceTransformerTrainingArguments)
    known = [field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments) if field.init]
    for name, value in others.items():
        if name not in known:
            similar = OTHER_NAMES.get(name) or "".join(get_close_matches(name, [*options, *known], n=1))
            advice = f"did you mean {similar!r}?" if similar else "see SentenceTransformerTrainingArguments"
            raise TypeError(f"unknown argument {name!r}; {advice}")
        require_type(name, value, types[name])
    if resume and overwrite:
        raise ValueError("resume=True goes on with a run and overwrite=True replaces it; choose one")
    if resume and others.get("save_only_model"):
        raise ValueError(
            "resume=True goes on from the optimizer's state in a checkpoint, which save_only_model=True leaves out; "
            "choose one"
        )
    trackers = [report_to] if isinstance(report_to, str) else report_to
    for name in trackers if trackers not in (["all"], ["none"]) else []:
        try:
            (callback,) = get_reporting_integration_callbacks([name])
            # as the training loop does later
            callback()
        except ValueError as error:
            raise ValueError(f"report_to={report_to!r}: {error}") from error
        except (ImportError, RuntimeError) as error:
            raise ImportError(
                f"report_to={report_to!r} needs {name}, which is not installed or not set up: pip install {name}, or "
                f"leave it out ({error})"
            ) from error


def require_columns_of(loss: nn.Module, model: SentenceTransformer, dataset: TrainingSet) -> None:
    """Check that triples have what a loss compares: negatives, or labels."""
    own, name = of_embeddings(loss), type(without_matryoshka(loss)).__name__
    for part in parts_of(dataset):
        columns = [column for column in part.column_names if column != LABEL]
        if isinstance(own, AdaptiveMarginLoss) and len(columns) == 2:
            raise ValueError(
                f"target={own.target!r} compares positives with negatives, and these are pairs of a query and a "
                "positive; add negatives, or choose target='listwise' or 'softmax'"
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
            # training says whatever else it is
            if labels is None and "NoneType" in str(error):
                raise ValueError(
                    f"the loss {name} needs a column {LABEL!r}, and the triples have {columns}; add it, or choose a "
                    f"loss without, such as target='listwise' ({error})"
                ) from error
            if isinstance(error, ValueError):
                raise ValueError(
                    f"the loss {name} does not take {columns}: {error}; choose another loss or other columns"
                ) from error


# --- settings of a run ----------------------------------------------------------------------------------------------


def run_settings(
    data: Triples,
    loss: nn.Module,
    base: SelfDistillBiEncoder,
    arguments: SentenceTransformerTrainingArguments,
    *,
    preset: str,
    overrides: Mapping[str, Any],
    evaluator: Evaluator | None,
    patience: int,
    mining: Mapping[str, Any] | None,
    valid_share: float | None,
    adapter: Any,
    prompts: PromptsByCollection,
) -> dict[str, Any]:
    """Describe a run for its summary and its card, and to resume it only with the same settings."""
    on_texts: Any = without_matryoshka(loss)
    described: dict[str, Any] = {"name": type(on_texts).__name__}
    if hasattr(on_texts, "get_config_dict"):
        described |= on_texts.get_config_dict()
    if isinstance(loss, MatryoshkaLoss):
        described["matryoshka_dims"] = list(loss.matryoshka_dims)
        described["matryoshka_weights"] = list(loss.matryoshka_weights)
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "float32"
    base_model: dict[str, Any] = {"name": base.name, "checksum": base.model_name}
    if base.name is not None and not Path(base.name).exists():
        base_model["is_on_hub"] = True
    if license_name := read_license(base.name or ""):
        base_model["license"] = license_name
    settings: dict[str, Any] = {
        "data": data.summary,
        "loss": described,
        "preset": preset,
        "precision": precision,
        "arguments": dict(overrides),
        "seed": arguments.seed,
        "base_model": base_model,
        "evaluation": None if evaluator is None else {"patience": patience, **evaluator.describe()},
        "mining": mining,
    }
    # omit unset options, so that older runs still compare equal
    if arguments.world_size > 1:
        settings["processes"] = arguments.world_size
    if valid_share is not None:
        settings["valid_share"] = valid_share
    if adapter is not None:
        settings["adapter"] = describe_adapter(adapter)
    if prompts:
        settings["prompts"] = {name: dict(of_roles) for name, of_roles in prompts.items()}
    return plain_settings(settings)
