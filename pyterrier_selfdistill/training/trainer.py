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

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
import pyterrier as pt
from datasets import Dataset
from ir_measures import nDCG
from pydantic import SkipValidation
from sentence_transformers import SentenceTransformer
from torch import nn

from ..adapters import AdapterConfig, require_adaptable
from ..biencoder import SelfDistillBiEncoder
from ..compat import schematic
from ..data.corpus import Corpus, reusable
from ..data.negatives import Negatives
from ..data.triples import PairOptions
from ..losses import ErrorName
from ..nested_loss import Dimensions, EmbeddingLoss, Weights
from ..options import Expected, FieldNames, FolderPath, Measures, PositiveInteger, Seed, ShareBetween, checked, plain
from ..prompts import PromptsByCollection
from .arguments import (
    PRESETS,
    require_arguments,
    require_rounds,
    require_valid_share,
)
from .checkpoints import RunFolder
from .fitting import EncoderFitter, ValidationData
from .sources import JudgedQueries, read_triples
from .targets import TrainingTarget, loss_maker

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
        error: How deviations from the target count: ``"l2"``, ``"l1"``, ``"soft"`` or ``"hinge"``.
        loss: Instead of these three: an :class:`AdaptiveMarginLoss` with more options, or a function that makes any
            loss of sentence-transformers for a model, such as ``MultipleNegativesRankingLoss``.
        mini_batch_size: How many texts to go back through the model with at once, for batches that do not fit into
            memory: the same loss and gradients (see :class:`SelfDistillationLoss`), for a forward pass more.
        adapter: A configuration of PEFT, such as ``peft.LoraConfig(r=16)``, to train an adapter in place of all
            weights, with ``pip install pyterrier-selfdistill[adapters]``. It is merged into the trained encoder, and
            written alone to the folder ``adapter`` of ``output_dir``. Search its ``learning_rate`` anew.
        matryoshka_dims: To train vectors that can be cut (Matryoshka): the numbers of dimensions, such as ``[384, 192,
            96, 48]``, which begin with that of the encoder; see :class:`NestedDimensionsLoss`.
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
                :func:`~pyterrier_selfdistill.data.triples.from_texts` takes them: a frame, a ``datasets.Dataset``,
                an iterable, or a file. Several of these, ``{"a": ..., "b": ...}`` by the names of their collections,
                train at once: each batch is of one of them.
            valid_topics_or_results: As in :meth:`fit`; or those of several collections by name: the mean of the first
                measure over them decides which checkpoint is best.
            valid_qrels: As in :meth:`fit`, or by the same names.
            topics: The queries (``qid``, ``query``) of a source that holds identifiers in place of texts; documents are
                those of the ``corpus``. See :func:`~pyterrier_selfdistill.data.triples.from_identifiers`.
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
        options = PairOptions(
            max_pairs_per_query=max_pairs_per_query,
            limit=limit,
            seed=self.seed,
            fields=self.fields or [self._encoder.text_field],
            store_texts=store_texts,
            verbose=self.verbose,
        )
        read = partial(read_triples, source, topics, self.corpus, options)
        self._train(read, ValidationData(valid_topics_or_results, valid_qrels))
        return self

    def __repr__(self) -> str:
        return f"SelfDistillTrainer({self._encoder!r}, {str(self.output_dir)!r})"
