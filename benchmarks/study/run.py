"""One training and its evaluation: its settings, what they may be, and the key that identifies it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from pyterrier_selfdistill.utils.checks import Count, Expected, PositiveInteger, PositiveNumber, Seed, checked

LOSS_NAMES = {"margin_mse": "MarginMSE", "infonce": "InfoNCE"}
"""What tables call losses, where it is not the name in the file."""

Number = Annotated[float, Field(allow_inf_nan=False), Expected("a number")]
Name = Annotated[str, Field(min_length=1), Expected("a name")]


class Start(NamedTuple):
    """What training starts from; the settings of :class:`Run` with these names."""

    model: str
    pooling: str
    reinitialized: int
    query_length: int
    document_length: int


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    The names of these settings and of the losses are hashed into the keys of records, so they must never change.

    Attributes:
        collection: Where the training data comes from, and what is searched.
        loss: The name of a loss of the package or of one that the study brings along, or ``untouched`` for the model as
            it is.
        margin: The constant of the losses ``static`` and ``triplet``, and what a teacher's margins, which are between
            -1 and 1, are multiplied with for ``margin_mse`` (1 if not given).
        scale: What InfoNCE multiplies cosines with, 20 if not given.
        in_batch: Whether negatives of other queries count, in the losses of the paper.
        error: ``l2``, ``l1``, ``soft`` or ``hinge``, in the losses of the paper.
        detach_target: Whether no gradient flows through the target.
        triples: How many judged positives to train with; a uniform sample of the collection's.
        negatives: ``random``, ``bm25`` (of the first 100 results) or ``re-mined`` (random, then the encoder's own).
        number: How many negatives a triple has.
        min_label: From which label on a judged document is a positive.
        batch_size: Triples a step.
        batch_sampler: As sentence-transformers names it.
        learning_rate: The highest one; it falls linearly after a tenth of the steps.
        epochs: How often each triple is seen.
        model: ``minilm``, or a folder or a hub name.
        pooling: ``mean`` or ``cls``. MiniLM was trained with mean: with ``cls`` it starts as a raw language model does,
            without a useful space of vectors.
        reinitialized: How many of the model's upper layers lose what they have learned, so that its vectors are of no
            use as they are.
        query_length: Tokens of a query.
        document_length: Tokens of a document.
        dev_documents: For a search for settings, where evaluation would take most of the time: only dev is measured,
            on its relevant documents and a sample of the others, so many in all or the relevant ones alone. None for
            whole collections, and test.
        transfer: Other collections that are searched too, to see what was forgotten.
        seed: Of the sample, the negatives, the order and dropout.
    """

    collection: Name
    loss: Name = "distributed"
    margin: Number | None = None
    in_batch: bool = False
    error: Literal["l2", "l1", "soft", "hinge"] = "l2"
    detach_target: bool = False
    triples: PositiveInteger = 1024
    negatives: Literal["random", "bm25", "re-mined"] = "random"
    number: PositiveInteger = 1
    min_label: int = 1
    batch_size: PositiveInteger = 16
    batch_sampler: Literal["batch_sampler", "no_duplicates", "no_duplicates_hashed", "group_by_label"] = "batch_sampler"
    learning_rate: PositiveNumber = 1e-4
    epochs: PositiveNumber = 1
    model: Name = "minilm"
    pooling: Literal["mean", "cls"] = "mean"
    query_length: PositiveInteger = 32
    document_length: PositiveInteger = 64
    transfer: tuple[str, ...] = ()
    seed: Seed = 1
    scale: PositiveNumber | None = None
    reinitialized: Count = 0
    dev_documents: Count | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Run:
        """Make a run of the settings in a record; JSON has lists in place of tuples."""
        return cls(**{**settings, "transfer": tuple(settings["transfer"])})

    @property
    def key(self) -> str:
        """The checksum that identifies the run, of the settings that differ from the defaults above."""
        settings = {}
        # defaults are left out, so that a setting that is added does not change the keys of earlier records
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if value != setting.default:
                settings[setting.name] = value
        content = json.dumps(settings, sort_keys=True)  # sorted, so that a field may be moved
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def start(self) -> Start:
        """The encoder that training starts from."""
        settings = [getattr(self, name) for name in Start._fields]
        return Start(*settings)

    @property
    def loss_name(self) -> str:
        """The loss with its options, as tables name it."""
        name = LOSS_NAMES.get(self.loss, self.loss)
        if self.margin is not None:
            name += f" {self.margin:g}"
        if self.scale is not None:
            name += f" {self.scale:g}"
        if self.in_batch:
            name += ", in-batch"
        if self.error != "l2":
            name += f", {self.error}"
        if self.detach_target:
            name += ", detached"
        return name


SETTINGS = tuple(setting.name for setting in dataclasses.fields(Run))

_check = checked(Run.__init__)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check settings of a run by the types above.

    Args:
        settings: The settings.

    Raises:
        ValueError: If a setting is unknown, or has a value that its type does not allow.

    Example:
        >>> check_settings({"learning_rate": 1e-5, "negatives": "BM25"})
        Traceback (most recent call last):
        ValueError: negatives must be 'random', 'bm25' or 're-mined', got 'BM25'
    """
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise ValueError(f"unknown settings {unknown}; expected some of {sorted(SETTINGS)}")
    # what is made is thrown away: 10 and 10.0 have different keys, so that values must stay as they are in the file
    _check(object.__new__(Run), **{"collection": "any", **settings})
