"""Shorter vectors: what an encoder and an index are after they were cut."""

import numpy as np
import pyterrier as pt
import pyterrier_dr
import pytest
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillIndex

TEXTS = ["sort the rows of a table", "plot", "read a file"]


def prefixes(vectors, dimension):
    cut = vectors[:, :dimension]
    return cut / np.linalg.norm(cut, axis=1, keepdims=True)


def test_vectors_are_prefixes_of_unit_length(encoder):
    shorter = encoder.truncate(8)
    expected = prefixes(encoder.encode_docs(TEXTS), 8)
    np.testing.assert_allclose(shorter.encode_docs(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(shorter.truncate(3).encode_queries(TEXTS), prefixes(expected, 3), atol=1e-6)
    assert encoder.encode_docs(TEXTS).shape == (3, 32)
    assert (shorter.dimension, shorter.batch_size, shorter.name) == (8, encoder.batch_size, encoder.name)
    with pytest.raises(ValueError, match="must be smaller than the 32 dimensions of the vectors, got 32"):
        encoder.truncate(32)


def test_three_readers_give_the_same_vectors(encoder, tmp_path):
    shorter = encoder.truncate(8)
    expected = shorter.encode_docs(TEXTS)
    path = str(shorter.save(tmp_path / "shorter"))
    loaded = pt.Artifact.load(path)
    assert loaded.model_name == shorter.model_name
    np.testing.assert_allclose(loaded.encode_docs(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(SentenceTransformer(path, device="cpu").encode(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(pyterrier_dr.SBertBiEncoder(path, device="cpu").encode_docs(TEXTS), expected, atol=1e-6)


def test_the_summary_of_training_says_what_was_cut(encoder):
    assert encoder.truncate(8).training_summary == {}
    encoder.training_summary = {"seed": 1}
    assert encoder.truncate(8).training_summary == {"seed": 1, "truncated_from": 32}


def test_indexes_are_those_of_their_encoder(encoder, index, collection, tmp_path):
    shorter = encoder.truncate(8)
    own = SelfDistillIndex(tmp_path / "own.flex", verbose=False)
    (shorter >> own).index(collection.records)
    assert len((shorter >> own)(collection.topics))
    for mixed in (encoder >> own, shorter >> index):
        with pytest.raises((EncoderMismatchError, ValueError)):
            mixed(collection.topics)
    # of the same length, so that only identity tells them apart
    doubly = encoder.truncate(16).truncate(8)
    with pytest.raises(EncoderMismatchError, match="same name"):
        (doubly >> own)(collection.topics)


def test_index_is_cut_without_encoding_anew(encoder, other, index, collection, tmp_path, ranking):
    shorter = encoder.truncate(8)
    cut = encoder.truncate_index(index, tmp_path / "cut.flex", 8)
    built = SelfDistillIndex(tmp_path / "built.flex", verbose=False)
    (shorter >> built).index(collection.records)
    np.testing.assert_allclose(cut.np_vecs(), built.np_vecs(), atol=1e-6)
    assert cut.encoder == built.encoder
    assert cut.docnos().fwd[39] == built.docnos().fwd[39]
    with pytest.raises(EncoderMismatchError, match="cut it with its own"):
        other.truncate_index(index, tmp_path / "other.flex", 8)
    with pytest.raises(FileExistsError):
        encoder.truncate_index(index, tmp_path / "cut.flex", 4)
    assert encoder.truncate_index(index, tmp_path / "cut.flex", 4, overwrite=True).np_vecs().shape == (40, 4)
