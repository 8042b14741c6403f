"""The precision of encoding: a copy of the model in 16 bits, in int8 or in OpenVINO."""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ..utils.checks import Expected, load_extra
from ..utils.compat import remove_autocast
from .adapters import adapters_of, merged

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # the possible inputs of a language model per token
GROUP = 128  # how many inputs of a linear layer to quantize together; divides the sizes of common layers
LARGEST = 127  # the largest magnitude of an int8 weight
PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "dynamic"}  # OpenVINO's names
GRAPH_FOLDER = "openvino"  # the folder inside a model where sentence-transformers looks for graphs
TORCH_INSTEAD = "pass backend='torch' and a dtype other than 'int8'"


class GraphModel(nn.Module):
    """A language model that runs in OpenVINO."""

    def __init__(self, graph: Any, config: Any, precision: str) -> None:
        super().__init__()
        self.config = config
        self.names = [port.get_any_name() for port in graph.inputs]
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
        }
        self.graph = load_extra("openvino").Core().compile_model(graph, "CPU", options)

    def forward(self, **tokens: Any) -> BaseModelOutput:
        inputs = {name: tokens[name].numpy() for name in self.names}
        # a request of its own, since several threads may call
        outputs = self.graph.create_infer_request().infer(inputs, share_inputs=True)
        return BaseModelOutput(last_hidden_state=torch.from_numpy(outputs["last_hidden_state"]))


def write_graph(model: SentenceTransformer, folder: Path, *, int8: bool) -> Path:
    """Write the graph of a model in OpenVINO's format."""
    graph = _convert(list(model), int8=int8)
    file = folder / GRAPH_FOLDER / f"openvino_model{'_qint8_quantized' if int8 else ''}.xml"
    load_extra("openvino").save_model(graph, file, compress_to_fp16=False)
    return file


def compress(graph: Any) -> None:
    """Quantize the weights of linear layers in a graph to int8 numbers with scales."""
    operations = importlib.import_module("openvino.opset13")
    for layer in graph.get_ordered_ops():
        if layer.get_type_name() != "MatMul":
            continue
        weights = layer.input_value(1).get_node()
        if weights.get_type_name() != "Constant" or len(weights.get_output_shape(0)) != 2:
            continue
        summed = 1 if layer.get_attributes()["transpose_b"] else 0
        numbers, scales = to_int8(weights.data, summed)
        constant = operations.constant
        restored = operations.multiply(operations.convert(constant(numbers), "f32"), constant(scales))
        layer.input(1).replace_source_output(restored.output(0))


def to_int8(weights: np.ndarray, summed: int) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix to int8, with one scale per output that maps its largest magnitude to 127."""
    scales = np.abs(weights).max(axis=summed, keepdims=True) / LARGEST
    # keep a row of zeros
    scales[scales == 0] = 1
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


class _Positional(nn.Module):
    """Wrap layers as one module with positional tensors, as the tracer requires."""

    def __init__(self, layers: Sequence[nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = dict(zip(self.names, tensors, strict=True))
        for layer in self.layers:
            features = layer(features)
        outputs = [features.get(name) for name in ("token_embeddings", "sentence_embedding")]
        return tuple(tensor for tensor in outputs if tensor is not None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings that the tracer triggers in other libraries when it reads their attributes."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _convert(layers: Sequence[nn.Module], *, int8: bool) -> Any:
    """Convert the first layers of a model to a graph for any number of texts and tokens."""
    first = layers[0]
    if not isinstance(first, Transformer):
        raise ValueError(f"OpenVINO converts language models, and the model starts with {first}; {TORCH_INSTEAD}")
    openvino = load_extra("openvino")
    frontends = importlib.import_module("openvino.frontend")
    decoders = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    names = [name for name in INPUTS if name in getattr(first.tokenizer, "model_input_names", INPUTS)]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    # include padding, since the tracer drops masks of ones
    examples = {"input_ids": mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}
    inputs = tuple(examples[name] for name in names)
    try:
        with _quiet(), torch.no_grad():
            traced = torch.jit.trace(_Positional(layers, names), inputs, strict=False, check_trace=False)
            # copy the weights, since the traced model is freed
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
            f"OpenVINO {openvino.__version__} cannot convert the model: {error}; {TORCH_INSTEAD}"
        ) from error
    for port, name in zip(graph.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(graph.outputs, ("last_hidden_state", "sentence_embedding"), strict=False):
        port.get_tensor().set_names({name})
    if int8:
        compress(graph)
    return graph


# torch dtypes are accepted too
Precision = Annotated[
    str,
    Field(pattern="^(auto|float32|bfloat16|float16|int8)$"),
    BeforeValidator(lambda dtype: str(dtype).removeprefix("torch.")),
    Expected("'auto', 'float32', 'bfloat16', 'float16' or 'int8'"),
]
Backend: TypeAlias = Literal["torch", "openvino"]


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device supports bfloat16 natively, since emulation is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # older supported versions of torch cannot tell
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def copy_to_encode(model: SentenceTransformer, precision: str, backend: str) -> SentenceTransformer:
    """Copy a model in a given precision, without gradients. In int8, the language model always runs in OpenVINO."""
    if adapters_of(model):
        # merged weights are rounded only once, and as fast as plain ones
        model = merged(model)
    if backend == "torch" and precision != "int8":
        return copied(model, getattr(torch, precision))
    if model.device.type != "cpu":
        raise ValueError(f"OpenVINO needs a CPU, but the model is on {model.device}; pass device='cpu'")
    model = copied(model, torch.float32)
    first: Any = model[0]
    first.model = GraphModel(_convert([first], int8=precision == "int8"), first.model.config, precision)
    return model


def copied(model: SentenceTransformer, dtype: torch.dtype) -> SentenceTransformer:
    """Copy a model with weights of another type, without further temporary copies in memory."""
    # a deep copy does not copy objects in its memo
    memory: dict[int, Any] = {}
    # buffers that are not saved, such as the frequencies of rotary embeddings, stay in float32
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
