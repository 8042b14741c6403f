"""Validation with IR measures on one or several data sets."""

from __future__ import annotations

import hashlib
import logging
import sys
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
from ..encoder.biencoder import PromptsByCollection, SelfDistillBiEncoder, prompted
from ..utils.checks import FieldNames, Measures, PositiveInteger, checked, judged, require_texts
from ..utils.folders import scratch_folder

logger = logging.getLogger(__name__)
SEARCH_DEPTH = 1000  # how many documents to retrieve for measures without a cutoff; the default of retrievers
LARGE_SHARE = 0.1  # the share of queries that may be ignored without a warning


@checked
class RetrievalEvaluator(BaseEvaluator):
    """Measure how well a model ranks.

    If you pass topics, all their judged queries count, even queries for which the search finds nothing. If you pass
    candidates, judged queries without candidates count as 0. But if most judged queries have no candidates, the
    evaluator assumes that they belong to another query set and ignores them. It warns you in both cases.

    Args:
        topics_or_results: Candidates to score (``qid``, ``query``, ``docno``), or queries (``qid``, ``query``) for
            which to search the corpus.
        qrels: Judgements: ``qid``, ``docno``, ``label``.
        measures: The measures. The first one selects the best model.
        corpus: The documents, to search them or to look up texts that the candidates lack.
        fields: The document fields to join into a text. Defaults to the text field.
        num_results: The number of documents to retrieve. Defaults to the largest cutoff of the measures.
        passages: A transformer that splits documents into passages, such as ``pt.text.sliding("text",
            prepend_attr=None)``. A document scores as its best passage, among the 1,000 best passages of a search.
        encoder_options: Options of :class:`SelfDistillBiEncoder`, such as ``batch_size``.

    Attributes:
        primary_metric: The name of the first measure.
        coverage: The number of evaluated ``queries``, of evaluated queries ``without_candidates``, of judged queries
            ignored as ``others``, and of topics ignored because they are ``without_judgements``.

    Raises:
        ValueError: If no query has judgements, you pass neither candidates nor a corpus, or a label is not an integer.

    Example:
        >>> from pyterrier.measures import RR
        >>> rows = [["1", "sort", "d1", "sort rows"], ["1", "sort", "d2", "plot a file"]]
        >>> results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text"])
        >>> qrels = results[["qid", "docno"]].assign(label=1)
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
        topics_or_results, qrels = judged(topics_or_results, qrels, to_measure=True)
        self.encoder_options = encoder_options or {}
        self.measures = list(measures)
        self.primary_metric = str(self.measures[0])
        self.passages = passages
        self.searches = "docno" not in topics_or_results
        text_field = self.encoder_options.get("text_field", "text")
        fields = fields or [text_field]
        # drop other columns, so that vectors of another encoder are not scored
        columns = ["qid", "query"]
        if corpus is not None:
            self.documents = Documents(corpus, fields)
        if self.searches:
            if corpus is None:
                raise ValueError(
                    "validation topics without candidates need a corpus to search, got the columns "
                    f"{list(topics_or_results.columns)}; put a retriever and pt.text.get_text before the trainer, or "
                    "give corpus="
                )
            self.num_results = num_results or search_depth(self.measures)
        else:
            if corpus is not None and not set(fields) <= set(topics_or_results.columns):
                texts = self.documents.texts(topics_or_results["docno"].unique())
                topics_or_results[text_field] = topics_or_results["docno"].map(texts)
            require_texts(topics_or_results, text_field, "docno", empty=True)
            columns += ["docno", text_field]
        is_judged = topics_or_results["qid"].isin(qrels["qid"])
        self.topics_or_results = topics_or_results.loc[is_judged, columns]
        if passages is not None and not self.searches:
            self.topics_or_results = divide_results(self.topics_or_results, passages, text_field)
        self.qrels = qrels
        is_asked = qrels["qid"].isin(topics_or_results["qid"])
        missing, others = qrels["qid"][~is_asked].nunique(), 0
        if self.searches or missing > qrels["qid"][is_asked].nunique():
            self.qrels = self.qrels[is_asked]
            others, missing = missing, 0
        queries, without_judgements = self.qrels["qid"].nunique(), topics_or_results["qid"][~is_judged].nunique()
        self.coverage = {"queries": queries, "without_candidates": missing, "others": others}
        self.coverage["without_judgements"] = without_judgements
        advice = "give judgements of the validation queries only"
        if others and not self.searches:
            logger.warning(
                "%d judged validation queries have no candidates, and only %d have some: the former are assumed to "
                "belong to another query set and are ignored; %s",
                *(others, queries, advice),
            )
        if missing > LARGE_SHARE * queries:
            logger.warning(
                "%d of %d judged validation queries have no candidates and count as 0; if they belong to another query "
                "set, %s",
                *(missing, queries, advice),
            )
        topics = queries - missing + without_judgements
        if without_judgements > LARGE_SHARE * topics:
            logger.warning(
                "%d of %d validation queries have no judgements and are ignored; give judgements of all queries",
                *(without_judgements, topics),
            )

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Rank with the model and return the measures by name, averaged over the queries."""
        # in logs, the bars of the first evaluation are enough
        verbose = self.encoder_options.get("verbose", False) and (steps <= 0 or sys.stderr.isatty())
        encoder = SelfDistillBiEncoder(cast(SentenceTransformer, model), **{**self.encoder_options, "verbose": verbose})
        if self.searches:
            ranked = search(
                encoder, self.topics_or_results, self.documents, self.num_results, output_path, passages=self.passages
            )
        else:
            ranked = encoder(self.topics_or_results)
            if self.passages is not None:
                ranked = best_of_documents(ranked)
        # filtered above, so that queries without candidates count
        measured = pt.Experiment(
            [ranked], self.topics_or_results, self.qrels, self.measures, names=["model"], filter_by_topics=False
        )
        return {str(measure): float(measured[str(measure)].item()) for measure in self.measures}

    def describe(self) -> dict[str, Any]:
        """Describe the queries and judgements, which must be the same when you resume a run."""
        checksum = hashlib.sha256()
        for frame in (self.topics_or_results, self.qrels):
            checksum.update(pd.util.hash_pandas_object(frame, index=False, categorize=False).to_numpy().tobytes())
        described = {"measures": list(map(str, self.measures)), **self.coverage}
        described["fingerprint"] = checksum.hexdigest()[:16]
        if self.searches:
            described["corpus"] = self.documents.fingerprint()
        return described


def search_depth(measures: Sequence[Measure]) -> int:
    """Return the largest cutoff, or ``SEARCH_DEPTH`` if a measure lacks one or uses only judged documents."""
    if any("cutoff" not in measure.params or measure.params.get("judged_only", False) for measure in measures):
        return SEARCH_DEPTH
    return max(measure["cutoff"] for measure in measures)


def search(
    encoder: SelfDistillBiEncoder,
    topics: pd.DataFrame,
    documents: Documents,
    num_results: int,
    folder: str | Path | None = None,
    *,
    passages: pt.Transformer | None = None,
) -> pd.DataFrame:
    """Search documents with a temporary index, in the folder or among the temporary files."""
    records: Iterable[dict[str, str]] = ({"docno": docno, encoder.text_field: text} for docno, text in documents)
    if passages is not None:
        records = passage_records(records, passages, encoder.text_field)
        num_results = max(num_results, SEARCH_DEPTH)
    with scratch_folder(folder) as scratch:
        retriever = encoder.build_retriever(
            records, scratch / "index.flex", num_results=num_results, verbose=encoder.verbose
        )
        found = cast(pd.DataFrame, retriever(topics))
    if passages is None:
        return found
    return best_of_documents(found.assign(docno=found["docno"].map(document_of)))


class CollectionsEvaluator(BaseEvaluator):
    """Evaluate on several data sets, each with its prompts. The mean over data sets selects the best model."""

    def __init__(self, evaluators: Mapping[str, RetrievalEvaluator], prompts: PromptsByCollection) -> None:
        super().__init__()
        self.evaluators = evaluators
        self.prompts = prompts
        self.measures = next(iter(evaluators.values())).measures
        self.primary_metric = str(self.measures[0])

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return each measure's mean by name, and its value on each data set, such as ``nDCG@10 (a)``."""
        measured = {}
        for name, evaluator in self.evaluators.items():
            with_prompts = prompted(cast(SentenceTransformer, model), self.prompts.get(name, {}))
            measured[name] = evaluator(with_prompts, output_path, epoch, steps)
        names = list(map(str, self.measures))
        means = {measure: sum(values[measure] for values in measured.values()) / len(measured) for measure in names}
        singles = {f"{measure} ({name})": measured[name][measure] for measure in names for name in measured}
        return means | singles

    def describe(self) -> dict[str, Any]:
        """Describe the queries and judgements of each data set."""
        described = {name: evaluator.describe() for name, evaluator in self.evaluators.items()}
        return {"measures": list(map(str, self.measures)), "collections": described}


Evaluator: TypeAlias = RetrievalEvaluator | CollectionsEvaluator
