"""Who computed a vector: checksums of models, and vectors that remember their encoder."""

import hashlib
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from pyterrier_selfdistill.index.identity import (
    ComparedByKey,
    EncodedVector,
    EncoderIdentity,
    ModelChecksum,
    encoders_of,
)

IDENTITY = EncoderIdentity("my-model", "0123456789abcdef")


# --- EncodedVector --------------------------------------------------------------------------------------------------


def test_vectors_keep_their_encoder_through_frames_records_and_pickles(encoder, collection):
    topics = collection.topics
    encoded = encoder(topics)
    frames = [
        encoded,
        encoded.merge(topics, on="qid"),
        pd.concat([frame for _, frame in encoded.groupby("qid")]),
        pd.DataFrame(encoded.to_dict(orient="records")),
        pickle.loads(pickle.dumps(encoded)),
        pd.DataFrame(encoder(topics.to_dict(orient="records"))),
        encoded.assign(query_vec=[2 * vector + np.ones(32) for vector in encoded["query_vec"]]),
    ]
    for frame in frames:
        assert {vector.encoder for vector in frame["query_vec"]} == {encoder.identity}


def test_sum_of_a_vector_is_a_number(encoder, collection):
    vector = encoder(collection.topics)["query_vec"][0]
    assert isinstance(vector.sum(), np.float32)


def test_rows_share_the_memory_of_the_array():
    array = np.eye(3, dtype=np.float32)
    vectors = EncodedVector.rows(array, IDENTITY)
    array[0, 1] = 5
    assert vectors[0].tolist() == [1, 5, 0]


def test_encoders_of_finds_those_that_are_known():
    ours = EncodedVector.rows(np.eye(2), IDENTITY)
    unknown = np.ones(2).view(EncodedVector)
    assert encoders_of([np.ones(2), unknown, *ours]) == {IDENTITY}
    assert encoders_of([np.ones(2), unknown]) == set()


def test_identity_is_shown_with_name_and_checksum():
    assert str(IDENTITY) == "'my-model' [0123456789ab]"
    assert str(EncoderIdentity(None, "0123456789abcdef")) == "an encoder without a name [0123456789ab]"


# --- ModelChecksum --------------------------------------------------------------------------------------------------


def test_checksum_is_that_of_layers_settings_and_weights(encoder):
    """Indexes and caches on disk hold it, so it must stay what it is."""
    model = encoder.model
    settings = encoder.query_length, encoder.document_length, model.max_seq_length, tuple(model.prompts.items())
    expected = hashlib.sha256(repr((str(model), settings)).encode())
    for tensor in model.state_dict().values():
        expected.update(tensor.numpy().tobytes())
    assert ModelChecksum().of(model, settings) == expected.hexdigest() == encoder.model_name


def test_checksum_is_computed_again_only_after_a_change(encoder, monkeypatch):
    computed = []
    sha256 = hashlib.sha256

    def count(*arguments):
        computed.append(arguments)
        return sha256(*arguments)

    monkeypatch.setattr("pyterrier_selfdistill.index.identity.hashlib.sha256", count)
    checksum = ModelChecksum()
    first = checksum.of(encoder.model, settings=(1,))
    assert checksum.of(encoder.model, settings=(1,)) == first
    assert len(computed) == 1
    assert checksum.of(encoder.model, settings=(2,)) != first
    assert len(computed) == 2
    with torch.no_grad():
        next(encoder.model.parameters())[0, 0] += 1
    assert checksum.of(encoder.model, settings=(1,)) != first
    assert len(computed) == 3


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"fused": False, "foreach": False}])
def test_checksum_follows_every_step_of_training(encoder, options):
    parameters = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, **options)
    names = {encoder.model_name}
    for _ in range(3):
        encoder.encode_queries_torch(["sort rows", "plot", "read a file"]).sum().backward()
        optimizer.step()
        names.add(encoder.model_name)
    assert len(names) == 4


# --- ComparedByKey --------------------------------------------------------------------------------------------------


class Point(ComparedByKey):
    def __init__(self, *coordinates):
        self.coordinates = coordinates

    def _key(self):
        return self.coordinates


class NamedPoint(Point):
    pass


def test_objects_with_equal_keys_are_equal():
    assert Point(1, 2) == Point(1, 2)
    assert hash(Point(1, 2)) == hash(Point(1, 2))
    assert Point(1, 2) != Point(2, 1)
    assert Point(1, 2) != (1, 2)


def test_objects_of_a_subclass_are_equal_both_ways():
    assert Point(1, 2) == NamedPoint(1, 2)
    assert NamedPoint(1, 2) == Point(1, 2)
