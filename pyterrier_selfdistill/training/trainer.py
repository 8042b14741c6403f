"""The trainer: a PyTerrier estimator around the training loop of sentence-transformers.

As with any PyTerrier estimator, put a pipeline before it. The pipeline supplies the negatives::

    encoder = SelfDistillBiEncoder.from_pretrained("microsoft/mpnet-base")
    trainer = SelfDistillTrainer(encoder, output_dir="runs/mpnet")
    (bm25 % 100 >> pt.text.get_text(dataset) >> trainer).fit(topics, qrels, valid_topics, valid_qrels)
    trainer.encoder.save("my-model")
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from datasets import Dataset, DatasetDict
from ir_measures import nDCG
from matplotlib.figure import Figure
from more_itertools import chunked
from pydantic import SkipValidation
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from torch import nn

from ..data.corpus import Corpus, reusable
from ..data.negatives import Negatives
from ..data.passages import choose_passages
from ..data.triples import LABEL, TrainingSet, Triples, in_collection, join_collections, read_triples, require_names
from ..encoder.adapters import AdapterConfig, add_adapter, describe_adapter, require_adaptable, saved_base
from ..encoder.biencoder import PromptsByCollection, SelfDistillBiEncoder
from ..encoder.card import read_license
from ..encoder.precision import copied
from ..losses import (
    SOFTMAX_TARGETS,
    AdaptiveMarginLoss,
    EmbeddingLoss,
    ErrorName,
    SelfDistillationLoss,
    SoftmaxLoss,
    SoftmaxTarget,
    maximum_likelihood_scale,
    of_embeddings,
    without_matryoshka,
)
from ..utils.checks import (
    Expected,
    FieldNames,
    FolderPath,
    Measures,
    NotNegative,
    PositiveInteger,
    PositiveNumber,
    Seed,
    ShareBetween,
    WithHints,
    checked,
    judged,
    plain,
    require_columns,
)
from ..utils.compat import progress_bar, schematic
from ..utils.folders import folder_lock, plain_settings
from ..utils.processes import TIMEOUT, agree, in_turn, is_first, joined
from .arguments import (
    PRESETS,
    Dimensions,
    LossMaker,
    TrackedArguments,
    TrainingTarget,
    Weights,
    make_training_arguments,
    matryoshka_loss,
    require_arguments,
    require_columns_of,
)
from .evaluation import CollectionsEvaluator, Evaluator, RetrievalEvaluator
from .loop import TrainingLoop, require_processes
from .mining import HardNegativeMiner, JudgedQueries
from .run_folder import RunFolder, history_frame, plot_history

logger = logging.getLogger(__name__)

Frames: TypeAlias = pd.DataFrame | Mapping[str, pd.DataFrame]
Encoder = Annotated[
    SelfDistillBiEncoder, Expected("a SelfDistillBiEncoder; make one with SelfDistillBiEncoder.from_pretrained(name)")
]


NAMED_ARGUMENTS = {field.name for field in dataclasses.fields(TrackedArguments)} - {"output_dir", "prompts", "seed"}
SCALE_TRIPLES = 512  # how many triples the scale is measured on


class NotFittedError(AttributeError, RuntimeError):
    """You asked a trainer for something that exists only after training."""


@checked
class SelfDistillTrainer(WithHints, pt.Estimator):
    """Train a bi-encoder by self-distillation with adaptive relevance margins.

    By default, the query learns to rank the documents of a batch as the positive does (``target="listwise"``), with a
    scale measured by the encoder before the first step. Your encoder stays unchanged: after :meth:`fit` or
    :meth:`fit_triples`, :attr:`encoder` is a trained copy, with which the trainer also scores in pipelines.

    ``preset`` sets the arguments that you omit:

    ===============================  ==============  =====================================
    Argument                         ``"default"``   ``"paper"``
    ===============================  ==============  =====================================
    ``target``                       ``"listwise"``  ``"distributed"``
    ``learning_rate``                1e-4            5e-7, times 0.99999 after each step
    ``num_train_epochs``             1               3
    ``per_device_train_batch_size``  32              128
    ``warmup_steps``                 0.1             0
    ``weight_decay``                 0.01            1e-6
    ``eval_steps``                   0.1             500
    ``logging_steps``                0.02            50
    ``patience``                     5               16
    ===============================  ==============  =====================================

    The default learning rate was best, or close to best, for small encoders trained on hundreds to thousands of
    triples. For models of the size of BERT or larger, and for more data, try 2e-5.

    Args:
        encoder: The encoder to start from.
        output_dir: The folder for the model, the history and the checkpoints.
        target: ``"listwise"`` or ``"softmax"`` for :class:`SoftmaxLoss`, or a target of :class:`AdaptiveMarginLoss`,
            such as ``"distributed"``. Defaults to the target of the preset.
        in_batch: For :class:`AdaptiveMarginLoss`, whether to use the negatives of the other queries of a batch too.
        error: For :class:`AdaptiveMarginLoss`, the penalty on deviations: ``"l2"``, ``"l1"`` or ``"soft"``.
        scale: For :class:`SoftmaxLoss`, the factor that multiplies cosines (the inverse temperature). By default, it is
            measured once, on 512 triples before the first step.
        loss: A loss to use instead of the four options above: an :class:`AdaptiveMarginLoss` with more options, a
            sentence-transformers loss class such as ``MultipleNegativesRankingLoss``, or a function that takes the
            model and returns its loss.
        mini_batch_size: The number of texts in each backward pass. Set it if your batches do not fit into memory: the
            loss and the gradients stay the same (see :class:`SelfDistillationLoss`), but cost one more forward pass.
        adapter: A PEFT configuration, such as ``peft.LoraConfig(r=16)``, to train an adapter instead of all weights.
            Install ``pyterrier-selfdistill[adapters]`` first, and tune ``learning_rate`` again. The trained encoder has
            the adapter merged in; the adapter alone is saved in the folder ``adapter`` of ``output_dir``.
        matryoshka_dims: The dimensions to which you want to truncate vectors, such as ``[384, 192, 96, 48]``. Include
            the full dimension of the encoder. The loss is wrapped in ``MatryoshkaLoss``.
        matryoshka_weights: A weight for each of ``matryoshka_dims``. Defaults to 1 for each.
        preset: ``"default"``, or ``"paper"`` for the recipe of the paper.
        negatives: The number of negatives per triple in :meth:`fit`, or :class:`Negatives` to control how to draw them.
        min_label: The lowest label of a positive in :meth:`fit`.
        corpus: The documents: a PyTerrier dataset, a frame or a list of records. You need it to fit on topics without
            results (it supplies the negatives), to validate on topics without candidates (it is searched), and to fit
            and validate on documents without texts (it supplies them).
        fields: The document fields to join into a text, such as ``["title", "text"]``. Defaults to the text field.
        rounds: The number of equal parts into which to divide the steps of :meth:`fit`. From the second part on, hard
            negatives are mined: they are drawn from the documents that the current encoder retrieves from ``corpus``.
        valid_share: The share of queries, such as 0.1, that :meth:`fit` holds out for validation if you have no
            validation topics. By default, no queries are held out.
        measures: The validation measures. The first one selects the best checkpoint. The encoder before training takes
            part too: if no checkpoint is better, you get it back unchanged.
        patience: The number of evaluations without improvement after which to stop. Defaults to the preset's value.
        passages: A transformer that splits documents into passages, such as ``pt.text.sliding("text",
            prepend_attr=None)``. Triples get the passage of each document that the untrained encoder scores highest.
        prompts: Prompts for the collections of :meth:`fit_triples`, in training and validation, such as
            ``{"a": {"query": "claim: "}}``. Omitted prompts default to the encoder's. The trained encoder keeps its
            default prompts: to search a collection, use ``trainer.encoder.with_prompts(**prompts["a"])``.
        seed: The random seed. The same seed gives the same model on the same machine.
        resume: Whether to continue from the last checkpoint in the folder, if any. The settings must be the same.
        overwrite: Whether to replace the files of another run in the folder.
        verbose: Whether to show a progress bar.
        learning_rate: The peak learning rate.
        num_train_epochs: The number of passes over the triples.
        max_steps: The number of training steps. Overrides ``num_train_epochs``.
        per_device_train_batch_size: The number of triples per batch on each device.
        gradient_accumulation_steps: The number of batches per step. Defaults to 1.
        warmup_steps: The number of steps over which the learning rate rises, or below 1, a share of all steps.
        weight_decay: The weight decay of AdamW.
        eval_steps: The number of steps between evaluations (and checkpoints), or below 1, a share of all steps.
        logging_steps: The number of steps between logs of the loss, or below 1, a share of all steps.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        bf16: Whether to train in bfloat16 with float32 weights. By default, if your hardware supports it.
        report_to: The trackers to report to, such as ``"wandb"`` or ``["tensorboard"]``. By default, nothing is sent.
        **arguments: Other arguments of ``SentenceTransformerTrainingArguments``.

    Raises:
        TypeError: If an argument is unknown.
        ValueError: If options contradict each other.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = SelfDistillTrainer(encoder, folder, num_train_epochs=3, verbose=False)
        ...     triples = [("sort", "sort rows", "read"), ("plot", "plot a line", "sort")]
        ...     trained = trainer.fit_triples(triples).encoder
        >>> trained == encoder
        False
    """

    schematic: ClassVar = schematic("SelfDistillTrainer")
    HINTS: ClassVar = {
        "train": "call fit(topics, qrels) or fit_triples(triples)",
        "model": "use encoder.model, after training",
        **dict.fromkeys(["save", "save_model"], "call trainer.encoder.save(path), after training"),
        "state": "read trainer.history",
        "evaluate": "give validation topics and qrels to fit or fit_triples, and read trainer.history",
    }

    def __init__(
        self,
        encoder: Encoder,
        output_dir: FolderPath,
        *,
        target: TrainingTarget | None = None,
        in_batch: bool = False,
        error: ErrorName = "l2",
        scale: PositiveNumber | None = None,
        loss: SkipValidation[EmbeddingLoss | Callable[[SentenceTransformer], nn.Module] | None] = None,
        mini_batch_size: PositiveInteger | None = None,
        adapter: AdapterConfig = None,
        matryoshka_dims: Dimensions | None = None,
        matryoshka_weights: Weights | None = None,
        preset: Literal["default", "paper"] = "default",
        negatives: PositiveInteger | Negatives = 1,
        min_label: PositiveInteger = 1,
        corpus: Corpus | None = None,
        fields: FieldNames | None = None,
        rounds: PositiveInteger = 1,
        valid_share: ShareBetween | None = None,
        measures: Measures = (nDCG @ 10,),
        patience: PositiveInteger | None = None,
        passages: pt.Transformer | None = None,
        prompts: PromptsByCollection | None = None,
        seed: Seed = 42,
        resume: bool = False,
        overwrite: bool = False,
        verbose: bool = True,
        learning_rate: PositiveNumber | None = None,
        num_train_epochs: PositiveNumber | None = None,
        max_steps: PositiveInteger | Literal[-1] | None = None,
        per_device_train_batch_size: PositiveInteger | None = None,
        gradient_accumulation_steps: PositiveInteger | None = None,
        warmup_steps: NotNegative | None = None,
        weight_decay: NotNegative | None = None,
        eval_steps: PositiveNumber | None = None,
        logging_steps: PositiveNumber | None = None,
        gradient_checkpointing: bool | None = None,
        bf16: bool | None = None,
        report_to: str | list[str] | None = None,
        **arguments: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "encoder", "arguments")}
        vars(self).update(given)
        # the training arguments above; the others are in ``arguments`` already
        arguments |= {name: value for name, value in given.items() if name in NAMED_ARGUMENTS and value is not None}
        require_adaptable(encoder.model, adapter)
        options = list(inspect.signature(SelfDistillTrainer).parameters)
        require_arguments(options=options, resume=resume, overwrite=overwrite, **arguments)
        if rounds > 1 and corpus is None:
            raise ValueError(
                f"rounds={rounds} mines hard negatives and needs a corpus to search; give one with corpus="
            )
        if rounds > 1 and passages is not None:
            raise ValueError(
                f"rounds={rounds} mines whole documents, but passages= trains on passages, so you cannot use both; "
                "choose one"
            )
        if valid_share is not None and arguments.get("eval_strategy") == "no":
            raise ValueError(
                f"valid_share={valid_share} holds out queries for evaluation, but eval_strategy='no' turns evaluation "
                "off; choose one"
            )
        self._encoder = encoder
        self._trained: SelfDistillBiEncoder | None = None
        self._logs: list[dict[str, float]] = []
        self._run = RunFolder(output_dir)
        self.output_dir = self._run.path
        self.negatives = negatives if isinstance(negatives, Negatives) else Negatives(negatives)
        # evaluation reads the corpus again and again
        self.corpus = None if corpus is None else reusable(corpus, fields or [encoder.text_field])
        self.measures = tuple(measures)
        self.patience = PRESETS[preset].patience if patience is None else patience
        self.prompts = prompts or {}
        self.arguments = {name: plain(value) for name, value in arguments.items()}
        self._make_loss = self._loss_maker()

    @checked
    def fit(
        self,
        topics_or_results: pd.DataFrame,
        qrels: pd.DataFrame,
        valid_topics_or_results: pd.DataFrame | None = None,
        valid_qrels: pd.DataFrame | None = None,
    ) -> SelfDistillTrainer:
        """Train with judged positives.

        If you pass results, the negatives of a query are drawn from its results, and evaluation re-ranks the validation
        results. If you pass topics only, negatives are drawn from ``corpus``, and evaluation searches ``corpus``.
        If you fit again, training starts over from the original encoder and replaces the files of the previous run.

        Args:
            topics_or_results: Topics (``qid`` and ``query``), or results that also have ``docno`` and, without a
                ``corpus`` at the trainer, the text field of the encoder.
            qrels: Judgements (``qid``, ``docno``, ``label``). Documents labelled ``min_label`` or more are positives.
            valid_topics_or_results: Topics or results to evaluate with. If you pass neither these nor ``valid_share``,
                the trainer keeps the encoder of the last step.
            valid_qrels: Judgements to evaluate with.

        Returns:
            The trainer.

        Raises:
            ValueError: If there is nothing to train or evaluate with.
            TypeError: If identifiers or texts are not strings, or labels are not numbers.
            FileExistsError: If the folder holds another run, and neither ``resume`` nor ``overwrite`` is set.
        """
        topics_or_results, qrels = judged(topics_or_results, qrels)
        text_field = self._encoder.text_field
        queries = JudgedQueries(
            topics_or_results, qrels, self.corpus, self.fields, text_field, self.negatives, self.min_label, self.seed
        )
        if self.valid_share is not None:
            if valid_topics_or_results is not None or valid_qrels is not None:
                raise ValueError(
                    f"valid_share={self.valid_share} holds out queries for evaluation, but you also gave validation "
                    "topics or qrels; choose one"
                )
            queries, valid_topics_or_results, valid_qrels = queries.hold_out(self.valid_share)
        self._fit(queries.draw, valid_topics_or_results, valid_qrels, queries)
        return self

    def fit_triples(
        self,
        source: pd.DataFrame | Dataset | pt.datasets.Dataset | str | Path | Iterable[Any] | Mapping[str, Any],
        valid_topics_or_results: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
        valid_qrels: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
        *,
        topics: pd.DataFrame | None = None,
        max_pairs_per_query: int | None = None,
        limit: int | None = None,
        store_texts: bool = True,
    ) -> SelfDistillTrainer:
        """Train with existing triples.

        Args:
            source: A PyTerrier dataset with docpairs, or triples as a frame, a ``datasets.Dataset``, an iterable or a
                file (see :func:`~pyterrier_selfdistill.data.triples.read_triples`). To train on several collections at
                once, pass a dictionary ``{"a": ..., "b": ...}``; each batch then comes from a single collection.
            valid_topics_or_results: As in :meth:`fit`, or a dictionary by collection. The mean of the first measure
                over the collections then selects the best checkpoint.
            valid_qrels: As in :meth:`fit`, or a dictionary with the same keys.
            topics: The queries (``qid``, ``query``) of triples that hold identifiers instead of texts; also pass
                ``corpus`` to the trainer. See :func:`~pyterrier_selfdistill.data.triples.read_triples`.
            max_pairs_per_query: The number of triples to keep per query, for docpairs and identifiers.
            limit: The number of triples to keep per collection: a sample of docpairs and identifiers, but the first
                ones of texts.
            store_texts: For docpairs and identifiers, whether to store their texts or look them up in each step.

        Returns:
            The trainer.

        Raises:
            ValueError: See :meth:`fit`.
            FileExistsError: See :meth:`fit`.

        Example:
            ::

                dataset = pt.get_dataset("irds:msmarco-passage/train")
                trainer.fit_triples(dataset, max_pairs_per_query=128)
                trainer.fit_triples("triples.tsv")
                trainer.fit_triples("qidpidtriples.tsv", topics=dataset.get_topics())  # needs corpus=
                trainer.fit_triples({"questions": "questions.tsv", "claims": claims})
        """
        if self.rounds > 1:
            raise ValueError(
                f"rounds={self.rounds} mines hard negatives, which fit_triples cannot do; use fit with topics and "
                "qrels, or omit rounds"
            )
        if self.valid_share is not None:
            raise ValueError(
                f"valid_share={self.valid_share} works in fit only, since triples do not identify their queries; omit "
                "it, and give fit_triples validation topics and qrels of queries that are not in the triples, for "
                "example a part made by split_queries"
            )

        def read() -> Triples:
            return read_triples(
                source,
                topics=topics,
                corpus=self.corpus,
                fields=self.fields or [self._encoder.text_field],
                max_pairs_per_query=max_pairs_per_query,
                limit=limit,
                seed=self.seed,
                store_texts=store_texts,
                verbose=self.verbose and is_first(),
            )

        self._fit(read, valid_topics_or_results, valid_qrels)
        return self

    def _fit(
        self,
        read: Callable[[], Triples],
        valid_topics_or_results: Frames | None,
        valid_qrels: Frames | None,
        queries: JudgedQueries | None = None,
    ) -> None:
        """Read the triples, prepare the run, train and save."""
        backend, timeout = self.arguments.get("ddp_backend"), self.arguments.get("ddp_timeout", TIMEOUT)
        with joined(self._encoder.device, backend, timeout), ExitStack() as stack:
            with in_turn():
                triples = read()
                if self.passages is not None:
                    triples = self._with_passages(triples, self.passages)
            logger.info("training with %s", triples.summary)
            encoder, start = copy_to_train(self._encoder, self.adapter, self.seed)
            evaluator = self._make_evaluator(encoder, valid_topics_or_results, valid_qrels, queries)
            if evaluator is None and queries is not None and is_first():
                logger.warning(
                    "without validation topics, the trainer keeps the encoder of the last step, even if an earlier one "
                    "was better; set valid_share=0.1 to hold out a tenth of the queries and keep the best checkpoint"
                )
            preset = PRESETS[self.preset]
            arguments = make_training_arguments(
                encoder,
                triples.dataset,
                self._run.checkpoints,
                evaluator,
                preset=preset,
                seed=self.seed,
                overrides=self.arguments,
                prompts=self.prompts,
            )
            miner = None
            if queries is not None and self.rounds > 1:
                miner = HardNegativeMiner(encoder, queries, self.rounds, self._run.checkpoints)
            loss = self._make_loss(encoder.model)
            require_processes(triples, arguments, loss)
            require_columns_of(loss, encoder.model, triples.dataset)
            # only now, so that a bad argument does not cost an earlier run; a second fit replaces the first
            overwrite = self.overwrite or self._trained is not None
            agree(lambda: stack.enter_context(folder_lock(self.output_dir, "training an encoder")))
            agree(lambda: self._run.require_free(resume=self.resume, overwrite=overwrite))
            softmax = of_embeddings(loss)
            if isinstance(softmax, SoftmaxLoss) and softmax.scale is None:
                scale = agree(self._run.scale) if self.resume and not overwrite else None
                if scale is None:
                    batch_size = arguments.train_batch_size * arguments.world_size
                    scale = agree(lambda: self._measure_scale(encoder, triples.dataset, batch_size))
                logger.info("the scale of the softmax is %s", scale)
                softmax.scale = scale
            settings = agree(lambda: self._settings(triples, loss, arguments, evaluator, miner))
            arguments.settings = settings
            checkpoint = agree(lambda: self._run.claim(settings, overwrite=overwrite))
            if agree(self._run.is_finished):
                self._trained, self._logs = self._run.load(self._encoder)
                return
            has_schedule = self.arguments.keys() & {"lr_scheduler_type", "warmup_steps", "warmup_ratio"}
            loop = TrainingLoop(
                encoder,
                start,
                triples.dataset,
                loss,
                arguments,
                evaluator=evaluator,
                miner=miner,
                decay=None if has_schedule else preset.decay,
                patience=self.patience,
                verbose=self.verbose,
            )
            loop.run(checkpoint)
            self._logs = agree(lambda: loop.state.log_history)
            encoder.training_summary = agree(lambda: loop.summary(settings, self.history))
            adapted, encoder = (None, encoder) if self.adapter is None else (encoder, encoder.merge_adapter())
            agree(lambda: self._run.save(encoder, adapted, self.history, self._logs))
            # also in the processes that did not save it
            encoder.path = self._run.model
            encoder.name = str(self._run.model)
            self._trained = encoder

    def _with_passages(self, triples: Triples, passages: pt.Transformer) -> Triples:
        """Replace each document by its best passage."""
        verbose = self.verbose and is_first()
        if not isinstance(triples.dataset, DatasetDict):
            return choose_passages(triples, passages, self._encoder, verbose=verbose)
        chosen = {}
        for name, dataset in triples.dataset.items():
            part = Triples(dataset, triples.summary["collections"][name])
            encoder = self._encoder.with_prompts(**self.prompts.get(name, {}))
            chosen[name] = choose_passages(part, passages, encoder, verbose=verbose)
        return join_collections(chosen)

    # --- the parts of a run -----------------------------------------------------------------------------------------

    def _default_loss(self) -> EmbeddingLoss:
        target = self.target or PRESETS[self.preset].target
        if target not in SOFTMAX_TARGETS:
            if self.scale is not None:
                raise ValueError(
                    f"scale={self.scale} works with the targets {SOFTMAX_TARGETS} only, got target={target!r}; choose "
                    "one of these, or omit scale"
                )
            return AdaptiveMarginLoss(cast(Any, target), self.in_batch, self.error)
        if self.in_batch or self.error != "l2":
            raise ValueError(
                f"target={target!r} takes neither in_batch nor error, got in_batch={self.in_batch} and "
                f"error={self.error!r}; omit them, or choose a target that takes them, such as "
                "target='adaptive'"
            )
        return SoftmaxLoss(cast(SoftmaxTarget, target), self.scale)

    def _loss_maker(self) -> LossMaker:
        """Return a function that makes the loss of a run for its model."""
        loss = self._default_loss() if self.loss is None else self.loss
        if loss is self.loss and (self.target, self.in_batch, self.error, self.scale) != (None, False, "l2", None):
            raise ValueError(
                f"loss={loss!r} cannot be combined with target, in_batch, error or scale; set these in the loss itself"
            )
        if isinstance(loss, EmbeddingLoss):
            make: LossMaker = partial(SelfDistillationLoss, loss=loss, mini_batch_size=self.mini_batch_size)
        elif isinstance(loss, nn.Module) or not callable(loss):
            raise TypeError(
                f"loss must be an AdaptiveMarginLoss, a SoftmaxLoss or a function of the model, got a "
                f"{type(loss).__name__}; for any other loss, give its class, such as MultipleNegativesRankingLoss, or "
                "a function such as lambda model: TheLoss(model, ...)"
            )
        elif self.mini_batch_size is not None:
            raise ValueError(
                f"mini_batch_size={self.mini_batch_size} works with the losses of this package only, got loss="
                f"{loss!r}; omit it, and give a loss with a gradient cache, such as "
                "lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=...)"
            )
        else:
            make = loss
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if dims is None:
            if weights is not None:
                raise ValueError(f"matryoshka_weights={weights} needs matryoshka_dims; give both")
            return make
        if len(set(dims)) < len(dims):
            raise ValueError(f"matryoshka_dims={dims} lists a number twice; give each once")
        if weights is not None and len(weights) != len(dims):
            raise ValueError(f"matryoshka_weights={weights} must have one weight for each of matryoshka_dims={dims}")
        return partial(matryoshka_loss, make, dims, weights)

    def _make_evaluator(
        self, encoder: SelfDistillBiEncoder, topics: Frames | None, qrels: Frames | None, queries: JudgedQueries | None
    ) -> Evaluator | None:
        """Make the evaluator, which does not count training queries as queries without candidates."""
        if (topics is None and qrels is None) or self.arguments.get("eval_strategy") == "no":
            return None
        if topics is None or qrels is None:
            raise ValueError("evaluation needs both validation topics (or results) and qrels; give both")
        options = {name: getattr(encoder, name) for name in ("batch_size", "text_field", "dtype", "backend")}
        make = partial(
            RetrievalEvaluator,
            measures=self.measures,
            corpus=self.corpus,
            fields=self.fields,
            passages=self.passages,
            encoder_options={**options, "verbose": self.verbose and is_first()},
        )
        if isinstance(topics, Mapping) != isinstance(qrels, Mapping):
            raise ValueError(
                "validation topics (or results) and qrels must both be frames, or both be dictionaries by collection, "
                f"such as {{'a': ...}}, got a {type(topics).__name__} and a {type(qrels).__name__}"
            )
        if isinstance(topics, Mapping):
            require_names(topics, "valid_topics_or_results")
            if topics.keys() != qrels.keys():
                raise ValueError(
                    "validation topics (or results) and qrels must have the same collections, got "
                    f"{list(topics)} and {list(qrels)}"
                )
            evaluators = {}
            for name, frame in topics.items():
                with in_collection(name):
                    evaluators[name] = make(frame, qrels[name])
            return CollectionsEvaluator(evaluators, self.prompts)
        qrels = cast(pd.DataFrame, qrels)
        if queries is not None:
            to_train = queries.topics_or_results
            for name, frame in {"qrels": qrels, "validation topics": topics, "topics": to_train}.items():
                require_columns(frame, ["qid"], name)
            qrels = qrels[~qrels["qid"].isin(set(to_train["qid"]) - set(topics["qid"]))]
        return make(topics, qrels)

    def _measure_scale(self, encoder: SelfDistillBiEncoder, dataset: TrainingSet, batch_size: int) -> float:
        """Measure the scale of a :class:`SoftmaxLoss` on batches like those in training, to three digits."""
        # otherwise the trained weights would depend on the precision of encoding
        encoder = encoder.apply_attributes(dtype="float32", backend="torch")
        parts: Mapping[str, Dataset] = dataset if isinstance(dataset, DatasetDict) else {"": dataset}
        share = SCALE_TRIPLES / sum(map(len, parts.values()))
        generator = np.random.default_rng(self.seed)
        margins = []
        for name, part in parts.items():
            number = min(len(part), max(batch_size, round(share * len(part))))
            rows = generator.choice(len(part), number, replace=False).tolist()
            batches = [part[some] for some in chunked(rows, batch_size)]
            columns = [column for column in batches[0] if column not in ("query", LABEL)]
            documents = [text for batch in batches for column in columns for text in batch[column]]
            bar = progress_bar(documents, desc="Measuring the scale", unit="document", disable=not self.verbose)
            of_part = encoder.with_prompts(**self.prompts.get(name, {}))
            vectors = dict(zip(documents, of_part.encode_docs(bar), strict=True))
            for batch in batches:
                texts = [text for column in columns for text in batch[column]]
                scores = of_part.encode_queries(batch["query"]) @ np.stack([vectors[text] for text in texts]).T
                pairs = set(zip(batch["query"], batch["positive"], strict=True))
                for row, query in enumerate(batch["query"]):
                    is_other = np.array([(query, text) not in pairs for text in texts])
                    if is_other.any():
                        margins.append(scores[row, row] - scores[row, is_other])
        if not margins:
            raise ValueError(
                "expected at least two different positives in a batch, got a single positive overall; give more "
                "triples, or use another target, such as target='distributed'"
            )
        return float(f"{maximum_likelihood_scale(margins):.3g}")

    def _settings(
        self,
        triples: Triples,
        loss: nn.Module,
        arguments: TrackedArguments,
        evaluator: Evaluator | None,
        miner: HardNegativeMiner | None,
    ) -> dict[str, Any]:
        """Describe a run for its summary and model card, and for comparison when a run resumes."""
        on_texts: Any = without_matryoshka(loss)
        described: dict[str, Any] = {"name": type(on_texts).__name__}
        if hasattr(on_texts, "get_config_dict"):
            described |= on_texts.get_config_dict()
        if isinstance(loss, MatryoshkaLoss):
            described["matryoshka_dims"] = list(loss.matryoshka_dims)
            described["matryoshka_weights"] = list(loss.matryoshka_weights)
        name = self._encoder.name
        base_model: dict[str, Any] = {"name": name, "checksum": self._encoder.model_name}
        if name is not None and not Path(name).exists():
            base_model["is_on_hub"] = True
        if license_name := read_license(name or ""):
            base_model["license"] = license_name
        settings: dict[str, Any] = {
            "data": triples.summary,
            "loss": described,
            "preset": self.preset,
            "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "float32",
            "arguments": self.arguments,
            "seed": arguments.seed,
            "base_model": base_model,
            "evaluation": None if evaluator is None else {"patience": self.patience, **evaluator.describe()},
            "mining": None if miner is None else miner.describe(),
        }
        # omit unset options, so that older runs still compare equal
        if arguments.world_size > 1:
            settings["processes"] = arguments.world_size
        if self.valid_share is not None:
            settings["valid_share"] = self.valid_share
        if self.adapter is not None:
            settings["adapter"] = describe_adapter(self.adapter)
        if self.prompts:
            settings["prompts"] = {name: dict(of_roles) for name, of_roles in self.prompts.items()}
        return plain_settings(settings)

    # --- the result -------------------------------------------------------------------------------------------------

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode queries or documents, or score both, with the trained encoder.

        Raises:
            NotFittedError: Before training.
        """
        # PyTerrier inspects transformers with empty frames, even before training
        if self._trained is None and inp.empty:
            return self._encoder.transform(inp)
        return self.encoder.transform(inp)

    @property
    def encoder(self) -> SelfDistillBiEncoder:
        """The trained encoder at its best checkpoint.

        Raises:
            NotFittedError: Before training.
        """
        if self._trained is None:
            raise NotFittedError("this trainer has not trained yet; call fit or fit_triples first")
        return self._trained

    @property
    def history(self) -> pd.DataFrame:
        """The training history, with one row per logged or evaluated step."""
        return history_frame(self._logs, map(str, self.measures))

    def plot(self) -> Figure:
        """Plot the history as a figure, which notebooks display; ``savefig`` writes it.

        Raises:
            NotFittedError: Before training.
        """
        if not self._logs:
            raise NotFittedError("the history is empty before training; call fit or fit_triples first")
        return plot_history(self.history)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """Return nothing, since PyTerrier would inspect the encoder, which exists only after training."""
        return {}

    def __repr__(self) -> str:
        return f"SelfDistillTrainer({self._encoder!r}, {str(self.output_dir)!r})"


def copy_to_train(
    base: SelfDistillBiEncoder, adapter: Any, seed: int
) -> tuple[SelfDistillBiEncoder, SelfDistillBiEncoder]:
    """Return a float32 copy to train, with the adapter if any, and the encoder to keep if training does not help."""
    if adapter is None:
        encoder = base.copy()
        encoder.model.float()  # in 16 bits, most updates would round to zero; autocast provides the speed
        return encoder, base
    source = saved_base(base.model, base.name)
    adapted = []
    for _ in range(2):
        model = copied(base.model, torch.float32)
        add_adapter(model, adapter, base=source, seed=seed)
        adapted.append(base.apply_attributes(model=model))
    return adapted[0], adapted[1]
