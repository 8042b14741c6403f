"""Adapters of PEFT: trained on a base, saved without it, loaded with the same base only, merged."""

import json
import shutil
import socket

import huggingface_hub
import numpy as np
import peft
import pyterrier as pt
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder
from pyterrier_selfdistill.encoder.adapters import add_adapter

TEXTS = ["sort the rows of a table", "plot"]
KINDS = {
    "LoRA on all layers, and one in full": peft.LoraConfig(
        r=2, target_modules="all-linear", modules_to_save=["LayerNorm"], init_lora_weights=False
    ),
    "LoRA of embeddings": peft.LoraConfig(r=2, target_modules=["word_embeddings"], init_lora_weights=False),
    "IA3": peft.IA3Config(init_ia3_weights=False),
}


@pytest.fixture
def base(language_model, tmp_path):
    """The folder of a base, to move and to change."""
    return shutil.copytree(language_model, tmp_path / "base")


@pytest.fixture
def adapt(base):
    """Make an encoder with an adapter, by default one that changes vectors."""

    def adapt(config=None, seed=1):
        encoder = SelfDistillBiEncoder.from_pretrained(base, query_length=20, device="cpu", dtype="float32")
        if config is None:
            config = peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, init_lora_weights=False)
        add_adapter(encoder.model, config, base=str(base), seed=seed)
        encoder.model.eval()
        return encoder

    return adapt


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_adapters_merge_into_plain_weights(encoder, adapt, base, tmp_path, config):
    adapted = adapt(config)
    vectors = adapted.encode_docs(TEXTS)
    assert not np.allclose(vectors, encoder.encode_docs(TEXTS), atol=1e-3)
    plain = adapted.merge_adapter()
    np.testing.assert_allclose(plain.encode_docs(TEXTS), vectors, atol=1e-5)
    assert set(plain.model.state_dict()) == set(encoder.model.state_dict())
    assert all(parameter.requires_grad for parameter in plain.model.parameters())
    # the adapted one stays
    np.testing.assert_array_equal(adapted.encode_docs(TEXTS), vectors)
    assert adapted.model_name != plain.model_name
    folder = plain.save(tmp_path / "plain")
    base.rename(tmp_path / "elsewhere")
    assert SelfDistillBiEncoder(folder).model_name == plain.model_name


def test_other_precisions_encode_with_merged_weights(adapt):
    adapted = adapt()
    lower, plain = [each.apply_attributes(dtype="bfloat16") for each in (adapted, adapted.merge_adapter())]
    np.testing.assert_array_equal(lower.encode_docs(TEXTS), plain.encode_docs(TEXTS))
    np.testing.assert_allclose((lower.encode_docs(TEXTS) * adapted.encode_docs(TEXTS)).sum(axis=1), 1, atol=2e-2)


@pytest.mark.parametrize("name", ["save", "to_hf"])
def test_plain_weights_alone_leave_the_machine(adapt, tmp_path, name):
    adapted = adapt()
    adapted.save_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"merge_adapter\(\).*save_adapter"):
        getattr(adapted, name)(str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_an_adapter_alone_is_small_and_loads_as_it_was(adapt, tmp_path):
    adapted = adapt()
    folder = adapted.save_adapter(tmp_path / "adapter")
    assert not list(folder.rglob("model.safetensors"))
    loaded = pt.Artifact.load(folder, dtype="float32")
    assert loaded.model_name == adapted.model_name == adapted.copy().model_name
    assert loaded.query_length == 20
    for vectors in (loaded.encode_docs(TEXTS), SentenceTransformer(str(folder), device="cpu").encode(TEXTS)):
        np.testing.assert_allclose(vectors, adapted.encode_docs(TEXTS), atol=1e-6)
    described = json.loads((folder / "pt_meta.json").read_text())["model"]["adapter"]
    assert len(described.pop("base_checksum")) == 64
    assert described == {
        **{"base": "base", "type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.1},
        **{"init_lora_weights": False, "target_modules": ["query", "value"]},
    }
    again = loaded.save_adapter(tmp_path / "again")
    assert SelfDistillBiEncoder.from_pretrained(again).model_name == adapted.model_name


def test_an_adapter_needs_its_base(adapt, base, tmp_path, monkeypatch):
    adapted = adapt()
    folder = adapted.save_adapter(tmp_path / "adapter")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="adapter of '.*base'"):
        SelfDistillBiEncoder(folder)
    with pytest.raises(ValueError, match="base'"):
        adapted.save_adapter(tmp_path / "late")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "elsewhere")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert pt.Artifact.load(folder).model_name == adapted.model_name
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "me/base"}))
    # a machine with a network, which nobody has asked to use
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: pytest.fail("asks the hub"))
    with pytest.raises(FileNotFoundError, match=r"(?s)'me/base', which is not on this .*from_pretrained\('me/base'\)"):
        SelfDistillBiEncoder(folder)


@pytest.mark.parametrize("kept", [0, -1])
def test_weights_of_an_adapter_are_never_made_up(adapt, tmp_path, kept):
    folder = adapt().save_adapter(tmp_path / "adapter")
    (file,) = folder.rglob("adapter_model.safetensors")
    save_file(dict(list(load_file(file).items())[:kept]), file)
    with pytest.raises(ValueError, match=r"adapter' is not .*lacks the weights encoder\.layer\..*lora_"):
        SelfDistillBiEncoder(folder)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="adapter' cannot be loaded"):
        SelfDistillBiEncoder(folder)


def test_an_adapter_of_another_base_is_refused(adapt, base, tmp_path):
    folder = adapt().save_adapter(tmp_path / "adapter")
    other = SentenceTransformer(str(base), device="cpu")
    with torch.no_grad():
        other[0].model.embeddings.word_embeddings.weight.add_(0.1)
    other[0].model.save_pretrained(base)
    with pytest.raises(ValueError, match="base with the checksum"):
        SelfDistillBiEncoder(folder)


def test_only_the_adapter_is_trained_from_the_same_weights_for_the_same_seed(adapt):
    config = peft.LoraConfig(r=2)
    first = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        state = torch.get_rng_state()
        model = adapt(config, seed).model
        assert torch.equal(torch.get_rng_state(), state)
        trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
        assert all("lora_" in name for name in trained)
        first.append(next(iter(trained.values())))
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    # the configuration that was given stays
    assert config.target_modules is config.base_model_name_or_path is None


@pytest.mark.parametrize("options", [{"bias": "all"}, {"init_lora_weights": "pissa"}])
def test_an_adapter_that_changes_its_base_is_refused(adapt, options):
    with pytest.raises(ValueError, match="base"):
        adapt(peft.LoraConfig(**options))


def test_the_checksum_sees_the_scale_and_whether_the_adapter_is_on(adapt):
    seen = set()
    for alpha in (1, 2):
        encoder = adapt(peft.LoraConfig(r=2, lora_alpha=alpha, init_lora_weights=False))
        seen.add(encoder.model_name)
        encoder.model.disable_adapters()
        seen.add(encoder.model_name)
    assert len(seen) == 4
