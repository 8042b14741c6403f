"""What training changes in an encoder: how vectors of documents are spread, and margins against their targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pyterrier_selfdistill.encoder.biencoder import SelfDistillBiEncoder
from pyterrier_selfdistill.training.callbacks import mean_cosine, representational_similarity

from .collection import Collection, judged_positives

SAMPLE = 1000
"""How many documents the spread is measured of, at most."""

COMPARED = 100
"""Over how many of these documents the margins of a positive are measured, at most."""

QUERIES = 200
"""Of how many test queries the margins are measured, at most."""


class Baseline:
    """Vectors of the encoder that training starts from, to compare with those of trained ones.

    Args:
        encoder: The encoder.
        collection: The collection that is searched.
    """

    def __init__(self, encoder: SelfDistillBiEncoder, collection: Collection) -> None:
        self.rows = sample_rows(len(collection.documents))
        self.positives = choose_positives(*collection.splits["test"], collection.documents)
        texts = collection.documents["text"].iloc[self.rows].tolist()
        self.documents = encoder.encode_docs(texts)
        self.margins = self._margins(encoder, self.documents)

    def compare(self, encoder: SelfDistillBiEncoder, vectors: np.ndarray) -> dict[str, Any]:
        """Compare with a trained encoder.

        Args:
            encoder: The encoder.
            vectors: Those of all documents, in their order.

        Returns:
            ``space``, as :func:`describe_space` does, and ``margins``: the ``qid`` of each query, and
            :func:`describe_margins` ``before`` and ``after`` training.
        """
        documents = vectors[self.rows]
        margins = {
            "qid": self.positives["qid"].tolist(),
            "before": self.margins,
            "after": self._margins(encoder, documents),
        }
        return {"space": describe_space(documents, self.documents), "margins": margins}

    def _margins(self, encoder: SelfDistillBiEncoder, documents: np.ndarray) -> dict[str, list[float]]:
        queries = encoder.encode_queries(self.positives["query"].tolist())
        positives = encoder.encode_docs(self.positives["text"].tolist())
        return describe_margins(queries, positives, documents[:COMPARED])


def sample_rows(number: int) -> np.ndarray:
    """Draw at most :data:`SAMPLE` of so many rows, always the same."""
    rows = np.random.default_rng(0).permutation(number)
    return np.sort(rows[:SAMPLE])


def choose_positives(topics: pd.DataFrame, qrels: pd.DataFrame, documents: pd.DataFrame) -> pd.DataFrame:
    """Choose queries and a relevant document of each, of the highest label, always the same.

    Args:
        topics: ``qid`` and ``query``.
        qrels: ``qid``, ``docno`` and ``label``.
        documents: ``docno`` and ``text``.

    Returns:
        ``qid``, ``query`` and ``text``, of at most :data:`QUERIES` queries.
    """
    judged = judged_positives(qrels, documents).sort_values(["qid", "label", "docno"], ascending=[True, False, True])
    best = judged.drop_duplicates("qid")
    rows = topics.merge(best, on="qid").merge(documents, on="docno")
    return rows[["qid", "query", "text"]].sort_values("qid", ignore_index=True).head(QUERIES)


def describe_margins(queries: np.ndarray, positives: np.ndarray, documents: np.ndarray) -> dict[str, list[float]]:
    """Compare the margins of positives over documents with what the adaptive target asks of them.

    Args:
        queries: Unit vectors of queries, ``(queries, dimensions)``.
        positives: Those of a positive for each.
        documents: Those of documents to compare with, ``(documents, dimensions)``.

    Returns:
        For each query, over the documents: the mean ``margin``, the mean ``target``, and the share of margins that are
        ``above`` their targets, which a two-sided error pulls back.
    """
    own = (queries * positives).sum(axis=1)
    margins = own[:, None] - queries @ documents.T
    targets = (1 + positives @ documents.T) / 2
    described = {
        "margin": margins.mean(axis=1),
        "target": targets.mean(axis=1),
        "above": (margins > targets).mean(axis=1),
    }
    return {name: values.round(3).tolist() for name, values in described.items()}


def describe_space(vectors: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """Describe how the vectors of documents are spread.

    Args:
        vectors: Those of the trained encoder, ``(documents, dimensions)``.
        before: Those of the untouched encoder, of the same documents.

    Returns:
        ``similarity``, the mean cosine of two documents, 1 where all are the same; ``dimensions``, the participation
        ratio of the eigenvalues of their covariance: how many directions they really use; and
        ``representational_similarity``, how much of the similarity of documents is what it was.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T))
    dimensions = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    return {
        "similarity": round(mean_cosine(vectors), 4),
        "dimensions": round(float(dimensions), 1),
        "representational_similarity": round(representational_similarity(before, vectors), 4),
    }
