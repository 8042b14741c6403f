"""Make triples from judged queries, and split judged queries into parts.

:func:`from_results` draws negatives from the results of a retriever, :func:`from_topics` from a whole corpus. Each
positive has a separate generator, seeded by ``seed``, ``qid`` and ``docno``, so a draw never depends on other rows.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd
from datasets import Dataset

from ..utils.checks import (
    Count,
    Expected,
    FieldNames,
    PositiveInteger,
    Seed,
    Share,
    checked,
    judged,
    require_columns,
    require_identifiers,
    require_texts,
)
from .corpus import Corpus, Documents, join_texts, one_text_each
from .triples import Triples, checksums, column_names, string_table, summarize

logger = logging.getLogger(__name__)
MANY_UNMATCHED = 0.1  # warn if more than this share of the queries, judgements or results is left out
SPARE = 8  # how many extra negatives to draw from a corpus, since some have the text of a positive

Draws: TypeAlias = Mapping[tuple[str, str], list[str]]  # the documents drawn for each positive (qid and docno)


@checked
@dataclass(frozen=True)
class Negatives:
    """Choose the results of a query that can become hard negatives.

    Args:
        number: K, the number of negatives per triple.
        range_min: Skip this many of the best results, since they are often relevant without a judgement.
        range_max: Skip results below this rank.
        relative_margin: Skip likely false negatives: results that score more than (1 - ``relative_margin``) times the
            score of the positive. For example, 0.05 skips results above 95 % of it. If the positive was not retrieved,
            it has no score, and all results are allowed.

    Example:
        >>> Negatives(4, range_min=10, range_max=100, relative_margin=0.05)
        Negatives(number=4, range_min=10, range_max=100, relative_margin=0.05)
    """

    number: PositiveInteger = 1
    range_min: Count = 0
    range_max: PositiveInteger | None = None
    relative_margin: Share | None = None

    def __post_init__(self) -> None:
        if self.range_max is not None and self.range_max < self.range_min + self.number:
            raise ValueError(
                f"ranks {self.range_min} to {self.range_max} have fewer than {self.number} results; widen them"
            )


@checked
def from_results(
    results: pd.DataFrame,
    qrels: pd.DataFrame,
    *,
    negatives: Negatives = Negatives(),
    min_label: PositiveInteger = 1,
    seed: Count = 42,
    text_field: str = "text",
    corpus: Corpus | None = None,
    fields: FieldNames | None = None,
) -> Triples:
    """Make triples of judged positives and retrieved negatives.

    Each relevant document of a query becomes one triple, with negatives drawn at random from the results of that query.
    Documents with a label above 0, and copies of them, are never drawn.

    Args:
        results: Retrieved documents with ``qid``, ``query`` and ``docno``. Include the text fields unless you pass a
            ``corpus``, and ``rank`` or ``score`` unless the rows are sorted by rank.
        qrels: Judgements with ``qid``, ``docno`` and ``label``. The summary reports their number as ``read``.
        negatives: The number of negatives per triple, and the results to draw them from.
        min_label: The lowest label of a positive.
        seed: The seed of the draws. The draw for one positive does not depend on the other rows.
        text_field: The column with the text of documents.
        corpus: The documents, to look up texts that the results lack, for example of relevant documents that were not
            retrieved. If the results lack one of the fields, all texts come from here.
        fields: The fields to join into the text of a document, by default only ``text_field``.

    Raises:
        ValueError: If texts are missing, topics and judgements share no query, no triple can be made, or the results
            have no scores for ``relative_margin``.
        TypeError: If an identifier or text is not a string, or a label, rank or score is not a number.

    Example:
        >>> rows = [["1", "sort", "d1", "sort rows"], ["1", "sort", "d2", "plot a file"]]
        >>> results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> from_results(results, qrels).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    require_columns(results, ["docno"], "results")
    results, qrels = judged(results, qrels)
    judgements = Judgements(results, qrels, min_label)
    fields = fields or [text_field]
    texts: dict[str, str] = {}
    if corpus is None or set(fields) <= set(results.columns):
        texts = _retrieved_texts(results, fields)
    if corpus is None and not texts:
        # the strict check reports whether texts are missing or empty
        require_texts(results, fields[0], "docno")
    if corpus is not None:
        wanted = set(results["docno"]).union(*judgements.relevant.values())
        texts |= Documents(corpus, fields).texts(sorted(wanted - texts.keys()))
    drawn = _draw_from_results(results, judgements, texts, negatives, seed)
    origin = {"source": "results", "seed": seed, "documents_without_text": len(set(results["docno"]) - texts.keys())}
    return _make_triples(judgements, drawn, texts, negatives, origin)


@checked
def from_topics(
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    corpus: Corpus,
    *,
    negatives: Negatives = Negatives(),
    min_label: PositiveInteger = 1,
    seed: Count = 42,
    text_field: str = "text",
    fields: FieldNames | None = None,
) -> Triples:
    """Make triples of judged positives and random documents of a corpus; the arguments are like :func:`from_results`.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot"}]
        >>> from_topics(topics, qrels, corpus).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot'}
    """
    if negatives != Negatives(negatives.number):
        raise ValueError(f"{negatives} needs ranks or scores, which a corpus lacks; put a retriever before the trainer")
    topics, qrels = judged(topics, qrels)
    judgements = Judgements(topics, qrels, min_label)
    documents = Documents(corpus, fields or [text_field])
    drawn = _draw_from_corpus(documents.docnos(), judgements, negatives.number + SPARE, seed)
    texts = documents.texts(sorted(set().union(*judgements.relevant.values(), *drawn.values())))
    return _make_triples(judgements, drawn, texts, negatives, {"source": "topics", "seed": seed})


class Judgements:
    """Positives by query, and counts of the queries, judgements and results without a counterpart."""

    def __init__(self, topics: pd.DataFrame, qrels: pd.DataFrame, min_label: int) -> None:
        self.queries = dict(zip(topics["qid"], topics["query"], strict=True))
        self.read = len(qrels)
        unjudged = ~topics["qid"].isin(qrels["qid"])
        left_out = {"queries": unjudged[~topics["qid"].duplicated()], "judgements": ~qrels["qid"].isin(topics["qid"])}
        if "docno" in topics:
            left_out["results"] = unjudged
        self.unmatched: dict[str, dict[str, float]] = {}
        for name, rows in left_out.items():
            number, share = int(rows.sum()), float(rows.mean())
            self.unmatched[name] = {"number": number, "share": round(share, 4)}
            if share > MANY_UNMATCHED:
                left = f"{100 * share:.0f} % of the {name} are left out ({number} of {len(rows)})"
                logger.warning("%s: their qid is only in the topics or only in the judgements; check both", left)
        known = qrels[qrels["qid"].isin(self.queries)]
        self.relevant: dict[str, set[str]] = known[known["label"] > 0].groupby("qid")["docno"].agg(set).to_dict()
        positives = known[known["label"] >= min_label].drop_duplicates(["qid", "docno"])
        if positives.empty:
            labels = sorted(known["label"].unique().tolist())
            raise ValueError(
                f"expected judgements with a label of {min_label} or more, got none among the {len(known)} of these "
                f"topics, with the labels {labels[:10]}; training needs relevant documents"
            )
        by_query = positives.groupby("qid")["docno"].agg(list).to_dict()
        # triples keep the order of the topics
        self.positives: dict[str, list[str]] = {qid: by_query[qid] for qid in self.queries if qid in by_query}


def _retrieved_texts(results: pd.DataFrame, fields: Sequence[str]) -> dict[str, str]:
    """Return the nonempty texts of results by document."""
    for field in fields:
        require_texts(results, field, "docno", empty=True, missing=True)
    rows = results[["docno", *fields]].itertuples(index=False, name=None)
    texts = ((docno, join_texts(values)) for docno, *values in rows)
    advice = "give each passage a different docno, or pass corpus= for the texts"
    return one_text_each(((docno, text) for docno, text in texts if text.strip()), advice)


def _draw_from_results(
    results: pd.DataFrame, judgements: Judgements, texts: Mapping[str, str], negatives: Negatives, seed: int
) -> Draws:
    """Shuffle the candidate negatives of each positive."""
    if negatives.relative_margin is not None and "score" not in results:
        raise ValueError(
            f"relative_margin={negatives.relative_margin} compares the scores of results, got none in the columns "
            f"{list(results.columns)}; pass results with 'score', or omit relative_margin"
        )
    ranked = results[["qid", "docno"]].assign(score=np.nan)
    if "score" in results and (negatives.relative_margin is not None or "rank" not in results):
        ranked["score"] = _to_numbers(results, "score")
    order = _to_numbers(results, "rank") if "rank" in results else -ranked["score"]
    scores: dict[str, dict[str, float]] = {}
    for qid, docno, score in ranked.iloc[np.argsort(order, kind="stable")].itertuples(index=False, name=None):
        # a union of retrievers may repeat a document: keep its best rank
        scores.setdefault(qid, {}).setdefault(docno, score)
    drawn = {}
    for qid, positives in judgements.positives.items():
        # judged documents count as ranks, although they are never drawn
        in_range = list(scores[qid])[negatives.range_min : negatives.range_max]
        candidates = [docno for docno in in_range if docno in texts and docno not in judgements.relevant[qid]]
        for positive in positives:
            allowed = candidates
            if negatives.relative_margin is not None and positive in scores[qid]:
                score = scores[qid][positive]
                most = score - negatives.relative_margin * abs(score)
                allowed = [docno for docno in candidates if scores[qid][docno] <= most]
            order = _generator(seed, qid, positive).permutation(len(allowed))
            drawn[qid, positive] = [allowed[index] for index in order]
    return drawn


def _to_numbers(results: pd.DataFrame, column: str) -> pd.Series:
    """Convert ranks or scores to numbers, since strings from a file would be sorted as text."""
    numbers = pd.to_numeric(results[column], errors="coerce").astype(float)
    wrong = results[column][numbers.isna()].tolist()
    if wrong:
        raise TypeError(
            f"the {column} of results must be a number in every row, got {wrong[:3]} in {len(wrong)} of "
            f"{len(results)} rows; drop these rows, or the column"
        )
    return numbers


def _draw_from_corpus(docnos: Sequence[str], judgements: Judgements, number: int, seed: int) -> Draws:
    """Draw documents for each positive, and skip the relevant documents of its query."""
    drawn = {}
    for qid, positives in judgements.positives.items():
        excluded = judgements.relevant[qid]
        for positive in positives:
            generator = _generator(seed, qid, positive)
            if len(docnos) < 4 * (len(excluded) + number):
                allowed = [docno for docno in docnos if docno not in excluded]
                drawn[qid, positive] = [allowed[index] for index in generator.permutation(len(allowed))[:number]]
                continue
            # if few documents are excluded, drawing again is faster than listing the allowed ones
            found: dict[str, None] = {}
            while len(found) < number:
                candidate = docnos[int(generator.integers(len(docnos)))]
                if candidate not in excluded:
                    found[candidate] = None
            drawn[qid, positive] = list(found)
    return drawn


def _generator(seed: int, qid: str, docno: str) -> np.random.Generator:
    # Python's built-in hash of a string differs between processes
    return np.random.default_rng([seed, zlib.crc32(qid.encode()), zlib.crc32(docno.encode())])


def _make_triples(
    judgements: Judgements, drawn: Draws, texts: Mapping[str, str], negatives: Negatives, origin: Mapping[str, Any]
) -> Triples:
    """Make one triple per positive, if enough of its drawn documents have distinct texts."""
    rows = []
    without_text = 0
    for qid, positives in judgements.positives.items():
        # copies of relevant documents are relevant too, even without a judgement
        relevant_texts = {texts[docno].strip() for docno in judgements.relevant[qid] if docno in texts}
        for positive in positives:
            found: dict[str, str] = {}
            for docno in drawn[qid, positive]:
                text = texts.get(docno, "")
                if text.strip() and text.strip() not in relevant_texts:
                    found.setdefault(text.strip(), text)
                if len(found) == negatives.number:
                    break
            if not texts.get(positive, "").strip():
                without_text += 1
            elif len(found) == negatives.number:
                rows.append((judgements.queries[qid], texts[positive], *found.values()))
    if not rows:
        too_few = sum(map(len, judgements.positives.values())) - without_text
        raise ValueError(
            f"no triples can be made from {judgements.read} judgements: {without_text} x positive without text, "
            f"{too_few} x positive with fewer than {negatives.number} negatives. Retrieve more "
            "documents, widen the ranks, or pass corpus= for the text of relevant documents that are not retrieved"
        )
    without_positives = len(judgements.queries) - len(judgements.positives)
    counts = {"queries_without_positives": without_positives, "unmatched": judgements.unmatched}
    table = string_table(dict(zip(column_names(negatives.number + 2), zip(*rows, strict=True), strict=True)))
    columns = {name: checksums(table[name]) for name in table.column_names}
    origin = {**origin, "negatives_from": asdict(negatives), **counts}
    return Triples(Dataset(table), summarize(origin, judgements.read, columns))


DEFAULT_SHARES = {"train": 0.9, "valid": 0.1}
EXPECTED_SHARES = f"numbers from 0 to 1 that sum up to 1, such as {DEFAULT_SHARES}"
Shares: TypeAlias = Annotated[Mapping[str, Share], Expected(EXPECTED_SHARES)]


@checked
def split_queries(frame: pd.DataFrame, shares: Shares = DEFAULT_SHARES, seed: Seed = 0) -> dict[str, pd.DataFrame]:
    """Split topics, results or judgements by query.

    The split depends only on a checksum of the ``qid``. All rows of a query stay together, you get the same split of
    topics and judgements, and a query stays in its part when you add or remove other queries.

    Args:
        frame: Rows with ``qid``.
        shares: The share of each part by name. Shares sum up to 1.
        seed: The start of the checksum. Choose another seed for a different split.

    Returns:
        The frame of each part by name.

    Raises:
        ValueError: If the shares are not numbers or do not sum up to 1, or the frame lacks ``qid``.
        TypeError: If a ``qid`` is not a string, or ``frame`` is not a frame.

    Example:
        >>> topics = pd.DataFrame({"qid": [str(i) for i in range(100)]})
        >>> [len(part) for part in split_queries(topics, {"train": 0.8, "valid": 0.2}).values()]
        [78, 22]
    """
    require_columns(frame, ["qid"], "rows to split")
    require_identifiers(frame, "qid", "rows to split")
    ends = np.cumsum(list(shares.values()))
    if not len(ends) or not np.isclose(ends[-1], 1):
        raise ValueError(f"shares must be {EXPECTED_SHARES}, got {shares}")
    checksums = np.array([zlib.crc32(qid.encode(), seed) for qid in frame["qid"]], dtype=np.int64)
    # whole percents decide first; the rest of the checksum refines shares that are not whole percents
    places = checksums % 100 + checksums // 100 / (2**32 / 100)
    # rounded, since 100 * (0.7 + 0.1) is a little less than 80
    chosen = np.searchsorted(np.round(100 * ends / ends[-1], 6), places, side="right")
    return {name: frame[chosen == part] for part, name in enumerate(shares)}
