"""The arguments and the settings of a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, cast

import pyterrier as pt
import torch
from datasets import DatasetDict
from pydantic import Field
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.util import get_world_size
from torch import nn
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import flatten_dict

from ..data.corpus import Corpus
from ..data.triples import LABEL, TrainingSet, Triples, parts_of
from ..encoder.adapters import describe_adapter
from ..encoder.biencoder import NO_PROMPTS, PromptsByCollection, SelfDistillBiEncoder
from ..encoder.precision import has_bfloat16
from ..losses import (
    TARGETS,
    AdaptiveMarginLoss,
    CalibratedLoss,
    EmbeddingLoss,
    ErrorName,
    SelfDistillationLoss,
    Target,
    without_matryoshka,
)
from ..utils.checks import Count, Expected, PositiveInteger, PositiveNumber, checked
from ..utils.compat import use_one_gpu
from ..utils.folders import portable_settings
from .callbacks import HardNegativeMiner
from .evaluation import Evaluator

LossMaker: TypeAlias = Callable[[SentenceTransformer], nn.Module]
"""Makes a loss on texts for a model, such as a class of sentence-transformers' losses does."""


CALIBRATED = "calibrated"
"""The name of the calibrated loss where a target is asked for."""

TRAINING_TARGETS = (CALIBRATED, *TARGETS)
"""What can be trained for without a constant."""

TrainingTarget = Annotated[
    Literal["calibrated", "distributed", "adaptive"] | Annotated[float, Field(gt=0, le=2)],
    Expected(f"one of {TRAINING_TARGETS} or a number in (0, 2]"),
]
"""What to train margins for: a target of :class:`.losses.AdaptiveMarginLoss`, or
:class:`.calibrated_loss.CalibratedLoss`."""

Dimensions = Annotated[
    Sequence[PositiveInteger], Field(min_length=1), Expected("a list of numbers of dimensions such as [384, 192, 96]")
]
Weights = Annotated[Sequence[PositiveNumber], Expected("a list of positive numbers such as [1, 1, 0.5]")]


def loss_maker(
    loss: LossMaker | EmbeddingLoss | None,
    target: TrainingTarget | None,
    in_batch: bool,
    error: ErrorName,
    mini_batch_size: int | None = None,
    *,
    default: TrainingTarget,
    matryoshka_dims: Dimensions | None = None,
    matryoshka_weights: Weights | None = None,
) -> LossMaker:
    """Return the function that makes the loss of a training for its model.

    Args:
        loss: A loss on embeddings, a function that makes a loss for a model, or None for the three options.
        target: As :func:`loss_of` takes it, and so are the next two; None for the default.
        in_batch: Whether a margin has in-batch negatives.
        error: Its error function.
        mini_batch_size: That of :class:`SelfDistillationLoss`.
        default: The target if there is none.
        matryoshka_dims: The numbers of dimensions to train, for ``MatryoshkaLoss``; None to train whole vectors only.
        matryoshka_weights: The weight of each.

    Returns:
        The function.

    Raises:
        ValueError: If a loss is given and one of its options too, or if options contradict each other.
        TypeError: If the loss is something else.

    Example:
        >>> loss_maker(None, 0.5, True, "l1", default="calibrated")(encoder.model).loss
        AdaptiveMarginLoss(target=0.5, in_batch=True, error='l1', detach_target=False, pairing='query')
    """
    if loss is None:
        loss = loss_of(target or default, in_batch, error)
    elif (target, in_batch, error) != (None, False, "l2"):
        raise ValueError(f"loss={loss!r} was given beside target, in_batch or error; set those in the loss itself")
    if isinstance(loss, EmbeddingLoss):
        make: LossMaker = partial(SelfDistillationLoss, loss=loss, mini_batch_size=mini_batch_size)
    elif isinstance(loss, nn.Module) or not callable(loss):
        raise TypeError(
            f"expected an AdaptiveMarginLoss, a CalibratedLoss or a function of the model, got loss={loss!r}; for "
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


def loss_of(target: TrainingTarget, in_batch: bool = False, error: ErrorName = "l2") -> EmbeddingLoss:
    """Make the loss that trains for a target.

    Args:
        target: ``"calibrated"``, or a target of :class:`.losses.AdaptiveMarginLoss`.
        in_batch: For a margin: whether the negatives of the other queries count as negatives too.
        error: For a margin: the error function.

    Returns:
        The loss.

    Raises:
        ValueError: If the options contradict each other.

    Example:
        >>> loss_of("calibrated")
        CalibratedLoss()
        >>> loss_of(0.5, in_batch=True).target
        0.5
    """
    if target != CALIBRATED:
        return AdaptiveMarginLoss(cast(Target, target), in_batch, error)
    if in_batch or error != "l2":
        raise ValueError(
            f"target='calibrated' compares with the whole batch and has no error function, got in_batch={in_batch} and "
            f"error={error!r}; leave them out, or give the target that they are for, such as target='adaptive'"
        )
    return CalibratedLoss()


PREFIX = "selfdistill"
"""What names of settings begin with in a tracker, to tell them from the arguments of transformers."""

REPORTED_ANYWAY = ("arguments", "seed")
"""Settings of a run that are training arguments."""


class TrackedArguments(SentenceTransformerTrainingArguments):
    """Training arguments of a run, which trackers read as a dictionary.

    Attributes:
        settings: What makes the run, as :func:`.settings.run_settings` returns it; none until it is known.

    Example:
        >>> arguments = TrackedArguments("run", use_cpu=True, hub_token="hf_x", learning_rate=1e-5)
        >>> arguments.settings = {"loss": {"target": "adaptive"}, "data": {"source": "/home/me/triples.tsv"}}
        >>> told = arguments.to_dict()
        >>> told["learning_rate"], told["selfdistill/loss/target"], told["selfdistill/data/source"]
        (1e-05, 'adaptive', 'triples.tsv')
        >>> "hub_token" in told
        False
    """

    settings: Mapping[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        """Describe the run, without secrets and absolute paths.

        Returns:
            The training arguments, and the settings of the run by names such as ``selfdistill/loss/target``.
        """
        told = portable_settings(super().to_dict())
        own = {name: value for name, value in self.settings.items() if name not in REPORTED_ANYWAY}
        portable = portable_settings(own)
        if "base_model" in portable:
            # trackers add it from the model, where it may be a path, unless it stands here
            told["_name_or_path"] = portable["base_model"]["name"]
        return told | flatten_dict(portable, parent_key=PREFIX, delimiter="/")


@checked
def require_trackers(report_to: str | list[str]) -> None:
    """Check that what a run is to be reported to is there, before an earlier run is touched.

    Args:
        report_to: The names of trackers, ``"all"`` that are installed, or ``"none"``.

    Raises:
        ValueError: If transformers does not know one.
        ImportError: If the package of one is not installed.

    Example:
        >>> require_trackers("wandb.ai")
        Traceback (most recent call last):
        ValueError: report_to='wandb.ai': wandb.ai is not supported, only azure_ml, comet_ml, ...
    """
    names = report_to
    if isinstance(names, str):
        names = [names]
    if names in (["all"], ["none"]):
        return
    for name in names:
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


HARMLESS_ARGUMENTS = frozenset(
    {
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "ddp_backend",
        "ddp_timeout",
        "disable_tqdm",
        "hub_always_push",
        "hub_model_id",
        "hub_private_repo",
        "hub_revision",
        "hub_strategy",
        "hub_token",
        "include_num_input_tokens_seen",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "project",
        "push_to_hub",
        "report_to",
        "run_name",
        "skip_memory_metrics",
        "trackio_space_id",
    }
)
"""Training arguments that may change when a run is resumed: where batches are made, and where the run is reported."""


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
    miner: HardNegativeMiner | None,
    valid_share: float | None = None,
    adapter: Any = None,
    prompts: PromptsByCollection = NO_PROMPTS,
) -> dict[str, Any]:
    """Collect what makes a run.

    Args:
        data: The triples.
        loss: The loss on texts.
        base: The encoder that training starts with.
        arguments: The training arguments.
        preset: The name of the recipe.
        overrides: The training arguments that were given.
        evaluator: What chooses the best checkpoint; None without evaluation.
        patience: After how many evaluations without improvement training stops.
        miner: What mines hard negatives; None if nothing does.
        valid_share: The share of the queries that is held out for evaluation; None if none is.
        adapter: The configuration of the adapter that is trained; None if all weights are.
        prompts: The prompts of collections.

    Returns:
        The settings, by name.
    """
    on_texts = without_matryoshka(loss)
    described: dict[str, Any] = {"name": type(on_texts).__name__}
    get_options = getattr(on_texts, "get_config_dict", None)
    if get_options is not None:
        described |= get_options()
    if isinstance(loss, MatryoshkaLoss):
        described["matryoshka_dims"] = list(loss.matryoshka_dims)
        described["matryoshka_weights"] = list(loss.matryoshka_weights)
    mining = None
    if miner is not None:
        mining = miner.describe()
    # what is not there says nothing, as in runs of before there could be
    more: dict[str, Any] = {}
    if arguments.world_size > 1:
        more["processes"] = arguments.world_size
    if valid_share is not None:
        more["valid_share"] = valid_share
    if adapter is not None:
        more["adapter"] = describe_adapter(adapter)
    if prompts:
        more["prompts"] = {name: dict(of_roles) for name, of_roles in prompts.items()}
    return {
        "data": data.summary,
        "loss": described,
        "preset": preset,
        "precision": precision_of(arguments),
        "arguments": dict(overrides),
        "seed": arguments.seed,
        "base_model": {"name": base.name, "checksum": base.model_name},
        "evaluation": _evaluation_settings(evaluator, patience),
        "mining": mining,
        **more,
    }


def _evaluation_settings(evaluator: Evaluator | None, patience: int) -> dict[str, Any] | None:
    """Describe what chooses the best checkpoint, and when training stops."""
    if evaluator is None:
        return None
    settings = {"patience": patience, **evaluator.describe()}
    if evaluator.searches and evaluator.documents is not None:
        settings["corpus"] = evaluator.documents.fingerprint()
    return settings


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what decides on the result of a run.

    Args:
        settings: What :func:`run_settings` returns.

    Returns:
        The settings without names and arguments that change nothing. Triples are known by their fingerprint, and the
        base model by its checksum, wherever they lie.

    Example:
        >>> settings = {"data": {"fingerprint": "01", "source": "a.tsv"}, "base_model": {"name": "a", "checksum": "02"}}
        >>> decisive({**settings, "arguments": {"report_to": "wandb", "learning_rate": 1e-5}, "seed": 42})
        {'data': '01', 'base_model': '02', 'arguments': {'learning_rate': 1e-05}, 'seed': 42}
    """
    arguments = {name: value for name, value in settings["arguments"].items() if name not in HARMLESS_ARGUMENTS}
    return {
        **settings,
        "data": settings["data"]["fingerprint"],
        "base_model": settings["base_model"]["checksum"],
        "arguments": arguments,
    }
