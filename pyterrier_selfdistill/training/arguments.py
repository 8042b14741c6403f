"""Presets, precision and training arguments."""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import torch


class Preset(NamedTuple):
    """A recipe of training.

    Attributes:
        arguments: Training arguments of sentence-transformers.
        patience: After how many validations without improvement training stops.
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
            "optim": "adamw_8bit" if importlib.util.find_spec("bitsandbytes") else "adamw_torch",
            "eval_steps": 500,
            "logging_steps": 50,
        },
        patience=16,
        decay=0.99999,
    ),
}
"""Recipes by name; any argument of one can be overridden."""


def mixed_precision(device: torch.device) -> dict[str, bool]:
    """Returns the training arguments for the fastest precision that a device has in hardware.

    A GPU trains in bfloat16, or in float16 if it is too old for that. A CPU trains in bfloat16 only where it has
    instructions for it (AVX512-BF16 or AMX): others emulate it many times slower than float32.

    Example:
        >>> mixed_precision(torch.device("meta"))
        {}
    """
    if device.type == "cuda":
        return {"bf16": True} if torch.cuda.is_bf16_supported() else {"fp16": True}
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return {"bf16": True}
    return {}
