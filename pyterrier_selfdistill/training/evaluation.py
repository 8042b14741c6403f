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


class RetrievalEvaluator(BaseEvaluator):
    """Measures how well a model ranks.

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
        ValueError: If no query has judgements, or there is nothing to rank.

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
        text_field = self.encoder_options.get("text_field", "text")
        columns = ["qid", "query"]
        if not self.searches:
            require_texts(topics_or_results, text_field, "docno", empty=True)
            columns += ["docno", text_field]
        # no other column: vectors that a dense retriever left there would be scored instead of the model's own; and
        # only what is judged, since the rest would only cost time
        self.topics_or_results = topics_or_results.loc[topics_or_results["qid"].isin(qrels["qid"]), columns]
        if (qrels["label"] % 1 != 0).any():
            raise ValueError(
                "the validation qrels have labels that are no whole numbers, which measures need; round them"
            )
        self.qrels = qrels[qrels["qid"].isin(topics_or_results["qid"])].astype({"label": int})
        self.measures = list(measures)
        self.documents = None if corpus is None else Documents(corpus, fields or [text_field])
        self.num_results = num_results
        self.primary_metric = str(self.measures[0])

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Ranks and measures.

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
        values = ir_measures.calc_aggregate(self.measures, *map(_with_ir_measures_columns, (self.qrels, ranked)))
        return {str(measure): float(values[measure]) for measure in self.measures}


def search(encoder: SelfDistillBiEncoder, topics: pd.DataFrame, documents: Documents, num_results: int) -> pd.DataFrame:
    """Indexes documents with an encoder as it is now, for this once, and searches them.

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
    with tempfile.TemporaryDirectory() as folder:
        records = ({"docno": docno, encoder.text_field: text} for docno, text in documents)
        return encoder.build_retriever(records, f"{folder}/index.flex", num_results=num_results)(topics)


def _with_ir_measures_columns(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
