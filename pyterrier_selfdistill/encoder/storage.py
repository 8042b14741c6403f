"""Loading and saving: one folder that three libraries read.

The folder of an encoder is an ordinary sentence-transformers model, which pyterrier-dr loads too, with two files beside
it: PyTerrier's metadata, which says what the encoder is and how it was trained, and the model card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import AfterValidator
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import get_device_name, is_sentence_transformer_model

from ..utils.checks import Expected
from ..utils.compat import no_transformers_progress_bars
from ..utils.folders import METADATA_FILE, artifact_kind, atomic_folder, portable_name, portable_settings, recover
from .adapters import adapter_settings, adapters_of, base_checksum, describe_adapter, require_base, require_same_base
from .card import saved_card

# what PyTerrier reads in the metadata to find the class that loads the folder
ARTIFACT = {"type": "biencoder", "format": "selfdistill", "package_hint": "pyterrier-selfdistill"}
CARD_FILE = "README.md"

# what sentence-transformers tells transformers, which would keep the type of the file
FLOAT32 = {"dtype": torch.float32}
NAME_ON_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def _existing_device(device: str | torch.device | None) -> str | torch.device | None:
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(str(error)) from error
    return device


Device: TypeAlias = Annotated[
    str | torch.device | None,
    AfterValidator(_existing_device),
    Expected("a device that torch has here, such as 'cpu' or 'cuda:0'"),
]
PoolingMode = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def find(name_or_path: str | Path) -> str:
    """Find a model: a folder of this machine, or else a name on the hub, if it can be one."""
    folder = Path(name_or_path).expanduser()
    recover(folder)
    if folder.is_dir():
        return str(folder)
    if isinstance(name_or_path, Path) or not NAME_ON_HUB.fullmatch(name_or_path):
        raise FileNotFoundError(
            f"there is no folder {str(folder)!r}; give the folder of a model, or a name on the Hugging Face hub, such "
            "as 'microsoft/mpnet-base'"
        )
    return name_or_path


def load(folder: Path, device: Device) -> SentenceTransformer:
    """Load the model that is saved in a folder."""
    recover(folder)
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
    with _explained_errors(str(folder)):
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs=dict(FLOAT32))
    _require_described(model, folder)
    return _move(model, device)


def load_pretrained(name: str, *, pooling: PoolingMode | None, device: Device) -> SentenceTransformer:
    """Load a sentence-transformers model, or a plain language model with a pooling layer on top."""
    if not is_sentence_transformer_model(name):
        with _explained_errors(name):
            # the [CLS] token by default, as in the paper; sentence-transformers itself would take the mean
            transformer = Transformer(name, model_kwargs=dict(FLOAT32))
            pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling or "cls")
            model = SentenceTransformer(modules=[transformer, pool], device="cpu")
        model.model_card_data.base_model = name
        return _move(model, device)
    if pooling is not None:
        raise ValueError(
            f"pooling={pooling!r} was given, but {name!r} is a sentence-transformers model with layers of its own; "
            "leave pooling out, or give a plain language model"
        )
    with _explained_errors(name):
        model = SentenceTransformer(name, device="cpu", model_kwargs=dict(FLOAT32))
    if Path(name).is_dir():
        _require_described(model, Path(name))
    return _move(model, device)


@contextmanager
def _explained_errors(name: str) -> Iterator[None]:
    """Say which model cannot be loaded, and what to do."""
    if Path(name).is_dir():
        _require_files(Path(name))
        require_base(Path(name))
    try:
        with no_transformers_progress_bars():
            yield
    except MemoryError:
        raise
    except Exception as error:
        # libraries raise what becomes of the bytes of a damaged file
        if Path(name).is_dir():
            raise ValueError(
                f"the model in {name!r} cannot be loaded: {_damage(Path(name), error)}. A file of it is missing or "
                "damaged, or it needs code of its own, which is not run; save or download it again"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise OSError(
            f"{name!r} is no folder, and cannot be loaded from the Hugging Face hub: {error}. Check the name; without "
            "a network, give the folder of a model that was downloaded elsewhere"
        ) from error


def _require_files(folder: Path) -> None:
    """Check that the files which :func:`save` wrote are there; libraries go without some of them, and differ then."""
    missing = [name for name in read_metadata(folder).get("files", []) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"the model in {str(folder)!r} lacks {', '.join(missing[:3])}; save or copy it again")


def _damage(folder: Path, error: Exception) -> str:
    """Name the file of a model that is damaged, as libraries do not."""
    for path in sorted(folder.rglob("*.json")):
        # the list of the layers
        expected = list if path.name == "modules.json" else dict
        try:
            is_whole = isinstance(json.loads(path.read_text()), expected)
        except (OSError, ValueError, RecursionError):
            is_whole = False
        if not is_whole:
            return f"{path.relative_to(folder)} is not the JSON that it is to be"
    weights = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.safetensors"))]
    return f"{error} (the files of JSON are whole; look at config.json and {', '.join(weights) or 'the weights'})"


def _require_described(model: SentenceTransformer, folder: Path) -> None:
    """Check that a model is what :func:`save` wrote; of weights that do not fit, libraries leave some out."""
    said = read_metadata(folder).get("model", {})
    if "adapter" in said:
        require_same_base(model, folder, said["adapter"]["base_checksum"])
    found = describe(model, "")
    for name in ("architecture", "parameters", "dimension"):
        if said.get(name, found[name]) != found[name]:
            raise ValueError(
                f"the model in {str(folder)!r} was saved with the {name} {said[name]!r}, and config.json and the "
                f"weights give {found[name]!r}; save or copy it again"
            )


def _move(model: SentenceTransformer, device: Device) -> SentenceTransformer:
    """Move a model to a device, or to a GPU if there is one, in float32."""
    # layers after the language model may be saved in 16 bits too
    return model.float().to(device or get_device_name())


def prepare(model: SentenceTransformer, device: Device) -> None:
    """Prepare a model to encode: with unit vectors, on a device, without dropout."""
    # a layer of the model, so that other libraries which load it get unit vectors too
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    if device is not None:
        model.to(device)
    model.eval()


def set_lengths(model: SentenceTransformer, lengths: Mapping[str, int | None]) -> None:
    """Set the numbers of tokens after which texts are cut."""
    for name, length in lengths.items():
        if length is None:
            continue
        if not isinstance(model[0], Transformer):
            raise ValueError(f"{name}={length} was given, but the model starts with {model[0]}, which cuts no texts")
        positions = getattr(model[0].config, "max_position_embeddings", length)
        if length > positions:
            raise ValueError(
                f"{name} must be an integer from 1 to {positions}, the positions of the model, got {length}"
            )
        # attributes of the layer are saved with it
        setattr(model[0], name, length)
    if lengths["document_length"] is not None:
        # for libraries that do not tell documents from queries
        model.max_seq_length = lengths["document_length"]


def set_prompts(model: SentenceTransformer, prompts: Mapping[str, str | None]) -> None:
    """Set what is put before texts."""
    for name, prompt in prompts.items():
        if prompt is not None:
            model.prompts[name] = prompt


def query_length(model: SentenceTransformer) -> int | None:
    """Get the number of tokens after which a model cuts queries."""
    return getattr(model[0], "query_length", None) or model.max_seq_length


def document_length(model: SentenceTransformer) -> int | None:
    """Get the number of tokens after which a model cuts documents."""
    return getattr(model[0], "document_length", None) or model.max_seq_length


def encoding_settings(model: SentenceTransformer) -> tuple[Any, ...]:
    """Collect what decides on vectors besides layers and weights."""
    lengths = query_length(model), document_length(model), model.max_seq_length
    return *lengths, tuple(model.prompts.items()), *adapter_settings(model)


def describe(model: SentenceTransformer, checksum: str) -> dict[str, Any]:
    """Describe a model, for its metadata and its card."""
    pooling_modes = [module.pooling_mode for module in model if hasattr(module, "pooling_mode")]
    language_model = getattr(model[0], "model", model[0])
    adapter: dict[str, Any] = {}
    if adapters_of(model):
        adapter["adapter"] = _describe_adapter(model)
    return {
        "checksum": checksum,
        "architecture": type(language_model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dimension": model.get_embedding_dimension(),
        "pooling": next(iter(pooling_modes), None),
        "query_length": query_length(model),
        "document_length": document_length(model),
        "prompts": {name: prompt for name, prompt in model.prompts.items() if prompt},
        **adapter,
    }


def _describe_adapter(model: SentenceTransformer) -> dict[str, Any]:
    """Describe the adapter of a model, and its base, by which it is known when it is loaded."""
    (config,) = adapters_of(model).values()
    return {
        "base": portable_name(config.base_model_name_or_path),
        "base_checksum": base_checksum(model),
        **describe_adapter(config),
    }


def metadata(model: SentenceTransformer, checksum: str, training: Mapping[str, Any]) -> dict[str, Any]:
    """Make the metadata of a model: its kind, its description, and how it was trained."""
    return {**ARTIFACT, "model": describe(model, checksum), "training": portable_settings(training)}


def save(
    model: SentenceTransformer,
    metadata: Mapping[str, Any],
    path: Path,
    *,
    overwrite: bool,
    write_more: Callable[[Path], Any] | None = None,
) -> None:
    """Write a model, its metadata and its card to a folder, atomically."""
    trained_here = bool(metadata["training"])
    with atomic_folder(path, overwrite=overwrite, recognize=is_saved_encoder, doing="saving an encoder") as folder:
        # a model that was not trained here keeps the card that it came with
        with no_transformers_progress_bars():
            model.save_pretrained(str(folder), create_model_card=not trained_here)
        if write_more is not None:
            write_more(folder)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        needed = [name for name in files if name != CARD_FILE]
        (folder / METADATA_FILE).write_text(json.dumps({**metadata, "files": needed}, indent=2) + "\n")
        if trained_here:
            card = saved_card(metadata, title=path.name, load=f"pt.Artifact.load({path.name!r})")
            (folder / CARD_FILE).write_text(card, encoding="utf-8")


def is_saved_encoder(folder: Path) -> bool:
    """Tell whether a folder is what :func:`save` wrote."""
    return artifact_kind(folder) == (ARTIFACT["type"], ARTIFACT["format"])


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote about a model; nothing, if another library saved it."""
    file = folder / METADATA_FILE
    if not file.is_file():
        return {}
    try:
        metadata = json.loads(file.read_text())
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise ValueError(f"{str(file)!r} is not a JSON object; save or copy the model again, or remove this file")
    return metadata


def read_training_summary(folder: Path) -> dict[str, Any]:
    """Read how the model of a folder was trained; nothing, if it was not by this package."""
    return read_metadata(folder).get("training", {})
