"""Split queries for training and evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Annotated, TypeAlias

import numpy as np
import pandas as pd
from pydantic import AfterValidator

from ..options import Expected, Seed, Share, checked
from ..validate import require_columns, require_identifiers


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
"""A tenth of the queries for evaluation."""


@checked
def split_queries(frame: pd.DataFrame, shares: Shares = DEFAULT_SHARES, seed: Seed = 0) -> dict[str, pd.DataFrame]:
    """Split topics, results or judgements by query.

    A checksum of the ``qid`` says where a query belongs. All of its rows stay together, topics and judgements are split
    alike, and a query keeps its part when other queries come or go. Shares may be as small as the queries are many.

    Args:
        frame: Rows with ``qid``.
        shares: The names of the parts and their shares, which sum up to 1.
        seed: Where the checksum starts, for other splits than the usual one.

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
    places = frame["qid"].map(partial(_place, seed=seed)).to_numpy(dtype=float)
    ends = np.cumsum(list(shares.values()))
    # rounded, since 100 * (0.7 + 0.1) is a little less than 80
    percents = np.round(100 * ends / ends[-1], 6)
    chosen = np.searchsorted(percents, places, side="right")
    return {name: frame[chosen == part] for part, name in enumerate(shares)}


def _place(qid: str, seed: int) -> float:
    """Return the place of a query, from 0 to just below 100."""
    quotient, percent = divmod(zlib.crc32(qid.encode(), seed), 100)
    # the percent alone decides wherever shares are whole percents, what is left of the checksum where they are not
    return percent + quotient / (2**32 / 100)
