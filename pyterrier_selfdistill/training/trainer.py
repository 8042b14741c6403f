"""The trainer: a PyTerrier estimator over the training loop of sentence-transformers.

:class:`SelfDistillTrainer` copies an encoder, makes triples of what it is given (:mod:`..data`), trains the copy with
the self-distillation loss (:mod:`..losses`) while measuring retrieval (:mod:`.evaluation`), and leaves the best
checkpoint and the history in one folder (:mod:`.checkpoints`). As with every estimator of PyTerrier, a pipeline before
it gives the negatives::

    encoder = SelfDistillBiEncoder.from_pretrained("microsoft/mpnet-base")
    trainer = SelfDistillTrainer(encoder, output_dir="runs/mpnet")
    (bm25 % 100 >> pt.text.get_text(dataset) >> trainer).fit(topics, qrels, valid_topics, valid_qrels)
    trainer.encoder.save("my-model")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pandas as pd
import pyterrier as pt
import torch
from datasets import Dataset
from ir_measures import Measure, nDCG
from matplotlib.figure import Figure
from pydantic import SkipValidation
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from torch import nn

from ..data.corpus import Corpus, reusable
from ..data.negatives import Negatives
from ..data.triples import TrainingSet, Triples, parts_of, read_triples
from ..encoder.adapters import AdapterConfig, add_adapter, require_adaptable, saved_base
from ..encoder.biencoder import PromptsByCollection, SelfDistillBiEncoder
from ..encoder.precision import copied
from ..losses import EmbeddingLoss, ErrorName
from ..utils.checks import (
    Expected,
    FieldNames,
    FolderPath,
    Measures,
    PositiveInteger,
    Seed,
    ShareBetween,
    checked,
    plain,
)
from ..utils.compat import schematic
from ..utils.processes import TIMEOUT, agree, joined
from .arguments import (
    PRESETS,
    Dimensions,
    LossMaker,
    TrainingTarget,
    Weights,
    decisive,
    exponential_decay,
    loss_maker,
    make_training_arguments,
    require_arguments,
    require_known,
    require_rounds,
    require_valid_share,
    run_settings,
)
from .callbacks import HardNegativeMiner, make_miner
from .evaluation import Evaluator, make_evaluator
from .history import history_frame, plot_history
from .loop import TrainingLoop, read_in_turn, require_batches, require_whole_models
from .mining import JudgedQueries, with_passages
from .run_folder import RunFolder


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
        self, read: Callable[[], Triples], validation: ValidationData, queries: JudgedQueries | None = None
    ) -> None:
        """Train a copy of the first encoder, and save it; together with other processes, if they were launched.

        Args:
            read: What reads the triples.
            validation: What to evaluate with.
            queries: What to mine hard negatives for; None if triples were there already.
        """
        ddp = self.arguments.get("ddp_backend"), self.arguments.get("ddp_timeout", TIMEOUT)
        with joined(self._encoder.device, *ddp):
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

    def _read(self, read: Callable[[], Triples]) -> Triples:
        """Read the triples, and have passages in place of their documents if that was asked for."""
        data = read()
        if self.passages is None:
            return data
        return with_passages(data, self.passages, self._encoder, self.prompts, verbose=self.verbose)

    def _prepare(self, data: Triples, validation: ValidationData, queries: JudgedQueries | None) -> Preparation:
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


Encoder = Annotated[
    SelfDistillBiEncoder, Expected("a SelfDistillBiEncoder; make one with SelfDistillBiEncoder.from_pretrained(name)")
]


@checked
class SelfDistillTrainer(EncoderFitter):
    """Train a biencoder by self-distillation with adaptive relevance margins.

    The encoder that it is given stays as it is. After :meth:`fit` or :meth:`fit_triples`, :attr:`encoder` is the
    trained one, and the trainer itself scores in pipelines as that does.

    Args:
        encoder: Where training starts.
        output_dir: The folder for the model, the history and the checkpoints.
        target: What to train margins for: ``"calibrated"``, for :class:`CalibratedLoss`, or a target of
            :class:`AdaptiveMarginLoss`; by default that of the preset.
        in_batch: Whether the negatives of the other queries of a batch count too.
        error: How deviations from the target count: ``"l2"``, ``"l1"`` or ``"soft"``.
        loss: Instead of these three: an :class:`AdaptiveMarginLoss` with more options, or a function that makes any
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
        **arguments: Any argument of ``SentenceTransformerTrainingArguments``, such as ``learning_rate``,
            ``per_device_train_batch_size``, ``num_train_epochs`` or ``report_to="wandb"``.

    Raises:
        TypeError: If an argument is not known.
        ValueError: If options contradict each other.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = SelfDistillTrainer(encoder, folder, num_train_epochs=3, verbose=False)
        ...     trained = trainer.fit_triples([("sort", "sort the rows", "read a file")] * 2).encoder
        >>> trained == encoder
        False
    """

    schematic: ClassVar = schematic("SelfDistillTrainer")

    def __init__(
        self,
        encoder: Encoder,
        output_dir: FolderPath,
        *,
        target: TrainingTarget | None = None,
        in_batch: bool = False,
        error: ErrorName = "l2",
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
        **arguments: Any,
    ) -> None:
        require_adaptable(encoder.model, adapter)
        require_rounds(rounds, corpus, passages)
        require_arguments(arguments, resume=resume, overwrite=overwrite)
        require_valid_share(valid_share, arguments)
        super().__init__(encoder, measures)
        self._run = RunFolder(output_dir)
        self.output_dir = self._run.path
        self.target = target
        self.in_batch = in_batch
        self.error = error
        self.loss = loss
        self.mini_batch_size = mini_batch_size
        self.adapter = adapter
        self.matryoshka_dims = matryoshka_dims
        self.matryoshka_weights = matryoshka_weights
        self._make_loss = loss_maker(
            loss,
            target,
            in_batch,
            error,
            mini_batch_size,
            default=PRESETS[preset].target,
            matryoshka_dims=matryoshka_dims,
            matryoshka_weights=matryoshka_weights,
        )
        self.preset = preset
        self.negatives = negatives if isinstance(negatives, Negatives) else Negatives(negatives)
        self.min_label = min_label
        # evaluation reads the corpus again and again
        self.corpus = None if corpus is None else reusable(corpus)
        self.fields = fields
        self.rounds = rounds
        self.valid_share = valid_share
        self.patience = PRESETS[preset].patience if patience is None else patience
        self.passages = passages
        self.prompts = prompts or {}
        self.seed = seed
        self.resume = resume
        self.overwrite = overwrite
        self.verbose = verbose
        self.arguments = {name: plain(value) for name, value in arguments.items()}

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
        text_field = self._encoder.text_field
        draw: dict[str, Any] = {"negatives": self.negatives, "min_label": self.min_label, "seed": self.seed}
        queries = JudgedQueries(topics_or_results, qrels, self.corpus, self.fields, text_field, **draw)
        if self.valid_share is not None:
            if valid_topics_or_results is not None or valid_qrels is not None:
                raise ValueError(
                    f"valid_share={self.valid_share} holds out some of the queries to evaluate with, and validation "
                    "topics or qrels were given too; leave one of them out"
                )
            queries, valid_topics_or_results, valid_qrels = queries.hold_out(self.valid_share)
        self._train(queries.draw, ValidationData(valid_topics_or_results, valid_qrels), queries)
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
        read = partial(
            read_triples,
            source,
            topics=topics,
            corpus=self.corpus,
            fields=self.fields or [self._encoder.text_field],
            max_pairs_per_query=max_pairs_per_query,
            limit=limit,
            seed=self.seed,
            store_texts=store_texts,
            verbose=self.verbose,
        )
        self._train(read, ValidationData(valid_topics_or_results, valid_qrels))
        return self

    def __repr__(self) -> str:
        return f"SelfDistillTrainer({self._encoder!r}, {str(self.output_dir)!r})"
