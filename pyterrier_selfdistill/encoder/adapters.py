"""Adapters (PEFT, such as LoRA): train a few extra weights of a language model and freeze the others.

This module adds two features that sentence-transformers and transformers lack: verify the base of an adapter when you
load it, and merge an adapter into its base.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import AutoConfig, PreTrainedModel

from ..utils.checks import Expected, load_extra
from ..utils.compat import reported_weights

CONFIG_FILE = "adapter_config.json"  # the file where PEFT describes an adapter and its base

# the names that PEFT gives to the original layer inside a wrapper
WRAPPERS = {"base_layer", "original_module"}

# the fields of a PEFT configuration that do not change the adapter
NOTES = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision")


def _adapter_config(value: Any) -> Any:
    if value is not None and not isinstance(value, load_extra("peft").PeftConfig):
        raise ValueError
    return value


# the adapter to train instead of the weights of a language model; None trains the weights
AdapterConfig = Annotated[
    Any, AfterValidator(_adapter_config), Expected("a configuration of PEFT, such as peft.LoraConfig(r=16)")
]


def adapters_of(model: SentenceTransformer) -> Mapping[str, Any]:
    """Return the configurations of the adapters of a model by name."""
    return getattr(model.transformers_model, "peft_config", {})


def require_plain(model: SentenceTransformer, doing: str) -> None:
    if adapters_of(model):
        raise ValueError(
            f"{doing} needs plain weights, but the encoder has an adapter, which refers to its base by a path or a "
            "name; use encoder.merge_adapter(), or write the adapter alone with encoder.save_adapter(path)"
        )


def require_adaptable(model: SentenceTransformer, config: Any) -> None:
    require_plain(model, "training")
    if config is None:
        return
    if not isinstance(model[0], Transformer) or not model.has_peft_compatible_model():
        raise ValueError(f"adapter={config.peft_type.value} needs a model that starts with a language model to adapt")
    if config.is_prompt_learning:
        raise ValueError(
            f"adapter={config.peft_type.value} learns a prompt, which sentence-transformers cannot add to its models; "
            "pass a configuration that adapts layers, such as peft.LoraConfig(r=16)"
        )


def add_adapter(model: SentenceTransformer, config: Any, *, base: str, seed: int) -> None:
    """Add an adapter to a model and freeze all other weights."""
    before = base_checksum(model)
    model.requires_grad_(False)
    language_model = _language_model(model)
    # PEFT writes this name into the configuration
    language_model.name_or_path = base
    # a resumed run starts with the same weights, even if other code draws random numbers
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model.add_adapter(copy.deepcopy(config))
    names = dict(_base_names(language_model))
    trained = [name for name, weights in language_model.named_parameters() if weights.requires_grad and name in names]
    if trained or base_checksum(model) != before:
        raise ValueError(
            f"adapter={describe_adapter(config)} changes weights of the base, which would then differ from the saved "
            "base; omit bias=, or choose another init_lora_weights="
        )


def describe_adapter(config: Any) -> dict[str, Any]:
    """Describe an adapter by the fields of its configuration that differ from the defaults of PEFT."""
    described: dict[str, Any] = {"type": config.peft_type.value}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        make: Any = field.default_factory
        default = field.default if make is dataclasses.MISSING else make()
        if field.name not in NOTES and value not in (None, default):
            # convert to JSON, so that equal values have equal descriptions
            plain = sorted(value) if isinstance(value, set) else value
            described[field.name] = json.loads(json.dumps(plain, default=str))
    return described


def adapter_settings(model: SentenceTransformer) -> tuple[Any, ...]:
    """Collect the settings that affect vectors in addition to weights and layers, such as the scale of an adapter."""
    described = {name: describe_adapter(config) for name, config in adapters_of(model).items()}
    disabled = {layer.disable_adapters for layer in _wrapped_layers(_language_model(model)).values()}
    return json.dumps(described), tuple(model.active_adapters()), tuple(sorted(disabled))


def base_checksum(model: SentenceTransformer) -> str:
    """Compute the checksum of the weights of a language model without its adapters."""
    return _checksum(_language_model(model))


def saved_base(model: SentenceTransformer, name: str | None) -> str:
    """Find a path or name that loads the base of a model's adapter, before or after the adapter is added."""
    language_model = _language_model(model)
    checksum = _checksum(language_model)
    said = [config.base_model_name_or_path for config in adapters_of(model).values()]
    names = said or [name, language_model.name_or_path]
    for candidate in dict.fromkeys(filter(None, names)):
        try:
            with reported_weights():
                loaded = type(language_model).from_pretrained(candidate, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError):
            continue
        if _checksum(loaded) == checksum:
            return str(Path(candidate).resolve()) if Path(candidate).is_dir() else candidate
    raise ValueError(
        f"an adapter is saved without its base, and {names[0]!r} does not hold the base of this encoder; save the "
        "encoder (with encoder.merge_adapter() if it has an adapter), load it again with "
        "SelfDistillBiEncoder.from_pretrained(path), and train that one"
    )


def require_base(folder: Path) -> None:
    """Check that the base of a saved adapter is available."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return
    load_extra("peft")
    try:
        base = str(json.loads(file.read_text())["base_model_name_or_path"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is damaged; save or copy the adapter again") from error
    try:
        with reported_weights():
            AutoConfig.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{str(folder)!r} holds an adapter of {base!r}, which is not on this machine: {error}. Restore the base, "
            f"download it with SelfDistillBiEncoder.from_pretrained({base!r}) if that is its name on the hub, or set "
            f"base_model_name_or_path in {CONFIG_FILE} to its path"
        ) from error


def merged(model: SentenceTransformer) -> SentenceTransformer:
    """Merge the adapter into a copy of the model, whose vectors differ only by rounding."""
    plain = copy.deepcopy(model)
    language_model = _language_model(plain)
    # training with gradient checkpointing leaves it enabled
    language_model.disable_input_require_grads()
    for name, layer in _wrapped_layers(language_model).items():
        # layers that are trained in full, next to an adapter, hold a trained copy
        if hasattr(layer, "unload_and_optionally_merge_module"):
            plain_layer = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            layer.merge(safe_merge=True)
            plain_layer = layer.get_base_layer()
        language_model.set_submodule(name, plain_layer)
    plain.delete_adapter(list(adapters_of(plain)))
    # transformers 5.23 renames weights when it loads an adapter, and would save these under the names of PEFT
    vars(language_model).pop("_weight_conversions", None)
    return plain.requires_grad_(True).eval()


def _language_model(model: SentenceTransformer) -> PreTrainedModel:
    language_model = model.transformers_model
    if not isinstance(language_model, PreTrainedModel):
        raise ValueError(f"adapters need a language model of transformers, and the model starts with {model[0]}")
    return language_model


def _wrapped_layers(language_model: PreTrainedModel) -> dict[str, Any]:
    """Find the outermost layers that PEFT has wrapped."""
    tuners = importlib.import_module("peft.tuners.tuners_utils")
    utils = importlib.import_module("peft.utils.other")
    kinds = tuners.BaseTunerLayer, utils.AuxiliaryTrainingWrapper
    wrapped: dict[str, Any] = {}
    for name, module in language_model.named_modules():
        if isinstance(module, kinds) and not any(name.startswith(f"{outer}.") for outer in wrapped):
            wrapped[name] = module
    return wrapped


def _base_names(language_model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Iterate over the weights outside adapters, as pairs of their current name and their name without adapters."""
    adapters = set(getattr(language_model, "peft_config", {}))
    for name in language_model.state_dict():
        parts = name.split(".")
        # PEFT puts the name of the adapter into the names of its weights
        if adapters.isdisjoint(parts):
            yield name, ".".join(part for part in parts if part not in WRAPPERS)


def _checksum(language_model: PreTrainedModel) -> str:
    checksum = hashlib.sha256()
    weights = language_model.state_dict()
    for name, first_name in sorted(_base_names(language_model), key=lambda names: names[1]):
        checksum.update(first_name.encode())
        checksum.update(tensor_bytes(weights[name]))
    return checksum.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor, converted to float32 if it has 16 bits."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
