"""Load and save a sentence-transformers folder with PyTerrier's metadata and a model card."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import AfterValidator
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import get_device_name, is_sentence_transformer_model
from transformers.tokenization_utils_base import LARGE_INTEGER

from ..utils.checks import Expected
from ..utils.compat import no_transformers_progress_bars, reported_weights
from ..utils.folders import METADATA_FILE, artifact_kind, atomic_folder, checksum, portable_name, read_json, recover
from .adapters import CONFIG_FILE, base_checksum, require_base
from .card import saved_card

# PyTerrier reads this metadata to find the class that loads the folder
ARTIFACT = {"type": "biencoder", "format": "selfdistill", "package_hint": "pyterrier-selfdistill"}
CARD_FILE = "README.md"

SETTINGS = re.compile(r"config\w*\.json$|modules\.json$")  # the files of a model that you may edit
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
    """Resolve the path of a local folder, or else a valid name on the hub."""
    folder = Path(name_or_path).expanduser()
    recover(folder)
    if folder.is_dir():
        return str(folder)
    if isinstance(name_or_path, Path) or not NAME_ON_HUB.fullmatch(name_or_path):
        raise FileNotFoundError(
            f"there is no folder {str(folder)!r}; pass the folder of a model, or pass a name on the Hugging Face hub, "
            "such as 'microsoft/mpnet-base', to SelfDistillBiEncoder.from_pretrained"
        )
    return name_or_path


def load(folder: Path, device: Device) -> SentenceTransformer:
    """Load a saved model from a folder."""
    find(folder)
    if not is_sentence_transformer_model(str(folder)):
        raise ValueError(
            f"{str(folder)!r} is not a sentence-transformers model (it has no modules.json); for a plain language "
            "model use SelfDistillBiEncoder.from_pretrained"
        )
    return load_pretrained(str(folder), pooling=None, device=device)


def load_pretrained(name: str, *, pooling: PoolingMode | None, device: Device) -> SentenceTransformer:
    """Load a sentence-transformers model, or a plain language model with a pooling layer on top, in float32."""
    folder, is_here = Path(name), Path(name).is_dir()
    is_plain = not is_sentence_transformer_model(name)
    if pooling is not None and not is_plain:
        raise ValueError(
            f"pooling={pooling!r} was given, but {name!r} is a sentence-transformers model with its own layers; "
            "omit pooling, or pass a plain language model"
        )
    # compare with the saved metadata, since libraries ignore some missing files and mismatching weights
    metadata = read_metadata(folder)
    missing = [file for file in metadata.get("files", []) if not (folder / file).is_file()]
    if missing:
        raise ValueError(f"the model in {name!r} lacks {', '.join(missing[:3])}; save or copy it again")
    require_base(folder)
    # by default transformers keeps the dtype of the file
    options: dict[str, Any] = {"local_files_only": is_here, "model_kwargs": {"dtype": torch.float32}}
    try:
        with no_transformers_progress_bars(), reported_weights() as reports:
            if is_plain:
                transformer = Transformer.load(name, **options)
                mode = pooling or default_pooling(transformer)
                pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
                model = SentenceTransformer(modules=[transformer, pool], device="cpu")
                model.model_card_data.base_model = name
            else:
                model = SentenceTransformer(name, device="cpu", **options)
    except MemoryError:
        raise
    except Exception as error:
        # a damaged file can raise any error
        if is_here:
            raise ValueError(
                f"the model in {name!r} cannot be loaded: {_damage(folder, error)}. A file is missing or "
                "damaged, or the model needs custom code, which is not run; save or download it again"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise OSError(
            f"{name!r} is not a folder, and cannot be loaded from the Hugging Face hub: {error}\nCheck the name; "
            "without a network, pass the folder of a model that you downloaded elsewhere"
        ) from error
    _require_as_saved(model, folder, metadata, reports)
    # later layers may be saved in 16 bits too
    return model.float().to(device or get_device_name())


def _require_as_saved(
    model: SentenceTransformer, folder: Path, metadata: Mapping[str, Any], reports: list[dict[str, Any]]
) -> None:
    said = metadata.get("model", {})
    base = said.get("adapter", {}).get("base_checksum")
    if base and base != (found := base_checksum(model)):
        raise ValueError(
            f"{str(folder)!r} holds an adapter of a base with the checksum {base[:12]}, but the model at its place has "
            f"the checksum {found[:12]}. Restore the base, or set base_model_name_or_path in {CONFIG_FILE} to its "
            "path"
        )
    wrong = []
    for property_, found in describe(model).items():
        if said.get(property_, found) != found:
            wrong.append(f"its {property_} was {said[property_]!r}, and config.json and the weights give {found!r}")
    for report in reports:
        # plain language models often lack the weights of a pooler, which is not used here
        missing = [key for key in report["missing_keys"] if metadata or "pooler" not in key.split(".")]
        wrong += [f"it lacks the weights {key}" for key in sorted(missing)]
        wrong += [f"it holds the weights {key} too" for key in sorted(report["unexpected_keys"]) if metadata]
    files: Mapping[str, str | None] = metadata.get("files", {})
    wrong += [f"{name} was changed" for name, saved in files.items() if saved and checksum(folder / name) != saved]
    if wrong:
        raise ValueError(
            f"the model in {str(folder)!r} is not what was saved ({len(wrong)} differences): {'; '.join(wrong[:3])}. "
            f"Save, copy or download it again, or remove {METADATA_FILE} there if you changed it yourself"
        )


def _damage(folder: Path, error: Exception) -> str:
    """Name the damaged file of a model, which errors of libraries omit."""
    for path in sorted(folder.rglob("*.json")):
        try:
            json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            return f"{path.relative_to(folder)} is not JSON"
    return f"{error} (look at config.json and the weights, such as model.safetensors)"


def default_pooling(layer: Transformer) -> PoolingMode:
    """Choose the last token for causal models, and [CLS] for others, as in the paper."""
    tokens = torch.tensor([[0, 1], [0, 2]])
    with torch.no_grad():
        first = layer({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})["token_embeddings"][:, 0]
    return "lasttoken" if torch.allclose(first[0], first[1], atol=1e-6) else "cls"


def usable_positions(layer: Transformer) -> float:
    """Return the maximum number of tokens that a language model has positions for."""
    said = getattr(layer.config, "max_position_embeddings", None) or -1  # XLNet has -1 for no limit
    positions = said if said > 0 else math.inf
    for name, table in layer.model.named_modules():
        # models such as RoBERTa count positions from the one after padding
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            positions = min(positions, len(table.weight) - table.padding_idx - 1)
    return positions


def prepare(model: SentenceTransformer) -> None:
    """Normalize vectors to unit length, and make them independent of the batch and of missing positions."""
    # as a layer of the model, so that other libraries get unit vectors too
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    for layer in [module for module in model.modules() if isinstance(module, Transformer)]:
        tokenizer: Any = layer.tokenizer
        # padding on the left would shift absolute positions
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            # padding is masked, so any token works
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        positions = usable_positions(layer)
        for name in ("max_seq_length", "query_length", "document_length"):
            if (getattr(layer, name) or 0) > positions:
                setattr(layer, name, positions)


def first_layer(model: SentenceTransformer, role: str) -> Any:
    """Return the layer that reads the texts of a role. In a router, it is not the first layer of the model."""
    routes: Any = getattr(model[0], "sub_modules", {})
    return routes[role][0] if role in routes else model[0]


def length_of(model: SentenceTransformer, role: str) -> int | None:
    """Return the maximum number of tokens for the texts of a role, or None if they are not truncated."""
    layer = first_layer(model, role)
    length = getattr(layer, f"{role}_length", None) or getattr(layer, "max_seq_length", None)
    # libraries use huge numbers for "not truncated"
    return length if length is not None and length < LARGE_INTEGER else None


def set_lengths(model: SentenceTransformer, lengths: Mapping[str, int | None]) -> None:
    """Set the maximum number of tokens for the texts of each role."""
    for role, length in lengths.items():
        if length is None:
            continue
        layer = first_layer(model, role)
        if not isinstance(layer, Transformer):
            raise ValueError(f"{role}_length={length} was given, but {layer} truncates no texts; omit it")
        positions = usable_positions(layer)
        if length > positions:
            raise ValueError(
                f"{role}_length must be an integer from 1 to {positions}, the positions of the model, got {length}"
            )
        # attributes of the layer are saved with it
        setattr(layer, f"{role}_length", length)
        if role == "document":
            # for libraries that do not distinguish documents from queries
            layer.max_seq_length = length


def describe(model: SentenceTransformer) -> dict[str, Any]:
    """Describe a model by properties that a reloaded model must have."""
    return {
        "architecture": type(getattr(model[0], "model", model[0])).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dimension": model.get_embedding_dimension(),
    }


def save(
    model: SentenceTransformer,
    metadata: Mapping[str, Any],
    path: str | Path,
    *,
    overwrite: bool,
    write_more: Callable[[Path], Any] | None = None,
) -> Path:
    """Write a model, its metadata and its card to a folder, completely or not at all."""
    path = Path(path).expanduser()
    trained_here = bool(metadata["training"])
    with atomic_folder(path, overwrite=overwrite, own=saved_files, doing="saving an encoder") as folder:
        # a model that was not trained here keeps its original card
        with no_transformers_progress_bars():
            model.save_pretrained(str(folder), create_model_card=not trained_here)
        if write_more is not None:
            write_more(folder)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        sums = {name: None if SETTINGS.search(name) else checksum(folder / name) for name in files if name != CARD_FILE}
        (folder / METADATA_FILE).write_text(json.dumps({**metadata, "files": sums}, indent=2) + "\n")
        if trained_here:
            title = portable_name(str(path.absolute())) or path.name
            card = saved_card(metadata, title=title, load=f"pt.Artifact.load({path.name!r})")
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return path


def saved_files(folder: Path) -> set[str]:
    """Return the files that :func:`save` wrote, or an empty set if the folder does not hold an encoder."""
    if artifact_kind(folder) != (ARTIFACT["type"], ARTIFACT["format"]):
        return set()
    return {METADATA_FILE, CARD_FILE, *read_metadata(folder).get("files", [])}


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read the metadata that :func:`save` wrote. It is empty if another library saved the model."""
    file = folder / METADATA_FILE
    if not file.is_file():
        return {}
    section = dict[str, Any] | None
    metadata = read_json(file, model=section, training=section, files=dict[str, str | None] | None)
    return {name: value for name, value in metadata.items() if value is not None}
