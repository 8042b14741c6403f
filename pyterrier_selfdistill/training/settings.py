"""What makes a run: recorded in its folder and in its model, and compared when it is resumed.

:func:`run_settings` collects all of it, for the card of the model. :func:`decisive` keeps what decides on the result: a
run is resumed only where that is the same, and goes on under another name, in another folder, or with another logger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sentence_transformers import SentenceTransformerTrainingArguments
from torch import nn

from ..adapters import describe_adapter
from ..biencoder import SelfDistillBiEncoder
from ..data.several import TrainingData
from ..prompts import NO_PROMPTS, PromptsByCollection
from .arguments import precision_of
from .callbacks import HardNegativeMiner
from .evaluators import Evaluator

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
    data: TrainingData,
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
    described = {"name": type(loss).__name__}
    get_options = getattr(loss, "get_config_dict", None)
    if get_options is not None:
        described |= get_options()
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
