"""Where training starts: a copy of the encoder, or its weights with an adapter on top.

With an adapter nothing else is trained, so that the weights of the encoder are shared and not copied: of a large model
there is one in memory, and neither gradients nor states of the optimizer for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..adapters import add_adapter, saved_base
from ..biencoder import SelfDistillBiEncoder
from ..precision import copied


class Start(NamedTuple):
    """What a training begins with.

    Attributes:
        encoder: The encoder to train.
        before: What it is before training, for a training that does not improve it.
    """

    encoder: SelfDistillBiEncoder
    before: SelfDistillBiEncoder


def make_start(base: SelfDistillBiEncoder, adapter: Any, seed: int) -> Start:
    """Make the encoder to train.

    Args:
        base: The encoder that stays as it is.
        adapter: The configuration of an adapter to train; None to train all weights.
        seed: The seed of the first weights of the adapter.

    Returns:
        The encoder to train, in float32, and the one before training.

    Raises:
        ValueError: If the base of an adapter could not be loaded again, or cannot be adapted so.

    Example:
        >>> import peft
        >>> start = make_start(encoder, peft.LoraConfig(r=2), seed=42)
        >>> weights = start.encoder.model.parameters()
        >>> sum(trained.numel() for trained in weights if trained.requires_grad)
        512
    """
    if adapter is None:
        encoder = base.copy()
        encoder.model.float()  # in 16 bits most updates would round to nothing; autocast is for speed
        return Start(encoder, base)
    source = saved_base(base.model, base.name)
    # what is trained is not shared among the two
    return Start(_adapted(base, adapter, source, seed), _adapted(base, adapter, source, seed))


def _adapted(base: SelfDistillBiEncoder, adapter: Any, source: str, seed: int) -> SelfDistillBiEncoder:
    """Make an encoder with a new adapter that shares the weights of its base."""
    model = copied(base.model, torch.float32)
    add_adapter(model, adapter, base=source, seed=seed)
    encoder = base.apply_attributes(model=model)
    encoder.name = base.name
    return encoder
