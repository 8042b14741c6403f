"""Judged queries: their positives, and splits of them."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from typing import Annotated, TypeAlias

import numpy as np
import pandas as pd
from pydantic import AfterValidator

from ..utils.checks import Expected, Seed, Share, checked, require_columns, require_identifiers

logger = logging.getLogger(__name__)
MANY_UNMATCHED = 0.1  # the share of queries, judgements or results above which a warning says that they are left out


class Judgements:
    """The positives of each query, and what the other judgements lack."""

    def __init__(self, topics: pd.DataFrame, qrels: pd.DataFrame, min_label: int) -> None:
        # an index may be named like a column
        topics, qrels = topics.reset_index(drop=True), qrels.reset_index(drop=True)
        self.queries = dict(zip(topics["qid"], topics["query"], strict=True))
        self.read = len(qrels)
        self.unmatched = _count_unmatched(topics, qrels)
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
        # in the order of topics, which becomes the order of the triples
        self.positives: dict[str, list[str]] = {qid: by_query[qid] for qid in self.queries if qid in by_query}

    def relevant_documents(self) -> set[str]:
        """Return the relevant documents of all queries."""
        return set().union(*self.relevant.values())


def _count_unmatched(topics: pd.DataFrame, qrels: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Count rows whose ``qid`` is in one of the frames only; warn of many."""
    is_judged = topics["qid"].isin(qrels["qid"])
    left_out = {
        "queries": ~is_judged[~topics["qid"].duplicated()],
        "judgements": ~qrels["qid"].isin(topics["qid"]),
    }
    if "docno" in topics:
        left_out["results"] = ~is_judged
    unmatched = {}
    for name, rows in left_out.items():
        number, share = int(rows.sum()), float(rows.mean())
        unmatched[name] = {"number": number, "share": round(share, 4)}
        if share > MANY_UNMATCHED:
            left = f"{100 * share:.0f} % of the {name} are left out ({number} of {len(rows)})"
            logger.warning("%s: their qid is either in the topics (or results) or in the judgements; check both", left)
    return unmatched


def _require_sum(shares: Mapping[str, float]) -> Mapping[str, float]:
    if not np.isclose(sum(shares.values()), 1):
        raise ValueError
    return shares


Shares: TypeAlias = Annotated[
    Mapping[str, Share],
    AfterValidator(_require_sum),
    Expected("numbers from 0 to 1 that sum up to 1, such as {'train': 0.9, 'valid': 0.1}"),
]

DEFAULT_SHARES: Shares = {"train": 0.9, "valid": 0.1}


@checked
def split_queries(frame: pd.DataFrame, shares: Shares = DEFAULT_SHARES, seed: Seed = 0) -> dict[str, pd.DataFrame]:
    """Split topics, results or judgements by query.

    A checksum of the ``qid`` decides: the rows of a query stay together, topics and judgements are split alike, and a
    query keeps its part when other queries come or go.

    Args:
        frame: Rows with ``qid``.
        shares: The names of the parts and their shares, which sum up to 1.
        seed: The start of the checksum, for other splits than the usual one.

    Returns:
        The parts by name.

    Raises:
        ValueError: If the shares are no numbers or do not sum up to 1, or there is no ``qid``.
        TypeError: If a ``qid`` is not a string, or there is no frame.

    Example:
        >>> topics = pd.DataFrame({"qid": [str(i) for i in range(100)]})
        >>> {name: len(part) for name, part in split_queries(topics, {"train": 0.8, "valid": 0.2}).items()}
        {'train': 78, 'valid': 22}
    """
    require_columns(frame, ["qid"], "rows to split")
    require_identifiers(frame, "qid", "rows to split")
    checksums = np.array([zlib.crc32(qid.encode(), seed) for qid in frame["qid"]], dtype=np.int64)
    # the percent alone decides where shares are whole percents, the rest of the checksum where they are not
    places = checksums % 100 + checksums // 100 / (2**32 / 100)
    ends = np.cumsum(list(shares.values()))
    # rounded, since 100 * (0.7 + 0.1) is a little less than 80
    chosen = np.searchsorted(np.round(100 * ends / ends[-1], 6), places, side="right")
    return {name: frame[chosen == part] for part, name in enumerate(shares)}
