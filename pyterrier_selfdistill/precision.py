"""The precision of encoding: weights stay float32, and a copy of the model encodes.

The float32 model is what is trained, saved and identified. Where another precision encodes faster, an
:class:`EncodingCopy` makes a copy of the model in it, when it is needed first and again when the model has changed. So
an index that was built in one precision is searched in another, and nothing else needs to know of precisions.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal, TypeAlias, get_args

import torch
from pydantic import AfterValidator
from sentence_transformers import SentenceTransformer

from .adapters import adapters_of, merged
from .compat import remove_autocast
from .identity import model_state
from .int8 import quantize
from .options import Expected

PrecisionName = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def _precision_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in get_args(PrecisionName):
        raise ValueError
    return name


Precision: TypeAlias = Annotated[
    str | torch.dtype,
    AfterValidator(_precision_name),
    Expected("'auto', 'float32', 'bfloat16', 'float16' or 'int8'"),
]
"""How to encode; ``auto`` is what :func:`fastest_precision` says."""


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has instructions for bfloat16; emulated, it is many times slower than float32.

    Args:
        device: The device.

    Returns:
        Whether it is a GPU that has them, or a CPU with AVX512-BF16 or AMX, as far as this version of torch knows.

    Example:
        >>> has_bfloat16(torch.device("meta"))
        False
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # the older of the versions that are supported have no public way to ask
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def fastest_precision(device: torch.device) -> str:
    """Choose the fastest precision that is safe for any model.

    float16 is not chosen: the activations of some models overflow in it.

    Args:
        device: Where to encode.

    Returns:
        ``bfloat16`` where the device has it, ``float32`` elsewhere.

    Example:
        >>> fastest_precision(torch.device("meta"))
        'float32'
    """
    if has_bfloat16(device):
        return "bfloat16"
    return "float32"


class EncodingCopy:
    """A copy of a model that encodes in a precision, made again only after the model has changed.

    It is left behind when its owner is copied or pickled.

    Example:
        >>> model = EncodingCopy().of(encoder.model, "bfloat16", settings=(20, 200))
        >>> next(model.parameters()).dtype, next(encoder.model.parameters()).dtype
        (torch.bfloat16, torch.float32)
    """

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None
        self._copy: SentenceTransformer | None = None

    def of(self, model: SentenceTransformer, precision: str, settings: tuple[Any, ...]) -> SentenceTransformer:
        """Give what encodes for a model.

        Args:
            model: The model.
            precision: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
            settings: What decides on vectors besides layers and weights, such as lengths and prompts.

        Returns:
            The copy; or the model itself, if its weights are of that precision.

        Raises:
            ImportError: If ``int8`` needs a package that is not installed.
            ValueError: If ``int8`` is to encode on a GPU, or a model that it cannot.
        """
        if _is_of(model, precision):
            self._state = self._copy = None
            return model
        state = precision, model_state(model, settings)
        if self._copy is None or state != self._state:
            # the old one goes first: two would be in memory
            self._copy = None
            self._copy = _converted(model, precision)
            self._state = state
        return self._copy

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodingCopy, ()


def _is_of(model: SentenceTransformer, precision: str) -> bool:
    """Tell whether all weights of a model are of a precision."""
    if precision == "int8":
        return False
    dtype = getattr(torch, precision)
    return all(weights.dtype == dtype for weights in model.parameters())


def _converted(model: SentenceTransformer, precision: str) -> SentenceTransformer:
    """Copy a model in a precision, without gradients."""
    if adapters_of(model):
        # rounded once, and as fast as plain weights
        model = merged(model)
    if precision == "int8":
        return quantize(copied(model, torch.float32))
    return copied(model, getattr(torch, precision))


def copied(model: SentenceTransformer, dtype: torch.dtype) -> SentenceTransformer:
    """Copy a model with weights of another type, never holding more than both.

    Args:
        model: The model, perhaps in training.
        dtype: The type of the weights.

    Returns:
        A model that evaluates, without gradients and autocast.
    """
    # what a deep copy finds in its memory it does not copy
    memory: dict[int, Any] = {}
    # buffers that are not saved, such as the frequencies of rotary embeddings, are float32 in any precision
    for tensor in model.state_dict(keep_vars=True).values():
        values = tensor.detach()
        if values.is_floating_point():
            values = values.to(dtype)
        if isinstance(tensor, torch.nn.Parameter):
            values = torch.nn.Parameter(values, requires_grad=False)
        memory[id(tensor)] = values
    duplicate = copy.deepcopy(model, memory)
    remove_autocast(duplicate)
    return duplicate.eval()
