"""Make triples of judged positives and drawn negatives.

:func:`from_results` draws negatives from what a retriever found, :func:`from_topics` from a whole corpus. Each positive
draws with a generator of its own, of the seed and its identifiers, so that a draw never depends on the other rows.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from ..validate import require_columns, require_judged, require_positive_integer, require_texts
from .cache import TripleCache, Triples, describe_dropped
from .columns import column_names, string_table
from .corpus import Corpus, Documents

SPARE = 8
"""How many more negatives than needed are drawn from a corpus, for those that turn out to have a positive's text."""

Draws: TypeAlias = Mapping[tuple[str, str], list[str]]
"""The documents that were drawn for each positive (``qid`` and ``docno``), first choice first."""


@dataclass(frozen=True)
class Negatives:
    """Which of the results of a query become negatives.

    Args:
        number: K, the number of negatives of a triple.
        range_min: How many of the best results never to draw, since they are often relevant without being judged so.
        range_max: The rank after which results are not drawn.
        relative_margin: Never draw likely false negatives: results that score more than (1 - ``relative_margin``) of
            what the positive scores. A positive that was not retrieved has no score, so it excludes none.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> Negatives(4, range_min=10, range_max=100, relative_margin=0.05)
        Negatives(number=4, range_min=10, range_max=100, relative_margin=0.05)
    """

    number: int = 1
    range_min: int = 0
    range_max: int | None = None
    relative_margin: float | None = None

    def __post_init__(self) -> None:
        require_positive_integer("negatives", self.number)
        if self.range_min != 0:
            require_positive_integer("range_min", self.range_min)
        if self.range_max is not None:
            require_positive_integer("range_max", self.range_max)
            if self.range_max < self.range_min + self.number:
                raise ValueError(
                    f"ranks {self.range_min} to {self.range_max} have fewer than {self.number} results; widen them"
                )
        if self.relative_margin is not None and not 0 <= self.relative_margin <= 1:
            raise ValueError(f"relative_margin must be a number from 0 to 1, got {self.relative_margin!r}")


def from_results(
    results: pd.DataFrame,
    qrels: pd.DataFrame,
    *,
    negatives: Negatives = Negatives(),
    min_label: int = 1,
    seed: int = 42,
    text_field: str = "text",
    corpus: Corpus | None = None,
    fields: Sequence[str] | None = None,
) -> Triples:
    """Make triples of judged positives and retrieved negatives.

    Every relevant document of a query makes one triple, with negatives drawn at random from the results of that query.
    Documents with any label above 0, and those with the text of a positive, are never drawn.

    Args:
        results: Retrieved documents: ``qid``, ``query``, ``docno``, the text field unless there is a ``corpus``, and
            ``score`` or ``rank`` where the order of rows is not that of ranks.
        qrels: Judgements: ``qid``, ``docno``, ``label``. Their number is the ``read`` of the summary.
        negatives: How many negatives, and which.
        min_label: The lowest label of a positive.
        seed: Which negatives are drawn. The draw for one positive does not depend on the other rows.
        text_field: The column with the text of documents.
        corpus: Where to look up texts that the results lack, as of relevant documents that were not retrieved.
        fields: The fields of the corpus that make a text, if not the text field alone.

    Returns:
        The triples.

    Raises:
        ValueError: If there are no texts, topics and judgements share no query, or nothing is left to train with.
        TypeError: If identifiers or texts are not strings, or labels not numbers.

    Example:
        >>> results = pd.DataFrame([["1", "sort", "d1", "sort rows"], ["1", "sort", "d2", "plot a file"]],
        ...                        columns=["qid", "query", "docno", "text"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> from_results(results, qrels).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    require_columns(results, ["docno"], "results")
    require_judged(results, qrels)
    require_texts(results, "query", "qid")
    require_positive_integer("min_label", min_label)
    judgements = _Judgements(results, qrels, min_label)
    texts: dict[str, str] = {}
    if text_field in results or corpus is None:
        texts = _retrieved_texts(results, text_field, required=corpus is None)
    if corpus is not None:
        wanted = judgements.relevant_documents().union(results["docno"])
        texts |= Documents(corpus, fields or [text_field]).texts(sorted(wanted - texts.keys()))
    drawn = _draw_from_results(results, judgements, texts, negatives, seed)
    origin = {
        "source": "results",
        "seed": seed,
        "documents_without_text": len(set(results["docno"]) - texts.keys()),
    }
    return _make_triples(judgements, drawn, texts, negatives, origin)


def from_topics(
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    corpus: Corpus,
    *,
    negatives: Negatives = Negatives(),
    min_label: int = 1,
    seed: int = 42,
    text_field: str = "text",
    fields: Sequence[str] | None = None,
) -> Triples:
    """Make triples of judged positives and negatives drawn at random from a corpus.

    Args:
        topics: Queries: ``qid``, ``query``.
        qrels: As in :func:`from_results`.
        corpus: All documents.
        negatives: How many negatives.
        min_label: The lowest label of a positive.
        seed: Which negatives are drawn.
        text_field: The field with the text of documents.
        fields: The fields of the corpus that make a text, if not the text field alone.

    Returns:
        The triples.

    Raises:
        ValueError: As :func:`from_results`; or if ranks are given, which a corpus has not.
        TypeError: As :func:`from_results`.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> from_topics(topics, qrels, corpus).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    if negatives != Negatives(negatives.number):
        raise ValueError(f"{negatives} chooses among ranks and scores, which a corpus has not; put a retriever before")
    require_judged(topics, qrels)
    require_texts(topics, "query", "qid")
    require_positive_integer("min_label", min_label)
    judgements = _Judgements(topics, qrels, min_label)
    documents = Documents(corpus, fields or [text_field])
    drawn = _draw_from_corpus(documents.docnos(), judgements, negatives.number + SPARE, seed)
    wanted = judgements.relevant_documents().union(*drawn.values())
    texts = documents.texts(sorted(wanted))
    return _make_triples(judgements, drawn, texts, negatives, {"source": "topics", "seed": seed})


class _Judgements:
    """The positives of each query, and why the other judgements are none.

    Args:
        topics: ``qid`` and ``query``.
        qrels: ``qid``, ``docno`` and ``label``.
        min_label: The lowest label of a positive.

    Attributes:
        queries: The text of each query.
        read: How many judgements there are.
        dropped: How many are not of positives, by reason.
        relevant: The documents of each query with any label above 0.
        positives: The documents of each query with a label of ``min_label`` or more, in the order of judgements.
    """

    def __init__(self, topics: pd.DataFrame, qrels: pd.DataFrame, min_label: int) -> None:
        self.queries = dict(zip(topics["qid"], topics["query"], strict=True))
        self.read = len(qrels)
        self.dropped: Counter[str] = Counter()
        known = self._keep(qrels, qrels["qid"].isin(self.queries), "judgement of an unknown query")
        relevant = known[known["label"] > 0]
        self.relevant: dict[str, set[str]] = relevant.groupby("qid")["docno"].agg(set).to_dict()
        positives = self._keep(known, known["label"] >= min_label, f"judgement with a label below {min_label}")
        positives = self._keep(positives, ~positives.duplicated(["qid", "docno"]), "duplicate judgement")
        if positives.empty:
            labels = sorted(known["label"].unique().tolist())
            raise ValueError(
                f"expected judgements with a label of {min_label} or more, got none among the {len(known)} of these "
                f"topics, with the labels {labels[:10]}; training needs relevant documents"
            )
        by_query = positives.groupby("qid")["docno"].agg(list).to_dict()
        # in the order of topics, which is that of the triples
        self.positives: dict[str, list[str]] = {qid: by_query[qid] for qid in self.queries if qid in by_query}

    def relevant_documents(self) -> set[str]:
        """Return the relevant documents of all queries."""
        return set().union(*self.relevant.values())

    def _keep(self, rows: pd.DataFrame, kept: pd.Series, reason: str) -> pd.DataFrame:
        lost = len(rows) - int(kept.sum())
        if lost:
            self.dropped[reason] += lost
        return rows[kept]


def _retrieved_texts(results: pd.DataFrame, text_field: str, *, required: bool) -> dict[str, str]:
    """Return the texts of results by document, without empty ones."""
    require_texts(results, text_field, "docno", empty=True, missing=True)
    has_text = results[text_field].map(lambda text: isinstance(text, str) and bool(text.strip()))
    if required and not has_text.any():
        # not one is there: the strict check says whether they are missing or empty
        require_texts(results, text_field, "docno")
    with_text = results[has_text]
    return dict(zip(with_text["docno"], with_text[text_field], strict=True))


def _draw_from_results(
    results: pd.DataFrame, judgements: _Judgements, texts: Mapping[str, str], negatives: Negatives, seed: int
) -> Draws:
    """Shuffle the results of the query of each positive that may become its negatives."""
    scores = _scores_by_query(results)
    drawn = {}
    for qid, positives in judgements.positives.items():
        # judged documents take a rank, though they are not drawn
        ranked = list(scores[qid])[negatives.range_min : negatives.range_max]
        candidates = [docno for docno in ranked if docno in texts and docno not in judgements.relevant[qid]]
        for positive in positives:
            allowed = candidates
            if negatives.relative_margin is not None and positive in scores[qid]:
                allowed = _without_likely_false(candidates, scores[qid], positive, negatives.relative_margin)
            drawn[qid, positive] = _sample(allowed, len(allowed), _generator(seed, qid, positive))
    return drawn


def _scores_by_query(results: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Map each query to its results in the order of their ranks, with their scores (NaN without)."""
    if "rank" in results:
        results = results.sort_values(["qid", "rank"], kind="stable")
    elif "score" in results:
        results = results.sort_values(["qid", "score"], ascending=[True, False], kind="stable")
    # the best rank counts, where a union of retrievers has a document more than once
    results = results.drop_duplicates(["qid", "docno"])
    if "score" not in results:
        results = results.assign(score=np.nan)
    ranked: dict[str, dict[str, float]] = {}
    for qid, docno, score in zip(results["qid"], results["docno"], results["score"], strict=True):
        ranked.setdefault(qid, {})[docno] = score
    return ranked


def _without_likely_false(
    candidates: Iterable[str], scores: Mapping[str, float], positive: str, relative_margin: float
) -> list[str]:
    """Remove candidates that score about what the positive does: likely false negatives."""
    most = scores[positive] - relative_margin * abs(scores[positive])
    allowed = []
    for docno in candidates:
        # not "at most", which is false of documents without a score: NaN
        if not scores[docno] > most:
            allowed.append(docno)
    return allowed


def _draw_from_corpus(docnos: Sequence[str], judgements: _Judgements, number: int, seed: int) -> Draws:
    """Draw documents for each positive that are not relevant to its query, as many as asked for or as there are."""
    drawn = {}
    for qid, positives in judgements.positives.items():
        excluded = judgements.relevant[qid]
        for positive in positives:
            generator = _generator(seed, qid, positive)
            if len(docnos) < 4 * (len(excluded) + number):
                allowed = [docno for docno in docnos if docno not in excluded]
                drawn[qid, positive] = _sample(allowed, number, generator)
            else:
                drawn[qid, positive] = _sample_by_rejection(docnos, excluded, number, generator)
    return drawn


def _generator(seed: int, qid: str, docno: str) -> np.random.Generator:
    """Return the generator of one positive."""
    # Python's own hash of strings is another one in each process
    return np.random.default_rng([seed, zlib.crc32(qid.encode()), zlib.crc32(docno.encode())])


def _sample(candidates: Sequence[str], number: int, generator: np.random.Generator) -> list[str]:
    """Draw distinct candidates, as many as asked for or as there are."""
    order = generator.permutation(len(candidates))
    return [candidates[index] for index in order[:number]]


def _sample_by_rejection(
    candidates: Sequence[str], excluded: Collection[str], number: int, generator: np.random.Generator
) -> list[str]:
    """Draw distinct candidates; where few are excluded, drawing again is quicker than listing the allowed."""
    drawn: dict[str, None] = {}
    while len(drawn) < number:
        candidate = candidates[int(generator.integers(len(candidates)))]
        if candidate not in excluded:
            drawn[candidate] = None
    return list(drawn)


def _make_triples(
    judgements: _Judgements, drawn: Draws, texts: Mapping[str, str], negatives: Negatives, origin: Mapping[str, Any]
) -> Triples:
    """Make one triple of every positive, if enough of what was drawn for it has a text of its own."""
    rows = []
    dropped = Counter(judgements.dropped)
    for qid, positives in judgements.positives.items():
        # copies of relevant documents are relevant too, judged or not
        relevant_texts = {texts[docno].strip() for docno in judgements.relevant[qid] if docno in texts}
        for positive in positives:
            if not texts.get(positive, "").strip():
                dropped["positive without text"] += 1
                continue
            found = _distinct_texts(drawn[qid, positive], texts, relevant_texts, negatives.number)
            if len(found) < negatives.number:
                dropped[f"positive with fewer than {negatives.number} negatives"] += 1
                continue
            rows.append((judgements.queries[qid], texts[positive], *found))
    if not rows:
        raise ValueError(
            f"no triples can be made of {judgements.read} judgements: {describe_dropped(dropped)}. Retrieve more "
            "documents, widen the ranks, or give corpus= for the text of relevant documents that are not retrieved"
        )
    without_positives = len(judgements.queries) - len(judgements.positives)
    origin = {**origin, "negatives_from": asdict(negatives), "queries_without_positives": without_positives}
    columns = zip(*rows, strict=True)
    cache = TripleCache(None, origin)
    with cache.writer() as writer:
        writer.read(judgements.read)
        for reason, number in dropped.items():
            writer.drop(reason, number)
        names = column_names(negatives.number + 2)
        writer.add(string_table(dict(zip(names, columns, strict=True))))
    return cache.load()


def _distinct_texts(
    docnos: Iterable[str], texts: Mapping[str, str], excluded: Collection[str], number: int
) -> list[str]:
    """Return the first texts of documents that are not empty, excluded or duplicate."""
    found: dict[str, str] = {}
    for docno in docnos:
        text = texts.get(docno, "")
        trimmed = text.strip()
        if trimmed and trimmed not in excluded:
            found.setdefault(trimmed, text)
        if len(found) == number:
            break
    return list(found.values())
