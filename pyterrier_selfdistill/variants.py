"""Variants of an encoder: the same history, with other arguments, or with a model that was made of its own.

An encoder whose adapter is merged, whose vectors are cut, or which has other prompts is another encoder, with a
checksum of its own. It keeps the name of the one that it was made of, and how that was trained.
"""

from __future__ import annotations

from typing import Any, Self

import pyterrier as pt
from sentence_transformers import SentenceTransformer


class HasVariants(pt.Artifact):
    """An encoder that others are made of."""

    model: SentenceTransformer
    name: str | None
    training_summary: dict[str, Any]

    def apply_attributes(self, **attributes: Any) -> Self:
        """Make an encoder with the same model and other arguments, for :mod:`pyterrier.inspect`.

        Args:
            **attributes: The arguments that are other ones.

        Returns:
            The encoder. One with another model begins without a history.
        """
        given = {name: getattr(self, name) for name in ("model", "batch_size", "text_field", "verbose", "dtype")}
        changed = type(self)(**{**given, **attributes})
        if changed.model is self.model:
            changed.name = self.name
            changed.path = self.path
            changed.training_summary = self.training_summary
        return changed

    def _variant(self, model: SentenceTransformer) -> Self:
        """Make an encoder with a model that was made of this one's."""
        variant = self.apply_attributes(model=model)
        variant.name = self.name
        variant.training_summary = self.training_summary
        return variant
