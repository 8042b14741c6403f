"""Two systems on a small collection: one ranks what is relevant first, the other last."""

import pandas as pd
import pytest


@pytest.fixture
def systems(collection) -> dict[str, pd.DataFrame]:
    """Results that rank all documents: ``right`` as they were judged, ``wrong`` against that, ``mixed`` both ways."""
    judged = collection.results.merge(collection.qrels)
    spread = [position / len(judged) for position in range(len(judged))]
    return {
        "wrong": judged.assign(score=-judged["label"] + pd.Series(spread)),
        "right": judged.assign(score=judged["label"] + pd.Series(spread)),
        "mixed": judged.assign(score=judged["label"].where(judged["qid"] < "q4", -judged["label"]) + pd.Series(spread)),
    }
