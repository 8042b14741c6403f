"""What an estimator of encoders offers beside fitting: the trained encoder, scores in pipelines, and the history."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import pyterrier as pt
from ir_measures import Measure
from matplotlib.figure import Figure

from ..biencoder import SelfDistillBiEncoder
from .history import history_frame, plot_history


class NotFittedError(AttributeError, RuntimeError):
    """A trainer was asked for what there is only after training."""


class EncoderEstimator(pt.Estimator):
    """An estimator that scores as the encoder that it has trained; how it trains is up to its subclass.

    Args:
        encoder: Where training starts.
        measures: What is measured while training.
    """

    def __init__(self, encoder: SelfDistillBiEncoder, measures: Iterable[Measure]) -> None:
        self._encoder = encoder
        self._trained: SelfDistillBiEncoder | None = None
        self._logs: list[dict[str, float]] = []
        self.measures = tuple(measures)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode or score with the trained encoder.

        Args:
            inp: A frame with queries, documents or both, as an encoder takes it.

        Returns:
            What the encoder makes of it.

        Raises:
            NotFittedError: If nothing was trained yet and there is something to score.
        """
        # PyTerrier inspects transformers with empty frames, before training too
        if self._trained is None and inp.empty:
            return self._encoder.transform(inp)
        return self.encoder.transform(inp)

    @property
    def encoder(self) -> SelfDistillBiEncoder:
        """The trained encoder, at its best checkpoint.

        Raises:
            NotFittedError: Before training.
        """
        if self._trained is None:
            raise NotFittedError("this trainer has not trained yet; call fit or fit_triples first")
        return self._trained

    @property
    def history(self) -> pd.DataFrame:
        """A frame with a row for each step that was logged, of its loss, margin, target, measures and more."""
        return history_frame(self._logs, map(str, self.measures))

    def plot(self) -> Figure:
        """Draw the loss, the margins against the targets, and the first measure.

        Returns:
            The figure, which notebooks show.

        Raises:
            NotFittedError: Before training.
        """
        if not self._logs:
            raise NotFittedError("there is no history to draw yet; call fit or fit_triples first")
        return plot_history(self.history)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """Name no transformers: the encoder is not a step of a pipeline of its own."""
        return {}
