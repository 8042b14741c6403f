import numpy as np
import pytest
from datasets import Dataset

from benchmarks.study.teacher import Teacher


@pytest.fixture
def triples():
    """Triples whose positives have the word ``table``."""
    rows = {
        "query": [f"sort {word}" for word in ("rows", "column", "value", "data")],
        "positive": ["sort the table", "read the table", "write a table", "plot the table"],
        "negative": ["plot a file", "read the matrix", "return an array", "write the file"],
    }
    return Dataset.from_dict(rows)


def test_a_teacher_learns_and_labels_triples_with_its_scaled_margins(language_model, triples, tmp_path):
    many = Dataset.from_dict({name: list(triples[name]) * 40 for name in triples.column_names})
    teacher = Teacher(language_model, 32, seed=1).fit(many, str(tmp_path))
    assert teacher.seconds > 0
    labels = teacher.label(triples, scale=0.5)["label"]
    positive = teacher.scores(triples["query"], triples["positive"])
    negative = teacher.scores(triples["query"], triples["negative"])
    np.testing.assert_allclose(labels, 0.5 * (positive - negative), atol=1e-6)
    assert np.mean(labels) > 0
