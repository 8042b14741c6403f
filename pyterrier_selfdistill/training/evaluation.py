"""Retrieval measures of a model while it trains.

:class:`RetrievalEvaluator` is an evaluator of sentence-transformers that does what a PyTerrier experiment does: it
scores the candidates of validation queries, or searches a corpus for them, and averages measures of ir-measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any, cast

import ir_measures
import pandas as pd
from ir_measures import Measure
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.model import BaseModel

from ..biencoder import SelfDistillBiEncoder
from ..data.corpus import Corpus, Documents
from ..validate import require_judged, require_measures, require_texts

IR_MEASURES_COLUMNS = {"qid": "query_id", "docno": "doc_id", "label": "relevance"}
"""What ir_measures calls the columns of PyTerrier."""


class RetrievalEvaluator(BaseEvaluator):
    """Measure how well a model ranks.

    Args:
        topics_or_results: Candidates to score (``qid``, ``query``, ``docno`` and text), or queries (``qid``, ``query``)
            to search the corpus for.
        qrels: Judgements: ``qid``, ``docno``, ``label``.
        measures: What to measure; the first one decides which model is best. More is better, for all of them.
        corpus: The documents to search when there are no candidates.
        fields: The fields of the corpus that make a text, if not the text field alone.
        num_results: How many documents to search for.
        encoder_options: What :class:`SelfDistillBiEncoder` is given with the model, such as ``batch_size``.

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
        measures: Sequence[Measure],
        *,
        corpus: Corpus | None = None,
        fields: Sequence[str] | None = None,
        num_results: int = 1000,
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        require_judged(topics_or_results, qrels)
        require_measures(measures)
        self.encoder_options = encoder_options or {}
        self.searches = "docno" not in topics_or_results
        if self.searches and corpus is None:
            raise ValueError(
                f"the validation topics have no candidates to rank (columns {list(topics_or_results.columns)}); put a "
                "retriever and pt.text.get_text before the trainer, or give corpus= to search"
            )
        if (qrels["label"] % 1 != 0).any():
            raise ValueError("the labels of the validation qrels must be integers, as measures need them; round them")
        text_field = self.encoder_options.get("text_field", "text")
        # No other column: vectors that a dense retriever left there would be scored instead of the model's own.
        columns = ["qid", "query"]
        if not self.searches:
            require_texts(topics_or_results, text_field, "docno", empty=True)
            columns += ["docno", text_field]
        # Only what is judged: the rest would only cost time.
        judged = topics_or_results["qid"].isin(qrels["qid"])
        self.topics_or_results = topics_or_results.loc[judged, columns]
        asked = qrels["qid"].isin(topics_or_results["qid"])
        self.qrels = qrels[asked].astype({"label": int})
        self.measures = list(measures)
        self.documents: Documents | None = None
        if corpus is not None:
            self.documents = Documents(corpus, fields or [text_field])
        self.num_results = num_results
        self.primary_metric = str(self.measures[0])

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Rank and measure.

        Args:
            model: The model as it is now.
            output_path: Not used; the trainer keeps the measures in its history.
            epoch: Not used.
            steps: Not used.

        Returns:
            The measures by name, averaged over the queries.
        """
        encoder = SelfDistillBiEncoder(cast(SentenceTransformer, model), **self.encoder_options)
        if self.searches:
            ranked = search(encoder, self.topics_or_results, cast(Documents, self.documents), self.num_results)
        else:
            ranked = encoder(self.topics_or_results)
        qrels = self.qrels.rename(columns=IR_MEASURES_COLUMNS)
        values = ir_measures.calc_aggregate(self.measures, qrels, ranked.rename(columns=IR_MEASURES_COLUMNS))
        return {str(measure): float(values[measure]) for measure in self.measures}


def make_evaluator(
    topics_or_results: pd.DataFrame | None,
    qrels: pd.DataFrame | None,
    encoder: SelfDistillBiEncoder,
    *,
    measures: Sequence[Measure],
    corpus: Corpus | None,
    fields: Sequence[str] | None,
) -> RetrievalEvaluator | None:
    """Make the evaluator of an encoder that is trained, if there is anything to evaluate with.

    Args:
        topics_or_results: The validation topics or results, or None.
        qrels: Their judgements, or None.
        encoder: The encoder, whose batch size and text field the evaluator takes.
        measures: As :class:`RetrievalEvaluator` takes them, and so are the other arguments.
        corpus: The documents to search.
        fields: The fields of the corpus that make a text.

    Returns:
        The evaluator, or None if there is nothing to evaluate with.

    Raises:
        ValueError: If only one of topics and qrels is given, or the evaluator cannot be made of them.
    """
    if topics_or_results is None and qrels is None:
        return None
    if topics_or_results is None or qrels is None:
        raise ValueError("evaluation needs validation topics (or results) and qrels; only one of them was given")
    options = {"batch_size": encoder.batch_size, "text_field": encoder.text_field}
    return RetrievalEvaluator(topics_or_results, qrels, measures, corpus=corpus, fields=fields, encoder_options=options)


def search(encoder: SelfDistillBiEncoder, topics: pd.DataFrame, documents: Documents, num_results: int) -> pd.DataFrame:
    """Index documents with an encoder as it is now, for this once, and search them.

    Args:
        encoder: The encoder.
        topics: ``qid`` and ``query``.
        documents: The corpus.
        num_results: How many documents to find for each query.

    Returns:
        ``qid``, ``query``, ``docno``, ``score`` and ``rank``.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> documents = Documents([{"docno": "d1", "text": "sort"}, {"docno": "d2", "text": "plot"}], ["text"])
        >>> sorted(search(encoder, topics, documents, 10)["docno"])
        ['d1', 'd2']
    """
    records = ({"docno": docno, encoder.text_field: text} for docno, text in documents)
    with tempfile.TemporaryDirectory() as folder:
        retriever = encoder.build_retriever(records, f"{folder}/index.flex", num_results=num_results)
        return retriever(topics)
