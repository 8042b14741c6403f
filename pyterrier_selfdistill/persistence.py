"""Loading and saving: one folder that three libraries read.

The folder of an encoder is an ordinary sentence-transformers model, which pyterrier-dr loads too, with two files beside
it: PyTerrier's metadata, which says what the encoder is and how it was trained, and the model card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import is_sentence_transformer_model

from .io import METADATA_FILE, artifact_kind, atomic_folder
from .model_card import saved_card
from .portable import portable_settings
from .validate import require_positive_integer

ARTIFACT = {"type": "biencoder", "format": "selfdistill", "package_hint": "pyterrier-selfdistill"}
"""What PyTerrier reads in the metadata to find the class that loads the folder."""

PoolingMode = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def load(folder: Path, device: str | torch.device | None) -> SentenceTransformer:
    """Load the model that is saved in a folder.

    Args:
        folder: The folder.
        device: Where the model is to be.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder does not hold a sentence-transformers model.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(folder)!r}; for a model on the Hugging Face hub use "
            "SelfDistillBiEncoder.from_pretrained"
        )
    if not is_sentence_transformer_model(str(folder)):
        raise ValueError(
            f"{str(folder)!r} is not a sentence-transformers model (it has no modules.json); for a plain language "
            "model use SelfDistillBiEncoder.from_pretrained"
        )
    return SentenceTransformer(str(folder), device=_device_name(device))


def load_pretrained(
    name: str, *, pooling: PoolingMode | None, dtype: str | torch.dtype, device: str | torch.device | None
) -> SentenceTransformer:
    """Load a sentence-transformers model, or a plain language model with a pooling layer on top.

    Args:
        name: The name of a model on the Hugging Face hub, or a folder.
        pooling: How a plain language model makes one vector of many; over its [CLS] token by default.
        dtype: The type of the weights.
        device: Where the model is to be.

    Returns:
        The model.

    Raises:
        ValueError: If ``pooling`` is given for a model that has its own, or ``dtype`` is unknown.
        OSError: If there is no such model.
    """
    options: dict[str, Any] = {"dtype": _floating_point(dtype)}
    if is_sentence_transformer_model(name):
        if pooling is not None:
            raise ValueError(
                f"pooling={pooling!r} was given, but {name!r} is a sentence-transformers model with layers of its "
                "own; leave pooling out, or give a plain language model"
            )
        return SentenceTransformer(name, device=_device_name(device), model_kwargs=options)
    # the [CLS] token by default, as in the paper; sentence-transformers itself would take the mean
    transformer = Transformer(name, model_kwargs=options)
    pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling or "cls")
    model = SentenceTransformer(modules=[transformer, pool], device=_device_name(device))
    model.model_card_data.base_model = name
    return model


def prepare(model: SentenceTransformer, device: str | torch.device | None) -> None:
    """Prepare a model to encode: with unit vectors, on a device, without dropout."""
    # a layer of the model, so that other libraries which load it get unit vectors too
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    if device is not None:
        model.to(device)
    model.eval()


def set_lengths(model: SentenceTransformer, lengths: Mapping[str, int | None]) -> None:
    """Set the numbers of tokens after which texts are cut.

    Args:
        model: The model.
        lengths: ``query_length`` and ``document_length``; None leaves the model's.

    Raises:
        ValueError: If the model cuts no texts, or has fewer positions.
    """
    for name, length in lengths.items():
        if length is None:
            continue
        if not isinstance(model[0], Transformer):
            raise ValueError(f"{name}={length} was given, but the model starts with {model[0]}, which cuts no texts")
        require_positive_integer(name, length, at_most=getattr(model[0].config, "max_position_embeddings", None))
        # attributes of the layer are saved with it
        setattr(model[0], name, length)
    if lengths["document_length"] is not None:
        # for libraries that do not tell documents from queries
        model.max_seq_length = lengths["document_length"]


def set_prompts(model: SentenceTransformer, prompts: Mapping[str, str | None]) -> None:
    """Set what is put before texts.

    Args:
        model: The model.
        prompts: The prompts of ``query`` and ``document``; None leaves the model's.
    """
    for name, prompt in prompts.items():
        if prompt is not None:
            model.prompts[name] = prompt


def query_length(model: SentenceTransformer) -> int | None:
    """Get the number of tokens after which a model cuts queries."""
    return getattr(model[0], "query_length", None) or model.max_seq_length


def document_length(model: SentenceTransformer) -> int | None:
    """Get the number of tokens after which a model cuts documents."""
    return getattr(model[0], "document_length", None) or model.max_seq_length


def describe(model: SentenceTransformer, checksum: str) -> dict[str, Any]:
    """Describe a model, for its metadata and its card.

    Args:
        model: The model.
        checksum: The checksum of what it computes.

    Returns:
        The checksum, the architecture, the number of parameters, and what decides on vectors.

    Example:
        >>> describe(encoder.model, encoder.model_name)["dimension"]
        32
    """
    pooling_modes = [module.pooling_mode for module in model if hasattr(module, "pooling_mode")]
    language_model = getattr(model[0], "model", model[0])
    return {
        "checksum": checksum,
        "architecture": type(language_model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dimension": model.get_embedding_dimension(),
        "pooling": next(iter(pooling_modes), None),
        "query_length": query_length(model),
        "document_length": document_length(model),
        "prompts": {name: prompt for name, prompt in model.prompts.items() if prompt},
    }


def metadata(model: SentenceTransformer, checksum: str, training: Mapping[str, Any]) -> dict[str, Any]:
    """Make the metadata of a model: its kind, its description, and how it was trained.

    The training summary is reduced to JSON that says nothing of this machine's folders, and no secret.
    """
    return {**ARTIFACT, "model": describe(model, checksum), "training": portable_settings(training)}


def save(model: SentenceTransformer, metadata: Mapping[str, Any], path: Path, *, overwrite: bool) -> None:
    """Write a model, its metadata and its card to a folder, atomically.

    Args:
        model: The model.
        metadata: What :func:`metadata` says of it.
        path: The folder to write.
        overwrite: Whether to replace an encoder that is there.

    Raises:
        FileExistsError: If the folder is there and ``overwrite`` is not set, or holds something else than an encoder.
        FolderInUseError: If another process writes it.
    """
    trained_here = bool(metadata["training"])
    with atomic_folder(path, overwrite=overwrite, recognize=is_saved_encoder, doing="saving an encoder") as folder:
        # a model that was not trained here keeps the card that it came with
        model.save_pretrained(str(folder), create_model_card=not trained_here)
        (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")
        if trained_here:
            card = saved_card(metadata, title=path.name, load=f"pt.Artifact.load({path.name!r})")
            (folder / "README.md").write_text(card, encoding="utf-8")


def is_saved_encoder(folder: Path) -> bool:
    """Tell whether a folder is what :func:`save` wrote."""
    return artifact_kind(folder) == (ARTIFACT["type"], ARTIFACT["format"])


def read_training_summary(folder: Path) -> dict[str, Any]:
    """Read how the model of a folder was trained; nothing, if it was not by this package."""
    file = folder / METADATA_FILE
    if not file.is_file():
        return {}
    return json.loads(file.read_text()).get("training", {})


def _device_name(device: str | torch.device | None) -> str | None:
    return None if device is None else str(device)


def _floating_point(dtype: str | torch.dtype) -> torch.dtype:
    """Find a type of weights by its name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating point type of torch such as 'float32' or 'bfloat16', got {dtype!r}")
    return found
