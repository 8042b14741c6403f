"""Vectors remember their encoder, wherever PyTerrier carries them."""

import pickle

import numpy as np
import pandas as pd

from pyterrier_selfdistill.index.files import EncodedVector, EncoderIdentity, encoders_of

IDENTITY = EncoderIdentity("my-model", "0123456789abcdef")


def test_vectors_keep_their_encoder_through_frames_records_and_pickles():
    vectors = EncodedVector.rows(np.eye(3, dtype=np.float32), IDENTITY)
    frame = pd.DataFrame({"qid": list("abc"), "query_vec": vectors})
    frames = [
        frame,
        frame.merge(frame[["qid"]], on="qid"),
        pd.concat([part for _, part in frame.groupby("qid")]),
        pd.DataFrame(frame.to_dict(orient="records")),
        pickle.loads(pickle.dumps(frame)),
        frame.assign(query_vec=[2 * vector + np.ones(3) for vector in vectors]),
    ]
    for each in frames:
        assert [vector.encoder for vector in each["query_vec"]] == [IDENTITY] * 3
    np.testing.assert_array_equal(np.stack(frames[4]["query_vec"]), np.eye(3))


def test_rows_share_memory_and_a_sum_is_a_number():
    array = np.eye(3, dtype=np.float32)
    vectors = EncodedVector.rows(array, IDENTITY)
    array[0, 1] = 5
    assert vectors[0].tolist() == [1, 5, 0]
    assert type(vectors[0].sum()) is np.float32


def test_only_known_encoders_are_found():
    unknown = np.ones(2).view(EncodedVector)
    assert encoders_of([np.ones(2), unknown, *EncodedVector.rows(np.eye(2), IDENTITY)]) == {IDENTITY}
    assert encoders_of([np.ones(2), unknown]) == set()
