"""Adapters of PEFT on sentence-transformers models: added, described, of one base only, merged."""

import json
import sys

import peft
import pytest
import torch
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill.encoder.adapters import (
    adapter_settings,
    adapters_of,
    add_adapter,
    base_checksum,
    describe_adapter,
    merged,
    require_adaptable,
    require_base,
    saved_base,
)

KINDS = {
    "LoRA": peft.LoraConfig(r=2, init_lora_weights=False),
    "LoRA on all layers, and one in full": peft.LoraConfig(
        r=2, target_modules="all-linear", modules_to_save=["LayerNorm"], init_lora_weights=False
    ),
    "LoRA of embeddings": peft.LoraConfig(r=2, target_modules=["word_embeddings"], init_lora_weights=False),
    "DoRA": peft.LoraConfig(r=2, use_dora=True, init_lora_weights=False),
    "IA3": peft.IA3Config(init_ia3_weights=False),
    "LoHa": peft.LoHaConfig(r=2, target_modules=["query"], init_weights=False),
}


def vectors(model):
    return model.encode(["sort the rows", "plot"], convert_to_tensor=True)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_an_adapter_merges_into_plain_weights(tiny_model, language_model, config):
    plain, checksum = vectors(tiny_model), base_checksum(tiny_model)
    add_adapter(tiny_model, config, base=language_model, seed=1)
    assert base_checksum(tiny_model) == checksum
    adapted = vectors(tiny_model)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    whole = merged(tiny_model)
    assert not adapters_of(whole)
    torch.testing.assert_close(vectors(whole), adapted, atol=1e-5, rtol=1e-5)
    assert set(whole.state_dict()) == set(SentenceTransformer(modules=[*whole]).state_dict())
    # what was merged stays as it was
    torch.testing.assert_close(vectors(tiny_model), adapted, atol=0, rtol=0)


def test_a_model_without_an_adapter_is_merged_already(tiny_model):
    assert base_checksum(merged(tiny_model)) == base_checksum(tiny_model)


def test_only_the_adapter_is_trained_from_the_same_weights_for_the_same_seed(tiny_model, language_model):
    first = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        model = merged(tiny_model)
        state = torch.get_rng_state()
        add_adapter(model, peft.LoraConfig(r=2), base=language_model, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
        assert all("lora_" in name for name in trained)
        first.append(next(iter(trained.values())))
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_the_configuration_that_was_given_stays_as_it_was(tiny_model, language_model):
    config = peft.LoraConfig(r=2)
    add_adapter(tiny_model, config, base=language_model, seed=1)
    assert config.target_modules is config.base_model_name_or_path is None


@pytest.mark.parametrize(
    "config", [peft.LoraConfig(bias="all"), peft.LoraConfig(init_lora_weights="pissa")], ids=["biases", "first weights"]
)
def test_the_base_is_not_changed(tiny_model, language_model, config):
    with pytest.raises(ValueError, match="changes weights of the base itself"):
        add_adapter(tiny_model, config, base=language_model, seed=1)


def test_settings_see_the_scale_and_whether_the_adapter_is_on(tiny_model, language_model):
    assert adapter_settings(tiny_model) == ()
    seen = set()
    for alpha in (1, 2):
        model = merged(tiny_model)
        add_adapter(model, peft.LoraConfig(r=2, lora_alpha=alpha), base=language_model, seed=1)
        seen.add(adapter_settings(model))
        model.disable_adapters()
        seen.add(adapter_settings(model))
    assert len(seen) == 4


def test_descriptions_are_the_same_for_the_same_adapter():
    config = peft.LoraConfig(r=4, target_modules=["value", "query"], lora_dropout=0.1)
    described = describe_adapter(config)
    assert described == {"type": "LORA", "r": 4, "target_modules": ["query", "value"], "lora_dropout": 0.1}
    assert json.loads(json.dumps(described)) == described
    assert describe_adapter(peft.LoraConfig()) == {"type": "LORA"}


def test_prompts_and_models_without_a_language_model_are_refused(tiny_model):
    with pytest.raises(ValueError, match="PREFIX_TUNING learns a prompt"):
        require_adaptable(tiny_model, peft.PrefixTuningConfig(num_virtual_tokens=2))
    with pytest.raises(ValueError, match="no language model to adapt"):
        require_adaptable(SentenceTransformer(modules=[torch.nn.Identity()], device="cpu"), peft.LoraConfig())


def test_the_base_is_found_where_it_is_saved(encoder, language_model, tmp_path):
    assert saved_base(encoder.model, None) == language_model
    with torch.no_grad():
        encoder.model[0].model.embeddings.word_embeddings.weight.add_(0.1)
    with pytest.raises(ValueError, match="weights of this encoder are not those in None; save it"):
        saved_base(encoder.model, None)
    encoder.save(tmp_path / "changed")
    assert saved_base(encoder.model, encoder.name) == str(tmp_path / "changed")


def test_a_damaged_configuration_and_a_missing_library_are_explained(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match="is not what PEFT wrote"):
        require_base(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-selfdistill\[adapters\]"):
        require_base(tmp_path)
