"""The precision of encoding: a copy of the model in 16 bits or int8."""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from pydantic import AfterValidator
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ..utils.checks import Expected, load_extra
from ..utils.compat import remove_autocast, tensor_version
from .adapters import adapters_of, merged, tensor_bytes

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # what a language model may be given for each token
GROUP = 128  # how many inputs of a linear layer are quantized together; common models have layers of a multiple of it
LARGEST = 127  # the largest number of a row of weights, in magnitude
GRAPH_FOLDER = "openvino"  # where sentence-transformers looks for graphs in the folder of a model


class GraphModel(nn.Module):
    """A language model that OpenVINO computes."""

    def __init__(self, graph: Any, config: Any) -> None:
        super().__init__()
        self.config = config
        self.names = [port.get_any_name() for port in graph.inputs]
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
        }
        self.request = load_extra("openvino").Core().compile_model(graph, "CPU", options).create_infer_request()

    def forward(self, **tokens: Any) -> BaseModelOutput:
        """Compute the last layer."""
        inputs = {name: tokens[name].numpy() for name in self.names}
        outputs = self.request.infer(inputs, share_inputs=True, share_outputs=True)
        return BaseModelOutput(last_hidden_state=torch.from_numpy(outputs["last_hidden_state"]))


def quantize(model: SentenceTransformer) -> SentenceTransformer:
    """Have OpenVINO compute the language model of a sentence-transformers model in int8."""
    first = _language_model(model)
    if model.device.type != "cpu":
        raise ValueError(f"dtype='int8' encodes on a CPU, and the model is on {model.device}; give device='cpu'")
    graph = _convert(_LastLayer(first.model), _inputs_of(first))
    compress(graph)
    first.register_module("model", GraphModel(graph, first.model.config))
    return model


def write_graph(model: SentenceTransformer, folder: Path, *, int8: bool) -> Path:
    """Write the graph of a model in OpenVINO's format."""
    graph = _convert(_AllLayers(model), _inputs_of(_language_model(model)))
    name = "openvino_model.xml"
    if int8:
        compress(graph)
        name = "openvino_model_qint8_quantized.xml"
    file = folder / GRAPH_FOLDER / name
    load_extra("openvino").save_model(graph, file, compress_to_fp16=False)
    return file


def compress(graph: Any) -> int:
    """Replace the weights of linear layers in a graph by int8 numbers and scales."""
    operations = importlib.import_module("openvino.opset13")
    layers = 0
    for layer in graph.get_ordered_ops():
        if layer.get_type_name() != "MatMul":
            continue
        weights = layer.input_value(1).get_node()
        if weights.get_type_name() != "Constant" or len(weights.get_output_shape(0)) != 2:
            continue
        summed = 1 if layer.get_attributes()["transpose_b"] else 0
        numbers, scales = to_int8(weights.data, summed)
        restored = operations.multiply(
            operations.convert(operations.constant(numbers), "f32"), operations.constant(scales)
        )
        layer.input(1).replace_source_output(restored.output(0))
        layers += 1
    return layers


def to_int8(weights: np.ndarray, summed: int) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix to int8, with scales that make the largest magnitude for each output 127."""
    scales = np.abs(weights).max(axis=summed, keepdims=True) / LARGEST
    # a row of zeros stays one
    scales[scales == 0] = 1
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


class _LastLayer(nn.Module):
    """A language model with its last layer as the only output, for the tracer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (self.model(**tokens).last_hidden_state,)


class _AllLayers(nn.Module):
    """A sentence-transformers model with tensors as outputs, for the tracer."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(model)

    def forward(self, tokens: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        features = dict(tokens)
        for layer in self.layers:
            features = layer(features)
        return features["token_embeddings"], features["sentence_embedding"]


class _Positional(nn.Module):
    """A module of named tensors as one of tensors in order, which is what the tracer knows."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model(dict(zip(self.names, tensors, strict=True)))


def _language_model(model: SentenceTransformer) -> Transformer:
    if not isinstance(model[0], Transformer):
        raise ValueError(
            f"OpenVINO converts language models, and the model starts with {model[0]}; choose another dtype"
        )
    return model[0]


def _inputs_of(transformer: Transformer) -> list[str]:
    """List what the tokenizer of a language model gives it."""
    given = getattr(transformer.tokenizer, "model_input_names", INPUTS)
    return [name for name in INPUTS if name in given]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the tracer makes others say, which it asks for all that they have."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _convert(model: nn.Module, names: Sequence[str]) -> Any:
    """Convert a module to a graph for any number of texts and tokens."""
    openvino = load_extra("openvino")
    frontends = importlib.import_module("openvino.frontend")
    decoders = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    # with padding, since masks of ones are left out
    examples = {"input_ids": mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}
    inputs = tuple(examples[name] for name in names)
    try:
        with _quiet(), torch.no_grad():
            traced = torch.jit.trace(_Positional(model, names), inputs, strict=False, check_trace=False)
            # with weights of its own: those of the traced model go with it
            frozen = torch.jit.freeze(traced.eval())
            decoder = decoders.TorchScriptPythonDecoder(frozen, shared_memory=False)
            frontend = frontends.FrontEndManager().load_by_framework("pytorch")
            loaded = frontend.load(decoder)
            for place in loaded.get_inputs():
                loaded.set_partial_shape(place, openvino.PartialShape([-1, -1]))
                loaded.set_element_type(place, openvino.Type.i64)
            graph = frontend.convert(loaded)
    except Exception as error:
        raise ValueError(
            f"OpenVINO {openvino.__version__} cannot convert the model: {error}; choose another dtype"
        ) from error
    for port, name in zip(graph.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(graph.outputs, ("last_hidden_state", "sentence_embedding"), strict=False):
        port.get_tensor().set_names({name})
    return graph


PrecisionName = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def _precision_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in get_args(PrecisionName):
        raise ValueError
    return name


# how to encode; ``auto`` is what :func:`fastest_precision` says
Precision: TypeAlias = Annotated[
    str | torch.dtype,
    AfterValidator(_precision_name),
    Expected("'auto', 'float32', 'bfloat16', 'float16' or 'int8'"),
]


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has instructions for bfloat16; emulated, it is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # the older of the versions that are supported have no public way to ask
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def fastest_precision(device: torch.device) -> str:
    """Choose the fastest precision that is safe for any model."""
    if has_bfloat16(device):
        return "bfloat16"
    return "float32"


SAMPLED = 64  # how many values of each tensor are looked at, or somewhat more


class ModelChecksum:
    """A checksum of what a model computes, computed again only after the model has changed."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None
        self._checksum = ""

    def of(self, model: torch.nn.Module, settings: tuple[Any, ...]) -> str:
        """Compute the checksum of a model's weights, layers and settings."""
        # reading all weights takes a second for a large model
        state = model_state(model, settings)
        if state != self._state:
            checksum = hashlib.sha256(repr((str(model), settings)).encode())
            for tensor in model.state_dict().values():
                checksum.update(tensor_bytes(tensor))
            self._state = state
            self._checksum = checksum.hexdigest()
        return self._checksum


def model_state(model: torch.nn.Module, settings: tuple[Any, ...]) -> tuple[Any, ...]:
    """Describe a model in a millisecond or so, so that it is seen when it changes."""
    tensors = list(model.state_dict().values())
    versions = [(tensor.data_ptr(), tensor_version(tensor)) for tensor in tensors]
    # in-place changes raise a tensor's version, except those of fused optimizers, so some of its values count too
    samples: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        values = tensor.detach().reshape(-1)
        step = max(1, len(values) // SAMPLED)
        samples.setdefault((tensor.dtype, tensor.device), []).append(values[::step])
    # together, since each copy from a GPU waits for it
    sampled = [tensor_bytes(torch.cat(values)) for values in samples.values()]
    return versions, sampled, str(model), settings


class EncodingCopy:
    """A copy of a model that encodes in a precision, made again only after the model has changed."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None
        self._copy: SentenceTransformer | None = None

    def of(self, model: SentenceTransformer, precision: str, settings: tuple[Any, ...]) -> SentenceTransformer:
        """Give what encodes for a model."""
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
    """Copy a model with weights of another type, never holding more than both."""
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
