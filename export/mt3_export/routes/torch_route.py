"""The export route PyTorch, `torch.onnx.export` (its dynamo exporter, the extra `torch`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from onnx import helper

from mt3_export.routes.torch_network import DecoderStep, Encoder

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from mt3_export.routes.traced_graphs import Port, Ports
    from mt3_export.weights import Weights

#: The lowest operator set the dynamo exporter writes; from 23 on it would use the fused operators
#: that our own profile ``portable`` has.
OPSET = 18

#: Sizes of the examples that are traced; they stay free in the graph, so they must not be 0 or 1.
_EXAMPLE = {"rows": 2, "capacity": 8}


def trace_encoder(weights: Weights, ports: Ports) -> onnx.ModelProto:
    """Traces the encoder graph; see `mt3_export.routes.traced_graphs.Tracer`."""
    return _export(Encoder(weights, int(ports.inputs[0].shape[1])), ports, groups=(1,))


def trace_decoder(weights: Weights, ports: Ports, *, max_tokens: int) -> onnx.ModelProto:
    """Traces the decoder step graph; see `mt3_export.routes.traced_graphs.Tracer`."""
    caches = 2 * weights.shape.decoder_layers
    return _export(DecoderStep(weights, max_tokens), ports, groups=(1, 1, 1, caches, caches))


def _export(module: nn.Module, ports: Ports, *, groups: tuple[int, ...]) -> onnx.ModelProto:
    """Exports a module whose arguments are single inputs (group of 1) or lists of them."""
    free = {name: torch.export.Dim(name) for name in _EXAMPLE}
    arguments: list[Any] = []
    shapes: list[Any] = []
    rest = iter(ports.inputs)
    for size in groups:
        group = [next(rest) for _ in range(size)]
        tensors = [_example(port) for port in group]
        dims = [{i: free[d] for i, d in enumerate(port.shape) if d in free} for port in group]
        arguments.append(tensors if size > 1 else tensors[0])
        shapes.append(dims if size > 1 else dims[0])
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(arguments),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[port.name for port in ports.inputs],
            output_names=[port.name for port in ports.outputs],
            dynamic_shapes=tuple(shapes),
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    return model


def _example(port: Port) -> Tensor:
    sizes = [size if isinstance(size, int) else _EXAMPLE[size] for size in port.shape]
    dtype = helper.tensor_dtype_to_np_dtype(port.dtype)
    return torch.zeros(sizes, dtype=getattr(torch, dtype.name))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes to its developers from our users' terminals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
