"""The export route Flax, jax2tf, TensorFlow, tf2onnx.

`flax_network` computes, jax2tf rewrites it in TensorFlow's operators, tf2onnx translates those.
Two settings are needed and both are deprecated: without native serialisation and without XLA
operators jax2tf still writes a graph, otherwise one opaque call that tf2onnx cannot read.  JAX
0.7.1 is the last version that has this mode, 18 the last opset tf2onnx writes (extra ``jax2tf``).

Batch and cache capacity stay free through jax2tf's shape polymorphism.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
import tf2onnx
from jax.experimental import jax2tf
from onnx import helper

from mt3_export.routes.flax_network import Transformer, parameters

if TYPE_CHECKING:
    import onnx

    from mt3_export.routes.traced_graphs import Port, Ports
    from mt3_export.weights import Weights

#: Operator set of the graphs: that of our own profile ``compat``.
OPSET = 17

Tensors = dict[str, Any]


def trace_encoder(weights: Weights, ports: Ports) -> onnx.ModelProto:
    """Traces the encoder graph; see `mt3_export.routes.traced_graphs.Tracer`."""
    network, variables = Transformer(weights.shape), parameters(weights)
    frames = int(ports.inputs[0].shape[1])
    table = jnp.asarray(weights.positions.table(frames, weights.shape.d_model))

    def encode(inputs: Tensors) -> Tensors:
        cross = network.apply(variables, inputs["features"], table, method="encode")
        return _named("cross", cross)

    return _convert(encode, ports)


def trace_decoder(weights: Weights, ports: Ports, *, max_tokens: int) -> onnx.ModelProto:
    """Traces the decoder step graph; see `mt3_export.routes.traced_graphs.Tracer`."""
    network, variables, shape = Transformer(weights.shape), parameters(weights), weights.shape
    table = jnp.asarray(weights.positions.table(max_tokens, shape.d_model))

    def step(inputs: Tensors) -> Tensors:
        past, cross = (
            tuple(
                (inputs[f"{name}_key_{layer}"], inputs[f"{name}_value_{layer}"])
                for layer in range(shape.decoder_layers)
            )
            for name in ("past", "cross")
        )
        logits, present = network.apply(
            variables,
            *(inputs["token_ids"], inputs["positions"], table, past, cross),
            method="step",
        )
        # The lowest number instead of -inf keeps a row with nothing allowed free of NaN.
        masked = jnp.where(inputs["allowed"], logits, jnp.finfo(jnp.float32).min)
        _, top_ids = jax.lax.top_k(masked, 2)
        # A sum over one token each, because jax2tf has no graph for a gather by row.
        chosen = top_ids[:, :, None] == jnp.arange(shape.vocab_size)
        log_probs = jnp.where(chosen, jax.nn.log_softmax(logits)[:, None, :], 0.0)
        return {
            "next_ids": top_ids[:, :1],
            "top_ids": top_ids,
            "top_log_probs": jnp.sum(log_probs, axis=-1),
            **_named("present", present),
        }

    return _convert(step, ports)


def _named(name: str, pairs: Sequence[tuple[Any, Any]]) -> Tensors:
    """Keys and values of all layers under the names of the contract."""
    return {
        f"{name}_{part}_{layer}": tensor
        for layer, pair in enumerate(pairs)
        for part, tensor in zip(("key", "value"), pair, strict=True)
    }


def _convert(function: Callable[[Tensors], Tensors], ports: Ports) -> onnx.ModelProto:
    """From a JAX function over named arrays to an ONNX model with those names."""
    symbolic = {port.name: f"({', '.join(map(str, port.shape))},)" for port in ports.inputs}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "jax2tf.convert with", DeprecationWarning)
        converted = jax2tf.convert(
            function,
            polymorphic_shapes=[symbolic],
            native_serialization=False,
            enable_xla=False,
        )
    specs = [_spec(port) for port in ports.inputs]
    integers = {port.name for port in ports.outputs if _dtype(port) == np.int64}

    def graph(*tensors: Any) -> Tensors:
        inputs = {port.name: tensor for port, tensor in zip(ports.inputs, tensors, strict=True)}
        # JAX computes with 32 bits; the contract's ids have 64.
        narrow = {n: tf.cast(t, tf.int32) if t.dtype == tf.int64 else t for n, t in inputs.items()}
        found = converted(narrow)
        return {n: tf.cast(t, tf.int64) if n in integers else t for n, t in found.items()}

    traced = tf.function(graph, autograph=False, input_signature=specs)
    converter = tf2onnx.convert.from_function
    model: onnx.ModelProto = converter(traced, input_signature=specs, opset=OPSET)[0]
    return model


def _spec(port: Port) -> Any:
    sizes = [size if isinstance(size, int) else None for size in port.shape]
    return tf.TensorSpec(sizes, _dtype(port), name=port.name)


def _dtype(port: Port) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(port.dtype)
