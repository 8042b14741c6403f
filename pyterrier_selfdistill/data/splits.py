"""Splits of queries for training and validation."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..validate import require_columns


def split_queries(
    frame: pd.DataFrame,
    shares: Mapping[str, float] = {"train": 0.9, "valid": 0.1},
) -> dict[str, pd.DataFrame]:
    """Splits topics, results or judgements by query.

    A checksum of the ``qid`` says where a query belongs, so that all of its rows stay together, topics and judgements
    are split alike, and a query keeps its place when others come or go.

    Args:
        frame: Rows with ``qid``.
        shares: The names of the parts and their shares, which sum up to 1.

    Returns:
        The parts by name.

    Raises:
        ValueError: If the shares do not sum up to 1, or there is no ``qid``.
        TypeError: If a ``qid`` is no string.

    Example:
        >>> topics = pd.DataFrame({"qid": [str(i) for i in range(100)]})
        >>> {name: len(part) for name, part in split_queries(topics, {"train": 0.8, "valid": 0.2}).items()}
        {'train': 78, 'valid': 22}
    """
    require_columns(frame, ["qid"], "rows to split")
    if not np.isclose(sum(shares.values()), 1) or min(shares.values()) < 0:
        raise ValueError(f"shares={dict(shares)} do not sum up to 1; give some such as {{'train': 0.9, 'valid': 0.1}}")
    if wrong := [qid for qid in frame["qid"] if not isinstance(qid, str)]:
        raise TypeError(f"the qid is no string in {len(wrong)} of {len(frame)} rows ({wrong[:3]}); make it one")
    places = np.array([zlib.crc32(qid.encode()) % 100 for qid in frame["qid"]], dtype=float)
    bounds = np.round(100 * np.cumsum([0, *shares.values()]), 6)
    return {
        name: frame[(places >= low) & (places < high)]
        for name, low, high in zip(shares, bounds[:-1], bounds[1:], strict=True)
    }
