"""An encoder with other prompts: other vectors under another checksum, of the same weights."""

import numpy as np
import pyterrier as pt
import pytest
import torch

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillIndex

TEXTS = ["sort the rows", "plot a matrix"]


def test_prompts_are_put_before_texts(encoder):
    changed = encoder.with_prompts(query="read: ", document="write: ")
    np.testing.assert_allclose(
        changed.encode_queries(TEXTS), encoder.encode_queries(["read: " + text for text in TEXTS]), atol=1e-6
    )
    np.testing.assert_allclose(
        changed.encode_docs(TEXTS), encoder.encode_docs(["write: " + text for text in TEXTS]), atol=1e-6
    )
    assert changed.with_prompts(query="").model.prompts == {**changed.model.prompts, "query": ""}
    assert changed.with_prompts(query="", document="") == encoder


def test_weights_are_shared(encoder):
    changed = encoder.with_prompts(query="read: ")
    before = changed.encode_docs(TEXTS)
    with torch.no_grad():
        next(encoder.model.parameters())[:, :8] += 1
    assert np.abs(changed.encode_docs(TEXTS) - before).max() > 1e-3
    np.testing.assert_array_equal(changed.encode_docs(TEXTS), encoder.encode_docs(TEXTS))


def test_an_index_remembers_the_prompts(encoder, collection, tmp_path):
    changed = encoder.with_prompts(document="read: ")
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (changed >> index).index(collection.records)
    with pytest.raises(EncoderMismatchError):
        (encoder >> index)(collection.topics)
    assert len((changed >> index)(collection.topics)) == 320


def test_it_is_saved_with_its_prompts(encoder, tmp_path):
    encoder.training_summary = {"seed": 7}
    changed = encoder.with_prompts(query="read: ")
    assert (changed.name, changed.batch_size) == (encoder.name, encoder.batch_size)
    saved = pt.Artifact.load(changed.save(tmp_path / "model"))
    assert saved.model_name == changed.model_name != encoder.model_name
    assert saved.training_summary == {"seed": 7}


def test_prompts_must_be_strings(encoder):
    with pytest.raises(ValueError, match="query must be a valid string"):
        encoder.with_prompts(query=7)
