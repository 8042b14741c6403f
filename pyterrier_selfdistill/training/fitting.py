"""Fitting an encoder in a folder of its own: read, prepare, claim the folder, train, and save.

:class:`EncoderFitter` carries out what an estimator was asked for. :class:`Preparation` is all that a run is made of
before it begins, so that what is wrong with it is found before an earlier run is touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import pyterrier as pt
from sentence_transformers import SentenceTransformerTrainingArguments
from torch import nn

from ..data.corpus import Corpus
from ..data.several import TrainingData, TrainingSet, parts_of
from ..distributed import agree, joined
from ..prompts import PromptsByCollection
from .arguments import PRESETS, exponential_decay, make_training_arguments, require_known
from .callbacks import HardNegativeMiner, make_miner
from .checkpoints import RunFolder
from .evaluators import Evaluator, make_evaluator
from .fitted import EncoderEstimator
from .loop import TrainingLoop
from .processes import read_in_turn, require_batches, require_whole_models
from .settings import decisive, run_settings
from .sources import JudgedQueries, with_passages
from .starting import Start, make_start
from .targets import LossMaker

logger = logging.getLogger(__name__)


class ValidationData(NamedTuple):
    """What to evaluate with.

    Attributes:
        topics_or_results: ``qid`` and ``query``, and for results ``docno`` and the text field; several of them by the
            names of their collections; None for nothing.
        qrels: The judgements, likewise.
    """

    topics_or_results: pd.DataFrame | Mapping[str, pd.DataFrame] | None
    qrels: pd.DataFrame | Mapping[str, pd.DataFrame] | None


class Preparation(NamedTuple):
    """What a run is made of.

    Attributes:
        start: The encoder to train, and the one before training.
        dataset: The triples.
        loss: The loss on texts.
        arguments: The training arguments.
        evaluator: What chooses the best checkpoint, if anything does.
        miner: What mines hard negatives, if anything does.
        settings: All of it, described.
    """

    start: Start
    dataset: TrainingSet
    loss: nn.Module
    arguments: SentenceTransformerTrainingArguments
    evaluator: Evaluator | None
    miner: HardNegativeMiner | None
    settings: dict[str, Any]


class EncoderFitter(EncoderEstimator):
    """An estimator that trains in a folder; its options, and what it trains with, are up to its subclass."""

    corpus: Corpus | None
    fields: Sequence[str] | None
    adapter: Any
    preset: str
    rounds: int
    valid_share: float | None
    prompts: PromptsByCollection
    passages: pt.Transformer | None
    patience: int
    seed: int
    resume: bool
    overwrite: bool
    verbose: bool
    arguments: dict[str, Any]
    _run: RunFolder
    _make_loss: LossMaker

    def _train(
        self, read: Callable[[], TrainingData], validation: ValidationData, queries: JudgedQueries | None = None
    ) -> None:
        """Train a copy of the first encoder, and save it; together with other processes, if they were launched.

        Args:
            read: What reads the triples.
            validation: What to evaluate with.
            queries: What to mine hard negatives for; None if triples were there already.
        """
        with joined(self._encoder.device, self.arguments):
            data = read_in_turn(partial(self._read, read))
            logger.info("training with %s", data.summary)
            prepared = self._prepare(data, validation, queries)
            # A trainer that fits again replaces its own run.
            overwrite = self.overwrite or self._trained is not None
            # Only now: a bad argument must not cost an earlier run.
            with self._run.lock():
                settings = decisive(prepared.settings)
                checkpoint = self._run.claim(settings, resume=self.resume, overwrite=overwrite)
                if self._run.is_finished():
                    self._trained, self._logs = self._run.load(self._encoder)
                    return
                encoder, before = prepared.start
                loop = TrainingLoop(
                    encoder,
                    before,
                    prepared.dataset,
                    prepared.loss,
                    prepared.arguments,
                    evaluator=prepared.evaluator,
                    miner=prepared.miner,
                    decay=exponential_decay(PRESETS[self.preset], self.arguments),
                    patience=self.patience,
                    verbose=self.verbose,
                )
                loop.run(checkpoint)
                self._logs = agree(lambda: loop.state.log_history)
                encoder.training_summary = agree(lambda: loop.summary(prepared.settings, self.history))
                self._trained = self._run.save(encoder, self.history, self._logs)

    def _read(self, read: Callable[[], TrainingData]) -> TrainingData:
        """Read the triples, and have passages in place of their documents if that was asked for."""
        data = read()
        if self.passages is None:
            return data
        return with_passages(data, self.passages, self._encoder, self.prompts, verbose=self.verbose)

    def _prepare(self, data: TrainingData, validation: ValidationData, queries: JudgedQueries | None) -> Preparation:
        """Make all that a run needs, and check it."""
        start = make_start(self._encoder, self.adapter, self.seed)
        encoder = start.encoder
        if self.arguments.get("eval_strategy") == "no":
            validation = ValidationData(None, None)
        training_topics = None
        if queries is not None:
            training_topics = queries.topics_or_results
        frames = *validation, training_topics
        require_known(self.prompts, data.dataset, validation.topics_or_results)
        options: dict[str, Any] = {
            "measures": self.measures,
            "corpus": self.corpus,
            "fields": self.fields,
            "passages": self.passages,
            "prompts": self.prompts,
        }
        evaluator = make_evaluator(encoder, *frames, **options)
        folder = self._run.checkpoints
        options = {
            "preset": PRESETS[self.preset],
            "seed": self.seed,
            "overrides": self.arguments,
            "prompts": self.prompts,
        }
        arguments = make_training_arguments(encoder, data.dataset, folder, evaluator, **options)
        miner = make_miner(encoder, queries, self.rounds, folder)
        loss = self._make_loss(encoder.model)
        require_whole_models(arguments)
        smallest = min(map(len, parts_of(data.dataset)))
        require_batches(smallest, arguments, loss)
        describe = partial(
            run_settings,
            data,
            loss,
            self._encoder,
            arguments,
            preset=self.preset,
            overrides=self.arguments,
            evaluator=evaluator,
            patience=self.patience,
            miner=miner,
            valid_share=self.valid_share,
            adapter=self.adapter,
            prompts=self.prompts,
        )
        settings = agree(describe)
        arguments.settings = settings
        return Preparation(start, data.dataset, loss, arguments, evaluator, miner, settings)
