"""What a page says of encoders: what they are, how they were trained, and the course of training."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import pandas as pd

from ..biencoder import SelfDistillBiEncoder
from ..model_card import description_rows, training_rows
from ..persistence import metadata
from ..portable import portable_name
from ..training.fitted import EncoderEstimator
from ..training.history import PROGRESS, plot_history

TrainedEncoder: TypeAlias = SelfDistillBiEncoder | EncoderEstimator
"""An encoder, or the trainer that has made one and knows the whole course of its training."""


@dataclass(frozen=True)
class ModelDescription:
    """What a page says of an encoder.

    Attributes:
        name: What it is called.
        facts: What it is and how it was trained, as titles and texts, which have names between backticks.
        history: One row a step that something was logged for, without columns that have no values; empty if it was not
            trained here.
        picture: The course of training, as the address of an image that is part of it; empty if there is none.
    """

    name: str
    facts: list[tuple[str, str]]
    history: pd.DataFrame
    picture: str


def describe_model(name: str, model: TrainedEncoder) -> ModelDescription:
    """Describe an encoder.

    Args:
        name: What to call it.
        model: The encoder, or its trainer.

    Returns:
        The description.

    Example:
        >>> describe_model("mine", encoder).facts[1]
        ('Architecture', 'BertModel, ... parameters')
    """
    if isinstance(model, EncoderEstimator):
        encoder = model.encoder
        history = model.history
    else:
        encoder = model
        history = milestone_frame(encoder)
    described = metadata(encoder.model, encoder.model_name, encoder.training_summary)
    facts = [("Name", f"`{portable_name(encoder.name) or 'unknown'}`"), *description_rows(described["model"])]
    if described["training"]:
        facts += training_rows(described["training"])
    return ModelDescription(name, facts, history.dropna(axis="columns", how="all"), draw(history))


def milestone_frame(encoder: SelfDistillBiEncoder) -> pd.DataFrame:
    """Make a frame of what an encoder knows of its training: when something was measured.

    Args:
        encoder: The encoder.

    Returns:
        One row a step, in the columns of a history; no rows if it was not trained here.
    """
    milestones = pd.DataFrame(encoder.training_summary.get("history", []))
    measures = [column for column in milestones if column not in PROGRESS]
    return milestones.reindex(columns=[*PROGRESS, *measures])


def draw(history: pd.DataFrame) -> str:
    """Draw the course of a training.

    Args:
        history: Its history.

    Returns:
        The address of an SVG image, which is in it; empty if there is no course, but a single point.
    """
    if len(history) < 2:
        return ""
    buffer = BytesIO()
    plot_history(history).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def describe_models(models: Mapping[str, TrainedEncoder]) -> list[ModelDescription]:
    """Describe encoders by their names, as :func:`describe_model` does."""
    return [describe_model(name, model) for name, model in models.items()]
