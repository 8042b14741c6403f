"""Encoders with an adapter: saved without the base, loaded with the base that it was trained with, merged."""

import json
import shutil

import numpy as np
import peft
import pyterrier as pt
import pyterrier_dr
import pytest
import torch
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder
from pyterrier_selfdistill.encoder.adapters import add_adapter

TEXTS = ["sort the rows of a table", "plot"]


@pytest.fixture
def base(language_model, tmp_path):
    """The folder of a base, to move and to change."""
    return shutil.copytree(language_model, tmp_path / "base")


@pytest.fixture
def adapted(base):
    """An encoder with an adapter that says something."""
    encoder = SelfDistillBiEncoder.from_pretrained(base, query_length=20, device="cpu", dtype="float32")
    config = peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, init_lora_weights=False)
    add_adapter(encoder.model, config, base=str(base), seed=1)
    encoder.model.eval()
    return encoder


def test_an_adapter_alone_is_small_and_loads_as_it_was(adapted, base, tmp_path):
    folder = adapted.save_adapter(tmp_path / "adapter")
    assert not list(folder.rglob("model.safetensors"))
    loaded = pt.Artifact.load(folder, dtype="float32")
    assert loaded.model_name == adapted.model_name == adapted.copy().model_name
    assert loaded.query_length == 20
    for vectors in (loaded.encode_docs(TEXTS), SentenceTransformer(str(folder), device="cpu").encode(TEXTS)):
        np.testing.assert_allclose(vectors, adapted.encode_docs(TEXTS), atol=1e-6)
    described = json.loads((folder / "pt_meta.json").read_text())["model"]["adapter"]
    assert {**described, "base_checksum": ""} == {
        **{"base": "base", "base_checksum": "", "type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.1},
        **{"init_lora_weights": False, "target_modules": ["query", "value"]},
    }
    merged = loaded.merge_adapter()
    assert pt.Artifact.load(merged.save(tmp_path / "merged")).model_name == merged.model_name
    again = loaded.save_adapter(tmp_path / "again")
    assert SelfDistillBiEncoder.from_pretrained(again).model_name == adapted.model_name


def test_pyterrier_dr_reads_no_adapter_without_a_base(adapted, tmp_path):
    """Once it does, the docstring of save_adapter and the page on adapters can say so."""
    folder = adapted.save_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match="Unrecognized model"):
        pyterrier_dr.SBertBiEncoder(str(folder), device="cpu")


def test_three_libraries_read_what_is_merged(adapted, tmp_path):
    before = adapted.model_name
    plain = adapted.merge_adapter()
    assert adapted.model_name == before != plain.model_name
    np.testing.assert_allclose(plain.encode_docs(TEXTS), adapted.encode_docs(TEXTS), atol=1e-6)
    folder = plain.save(tmp_path / "plain")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    loaded = pt.Artifact.load(folder, dtype="float32")
    assert loaded.model_name == plain.model_name
    others = SentenceTransformer(str(folder), device="cpu"), pyterrier_dr.SBertBiEncoder(str(folder), device="cpu")
    for vectors in (loaded.encode_docs(TEXTS), others[0].encode(TEXTS), others[1].encode_docs(TEXTS)):
        np.testing.assert_allclose(vectors, plain.encode_docs(TEXTS), atol=1e-6)
    with pytest.raises(ValueError, match="has no adapter to merge"):
        plain.merge_adapter()
    with pytest.raises(ValueError, match="expected an encoder with one adapter"):
        plain.save_adapter(tmp_path / "adapter")


def test_an_adapter_needs_its_base(adapted, base, tmp_path):
    folder = adapted.save_adapter(tmp_path / "adapter")
    base.rename(tmp_path / "elsewhere")
    for load in (SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained, pt.Artifact.load):
        with pytest.raises(FileNotFoundError, match="holds an adapter of '.*base', which cannot be loaded"):
            load(folder)
    with pytest.raises(ValueError, match="does not hold the base of this one any more"):
        adapted.save_adapter(tmp_path / "late")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "elsewhere")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert pt.Artifact.load(folder).model_name == adapted.model_name


def test_an_adapter_of_another_base_is_refused(adapted, base, tmp_path):
    folder = adapted.save_adapter(tmp_path / "adapter")
    other = SentenceTransformer(str(base), device="cpu")
    with torch.no_grad():
        other[0].model.embeddings.word_embeddings.weight.add_(0.1)
    other[0].model.save_pretrained(base)
    for load in (SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained):
        with pytest.raises(ValueError, match="it is another model by now"):
            load(folder)


def test_what_leaves_the_machine_has_plain_weights(adapted, tmp_path):
    adapted.save_adapter(tmp_path / "adapter")
    for leave in (
        lambda: adapted.save(tmp_path / "model"),
        lambda: adapted.export(tmp_path / "graph"),
        lambda: adapted.build_package(str(tmp_path / "package")),
        lambda: adapted.to_hf("me/model"),
    ):
        with pytest.raises(ValueError, match=r"needs plain weights.*merge_adapter\(\).*save_adapter"):
            leave()
    plain = adapted.merge_adapter()
    plain.save(tmp_path / "model")
    package = plain.build_package(str(tmp_path / "package"), verbose=False)
    assert SelfDistillBiEncoder.from_url(f"file://{package}").model_name == plain.model_name


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_precisions_encode_what_is_merged(adapted, dtype):
    plain = adapted.merge_adapter()
    adapted.dtype = plain.dtype = dtype
    np.testing.assert_array_equal(adapted.encode_docs(TEXTS), plain.encode_docs(TEXTS))
    adapted.dtype = "float32"
    assert adapted.encode_docs(TEXTS).shape == (2, 32)
