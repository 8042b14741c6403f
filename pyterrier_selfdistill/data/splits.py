"""Split queries for training and evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..validate import require_columns, require_identifiers


def split_queries(
    frame: pd.DataFrame,
    shares: Mapping[str, float] = {"train": 0.9, "valid": 0.1},
) -> dict[str, pd.DataFrame]:
    """Split topics, results or judgements by query.

    A checksum of the ``qid`` says where a query belongs. All of its rows stay together, topics and judgements are split
    alike, and a query keeps its part when other queries come or go.

    Args:
        frame: Rows with ``qid``.
        shares: The names of the parts and their shares, which sum up to 1.

    Returns:
        The parts by name.

    Raises:
        ValueError: If the shares do not sum up to 1, or there is no ``qid``.
        TypeError: If a ``qid`` is not a string.

    Example:
        >>> topics = pd.DataFrame({"qid": [str(i) for i in range(100)]})
        >>> {name: len(part) for name, part in split_queries(topics, {"train": 0.8, "valid": 0.2}).items()}
        {'train': 78, 'valid': 22}
    """
    require_columns(frame, ["qid"], "rows to split")
    require_identifiers(frame, "qid", "rows to split")
    if not np.isclose(sum(shares.values()), 1) or min(shares.values()) < 0:
        raise ValueError(
            f"shares must be numbers from 0 to 1 that sum up to 1, such as {{'train': 0.9, 'valid': 0.1}}, "
            f"got {dict(shares)}"
        )
    places = frame["qid"].map(_percentile).astype(float)
    parts = {}
    total = 0.0
    for name, share in shares.items():
        # rounded, since 100 * (0.7 + 0.1) is a little less than 80
        start = round(100 * total, 6)
        total += share
        end = round(100 * total, 6)
        parts[name] = frame[(places >= start) & (places < end)]
    return parts


def _percentile(qid: str) -> int:
    """Return the place of a query, from 0 to 99."""
    return zlib.crc32(qid.encode()) % 100
