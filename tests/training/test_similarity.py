"""How alike documents are, and when that is harm."""

import math

import numpy as np
import pytest

from pyterrier_selfdistill.training.callbacks import (
    has_collapsed,
    has_forgotten,
    mean_cosine,
    representational_similarity,
)


@pytest.fixture
def vectors():
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_mean_cosine_is_that_of_all_pairs(vectors):
    cosines = [vectors[i] @ vectors[j] for i in range(6) for j in range(i)]
    assert mean_cosine(vectors) == pytest.approx(np.mean(cosines))


def test_mean_cosine_of_equal_vectors_is_1(vectors):
    assert mean_cosine(vectors[[0, 0, 0]]) == pytest.approx(1)
    assert mean_cosine(vectors[:1]) == 0


def test_representational_similarity_does_not_see_rotations(vectors):
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    assert representational_similarity(vectors, vectors @ rotation) == pytest.approx(1)
    assert representational_similarity(vectors, vectors[::-1]) < 0.9


def test_representational_similarity_is_unknown_of_too_few_or_equal_texts(vectors):
    assert math.isnan(representational_similarity(vectors[:2], vectors[:2]))
    assert math.isnan(representational_similarity(vectors, np.ones((6, 1))))


def test_collapse_is_a_loss_of_a_third_of_the_distance():
    assert not has_collapsed(0.1, 0.39)
    assert has_collapsed(0.1, 0.41)


def test_forgetting_is_a_low_representational_similarity():
    assert not has_forgotten(0.41)
    assert has_forgotten(0.39)
    assert not has_forgotten(math.nan)
