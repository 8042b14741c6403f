"""The evaluator of a run: of one collection, or of several, each with its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import pandas as pd
import pyterrier as pt
from ir_measures import Measure
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.model import BaseModel

from ..biencoder import SelfDistillBiEncoder
from ..data.corpus import Corpus
from ..data.several import in_collection, require_names
from ..prompts import NO_PROMPTS, PromptsByCollection, prompted
from ..validate import require_columns
from .evaluation import RetrievalEvaluator
from .history import of_collection


class CollectionsEvaluator(BaseEvaluator):
    """Measure how well a model ranks in several collections.

    Args:
        evaluators: What evaluates in each collection, by its name; all with the same measures.
        prompts: The prompts of collections, where they are not the model's.

    Attributes:
        primary_metric: The name of the first measure, whose mean over collections decides which model is best.

    Example:
        >>> from pyterrier.measures import RR
        >>> results = pd.DataFrame([["1", "sort", "d1", "sort rows"]], columns=["qid", "query", "docno", "text"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> evaluator = RetrievalEvaluator(results, qrels, [RR])
        >>> CollectionsEvaluator({"a": evaluator, "b": evaluator})(encoder.model)
        {'RR': 1.0, 'RR (a)': 1.0, 'RR (b)': 1.0}
    """

    def __init__(self, evaluators: Mapping[str, RetrievalEvaluator], prompts: PromptsByCollection = NO_PROMPTS) -> None:
        super().__init__()
        self.evaluators = dict(evaluators)
        self.prompts = prompts
        first, *_ = self.evaluators.values()
        self.measures = first.measures
        self.primary_metric = first.primary_metric
        self.searches = any(evaluator.searches for evaluator in self.evaluators.values())
        self.documents = first.documents

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Rank and measure in each collection.

        Args:
            model: The model as it is now.
            output_path: As :class:`RetrievalEvaluator` takes it.
            epoch: Not used.
            steps: Not used.

        Returns:
            The means of the measures over collections, by name, and those of each collection.
        """
        measured = {}
        for name, evaluator in self.evaluators.items():
            with_prompts = prompted(cast(SentenceTransformer, model), self.prompts.get(name, {}))
            measured[name] = evaluator(with_prompts, output_path)
        means = {}
        singles: dict[str, float] = {}
        for measure in map(str, self.measures):
            values = {of_collection(measure, name): values[measure] for name, values in measured.items()}
            means[measure] = sum(values.values()) / len(values)
            singles |= values
        return means | singles

    def describe(self) -> dict[str, Any]:
        """Describe what decides on the numbers: a run is resumed only with the same."""
        described = {}
        for name, evaluator in self.evaluators.items():
            described[name] = evaluator.describe()
            del described[name]["measures"]
        return {"measures": list(map(str, self.measures)), "collections": described}


Evaluator: TypeAlias = RetrievalEvaluator | CollectionsEvaluator
"""What evaluates in one collection, or in several."""


def make_evaluator(
    encoder: SelfDistillBiEncoder,
    topics_or_results: pd.DataFrame | Mapping[str, pd.DataFrame] | None,
    qrels: pd.DataFrame | Mapping[str, pd.DataFrame] | None,
    training_topics: pd.DataFrame | None,
    *,
    measures: Sequence[Measure],
    corpus: Corpus | None,
    fields: Sequence[str] | None,
    passages: pt.Transformer | None = None,
    prompts: PromptsByCollection = NO_PROMPTS,
) -> Evaluator | None:
    """Make the evaluator of an encoder that is trained, if there is anything to evaluate with.

    Args:
        encoder: The encoder, whose batch size and text field the evaluator takes.
        topics_or_results: The validation topics or results, those of several collections by name, or None.
        qrels: Their judgements, likewise.
        training_topics: The topics or results that are trained with, if they are known: judgements of these are no
            judgements of validation queries without candidates.
        measures: As :class:`RetrievalEvaluator` takes them, and so are the other arguments.
        corpus: The documents to search.
        fields: The fields of the corpus that make a text.
        passages: What divides documents, if anything does.
        prompts: The prompts of collections.

    Returns:
        The evaluator, or None if there is nothing to evaluate with.

    Raises:
        ValueError: If only one of topics and qrels is given, they are of different collections, or the evaluator cannot
            be made of them.
    """
    if topics_or_results is None and qrels is None:
        return None
    if topics_or_results is None or qrels is None:
        raise ValueError("evaluation needs validation topics (or results) and qrels; only one of them was given")
    options: dict[str, Any] = {
        "measures": measures,
        "corpus": corpus,
        "fields": fields,
        "passages": passages,
        "encoder_options": {
            "batch_size": encoder.batch_size,
            "text_field": encoder.text_field,
            "dtype": encoder.dtype,
        },
    }
    if isinstance(topics_or_results, Mapping) and isinstance(qrels, Mapping):
        return _evaluate_each(topics_or_results, qrels, prompts, options)
    if isinstance(topics_or_results, Mapping) or isinstance(qrels, Mapping):
        raise ValueError(
            "validation topics (or results) and qrels must both be of one collection, or both name collections such as "
            f"{{'a': ...}}, got a {type(topics_or_results).__name__} and a {type(qrels).__name__}"
        )
    if training_topics is not None:
        qrels = validation_qrels(qrels, topics_or_results, training_topics)
    return RetrievalEvaluator(topics_or_results, qrels, **options)


def _evaluate_each(
    topics_or_results: Mapping[str, pd.DataFrame],
    qrels: Mapping[str, pd.DataFrame],
    prompts: PromptsByCollection,
    options: Mapping[str, Any],
) -> CollectionsEvaluator:
    """Make the evaluator of several collections."""
    require_names(topics_or_results, "valid_topics_or_results")
    if topics_or_results.keys() != qrels.keys():
        raise ValueError(
            "validation topics (or results) and qrels must be of the same collections, got "
            f"{list(topics_or_results)} and {list(qrels)}"
        )
    evaluators = {}
    for name, frame in topics_or_results.items():
        with in_collection(name):
            evaluators[name] = RetrievalEvaluator(frame, qrels[name], **options)
    return CollectionsEvaluator(evaluators, prompts)


def validation_qrels(qrels: pd.DataFrame, topics: pd.DataFrame, training_topics: pd.DataFrame) -> pd.DataFrame:
    """Leave out the judgements of queries that are trained with: the judgements of all queries are often given at once.

    Args:
        qrels: Judgements.
        topics: The topics, or results, to evaluate with.
        training_topics: Those that are trained with.

    Returns:
        The judgements without those of queries to train with, unless they are to evaluate with too.

    Example:
        >>> qrels = pd.DataFrame({"qid": ["1", "2", "3"]})
        >>> validation_qrels(qrels, pd.DataFrame({"qid": ["2"]}), pd.DataFrame({"qid": ["1"]}))["qid"].tolist()
        ['2', '3']
    """
    for name, frame in {"qrels": qrels, "validation topics": topics, "topics": training_topics}.items():
        require_columns(frame, ["qid"], name)
    training = set(training_topics["qid"]) - set(topics["qid"])
    return qrels[~qrels["qid"].isin(training)]
