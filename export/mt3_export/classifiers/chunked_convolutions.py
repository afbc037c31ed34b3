"""Runs convolutions over time in chunks, exactly, so that memory does not grow with the clip.

A frame of valid convolutions depends on its own samples alone, so frames can be made some at a time
in an ONNX ``Loop``.  The one thing in the way is HuBERT's first norm, which is over the whole clip;
but what it norms is linear in the samples: mean and variance of each channel follow from the mean m
and the covariance C of the windows that the kernel w sees, as ``w m`` and ``w C w``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from mt3_export.graphs.graph_builder import Graph
from mt3_export.weights import FloatArray

CHUNK_FRAMES = 150
"""Frames a turn: 3 s of HuBERT, whose first map then takes 20 MB; of 30 s it takes 197 MB."""


class LoopBody(Graph):
    """Collects the nodes of a loop's body; weights and constants stay in the graph around it."""

    def __init__(self, around: Graph) -> None:
        super().__init__("chunk", opset=around.opset)
        self._around = around
        self.turn = self.input(self.fresh("turn"), TensorProto.INT64, [])
        self._going_on = self.input(self.fresh("going_on"), TensorProto.BOOL, [])

    def fresh(self, stem: str) -> str:
        """Names of both graphs share one space."""
        return f"chunk.{super().fresh(stem)}"

    def constant(self, value: object, dtype: npt.DTypeLike) -> str:
        """As of the graph around."""
        return self._around.constant(value, dtype)

    def parameter(self, name: str, value: npt.NDArray[np.float32], *, exact: bool = False) -> str:
        """As of the graph around."""
        return self._around.parameter(name, value, exact=exact)

    def collected(self, x: str, shape: list[int | str]) -> onnx.GraphProto:
        """The body, of which ``x`` of every turn is kept.

        Args:
            x: float32, of this shape.
            shape: Free dimensions are names.
        """
        same = self.op("Identity", self._going_on)
        self.output(same, TensorProto.BOOL, [])
        self.output(x, TensorProto.FLOAT, shape)
        return helper.make_graph(self._nodes, self.name, self._inputs, self._outputs)


def in_chunks(
    graph: Graph,
    samples: str,
    make: Callable[[LoopBody, str], str],
    *,
    stride: int,
    receptive: int,
    channels: int,
) -> str:
    """Frames [rows, frames, channels] of samples [rows, n], made in a loop.

    Args:
        graph: Around the loop.
        samples: float32.
        make: Writes into a body what makes frames [rows, frames, channels] of samples [rows, n].
        stride: Samples from one frame to the next.
        receptive: Samples that a frame sees.
        channels: Of a frame.
    """
    whole, zero, one = (graph.constant([n], np.int64) for n in (CHUNK_FRAMES, 0, 1))
    hop, seen = graph.constant([stride], np.int64), graph.constant([receptive], np.int64)
    count = graph.op("Slice", graph.op("Shape", samples), one, graph.constant([2], np.int64))
    frames = graph.op("Add", graph.op("Div", graph.op("Sub", count, seen), hop), one)
    less = graph.constant([CHUNK_FRAMES - 1], np.int64)
    turns = graph.op("Div", graph.op("Add", frames, less), whole)
    last = graph.op("Sub", graph.op("Mul", turns, whole), one)
    wanted = graph.op("Add", graph.op("Mul", last, hop), seen)
    lacking = graph.op("Max", graph.op("Sub", wanted, count), zero)
    pads = graph.op("Concat", zero, zero, zero, lacking, axis=0)
    padded = graph.op("Pad", samples, pads)

    body = LoopBody(graph)
    step = graph.constant(CHUNK_FRAMES * stride, np.int64)
    length = graph.constant([(CHUNK_FRAMES - 1) * stride + receptive], np.int64)
    start = body.op("Unsqueeze", body.op("Mul", body.turn, step), zero)
    piece = body.op("Slice", padded, start, body.op("Add", start, length), one)
    made = make(body, piece)
    scalar = graph.op("Squeeze", turns, zero)
    shape: list[int | str] = ["rows", CHUNK_FRAMES, channels]
    kept = graph.op("Loop", scalar, "", body=body.collected(made, shape))
    turned = graph.op("Transpose", kept, perm=[1, 0, 2, 3])
    flat = graph.op("Reshape", turned, graph.constant([0, -1, channels], np.int64))
    return graph.op("Slice", flat, zero, frames, one)


def channel_norm(
    graph: Graph,
    samples: str,
    kernel: FloatArray,
    *,
    stride: int,
    scale: str,
    bias: str,
    epsilon: float,
) -> tuple[str, str]:
    """Factor and offset [rows, channels, 1] that norm each channel of a convolution over the clip.

    Args:
        graph: Where they are computed.
        samples: float32 [rows, n].
        kernel: [channels, 1, width] of the convolution, which has no bias.
        stride: Of the convolution.
        scale: Of the norm, [channels].
        bias: Of the norm, [channels].
        epsilon: Of the norm.
    """
    width = kernel.shape[2]
    one, last = graph.constant([1], np.int64), graph.constant([2], np.int64)
    eye = graph.constant(np.eye(width, dtype=np.float32)[:, np.newaxis], np.float32)
    windows = graph.op("Conv", graph.op("Unsqueeze", samples, one), eye, strides=[stride])
    mean = graph.op("ReduceMean", windows, axes=[2], keepdims=1)  # [rows, width, 1]
    apart = graph.op("Sub", windows, mean)
    count = graph.op("Slice", graph.op("Shape", windows), last, graph.constant([3], np.int64))
    number = graph.op("Cast", count, to=TensorProto.FLOAT)
    turned = graph.op("Transpose", apart, perm=[0, 2, 1])
    spread = graph.op("Div", graph.op("MatMul", apart, turned), number)  # [rows, width, width]
    flat = graph.op("Squeeze", graph.parameter("conv.0.weight", kernel), one)  # [channels, width]
    seen = graph.op("MatMul", flat, spread)  # [rows, channels, width]
    variance = graph.op("ReduceSum", graph.op("Mul", seen, flat), last, keepdims=1)
    deviation = graph.op("Sqrt", graph.op("Add", variance, graph.constant(epsilon, np.float32)))
    factor = graph.op("Div", graph.op("Unsqueeze", scale, one), deviation)
    moved = graph.op("Mul", graph.op("MatMul", flat, mean), factor)
    return factor, graph.op("Sub", graph.op("Unsqueeze", bias, one), moved)
