"""Queries with judgements as a source of triples, and hard negatives mined while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyterrier as pt
from datasets import Dataset

from ..data.corpus import Corpus, Documents
from ..data.judgements import split_queries
from ..data.negatives import Negatives, from_results, from_topics
from ..data.passages import choose_passages
from ..data.triples import (
    Triples,
    join_collections,
)
from ..encoder.biencoder import NO_PROMPTS, PromptsByCollection, SelfDistillBiEncoder
from ..utils.checks import has_candidates, require_judged
from ..utils.processes import is_first
from .evaluation import search

MINING_DEPTH = 100
"""How many documents, after those that are never drawn, hard negatives are mined from, unless ``range_max`` says so."""

DEFAULT_NEGATIVES = Negatives()
"""One negative, any of the results."""


@dataclass(frozen=True, eq=False)  # frames have no single answer to ==
class JudgedQueries:
    """Queries with judged positives, and how to draw negatives for them.

    Args:
        topics_or_results: ``qid`` and ``query``, and for results ``docno`` and the text field.
        qrels: ``qid``, ``docno``, ``label``.
        corpus: The documents, if there is a corpus.
        fields: The fields of the corpus that make a text, if not the text field alone.
        text_field: The column with the text of documents.
        negatives: How many negatives, and which of the results.
        min_label: The lowest label of a positive.
        seed: Which negatives are drawn.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> queries = JudgedQueries(topics, qrels, corpus)
        >>> queries.draw().dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
        >>> queries.mine(encoder, step=100).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """

    topics_or_results: pd.DataFrame
    qrels: pd.DataFrame
    corpus: Corpus | None = None
    fields: Sequence[str] | None = None
    text_field: str = "text"
    negatives: Negatives = DEFAULT_NEGATIVES
    min_label: int = 1
    seed: int = 42

    def hold_out(self, share: float) -> tuple[JudgedQueries, pd.DataFrame, pd.DataFrame]:
        """Divide the queries into those to train with and those to evaluate with.

        A checksum of seed and ``qid`` says which are held out, as :func:`split_queries` has it; queries of the same
        text stay together.

        Args:
            share: The share of the queries to hold out.

        Returns:
            The queries to train with; the topics or results to evaluate with, and their judgements.

        Raises:
            ValueError: If one of the two has no query with a relevant document.

        Example:
            >>> topics = pd.DataFrame({"qid": [str(number) for number in range(100)]})
            >>> topics["query"] = "sort " + topics["qid"]
            >>> qrels = topics[["qid"]].assign(docno="d1", label=1)
            >>> queries, valid_topics, valid_qrels = JudgedQueries(topics, qrels).hold_out(0.1)
            >>> len(queries.qrels), len(valid_topics), len(valid_qrels)
            (90, 10, 10)
        """
        require_judged(self.topics_or_results, self.qrels)
        topics = self.topics_or_results.reset_index(drop=True)
        qrels = self.qrels.reset_index(drop=True)
        one_query = _first_qids(topics.drop_duplicates("qid"))
        queries = pd.DataFrame({"own": list(one_query), "qid": list(one_query.values())})
        held_out = split_queries(queries, {"train": 1 - share, "valid": share}, self.seed)["valid"]["own"]
        is_held_out = qrels["qid"].isin(held_out)
        is_positive = qrels["qid"].isin(topics["qid"]) & (qrels["label"] >= self.min_label)
        to_train = qrels["qid"][is_positive & ~is_held_out].nunique()
        to_evaluate = qrels["qid"][is_positive & is_held_out].nunique()
        if not to_train or not to_evaluate:
            raise ValueError(
                f"valid_share={share} leaves {to_train} queries with relevant documents to train with and "
                f"{to_evaluate} to evaluate with, and both need one; give another share or seed, more queries, or "
                "validation topics and qrels to fit"
            )
        of_held_out = topics["qid"].isin(held_out)
        training = replace(self, topics_or_results=topics[~of_held_out], qrels=qrels[~is_held_out])
        return training, topics[of_held_out], qrels[is_held_out]

    def draw(self) -> Triples:
        """Draw negatives from the results; for topics without results, from the corpus.

        Returns:
            The triples.

        Raises:
            ValueError: If there are neither results nor a corpus, or nothing is left to train with.
        """
        if has_candidates(self.topics_or_results, "results"):
            return self._draw_from(self.topics_or_results, self.qrels, self.seed)
        if self.corpus is None:
            raise ValueError(
                f"there are no negatives to train with: the topics have the columns "
                f"{list(self.topics_or_results.columns)}; put a retriever and pt.text.get_text before the trainer, or "
                "give it corpus= to draw from"
            )
        return from_topics(
            self.topics_or_results,
            self.qrels,
            self.corpus,
            negatives=self.negatives,
            min_label=self.min_label,
            seed=self.seed,
            text_field=self.text_field,
            fields=self.fields,
        )

    def mine(self, encoder: SelfDistillBiEncoder, step: int, folder: Path | None = None) -> Triples:
        """Search the corpus with an encoder as it is now, and draw hard negatives from what it finds.

        Args:
            encoder: The encoder.
            step: How many steps it was trained; draws differ by it.
            folder: Where to put the index while it is searched.

        Returns:
            The triples.
        """
        topics = self.topics_or_results[["qid", "query"]].drop_duplicates("qid")
        # queries of the same text are one query here: a triple has no identifiers that would tell them apart
        one_query = _first_qids(topics)
        qids = self.qrels["qid"].map(lambda qid: one_query.get(qid, qid))
        documents = self._documents()
        depth = self.negatives.range_max or self.negatives.range_min + MINING_DEPTH
        results = search(encoder, topics.drop_duplicates("query"), documents, depth, folder)
        # another seed, or positives would draw the same ranks in each round
        return self._draw_from(results, self.qrels.assign(qid=qids), self.seed + step)

    def describe(self) -> dict[str, Any]:
        """Describe what decides on what is mined, beside the triples that are drawn first."""
        return {
            "negatives": asdict(self.negatives),
            "min_label": self.min_label,
            "corpus": self._documents().fingerprint(),
        }

    def _documents(self) -> Documents:
        return Documents(cast(Corpus, self.corpus), self.fields or [self.text_field])

    def _draw_from(self, results: pd.DataFrame, qrels: pd.DataFrame, seed: int) -> Triples:
        """Draw negatives from results."""
        return from_results(
            results,
            qrels,
            negatives=self.negatives,
            min_label=self.min_label,
            seed=seed,
            text_field=self.text_field,
            corpus=self.corpus,
            fields=self.fields,
        )


def _first_qids(topics: pd.DataFrame) -> dict[str, str]:
    """Map each query to the first one of the same text."""
    first = topics.groupby("query")["qid"].transform("first")
    return dict(zip(topics["qid"], first, strict=True))


def with_passages(
    data: Triples,
    passages: pt.Transformer,
    encoder: SelfDistillBiEncoder,
    prompts: PromptsByCollection = NO_PROMPTS,
    *,
    verbose: bool = False,
) -> Triples:
    """Replace the documents of triples by their best passages, as :func:`.passages.choose_passages` does.

    Args:
        data: The triples, of one collection or of several.
        passages: What divides documents.
        encoder: The encoder before training, which says which passage is best.
        prompts: The prompts of collections, where they are not the encoder's.
        verbose: Whether to show a progress bar.

    Returns:
        The triples.
    """
    verbose = verbose and is_first()
    if isinstance(data.dataset, Dataset):
        return choose_passages(data, passages, encoder, verbose=verbose)
    chosen = {}
    for name, dataset in data.dataset.items():
        part = Triples(dataset, data.summary["collections"][name])
        of_collection = encoder.with_prompts(**prompts.get(name, {}))
        chosen[name] = choose_passages(part, passages, of_collection, verbose=verbose)
    return join_collections(chosen)
