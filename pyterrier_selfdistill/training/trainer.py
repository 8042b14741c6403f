"""The trainer: a PyTerrier estimator over the training loop of sentence-transformers.

:class:`SelfDistillTrainer` copies an encoder, makes triples of what it is given (:mod:`.triples`), trains the copy
with the self-distillation loss (:mod:`.losses`) while measuring retrieval (:mod:`.validation`), and keeps the best
checkpoint and a report (:mod:`.report`) in one folder::

    output_dir/
        model/         the encoder at its best checkpoint, as SelfDistillBiEncoder.save writes it
        history.csv    loss, margin, target, learning rate and measures, by step
        history.png    the same, drawn
        checkpoints/   what is needed to go on
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pandas as pd
import pyterrier as pt
import sentence_transformers
import torch
import transformers
from datasets import Dataset
from ir_measures import Measure, nDCG
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from ..biencoder import SelfDistillBiEncoder
from ..data import triples
from ..data.cache import Triples
from ..data.columns import LABEL
from ..data.corpus import Corpus, Documents
from ..data.negatives import Negatives, from_results, from_topics
from ..losses import AdaptiveMarginLoss, SelfDistillationLoss
from ..validate import require_measures, require_positive_integer
from . import history as report
from .arguments import PRESETS, mixed_precision
from .evaluation import RetrievalEvaluator, search
from .similarity import has_collapsed, has_forgotten, mean_cosine, representational_similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MINING_DEPTH = 100
"""How many documents are searched for when negatives are mined, unless ``range_max`` says so."""


WATCHED_DOCUMENTS = 32
"""How many documents of the training data are encoded now and then, to see what becomes of their similarity."""


class NotFittedError(AttributeError, RuntimeError):
    """A trainer was asked for what there is only after training."""


class SelfDistillTrainer(pt.Estimator):
    """Trains a biencoder by self-distillation with adaptive relevance margins.

    The encoder that it is given stays as it is. After :meth:`fit` or :meth:`fit_triples`, :attr:`encoder` is the
    trained one, and the trainer itself scores in pipelines as that does.

    Args:
        encoder: Where training starts.
        output_dir: The folder for the model, the history and the checkpoints.
        target: The margin to train for, as :class:`AdaptiveMarginLoss` takes it.
        in_batch: Whether the negatives of the other queries of a batch count too.
        error: How deviations from the target count: ``"l2"``, ``"l1"`` or ``"soft"``.
        loss: Instead of these three: an :class:`AdaptiveMarginLoss` with more options, or a function that makes any
            loss of sentence-transformers for a model, such as ``MultipleNegativesRankingLoss``.
        preset: ``"default"`` or ``"paper"``, the recipe of the paper.
        negatives: How many negatives a triple gets in :meth:`fit`, or :class:`Negatives` that say which.
        min_label: The lowest label of a positive in :meth:`fit`.
        corpus: The documents: a PyTerrier dataset, a frame or a list of records. Negatives are drawn from it where
            :meth:`fit` gets topics, relevant documents that were not retrieved get their text from it, and it is
            searched where validation topics come without candidates.
        fields: The fields of documents of a dataset or a corpus that make a text, such as ``["title", "text"]``, if not
            the encoder's text field alone.
        rounds: Into how many equal parts to divide the steps of :meth:`fit`. From the second on, negatives are drawn
            again, from what the encoder as trained so far finds in the ``corpus``.
        remine_steps: Instead of ``rounds``: after how many steps to draw negatives again.
        measures: What to measure in validation; the first decides which checkpoint is best.
        patience: After how many validations without improvement to stop, if not as the preset says.
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
        With negatives of a retriever, as with every estimator of PyTerrier::

            encoder = SelfDistillBiEncoder.from_pretrained("microsoft/mpnet-base")
            trainer = SelfDistillTrainer(encoder, output_dir="runs/mpnet")
            (bm25 % 100 >> pt.text.get_text(dataset) >> trainer).fit(topics, qrels, valid_topics, valid_qrels)
            trainer.encoder.save("my-model")

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = SelfDistillTrainer(encoder, folder, num_train_epochs=3, verbose=False)
        ...     trained = trainer.fit_triples([("sort", "sort the rows", "read a file")] * 2).encoder
        >>> trained == encoder
        False
    """

    schematic: ClassVar = {"label": "SelfDistillTrainer"}

    def __init__(
        self,
        encoder: SelfDistillBiEncoder,
        output_dir: str | Path,
        *,
        target: Literal["distributed", "adaptive", "trusting"] | float = "distributed",
        in_batch: bool = False,
        error: Literal["l2", "l1", "soft"] = "l2",
        loss: AdaptiveMarginLoss | Callable[[SentenceTransformer], nn.Module] | None = None,
        preset: Literal["default", "paper"] = "default",
        negatives: int | Negatives = 1,
        min_label: int = 1,
        corpus: Corpus | None = None,
        fields: Sequence[str] | None = None,
        rounds: int = 1,
        remine_steps: int | None = None,
        measures: Sequence[Measure] = (nDCG @ 10,),
        patience: int | None = None,
        seed: int = 42,
        resume: bool = False,
        overwrite: bool = False,
        verbose: bool = True,
        **arguments: Any,
    ) -> None:
        if not isinstance(encoder, SelfDistillBiEncoder):
            raise TypeError(
                f"the encoder is a {type(encoder).__name__}; give a SelfDistillBiEncoder, for instance "
                "SelfDistillBiEncoder.from_pretrained(name)"
            )
        if loss is not None and (target, in_batch, error) != ("distributed", False, "l2"):
            raise ValueError(f"loss={loss!r} was given beside target, in_batch or error; set those in the loss itself")
        if not (loss is None or isinstance(loss, AdaptiveMarginLoss)) and (
            isinstance(loss, nn.Module) or not callable(loss)
        ):
            raise TypeError(
                f"loss={loss!r} is neither an AdaptiveMarginLoss nor a function of the model; for another loss give "
                "its class, such as MultipleNegativesRankingLoss, or lambda model: TheLoss(model, ...)"
            )
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r} is unknown; use one of {', '.join(map(repr, PRESETS))}")
        require_positive_integer("min_label", min_label)
        require_positive_integer("rounds", rounds)
        if remine_steps is not None:
            require_positive_integer("remine_steps", remine_steps)
        if rounds > 1 and remine_steps is not None:
            raise ValueError(f"rounds={rounds} and remine_steps={remine_steps} both say when to mine; choose one")
        if (rounds > 1 or remine_steps is not None) and corpus is None:
            raise ValueError("negatives can be mined again only where corpus= says what to search")
        if (rounds > 1 or remine_steps is not None) and arguments.get("dataloader_num_workers"):
            raise ValueError("workers of a data loader would not see what is mined; leave dataloader_num_workers out")
        require_measures(measures)
        if patience is not None:
            require_positive_integer("patience", patience)
        if resume and overwrite:
            raise ValueError("resume=True goes on with a run and overwrite=True replaces it; choose one")
        known = {field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments) if field.init}
        if unknown := sorted(arguments.keys() - known):
            raise TypeError(
                f"unknown arguments {unknown}: neither of SelfDistillTrainer nor of sentence-transformers' "
                "SentenceTransformerTrainingArguments"
            )
        self._encoder = encoder
        self._trained: SelfDistillBiEncoder | None = None
        self._logs: list[dict[str, Any]] = []
        self.output_dir = Path(output_dir)
        self.target, self.in_batch, self.error = target, in_batch, error
        self.loss = loss
        self._objective = AdaptiveMarginLoss(target, in_batch, error) if loss is None else loss
        self.preset = preset
        self.negatives = negatives if isinstance(negatives, Negatives) else Negatives(negatives)
        self.min_label = min_label
        # validation reads the corpus again and again
        self.corpus = list(corpus) if isinstance(corpus, Iterator) else corpus
        self.fields = fields
        self.rounds = rounds
        self.remine_steps = remine_steps
        self.measures = tuple(measures)
        self.patience = PRESETS[preset].patience if patience is None else patience
        self.seed = seed
        self.resume = resume
        self.overwrite = overwrite
        self.verbose = verbose
        self.arguments = arguments

    def fit(
        self,
        topics_or_results: pd.DataFrame,
        qrels: pd.DataFrame,
        valid_topics_or_results: pd.DataFrame | None = None,
        valid_qrels: pd.DataFrame | None = None,
    ) -> SelfDistillTrainer:
        """Trains with judged positives.

        Negatives are drawn from the results of each query; for topics without results, from the ``corpus`` of the
        trainer. Validation works likewise: results are re-ranked, topics without results search the corpus. Fitting
        again starts anew with the first encoder, and replaces what this trainer has written.

        Args:
            topics_or_results: ``qid`` and ``query``, and for results ``docno`` and the text field of the encoder.
            qrels: ``qid``, ``docno``, ``label``; documents with a label of ``min_label`` or more are positives.
            valid_topics_or_results: The same to validate with; without it the last checkpoint is the best.
            valid_qrels: The judgements to validate with.

        Returns:
            The trainer.

        Raises:
            ValueError: If there is nothing to train or validate with; the error says why.
            TypeError: If identifiers or texts are no strings, or labels no numbers.
            FileExistsError: If the folder holds the run of another trainer, without ``resume`` or ``overwrite``.
        """
        options: dict[str, Any] = {
            "negatives": self.negatives,
            "min_label": self.min_label,
            "seed": self.seed,
            "text_field": self._encoder.text_field,
            "fields": self.fields,
        }
        if "docno" in topics_or_results:
            data = from_results(topics_or_results, qrels, corpus=self.corpus, **options)
        elif self.corpus is not None:
            data = from_topics(topics_or_results, qrels, self.corpus, **options)
        else:
            raise ValueError(
                f"there are no negatives to train with: the topics have the columns {list(topics_or_results.columns)}; "
                "put a retriever and pt.text.get_text before the trainer, or give it corpus= to draw from"
            )
        miner = None
        if self.rounds > 1 or self.remine_steps is not None:
            documents = Documents(cast(Corpus, self.corpus), self.fields or [self._encoder.text_field])
            topics = topics_or_results[["qid", "query"]].drop_duplicates("qid")

            def mine(encoder: SelfDistillBiEncoder, step: int) -> Dataset:
                results = search(encoder, topics, documents, self.negatives.range_max or MINING_DEPTH)
                again = {**options, "seed": self.seed + step}
                return from_results(results, qrels, corpus=self.corpus, **again).dataset

            miner = _Miner(mine, self.rounds, self.remine_steps, self.output_dir / "checkpoints")
        return self._train(data, valid_topics_or_results, valid_qrels, miner)

    def fit_triples(
        self,
        source: pd.DataFrame | Dataset | pt.datasets.Dataset | str | Path | Iterable[Any],
        valid_topics_or_results: pd.DataFrame | None = None,
        valid_qrels: pd.DataFrame | None = None,
        *,
        topics: pd.DataFrame | None = None,
        max_pairs_per_query: int | None = None,
        limit: int | None = None,
        store_texts: bool = True,
    ) -> SelfDistillTrainer:
        """Trains with triples that are there already.

        Args:
            source: A PyTerrier dataset with docpairs, or texts as :func:`triples.from_texts` takes them: a frame, a
                ``datasets.Dataset``, an iterable, or a file.
            valid_topics_or_results: As in :meth:`fit`.
            valid_qrels: As in :meth:`fit`.
            topics: The queries (``qid``, ``query``) of a source that holds identifiers in place of texts; documents are
                those of the ``corpus``. See :func:`triples.from_identifiers`.
            max_pairs_per_query: For docpairs and identifiers: how many to keep of each query.
            limit: How many triples to keep in all: a sample of docpairs and identifiers, the first ones of texts.
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
        """
        if self.rounds > 1 or self.remine_steps is not None:
            raise ValueError("triples that are there already are not mined again; give topics and qrels to fit")
        options = triples.PairOptions(
            max_pairs_per_query=max_pairs_per_query,
            limit=limit,
            seed=self.seed,
            fields=self.fields or (self._encoder.text_field,),
            store_texts=store_texts,
            verbose=self.verbose,
        )
        if isinstance(source, pt.datasets.Dataset):
            data = triples.from_docpairs(source, options)
        elif topics is not None:
            if self.corpus is None:
                raise ValueError("topics= says that the source holds identifiers; give their documents as corpus=")
            data = triples.from_identifiers(source, topics, self.corpus, options)
        elif max_pairs_per_query is not None:
            raise ValueError(
                f"max_pairs_per_query={max_pairs_per_query} needs a PyTerrier dataset with docpairs, or topics="
                f" for identifiers; the source is a {type(source).__name__}, whose triples have no query identifiers"
            )
        else:
            data = triples.from_texts(source, limit=limit)
        return self._train(data, valid_topics_or_results, valid_qrels)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encodes or scores with the trained encoder.

        Raises:
            NotFittedError: If nothing was trained yet and there is something to score.
        """
        # PyTerrier inspects transformers with empty frames, before training too
        return (self._encoder if self._trained is None and inp.empty else self.encoder).transform(inp)

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
        """What happened, as a frame with one row a step that was logged; see :func:`report.history`."""
        return report.history(self._logs, map(str, self.measures))

    def plot(self) -> Figure:
        """Draws the loss, the margins against the targets, and the first measure of validation.

        Raises:
            NotFittedError: Before training.
        """
        if not self._logs:
            raise NotFittedError("there is no history to draw yet; call fit or fit_triples first")
        return report.plot(self.history)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """The encoder is no step of a pipeline of its own."""
        return {}

    def __repr__(self) -> str:
        return f"SelfDistillTrainer({self._encoder!r}, {str(self.output_dir)!r})"

    def _train(
        self,
        data: Triples,
        valid_topics_or_results: pd.DataFrame | None,
        valid_qrels: pd.DataFrame | None,
        miner: _Miner | None = None,
    ) -> SelfDistillTrainer:
        if (valid_topics_or_results is None) != (valid_qrels is None):
            raise ValueError("validation needs topics (or results) and qrels; only one of them was given")
        logger.info("training with %s", data.summary)
        encoder = self._encoder.copy()
        encoder.model.float()  # in 16 bits most updates would round to nothing; autocast is for speed
        evaluator = None
        if valid_topics_or_results is not None:
            options = {name: getattr(encoder, name) for name in ("batch_size", "text_field")}
            evaluator = RetrievalEvaluator(
                valid_topics_or_results,
                valid_qrels,
                self.measures,
                corpus=self.corpus,
                fields=self.fields,
                encoder_options=options,
            )
        loss = self._make_loss(encoder.model)
        settings = {
            "data": data.summary,
            "loss": {"name": type(loss).__name__, **getattr(loss, "get_config_dict", dict)()},
            "preset": self.preset,
            "rounds": self.rounds,
            "remine_steps": self.remine_steps,
            "arguments": self.arguments,
            "seed": self.seed,
            "base_model": {"name": self._encoder.name, "checksum": self._encoder.model_name},
        }
        arguments = self._training_arguments(encoder, data.dataset, evaluator)
        checkpoint = self._prepare_output_dir(settings)  # only now: a bad argument must not cost an earlier run
        arguments.eval_on_start = arguments.eval_on_start and checkpoint is None
        scheduled = self.arguments.keys() & {"lr_scheduler_type", "warmup_steps", "warmup_ratio"}
        loop = _Loop(
            model=encoder.model,
            args=arguments,
            train_dataset=data.dataset if miner is None else data.dataset.with_transform(miner.replace),
            loss=loss,
            evaluator=evaluator,
            decay=None if scheduled else PRESETS[self.preset].decay,
        )
        loop.remove_callback(PrinterCallback)
        if self.verbose:
            loop.add_callback(_ProgressBar())
        if miner is not None:
            miner.encoder = encoder
            loop.add_callback(miner)
        watch = _WatchSimilarity(encoder, data.dataset)
        loop.add_callback(watch)
        if evaluator is not None:
            loop.add_callback(_ValidateLast())
            loop.add_callback(EarlyStoppingCallback(self.patience))
        started = time.monotonic()
        with _without_progress_bars_of_transformers():
            loop.train(resume_from_checkpoint=checkpoint)

        self._logs = loop.state.log_history
        # mixed precision is for training: without this the encoder would not compute as its saved model does
        loop.accelerator.unwrap_model(encoder.model, keep_fp32_wrapper=False)
        encoder.model.eval()
        encoder.training_summary = {
            **settings,
            "steps": loop.state.global_step,
            "best_step": loop.state.best_global_step,
            "best_measure": {"name": evaluator.primary_metric, "value": loop.state.best_metric} if evaluator else None,
            "seconds": round(time.monotonic() - started, 1),
            "similarity": watch.similarity,
            "history": report.milestones(self.history),
            "versions": {
                module.__name__: module.__version__ for module in (sentence_transformers, transformers, torch)
            },
        }
        self._trained = encoder
        encoder.save(self.output_dir / "model", overwrite=True)
        self.history.to_csv(self.output_dir / "history.csv", index=False)
        report.plot(self.history).savefig(self.output_dir / "history.png", dpi=150)
        self._warn_if_not_better()
        return self

    def _prepare_output_dir(self, settings: dict[str, Any]) -> str | None:
        """Makes the folder, and returns the checkpoint to go on from."""
        checkpoints = self.output_dir / "checkpoints"
        settings = json.loads(json.dumps(settings, default=str))
        if self.overwrite or self._trained is not None:
            shutil.rmtree(checkpoints, ignore_errors=True)  # the model stays until there is another
        # the state is written last, so a checkpoint without it was cut off
        complete = [state.parent for state in checkpoints.glob(f"checkpoint-*/{TRAINER_STATE_NAME}") if _is_json(state)]
        finished = (self.output_dir / "model").exists()
        if self.resume and finished and not complete and self._trained is None:
            raise FileExistsError(
                f"{str(self.output_dir)!r} holds a model but no checkpoint to resume from; load the model with "
                "pt.Artifact.load, or train another with overwrite=True"
            )
        if (complete or finished) and not (self.resume or self.overwrite or self._trained is not None):
            raise FileExistsError(
                f"{str(self.output_dir)!r} holds a run; go on with resume=True, replace it with overwrite=True, or "
                "choose another output_dir"
            )
        checkpoints.mkdir(parents=True, exist_ok=True)
        record = checkpoints / "settings.json"
        if not complete:
            record.write_text(json.dumps(settings, indent=2) + "\n")
            return None
        earlier = json.loads(record.read_text()) if record.exists() else {}
        if changed := [name for name in settings if settings[name] != earlier.get(name)]:
            raise ValueError(
                f"resume=True, but the run in {str(self.output_dir)!r} had other settings: "
                + "; ".join(f"{name} was {earlier.get(name)} and is {settings[name]}" for name in changed)
                + ". Set them as they were, or begin anew with overwrite=True"
            )
        return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2])))

    def _training_arguments(
        self, encoder: SelfDistillBiEncoder, dataset: Dataset, evaluator: RetrievalEvaluator | None
    ) -> SentenceTransformerTrainingArguments:
        texts = [name for name in dataset.column_names if name != LABEL]
        roles = {name: "query" if name == "query" else "document" for name in texts}
        prompts = {name: prompt for name, role in roles.items() if (prompt := encoder.model.prompts.get(role))}
        on_cpu = encoder.device.type == "cpu"
        arguments: dict[str, Any] = {
            "output_dir": str(self.output_dir / "checkpoints"),
            "seed": self.seed,
            "prompts": prompts,
            "router_mapping": roles,  # cuts queries and documents at their own lengths
            "use_cpu": on_cpu,
            "dataloader_pin_memory": not on_cpu,
            "disable_tqdm": True,
            "save_strategy": self.arguments.get("eval_strategy", "steps"),  # the best checkpoint must be there
            "save_total_limit": 2,  # the best and the last
            "restore_callback_states_from_checkpoint": True,  # the patience that is left
            "report_to": "none",
            **PRESETS[self.preset].arguments,
        }
        if not self.arguments.keys() & {"bf16", "fp16"}:
            arguments |= mixed_precision(encoder.device)
        if evaluator is not None:
            arguments |= {
                "eval_strategy": "steps",
                "eval_on_start": True,
                "load_best_model_at_end": True,
                "metric_for_best_model": f"eval_{evaluator.primary_metric}",
                "greater_is_better": True,
            }
        arguments |= self.arguments
        arguments.setdefault("save_steps", arguments["eval_steps"])
        if evaluator is None:
            del arguments["eval_steps"]
        return SentenceTransformerTrainingArguments(**arguments)

    def _make_loss(self, model: SentenceTransformer) -> nn.Module:
        if isinstance(self._objective, AdaptiveMarginLoss):
            return SelfDistillationLoss(model, self._objective)
        return self._objective(model)

    def _warn_if_not_better(self) -> None:
        values = self.history.set_index("step")[str(self.measures[0])].dropna()
        if 0 in values.index and len(values) > 1 and values.iloc[1:].max() <= values.iloc[0]:
            logger.warning(
                "training did not improve %s on the validation queries: %.4f before, %.4f at best after. Try another "
                "learning_rate, harder negatives (a retriever before the trainer) or more data",
                self.measures[0],
                values.iloc[0],
                values.iloc[1:].max(),
            )


class _Loop(SentenceTransformerTrainer):
    """The training loop, with margins and targets in its log and an exponential schedule."""

    def __init__(self, *, decay: float | None, **options: Any) -> None:
        self.decay = decay
        super().__init__(**options)

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        loss = super().compute_loss(*args, **options)
        if statistics := getattr(self.loss, "statistics", None):
            self.track_loss_components(statistics)
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.decay is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            optimizer = cast(torch.optim.Optimizer, optimizer or self.optimizer)
            self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)  # type: ignore[assignment]
        return self.lr_scheduler


class _ProgressBar(ProgressCallback):
    """A bar with the loss, the mean margin, the mean target and the measures beside it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = pt.tqdm(total=state.max_steps, initial=state.global_step, desc="Training", unit="step")
            self.shown: dict[str, str] = {}
        self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            names = {name: name for name in ("loss", "margin", "target")}
            names |= {key: key.removeprefix("eval_") for key in logs if key.startswith("eval_") and "@" in key}
            self.shown |= {name: f"{logs[key]:.3f}" for key, name in names.items() if key in logs}
            self.training_bar.set_postfix(self.shown)


class _ValidateLast(TrainerCallback):
    """Validates after the last step too, so that the end of training can be the best checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate = True


class _WatchSimilarity(TrainerCallback):
    """Compares the cosines of some documents with those before training, five times, and warns where they tell of harm.

    Their mean rises when scores are pulled up together, or documents are pushed to where queries are: the space of
    vectors collapses, whatever the loss says. Where they no longer go with what they were, the encoder has forgotten
    what is alike.
    """

    def __init__(self, encoder: SelfDistillBiEncoder, dataset: Dataset) -> None:
        rows = dataset[:WATCHED_DOCUMENTS]
        texts = dict.fromkeys(text for name, column in rows.items() if name not in ("query", LABEL) for text in column)
        self.encoder, self.texts = encoder, list(texts)[:WATCHED_DOCUMENTS]
        self.vectors = encoder.encode_docs(self.texts)  # here, since a checkpoint is loaded before training begins
        self.similarity: dict[str, float | None] = {"before": round(mean_cosine(self.vectors), 4)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.steps = {math.ceil(state.max_steps * part / 5) for part in range(1, 6)}
        self.warned: set[str] = set()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step not in self.steps:
            return
        vectors = self.encoder.encode_docs(self.texts)
        before, after = mean_cosine(self.vectors), mean_cosine(vectors)
        kept = representational_similarity(self.vectors, vectors)  # NaN where there are too few documents
        self.similarity |= {"after": round(after, 4), "kept": None if math.isnan(kept) else round(kept, 4)}
        if has_collapsed(before, after):
            self._warn(
                f"documents become alike: their mean cosine was {before:.2f} before training and is {after:.2f} after "
                f"{state.global_step} steps. Try another target, negatives that are no unjudged positives, or a lower "
                "learning_rate"
            )
        if has_forgotten(kept):
            self._warn(
                "the encoder forgets what is alike: the cosines of documents correlate with those before training by "
                f"{kept:.2f} after {state.global_step} steps. That is no harm to a raw language model; for an encoder "
                "that could already search, try a lower learning_rate, and validate"
            )

    def _warn(self, message: str) -> None:
        kind = message.partition(":")[0]
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning(message)


class _Miner(TrainerCallback):
    """Draws negatives again while training goes on.

    What is mined is stored beside the checkpoints, for a run that is resumed.
    """

    def __init__(
        self,
        mine: Callable[[SelfDistillBiEncoder, int], Dataset],
        rounds: int,
        steps: int | None,
        folder: Path,
    ) -> None:
        self.mine, self.rounds, self.steps, self.folder = mine, rounds, steps, folder
        self.encoder: SelfDistillBiEncoder
        self.negatives: dict[tuple[str, str], list[str]] = {}

    def replace(self, batch: dict[str, list[str]]) -> dict[str, list[str]]:
        """Puts the negatives that were mined last into a batch; a positive without any keeps those it had."""
        names = list(batch)[2:]
        rows = zip(*batch.values(), strict=True)
        replaced = [(q, p, *self.negatives.get((q, p), old)) for q, p, *old in rows]
        return dict(zip(["query", "positive", *names], map(list, zip(*replaced, strict=True)), strict=True))

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if self.steps is None:
            self.steps = math.ceil(state.max_steps / self.rounds)
        mined = {int(path.stem.rpartition("-")[2]): path for path in self.folder.glob("mined-*.parquet")}
        if earlier := [step for step in mined if step <= state.global_step]:
            self._use(Dataset.from_parquet(str(mined[max(earlier)]), keep_in_memory=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step % cast(int, self.steps) == 0 and state.global_step < state.max_steps:
            logger.info("mining negatives after %d steps", state.global_step)
            mined = self.mine(self.encoder, state.global_step)
            with pt.io.finalized_open(str(self.folder / f"mined-{state.global_step}.parquet"), "b") as file:
                mined.to_parquet(file)
            self._use(mined)

    def _use(self, mined: Dataset) -> None:
        rows = zip(*mined[:].values(), strict=True)
        self.negatives = {(query, positive): negatives for query, positive, *negatives in rows}


@contextmanager
def _without_progress_bars_of_transformers() -> Iterator[None]:
    """Hides the bars that each checkpoint would draw through the one of training."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
