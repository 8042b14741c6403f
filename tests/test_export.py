"""An exported model: read by OpenVINO, and by this package."""

import importlib

import numpy as np
import pytest

from pyterrier_selfdistill import SelfDistillBiEncoder
from pyterrier_selfdistill.encoder.steps import tokenize

TEXTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 1e-5), ("int8", 2e-2)])
def test_an_exported_model_is_read_by_openvino_and_by_us(language_model, encoder, tmp_path, dtype, tolerance):
    openvino = pytest.importorskip("openvino")
    source = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype=dtype)
    folder = source.export(tmp_path / "model")
    assert SelfDistillBiEncoder(folder, device="cpu").model_name == encoder.model_name
    assert source.path != folder
    [file] = folder.glob("openvino/*.xml")
    graph = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    features = tokenize(encoder.model, TEXTS, "document")
    outputs = graph({port.get_any_name(): features[port.get_any_name()].numpy() for port in graph.inputs})
    np.testing.assert_allclose(
        (outputs["sentence_embedding"] * encoder.encode_docs(TEXTS)).sum(axis=1), 1, atol=tolerance
    )
    with pytest.raises(FileExistsError, match="already"):
        source.export(tmp_path / "model")


def test_nothing_is_written_without_openvino(encoder, monkeypatch, tmp_path):
    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-selfdistill\[int8\]"):
        encoder.export(tmp_path / "model")
    assert not list(tmp_path.iterdir())
