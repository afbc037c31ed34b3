"""Export routes by name: graphs traced from independent implementations, to check the direct one.

The graphs that ship are written node by node from canonical weights (`encoder`, `decoder`): the
direct route.  The other routes trace an independent implementation of the network, written in the
framework's own terms, and leave the graph to the framework's converter.  They end in the same
contract (`docs/graph-contract.md`), so their bundles run like any other, and equal tokens mean that
neither the formulas nor the operators of the direct route are at fault.

Traced graphs are profile ``compat`` with a cache that is updated in place, in fp32.  Parameters may
lose their names, and equal weights need not give equal bytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

import onnx
from onnx import TensorProto, helper

from mt3_export.graphs.graph_builder import IR_VERSIONS, Dim
from mt3_runtime.errors import MissingDependencyError
from mt3_runtime.imports.extras import install

if TYPE_CHECKING:
    from mt3_export.weights import T5Shape, Weights
    from mt3_runtime.bundles.bundle import Role

RouteName = Literal["direct", "jax2tf", "torch"]

#: Graph profile of all traced routes.
TRACED_PROFILE = "compat"

#: Module and extra of each traced route.
_TRACERS: dict[str, tuple[str, str]] = {
    "jax2tf": ("mt3_export.routes.jax2tf_route", "jax2tf"),
    "torch": ("mt3_export.routes.torch_route", "torch"),
}

ROUTES: tuple[RouteName, ...] = ("direct", "jax2tf", "torch")


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: its name, ONNX element type and shape."""

    name: str
    dtype: int
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Ports:
    """Inputs and outputs of a graph, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Tracer(Protocol):
    """What a traced route's module offers; the graphs have the names of their `Ports`."""

    def trace_encoder(self, weights: Weights, ports: Ports) -> onnx.ModelProto:
        """Traces the encoder graph."""

    def trace_decoder(self, weights: Weights, ports: Ports, *, max_tokens: int) -> onnx.ModelProto:
        """Traces the decoder step graph."""


def load_tracer(route: str) -> Tracer:
    """Imports what a traced route needs.

    Raises:
        MissingDependencyError: A package of it is not installed; the message names the extra.
    """
    module, extra = _TRACERS[route]
    try:
        return cast("Tracer", importlib.import_module(module))
    except ImportError as error:
        raise MissingDependencyError(
            f"--via {route} cannot start ({error}). It needs the extras [export,{extra}], best in "
            f"an environment of its own: {install('export', extra)}"
        ) from error


def encoder_ports(shape: T5Shape, frames: int) -> Ports:
    """The encoder's contract."""
    features = Port("features", TensorProto.FLOAT, ("rows", frames, shape.input_bins))
    return Ports((features,), _caches("cross", shape, frames))


def decoder_ports(shape: T5Shape, frames: int) -> Ports:
    """The decoder step's contract, with a cache in place."""
    past, present = (_caches(name, shape, "capacity") for name in ("past", "present"))
    return Ports(
        (
            Port("token_ids", TensorProto.INT64, ("rows", 1)),
            Port("positions", TensorProto.INT32, ("rows",)),
            Port("allowed", TensorProto.BOOL, ("rows", shape.vocab_size)),
            *past,
            *_caches("cross", shape, frames),
        ),
        (
            Port("next_ids", TensorProto.INT64, ("rows", 1)),
            Port("top_ids", TensorProto.INT64, ("rows", 2)),
            Port("top_log_probs", TensorProto.FLOAT, ("rows", 2)),
            *present,
        ),
    )


def _caches(name: str, shape: T5Shape, columns: Dim) -> tuple[Port, ...]:
    return tuple(
        Port(
            f"{name}_{part}_{layer}",
            TensorProto.FLOAT,
            ("rows", shape.heads, columns, shape.head_dim),
        )
        for layer in range(shape.decoder_layers)
        for part in ("key", "value")
    )


def trace(
    route: str,
    role: Role,
    weights: Weights,
    *,
    frames: int,
    max_tokens: int,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Makes one graph by a traced route.

    Args:
        route: A name of `ROUTES` other than ``direct``.
        role: Which graph.
        weights: Canonical weights.
        frames: T, the number of encoder frames.
        max_tokens: Length of the stored position table.
        metadata: Written to the model's ``metadata_props``.

    Raises:
        MissingDependencyError: See `load_tracer`.
    """
    tracer = load_tracer(route)
    if role == "encoder":
        ports = encoder_ports(weights.shape, frames)
        return finish(tracer.trace_encoder(weights, ports), ports, metadata)
    ports = decoder_ports(weights.shape, frames)
    return finish(tracer.trace_decoder(weights, ports, max_tokens=max_tokens), ports, metadata)


def finish(model: onnx.ModelProto, ports: Ports, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Makes a traced graph one of ours: signature, IR version, metadata; what it computes stays.

    Raises:
        RuntimeError: The converter gave the graph other inputs or outputs than it was asked for.
    """
    graph = model.graph
    for declared, found in ((ports.inputs, graph.input), (ports.outputs, graph.output)):
        names = [port.name for port in declared]
        if sorted(names) != sorted(value.name for value in found):
            raise RuntimeError(f"expected {names}, traced {[value.name for value in found]}")
        del found[:]
        found.extend(
            helper.make_tensor_value_info(port.name, port.dtype, port.shape) for port in declared
        )
    # Where each node came from in the framework's code: half the file of a small network.
    del graph.value_info[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    opset = next(item.version for item in model.opset_import if item.domain == "")
    model.ir_version = IR_VERSIONS[opset]
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model
