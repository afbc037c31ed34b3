"""Adds log-mel features to a graph: samples of segments in, the numbers of `mt3_runtime.audio` out.

Contract: `add_features` writes what `mt3_runtime.audio.log_mel.FeatureExtractor` computes, for all
its configurations of one segment, from MatMul, Gather and element-wise operators alone, which every
provider has (the STFT operator is one of few).

The Fourier transform is done in two stages, in double precision.  Sample n = B a + b, frequency
k = k1 + A k2, with A B the size of the transform:

    X[k] = sum_b  W(A B)^(b k1) W(B)^(b k2)  sum_a  x[B a + b] W(A)^(a k1)

Samples are real, so k1 = 0 .. A / 2 is enough: the magnitude at k is the one at A B - k.  Single
precision is not enough: above the cut-off of an MP3 hardly anything is left, and the logarithm
shows each rounding error there (two of 81 segments then decode otherwise).  The window is applied
in single precision nevertheless, because that is what `FeatureExtractor` does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from mt3_runtime.audio.filter_bank import hann_window, split_bands
from mt3_runtime.audio.log_mel import FeatureConfig, filter_matrix
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from mt3_export.graphs.graph_builder import Graph


def add_features(
    graph: Graph, config: FeatureConfig, samples: str, length: int, *, frames: str = ""
) -> str:
    """Adds the features of segments to a graph.

    Args:
        graph: Where to.
        config: The front end.
        samples: Name of float32 [N, length].
        length: Samples of a segment.
        frames: Name of int64 [N], rows that belong to the audio: those behind are exactly 0.0.
            Empty if all do.

    Returns:
        The name of float32 [N, config.frames, config.bins].

    Raises:
        OptionError: These features depend on how long a segment is, in a way that is not here.
    """
    if frames and (config.framing != "leading" or config.scaling == "segment"):
        raise OptionError(
            "Features of a shorter last segment can be part of a graph only with leading frames "
            "and without scaling by segment."
        )
    magnitudes = _magnitudes(graph, config, _frames(graph, config, samples, length))
    rows = _scaled(graph, config, _log_spectrum(graph, config, magnitudes))
    if not frames:
        return rows
    index = graph.constant(np.arange(config.frames), np.int64)
    last = graph.op("Unsqueeze", frames, graph.constant([1], np.int64))
    real = graph.op("Unsqueeze", graph.op("Less", index, last), graph.constant([2], np.int64))
    return graph.op("Where", real, rows, graph.constant(0.0, np.float32))


def _frames(graph: Graph, config: FeatureConfig, samples: str, length: int) -> str:
    """Overlapping frames [N, F, fft_size] of segments [N, length], before the window."""
    size, hop = config.fft_size, config.hop
    if config.framing == "centred":
        half = graph.constant([0, size // 2, 0, size // 2], np.int64)
        samples = graph.op("Pad", samples, half, mode="reflect")
        length += size // 2 * 2
    step = math.gcd(hop, size)
    wanted = (config.frames - 1) * hop + size
    if length > wanted:
        zero, end, axis = (graph.constant([n], np.int64) for n in (0, wanted, 1))
        samples = graph.op("Slice", samples, zero, end, axis)
    elif length < wanted:
        samples = graph.op("Pad", samples, graph.constant([0, 0, 0, wanted - length], np.int64))
    blocks = graph.op("Reshape", samples, graph.constant([0, wanted // step, step], np.int64))
    first = np.arange(config.frames)[:, np.newaxis] * (hop // step)
    places = graph.constant(first + np.arange(size // step), np.int64)
    frames = graph.op("Gather", blocks, places, axis=1)
    return graph.op("Reshape", frames, graph.constant([0, config.frames, size], np.int64))


def stages(size: int) -> tuple[int, int]:
    """A and B of a transform of A * B samples: A even, both as close as can be."""
    even = (n for n in range(2, size + 1, 2) if size % n == 0)
    first = min(even, key=lambda n: (abs(math.log(n * n / size)), -n))
    return first, size // first


def _magnitudes(graph: Graph, config: FeatureConfig, frames: str) -> str:
    """Magnitudes float32 [N, F, fft_size / 2 + 1] of the spectra of frames."""
    size = config.fft_size
    a, b = stages(size)
    half = a // 2 + 1
    windowed = graph.op("Mul", frames, graph.constant(hann_window(size), np.float32))
    exact = graph.op("Cast", windowed, to=TensorProto.DOUBLE)
    exact = graph.op("Reshape", exact, graph.constant([-1, a, b], np.int64))
    turns = np.outer(np.arange(half), np.arange(a)) % a * (2 * np.pi / a)
    first = np.stack([np.cos(turns), -np.sin(turns)], axis=1).reshape(2 * half, a)
    parts = graph.op("MatMul", graph.constant(first, np.float64), exact)  # [N F, (k1, re im), b]
    parts = graph.op("Reshape", parts, graph.constant([-1, half, 2 * b], np.int64))
    parts = graph.op("Transpose", parts, perm=[1, 0, 2])
    spectrum = graph.op("MatMul", parts, graph.constant(_second_stage(size, a, b), np.float64))
    squares = graph.op("Mul", spectrum, spectrum)  # [k1, N F, (re im, k2)]
    halves = [graph.fresh("Split") for _ in range(2)]
    graph.ops("Split", squares, graph.constant([b, b], np.int64), outs=halves, axis=2)
    power = graph.op("Add", *halves)
    magnitude = graph.op("Cast", graph.op("Sqrt", power), to=TensorProto.FLOAT)
    rows = graph.op("Transpose", magnitude, perm=[1, 0, 2])
    rows = graph.op(
        "Reshape", rows, graph.constant([-1, config.frames, half * b], np.int64)
    )  # columns k1 * B + k2
    return graph.op("Gather", rows, graph.constant(_columns(size, a, b), np.int64), axis=2)


def _second_stage(size: int, a: int, b: int) -> npt.NDArray[np.float64]:
    """Twiddles and second transform, real, of (re, im): [A / 2 + 1, 2 B, 2 B]."""
    k1 = np.arange(a // 2 + 1)[:, np.newaxis, np.newaxis]
    column, k2 = np.arange(b)[:, np.newaxis], np.arange(b)
    turns = column * (k1 + a * k2) % size * (2 * np.pi / size)
    real, imaginary = np.cos(turns), -np.sin(turns)
    upper = np.concatenate([real, imaginary], axis=2)
    lower = np.concatenate([-imaginary, real], axis=2)
    return np.concatenate([upper, lower], axis=1)


def _columns(size: int, a: int, b: int) -> list[int]:
    """Where the frequencies 0 .. size / 2 stand among (k1, k2)."""
    found = []
    for k in range(size // 2 + 1):
        same = k if k % a <= a // 2 else size - k
        found.append(same % a * b + same // a)
    return found


def _log_spectrum(graph: Graph, config: FeatureConfig, magnitudes: str) -> str:
    """Logarithms of filtered magnitudes: [N, F, bins]."""
    if config.power == 2:
        magnitudes = graph.op("Mul", magnitudes, magnitudes)
    matrix = filter_matrix(config)
    if matrix is None:
        bounds = (graph.constant([n], np.int64) for n in (1, config.bins + 1, 2))
        out = graph.op("Slice", magnitudes, *bounds)
    else:
        bands = []
        for band in split_bands(matrix):
            weights = graph.constant(band.weights, np.float32)
            ends = (band.rows.start, band.rows.stop, 2)
            used = graph.op("Slice", magnitudes, *(graph.constant([n], np.int64) for n in ends))
            bands.append(graph.op("MatMul", used, weights))
        out = graph.op("Concat", *bands, axis=2)
    floor = graph.constant(config.floor, np.float32)
    if config.floor_rule == "add":
        out = graph.op("Add", out, floor)
    else:
        empty = graph.op("LessOrEqual", out, graph.constant(0.0, np.float32))
        out = graph.op("Where", empty, floor, out)
    return graph.op("Log", out)


def _scaled(graph: Graph, config: FeatureConfig, rows: str) -> str:
    if config.scaling == "fixed":
        low, high = np.float32(config.scale_low), np.float32(config.scale_high)
        lowest, highest = (graph.constant(value, np.float32) for value in (low, high))
        rows = graph.op("Sub", graph.op("Clip", rows, lowest, highest), lowest)
        return graph.op("Div", rows, graph.constant(high - low, np.float32))
    if config.scaling == "segment":
        axes = graph.constant([1, 2], np.int64)
        low_name = graph.op("ReduceMin", rows, axes, keepdims=1)
        span = graph.op("Sub", graph.op("ReduceMax", rows, axes, keepdims=1), low_name)
        offset = graph.constant(config.scale_offset, np.float32)
        return graph.op("Div", graph.op("Sub", rows, low_name), graph.op("Add", span, offset))
    return rows
