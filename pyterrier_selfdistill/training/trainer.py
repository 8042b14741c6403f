"""The trainer: a PyTerrier estimator over the training loop of sentence-transformers.

As with every estimator of PyTerrier, a pipeline before it gives the negatives::

    encoder = SelfDistillBiEncoder.from_pretrained("microsoft/mpnet-base")
    trainer = SelfDistillTrainer(encoder, output_dir="runs/mpnet")
    (bm25 % 100 >> pt.text.get_text(dataset) >> trainer).fit(topics, qrels, valid_topics, valid_qrels)
    trainer.encoder.save("my-model")
"""

from __future__ import annotations

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


SCALE_TRIPLES = 512  # how many triples the encoder measures its scale with


class NotFittedError(AttributeError, RuntimeError):
    """You asked a trainer for something that exists only after training."""


@checked
class SelfDistillTrainer(WithHints, pt.Estimator):
    """Train a bi-encoder by self-distillation with adaptive relevance margins.

    By default, the query learns to rank the documents of a batch as the positive does (``target="listwise"``), at a
    scale that the encoder measures before the first step. The given encoder stays unchanged. After :meth:`fit` or
    :meth:`fit_triples`, :attr:`encoder` is the trained one, and the trainer scores in pipelines as it does.

    ``preset`` chooses these arguments where you leave them out:

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

    The default rate was the best or close to it for small encoders and some hundred to thousand triples; try 2e-5 for
    models of the size of BERT and larger, and more data.

    Args:
        encoder: Where training starts.
        output_dir: The folder for the model, the history and the checkpoints.
        target: ``"listwise"`` or ``"softmax"`` for :class:`SoftmaxLoss`, or a target of :class:`AdaptiveMarginLoss`,
            such as ``"distributed"``. By default the preset's: ``"listwise"``, and ``"distributed"`` for the paper's.
        in_batch: For :class:`AdaptiveMarginLoss`, whether the negatives of the other queries of a batch count too.
        error: For :class:`AdaptiveMarginLoss`, how deviations from the target count: ``"l2"``, ``"l1"`` or ``"soft"``.
        scale: For :class:`SoftmaxLoss`, the factor of cosines, the inverse of the temperature. By default the encoder
            measures it on 512 triples before the first step, and keeps it.
        loss: Instead of these four: an :class:`AdaptiveMarginLoss` with more options, or a function that makes any
            loss of sentence-transformers for a model, such as ``MultipleNegativesRankingLoss``.
        mini_batch_size: How many texts to go back through the model with at once, for batches that do not fit into
            memory: the same loss and gradients (see :class:`SelfDistillationLoss`), for a forward pass more.
        adapter: A configuration of PEFT, such as ``peft.LoraConfig(r=16)``, to train an adapter in place of all
            weights, with ``pip install pyterrier-selfdistill[adapters]``. It is merged into the trained encoder, and
            written alone to the folder ``adapter`` of ``output_dir``. Search its ``learning_rate`` anew.
        matryoshka_dims: To train vectors that can be cut (Matryoshka): the numbers of dimensions, such as ``[384, 192,
            96, 48]``, with the number of the encoder among them; the loss is wrapped in ``MatryoshkaLoss``.
        matryoshka_weights: The weight of each; 1 by default.
        preset: ``"default"`` or ``"paper"``, the recipe of the paper.
        negatives: How many negatives a triple gets in :meth:`fit`, or :class:`Negatives` that say which.
        min_label: The lowest label of a positive in :meth:`fit`.
        corpus: The documents: a PyTerrier dataset, a frame or a list of records. Negatives are drawn from it where
            :meth:`fit` gets topics, relevant documents that were not retrieved get their text from it, and it is
            searched where validation topics come without candidates.
        fields: The fields of documents that make a text, such as ``["title", "text"]``, if not the text field alone.
        rounds: Into how many equal parts to divide the steps of :meth:`fit`. From the second on, hard negatives are
            mined: drawn from what the encoder as trained so far finds in the ``corpus``.
        valid_share: The share of the queries, such as 0.1, that :meth:`fit` holds out to evaluate with, where there are
            no validation topics; by default none.
        measures: What to measure on validation queries; the first decides which checkpoint is best. The encoder before
            training is one of them: one that training does not improve stays as it was.
        patience: After how many evaluations without improvement to stop, if not as the preset says.
        passages: What divides documents into the passages that are indexed, such as
            ``pt.text.sliding("text", prepend_attr=None)``: documents of triples become the passages that the encoder
            before training scores highest for their queries.
        prompts: What to put before the texts of a collection of :meth:`fit_triples` in training and validation, such as
            ``{"a": {"query": "claim: "}}``; those that are not given are the encoder's. The trained encoder has its
            own still: search the collection with ``trainer.encoder.with_prompts(**prompts["a"])``.
        seed: The seed of everything random: the same seed gives the same model on the same machine.
        resume: Whether to go on from the last checkpoint in the folder, if there is one, with the same settings.
        overwrite: Whether to replace what another run left in the folder.
        verbose: Whether to show a progress bar.
        learning_rate: The highest learning rate.
        num_train_epochs: How many times to go through the triples.
        max_steps: How many steps to train, in place of epochs.
        per_device_train_batch_size: How many triples a batch has on each device.
        gradient_accumulation_steps: How many batches make a step; 1 by default.
        warmup_steps: How many steps the learning rate rises before it falls; below 1, a share of all steps.
        weight_decay: The weight decay of AdamW.
        eval_steps: After how many steps to evaluate and to write a checkpoint; below 1, a share of all steps.
        logging_steps: After how many steps to log the loss; below 1, a share of all steps.
        gradient_checkpointing: Whether to compute activations again in the backward pass, which saves memory.
        bf16: Whether to train in bfloat16 with float32 weights; by default where the hardware has it.
        report_to: Trackers such as ``"wandb"`` or ``["tensorboard"]``; by default none.
        **arguments: Any other argument of ``SentenceTransformerTrainingArguments``.

    Raises:
        TypeError: If an argument is not known.
        ValueError: If options contradict each other.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = SelfDistillTrainer(encoder, folder, num_train_epochs=3, verbose=False)
        ...     trained = trainer.fit_triples([("sort", "sort rows", "read"), ("plot", "plot a line", "sort")]).encoder
        >>> trained == encoder
        False
    """

    schematic: ClassVar = schematic("SelfDistillTrainer")
    HINTS: ClassVar = {
        "train": "call fit(topics, qrels) or fit_triples(triples)",
        "model": "use encoder.model, after training",
        "save_model": "call encoder.save(path), after training",
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
        named = {
            "learning_rate": learning_rate,
            "num_train_epochs": num_train_epochs,
            "max_steps": max_steps,
            "per_device_train_batch_size": per_device_train_batch_size,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "eval_steps": eval_steps,
            "logging_steps": logging_steps,
            "gradient_checkpointing": gradient_checkpointing,
            "bf16": bf16,
            "report_to": report_to,
        }
        vars(self).update(named)
        arguments |= {name: value for name, value in named.items() if value is not None}
        require_adaptable(encoder.model, adapter)
        options = list(inspect.signature(SelfDistillTrainer).parameters)
        require_arguments(options=options, resume=resume, overwrite=overwrite, **arguments)
        if rounds > 1 and corpus is None:
            raise ValueError(
                f"rounds={rounds} mines hard negatives, which needs a corpus to search; give it as corpus="
            )
        if rounds > 1 and passages is not None:
            raise ValueError(
                f"rounds={rounds} mines whole documents for triples of documents, and passages= trains with passages: "
                "choose one"
            )
        if valid_share is not None and arguments.get("eval_strategy") == "no":
            raise ValueError(
                f"valid_share={valid_share} holds out queries to evaluate with, and eval_strategy='no' evaluates "
                "nothing; leave one of them out"
            )
        self._encoder = encoder
        self._trained: SelfDistillBiEncoder | None = None
        self._logs: list[dict[str, float]] = []
        self._run = RunFolder(output_dir)
        self.output_dir = self._run.path
        self.target = target
        self.in_batch = in_batch
        self.error = error
        self.scale = scale
        self.loss = loss
        self.mini_batch_size = mini_batch_size
        self.adapter = adapter
        self.matryoshka_dims = matryoshka_dims
        self.matryoshka_weights = matryoshka_weights
        self.preset = preset
        self.negatives = negatives if isinstance(negatives, Negatives) else Negatives(negatives)
        self.min_label = min_label
        # evaluation reads the corpus again and again
        self.corpus = None if corpus is None else reusable(corpus, fields or [encoder.text_field])
        self.fields = fields
        self.rounds = rounds
        self.valid_share = valid_share
        self.measures = tuple(measures)
        self.patience = PRESETS[preset].patience if patience is None else patience
        self.passages = passages
        self.prompts = prompts or {}
        self.seed = seed
        self.resume = resume
        self.overwrite = overwrite
        self.verbose = verbose
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

        Negatives are drawn from the results of each query; for topics without results, from the ``corpus`` of the
        trainer. Evaluation works likewise: results are re-ranked, topics without results search the corpus. Fitting
        again starts anew with the first encoder, and replaces what this trainer has written.

        Args:
            topics_or_results: ``qid`` and ``query``, and for results ``docno`` and the text field of the encoder.
            qrels: ``qid``, ``docno``, ``label``; documents with a label of ``min_label`` or more are positives.
            valid_topics_or_results: The same for evaluation; without it, and without a ``valid_share`` of the trainer,
                the last checkpoint is the best.
            valid_qrels: The judgements for evaluation.

        Returns:
            The trainer.

        Raises:
            ValueError: If there is nothing to train or evaluate with; the error says why.
            TypeError: If identifiers or texts are no strings, or labels no numbers.
            FileExistsError: If the folder holds the run of another trainer, without ``resume`` or ``overwrite``.
        """
        topics_or_results, qrels = judged(topics_or_results, qrels)
        queries = JudgedQueries(
            topics_or_results,
            qrels,
            self.corpus,
            self.fields,
            self._encoder.text_field,
            self.negatives,
            self.min_label,
            self.seed,
        )
        if self.valid_share is not None:
            if valid_topics_or_results is not None or valid_qrels is not None:
                raise ValueError(
                    f"valid_share={self.valid_share} holds out some of the queries to evaluate with, and validation "
                    "topics or qrels were given too; leave one of them out"
                )
            queries, valid_topics_or_results, valid_qrels = queries.hold_out(self.valid_share)
        elif valid_topics_or_results is None:
            logger.warning(
                "training ends with the last step, better or not: there are no validation topics; valid_share=0.1 "
                "holds out a tenth of the queries, and keeps the encoder of the best step"
            )
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
        """Train with triples that are there already.

        Args:
            source: A PyTerrier dataset with docpairs, or texts as
                :func:`~pyterrier_selfdistill.data.triples.read_triples` takes them: a frame, a ``datasets.Dataset``,
                an iterable, or a file. Several of these, ``{"a": ..., "b": ...}`` by the names of their collections,
                train at once: each batch is of one of them.
            valid_topics_or_results: As in :meth:`fit`; or those of several collections by name: the mean of the first
                measure over them decides which checkpoint is best.
            valid_qrels: As in :meth:`fit`, or by the same names.
            topics: The queries (``qid``, ``query``) of a source that holds identifiers in place of texts; documents are
                those of the ``corpus``. See :func:`~pyterrier_selfdistill.data.triples.read_triples`.
            max_pairs_per_query: For docpairs and identifiers: how many to keep of each query.
            limit: How many triples to keep in all, of each collection: a sample of docpairs and identifiers, the first
                ones of texts.
            store_texts: For docpairs and identifiers: whether to store their texts, or to look them up in each step.

        Returns:
            The trainer.

        Raises:
            ValueError: As :meth:`fit`.
            FileExistsError: As :meth:`fit`.

        Example:
            ::

                trainer.fit_triples(pt.get_dataset("irds:msmarco-passage/train"), max_pairs_per_query=128)
                trainer.fit_triples("triples.tsv")
                trainer.fit_triples("qidpidtriples.tsv", topics=dataset.get_topics())  # with corpus= at the trainer
                trainer.fit_triples({"questions": "questions.tsv", "claims": claims})
        """
        if self.rounds > 1:
            raise ValueError(
                f"rounds={self.rounds} mines hard negatives: give topics and qrels to fit, or leave rounds out"
            )
        if self.valid_share is not None:
            raise ValueError(
                f"valid_share={self.valid_share} holds out queries of fit, and triples do not say which query they are "
                "of; give validation topics and qrels to fit_triples, such as a part of split_queries that the triples "
                "are not of, and leave it out"
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
        """Read, prepare, train, save."""
        backend, timeout = self.arguments.get("ddp_backend"), self.arguments.get("ddp_timeout", TIMEOUT)
        with joined(self._encoder.device, backend, timeout), ExitStack() as stack:
            with in_turn():
                triples = read()
                if self.passages is not None:
                    triples = self._with_passages(triples, self.passages)
            logger.info("training with %s", triples.summary)
            encoder, start = copy_to_train(self._encoder, self.adapter, self.seed)
            evaluator = self._make_evaluator(encoder, valid_topics_or_results, valid_qrels, queries)
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
            # only now, since a bad argument must not cost an earlier run; a trainer that fits again replaces its own
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
            adapted = None if self.adapter is None else encoder
            if adapted is not None:
                encoder = adapted.merge_adapter()
            agree(lambda: self._run.save(encoder, adapted, self.history, self._logs))
            # for the other processes too, which have not saved it
            encoder.path = self._run.model
            encoder.name = str(self._run.model)
            self._trained = encoder

    def _with_passages(self, triples: Triples, passages: pt.Transformer) -> Triples:
        """Replace documents by their best passages."""
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
                    f"scale={self.scale} is for the targets {SOFTMAX_TARGETS}, got target={target!r}; choose one of "
                    "these, or omit scale"
                )
            return AdaptiveMarginLoss(cast(Any, target), self.in_batch, self.error)
        if self.in_batch or self.error != "l2":
            raise ValueError(
                f"target={target!r} compares with the whole batch and has no error function, got in_batch="
                f"{self.in_batch} and error={self.error!r}; omit them, or choose the target that they are for, such as "
                "target='adaptive'"
            )
        return SoftmaxLoss(cast(SoftmaxTarget, target), self.scale)

    def _loss_maker(self) -> LossMaker:
        """Return what makes the loss of a run for its model."""
        loss = self._default_loss() if self.loss is None else self.loss
        if loss is self.loss and (self.target, self.in_batch, self.error, self.scale) != (None, False, "l2", None):
            raise ValueError(
                f"loss={loss!r} was given with target, in_batch, error or scale; set those in the loss itself"
            )
        if isinstance(loss, EmbeddingLoss):
            make: LossMaker = partial(SelfDistillationLoss, loss=loss, mini_batch_size=self.mini_batch_size)
        elif isinstance(loss, nn.Module) or not callable(loss):
            raise TypeError(
                f"expected an AdaptiveMarginLoss, a SoftmaxLoss or a function of the model, got loss={loss!r}; for "
                "another loss give its class, such as MultipleNegativesRankingLoss, or "
                "lambda model: TheLoss(model, ...)"
            )
        elif self.mini_batch_size is not None:
            raise ValueError(
                f"mini_batch_size={self.mini_batch_size} is for the losses of this package, got loss={loss!r}; omit "
                "it, and give a loss that has a gradient cache, such as "
                "lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=...)"
            )
        else:
            make = loss
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if dims is None:
            if weights is not None:
                raise ValueError(f"matryoshka_weights={weights} needs matryoshka_dims; give them too")
            return make
        if len(set(dims)) < len(dims):
            raise ValueError(f"matryoshka_dims={dims} has a number twice; give each once")
        if weights is not None and len(weights) != len(dims):
            raise ValueError(f"matryoshka_weights={weights} must have a number for each of matryoshka_dims={dims}")
        return partial(matryoshka_loss, make, dims, weights)

    def _make_evaluator(
        self, encoder: SelfDistillBiEncoder, topics: Frames | None, qrels: Frames | None, queries: JudgedQueries | None
    ) -> Evaluator | None:
        """Make the evaluator; judgements of queries to train with are not those of queries without candidates."""
        if (topics is None and qrels is None) or self.arguments.get("eval_strategy") == "no":
            return None
        if topics is None or qrels is None:
            raise ValueError("evaluation needs validation topics (or results) and qrels; only one of them was given")
        options = {name: getattr(encoder, name) for name in ("batch_size", "text_field", "dtype")}
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
                "validation topics (or results) and qrels must both be of one collection, or both name collections "
                f"such as {{'a': ...}}, got a {type(topics).__name__} and a {type(qrels).__name__}"
            )
        if isinstance(topics, Mapping):
            require_names(topics, "valid_topics_or_results")
            if topics.keys() != qrels.keys():
                raise ValueError(
                    "validation topics (or results) and qrels must be of the same collections, got "
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
        """Measure the scale of a :class:`SoftmaxLoss` on batches as training will have them, to three digits."""
        # otherwise the trained weights would depend on the precision of encoding
        encoder = encoder.apply_attributes(dtype="float32")
        parts: Mapping[str, Dataset] = dataset if isinstance(dataset, DatasetDict) else {"": dataset}
        share = SCALE_TRIPLES / sum(map(len, parts.values()))
        generator = np.random.default_rng(self.seed)
        batches = []
        for name, part in parts.items():
            number = min(len(part), max(batch_size, round(share * len(part))))
            rows = generator.choice(len(part), number, replace=False).tolist()
            of_part = encoder.with_prompts(**self.prompts.get(name, {}))
            batches += [(of_part, part[some]) for some in chunked(rows, batch_size)]
        margins = []
        for of_part, batch in progress_bar(batches, desc="Measuring the scale", unit="batch", disable=not self.verbose):
            documents = [text for name, texts in batch.items() if name not in ("query", LABEL) for text in texts]
            scores = of_part.encode_queries(batch["query"]) @ of_part.encode_docs(documents).T
            pairs = set(zip(batch["query"], batch["positive"], strict=True))
            for row, query in enumerate(batch["query"]):
                is_other = np.array([(query, document) not in pairs for document in documents])
                margins.append(scores[row, row] - scores[row, is_other])
        margins = [margin for margin in margins if len(margin)]
        if not margins:
            raise ValueError(
                "expected batches with at least two different positives, got one positive in all; give more triples, "
                "or train with another target, such as target='distributed'"
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
        """Describe a run for its summary and its card, and to resume it only with the same settings."""
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
        """Encode or score with the trained encoder.

        Args:
            inp: A frame with queries, documents or both.

        Returns:
            The frame with vectors, or with scores and ranks.

        Raises:
            NotFittedError: Before training.
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
        """A row for each step of training that was logged or evaluated."""
        return history_frame(self._logs, map(str, self.measures))

    def plot(self) -> Figure:
        """Draw the history, for a notebook or with ``savefig``.

        Returns:
            The figure.

        Raises:
            NotFittedError: Before training.
        """
        if not self._logs:
            raise NotFittedError("there is no history to draw yet; call fit or fit_triples first")
        return plot_history(self.history)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """Return no transformer: PyTerrier would inspect the encoder, which exists only after training."""
        return {}

    def __repr__(self) -> str:
        return f"SelfDistillTrainer({self._encoder!r}, {str(self.output_dir)!r})"


def copy_to_train(
    base: SelfDistillBiEncoder, adapter: Any, seed: int
) -> tuple[SelfDistillBiEncoder, SelfDistillBiEncoder]:
    """Return a float32 copy to train, perhaps with an adapter, and the encoder to keep if training improves nothing."""
    if adapter is None:
        encoder = base.copy()
        encoder.model.float()  # in 16 bits most updates would round to nothing; autocast is for speed
        return encoder, base
    source = saved_base(base.model, base.name)
    adapted = []
    for _ in range(2):
        model = copied(base.model, torch.float32)
        add_adapter(model, adapter, base=source, seed=seed)
        encoder = base.apply_attributes(model=model)
        encoder.name = base.name
        adapted.append(encoder)
    return adapted[0], adapted[1]
