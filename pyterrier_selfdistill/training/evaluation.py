"""Validation with IR measures, of one data set or several."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import pandas as pd
import pyterrier as pt
from ir_measures import Measure
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.model import BaseModel

from ..data.corpus import Corpus, Documents
from ..data.passages import best_of_documents, divide_results, document_of, passage_records
from ..data.triples import in_collection, require_names
from ..encoder.biencoder import NO_PROMPTS, PromptsByCollection, SelfDistillBiEncoder, prompted
from ..utils.checks import (
    FieldNames,
    Measures,
    PositiveInteger,
    checked,
    has_candidates,
    require_columns,
    require_integer_labels,
    require_judged,
    require_texts,
)
from ..utils.folders import scratch_folder
from .history import of_collection

logger = logging.getLogger(__name__)

SEARCH_DEPTH = 1000
"""How many documents to search for where a measure looks at all of them, as retrievers do by default."""

LARGE_SHARE = 0.1
"""The share of queries that may be left out without a warning."""


@checked
class RetrievalEvaluator(BaseEvaluator):
    """Measure how well a model ranks.

    All judged queries of the topics count, also those for which nothing is found. Candidates cannot say which queries
    have none: judged queries without candidates count as 0, unless they are more than those with candidates. Then they
    are taken for queries of another set, and left out. Both are warned of; give the judgements of the validation
    queries only.

    Args:
        topics_or_results: Candidates to score (``qid``, ``query``, ``docno`` and text), or queries (``qid``, ``query``)
            to search the corpus for.
        qrels: Judgements: ``qid``, ``docno``, ``label``.
        measures: What to measure; the first one decides which model is best.
        corpus: The documents to search when there are no candidates.
        fields: The fields of the corpus that make a text, if not the text field alone.
        num_results: How many documents to search for; by default as many as the measures look at.
        passages: What divides documents into passages, of which the best one counts, such as ``pt.text.sliding("text",
            prepend_attr=None)``; documents that are searched for are those of the 1,000 best passages.
        encoder_options: What :class:`SelfDistillBiEncoder` is given with the model, such as ``batch_size``.

    Attributes:
        primary_metric: The name of the first measure.
        coverage: How many ``queries`` count, and how many of them are ``without_candidates``; how many judged queries
            are left out as ``others``, and how many topics since they are ``without_judgements``.

    Raises:
        ValueError: If no query has judgements, there is nothing to rank, or a label is not an integer.

    Example:
        >>> from pyterrier.measures import RR
        >>> results = pd.DataFrame([["1", "sort", "d1", "sort rows"], ["1", "sort", "d2", "plot a file"]],
        ...                        columns=["qid", "query", "docno", "text"])
        >>> qrels = pd.DataFrame([["1", "d1", 1], ["1", "d2", 1]], columns=["qid", "docno", "label"])
        >>> RetrievalEvaluator(results, qrels, [RR])(encoder.model)
        {'RR': 1.0}
    """

    def __init__(
        self,
        topics_or_results: pd.DataFrame,
        qrels: pd.DataFrame,
        measures: Measures,
        *,
        corpus: Corpus | None = None,
        fields: FieldNames | None = None,
        num_results: PositiveInteger | None = None,
        passages: pt.Transformer | None = None,
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # an index may be named like a column
        topics_or_results = topics_or_results.reset_index(drop=True)
        qrels = qrels.reset_index(drop=True)
        require_judged(topics_or_results, qrels, empty=True)
        self.encoder_options = encoder_options or {}
        self.searches = not has_candidates(topics_or_results, "validation results")
        if self.searches and corpus is None:
            raise ValueError(
                f"the validation topics have no candidates to rank (columns {list(topics_or_results.columns)}); put a "
                "retriever and pt.text.get_text before the trainer, or give corpus= to search"
            )
        require_integer_labels(qrels, "the validation qrels")
        text_field = self.encoder_options.get("text_field", "text")
        # No other column: vectors that a dense retriever left there would be scored instead of the model's own.
        columns = ["qid", "query"]
        if not self.searches:
            require_texts(topics_or_results, text_field, "docno", empty=True)
            columns += ["docno", text_field]
        # Only what is judged: the rest would only cost time.
        judged = topics_or_results["qid"].isin(qrels["qid"])
        self.topics_or_results = topics_or_results.loc[judged, columns]
        self.passages = passages
        if passages is not None and not self.searches:
            self.topics_or_results = divide_results(self.topics_or_results, passages, text_field)
        self.qrels = qrels[["qid", "docno", "label"]].astype({"label": int})
        asked = qrels["qid"].isin(topics_or_results["qid"])
        missing = qrels["qid"][~asked].nunique()
        others = 0
        if self.searches or missing > qrels["qid"][asked].nunique():
            self.qrels = self.qrels[asked]
            others, missing = missing, 0
        self.coverage = {
            "queries": self.qrels["qid"].nunique(),
            "without_candidates": missing,
            "others": others,
            "without_judgements": topics_or_results["qid"][~judged].nunique(),
        }
        self._warn_of_gaps()
        self.measures = list(measures)
        self.documents: Documents | None = None
        if corpus is not None:
            self.documents = Documents(corpus, fields or [text_field])
        self.num_results = num_results or search_depth(self.measures)
        self.primary_metric = str(self.measures[0])

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Rank and measure.

        Args:
            model: The model as it is now.
            output_path: Where to put the index of a search while it lasts, if not where the system has temporary files.
            epoch: Not used.
            steps: Not used.

        Returns:
            The measures by name, averaged over the queries.
        """
        encoder = SelfDistillBiEncoder(cast(SentenceTransformer, model), **self.encoder_options)
        if self.searches:
            documents = cast(Documents, self.documents)
            options: dict[str, Any] = {"folder": output_path, "passages": self.passages}
            ranked = search(encoder, self.topics_or_results, documents, self.num_results, **options)
        else:
            ranked = encoder(self.topics_or_results)
            if self.passages is not None:
                ranked = best_of_documents(ranked)
        measured = pt.Experiment(
            [ranked],
            self.topics_or_results,
            self.qrels,
            self.measures,
            names=["model"],
            # what counts is decided already
            filter_by_topics=False,
        )
        return {str(measure): float(measured[str(measure)].item()) for measure in self.measures}

    def describe(self) -> dict[str, Any]:
        """Describe what decides on the numbers, beside the corpus: a run is resumed only with the same."""
        return {
            "measures": list(map(str, self.measures)),
            **self.coverage,
            "fingerprint": _fingerprint(self.topics_or_results, self.qrels),
        }

    def _warn_of_gaps(self) -> None:
        """Warn if many queries count as 0, or not at all."""
        queries, without_candidates, others, without_judgements = self.coverage.values()
        if others and not self.searches:
            logger.warning(
                "%d judged validation queries have no candidates, and %d have: they are taken for queries of another "
                "set and left out; give the judgements of the validation queries only",
                others,
                queries,
            )
        if without_candidates > LARGE_SHARE * queries:
            logger.warning(
                "%d of %d judged validation queries have no candidates and count as 0; if they are queries of another "
                "set, give the judgements of the validation queries only",
                without_candidates,
                queries,
            )
        topics = queries - without_candidates + without_judgements
        if without_judgements > LARGE_SHARE * topics:
            logger.warning(
                "%d of %d validation queries have no judgements and are left out; give judgements of all",
                without_judgements,
                topics,
            )


def search_depth(measures: Sequence[Measure]) -> int:
    """Choose how many documents to search for, so that measures see all that they look at.

    Args:
        measures: The measures.

    Returns:
        The largest cutoff; :data:`SEARCH_DEPTH` if a measure has none, or looks at judged documents only.

    Example:
        >>> from pyterrier.measures import P, R, RR
        >>> search_depth([P @ 5, R @ 100]), search_depth([P @ 5, RR])
        (100, 1000)
    """
    depths = []
    for measure in measures:
        looks_further = measure.params.get("judged_only", False)
        if looks_further or "cutoff" not in measure.params:
            return SEARCH_DEPTH
        depths.append(measure["cutoff"])
    return max(depths)


def _fingerprint(*frames: pd.DataFrame) -> str:
    """Compute a checksum of frames, of 16 characters."""
    checksum = hashlib.sha256()
    for frame in frames:
        rows = pd.util.hash_pandas_object(frame, index=False, categorize=False)
        checksum.update(rows.to_numpy().tobytes())
    return checksum.hexdigest()[:16]


def search(
    encoder: SelfDistillBiEncoder,
    topics: pd.DataFrame,
    documents: Documents,
    num_results: int,
    folder: str | Path | None = None,
    *,
    passages: pt.Transformer | None = None,
) -> pd.DataFrame:
    """Index documents with an encoder as it is now, for this once, and search them.

    Args:
        encoder: The encoder.
        topics: ``qid`` and ``query``.
        documents: The corpus.
        num_results: How many documents to find for each query.
        folder: Where to put the index while it is searched, if not where the system has temporary files.
        passages: What divides documents, if anything does.

    Returns:
        ``qid``, ``query``, ``docno``, ``score`` and ``rank``.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> documents = Documents([{"docno": "d1", "text": "sort"}, {"docno": "d2", "text": "plot"}], ["text"])
        >>> sorted(search(encoder, topics, documents, 10)["docno"])
        ['d1', 'd2']
    """
    whole = ({"docno": docno, encoder.text_field: text} for docno, text in documents)
    records: Iterable[dict[str, str]] = whole
    if passages is not None:
        records = passage_records(records, passages, encoder.text_field)
        num_results = max(num_results, SEARCH_DEPTH)
    with scratch_folder(folder) as scratch:
        retriever = encoder.build_retriever(records, scratch / "index.flex", num_results=num_results)
        found = cast(pd.DataFrame, retriever(topics))
    if passages is None:
        return found
    return best_of_documents(found.assign(docno=found["docno"].map(document_of)))


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
