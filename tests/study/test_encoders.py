import pytest

from benchmarks.study.encoders import base_encoder
from benchmarks.study.run import Run


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_base_encoder_has_the_pooling_and_the_lengths_of_the_run(pooling):
    """MiniLM comes with mean pooling."""
    encoder = base_encoder(Run("tiny", pooling=pooling, query_length=8, document_length=16).start)
    assert [type(module).__name__ for module in encoder.model] == ["Transformer", "Pooling", "Normalize"]
    assert encoder.model[1].pooling_mode == pooling
    assert (encoder.model[0].query_length, encoder.model[0].document_length) == (8, 16)
    assert encoder.name == "minilm"


def test_reinitialized_layers_have_forgotten_and_the_others_have_not():
    encoder = base_encoder(Run("tiny", reinitialized=2).start)
    again = base_encoder(Run("tiny", reinitialized=2).start)
    trained = base_encoder(Run("tiny").start)
    weights = [e.model[0].model.encoder.layer for e in (encoder, again, trained)]
    for number, (layer, same, before) in enumerate(zip(*weights, strict=True)):
        dense = layer.output.dense.weight
        assert dense.equal(same.output.dense.weight)
        assert dense.equal(before.output.dense.weight) == (number < 4)
