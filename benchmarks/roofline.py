"""What this machine could do at best, and the least time a song can take on it.

Two limits are measured: how fast memory is read (the better of several NumPy reductions over an
array far larger than any cache) and how fast fp32 matrices multiply (the better of NumPy's BLAS and
ONNX Runtime, several shapes, all cores).  Both are the best of several repetitions: a limit.

The floor of encoder + decoder for a song is then, with P the peak in FLOP/s and B the bandwidth,

    encoder   segments * F_enc / P
    steps     sum over decoder steps of max(W / B, rows * F_row / P)
    caches    sum over tokens of (K_cross + K_self * position) / B

F_enc: two FLOPs per weight and frame, and 4 * T^2 * width per attention layer.  W: bytes of all
matrices a step multiplies with, as fp32; F_row: two FLOPs per weight.  K_cross: keys and values
of all layers and frames; K_self: those of one position.  Sizes come from the bundle's graphs and
`ModelSpec`, tokens per segment and rows per step from the song's own run.

`floor` takes the steps as they were scheduled; `floor_free` charges no weight traffic at all, which
no finite number of slots reaches; it depends on the song and the machine only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.diagnostics.cores import usable_cores

FLOAT = 4  # bytes
#: Bytes read per measurement of the bandwidth; sixteen times the largest L3 seen so far.
ARRAY_BYTES = 1 << 30
REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """Measured limits.

    Attributes:
        bandwidth: Bytes read per second, all cores.
        peak: fp32 FLOP/s, all cores.
        bandwidth_by, peak_by: What reached them.
    """

    bandwidth: float
    peak: float
    bandwidth_by: str
    peak_by: str


@dataclass(frozen=True)
class Costs:
    """Work of a model, see the module docstring; FLOPs and bytes."""

    encoder_flops: float
    step_bytes: float
    row_flops: float
    cross_bytes: float
    self_bytes: float


def measure(array_bytes: int = ARRAY_BYTES, size: int = 4096) -> Machine:
    """Measures the two limits; takes some ten seconds."""
    bandwidth, by = max(_bandwidths(array_bytes))
    peak, peak_by = max(_peaks(size))
    return Machine(bandwidth, peak, by, peak_by)


def _best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of several repetitions, after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _bandwidths(array_bytes: int) -> list[tuple[float, str]]:
    array = np.ones(array_bytes // FLOAT, np.float32)
    found = []
    reductions: dict[str, Callable[[Any], Any]] = {
        "sum": np.add.reduce,
        "max": np.maximum.reduce,
        "dot": lambda part: np.dot(part, part),
    }
    cores = usable_cores()
    for workers in sorted({cores, 2 * cores}):
        parts = np.array_split(array, workers)
        with ThreadPoolExecutor(workers) as pool:
            for name, reduce in reductions.items():
                seconds = _best(lambda reduce=reduce, parts=parts: list(pool.map(reduce, parts)))
                found.append((array.nbytes / seconds, f"{name}, {workers} threads"))
    return found


def _peaks(size: int) -> list[tuple[float, str]]:
    found = []
    for n in (size // 4, size // 2, size):
        a, b = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
        out = np.empty((n, n), np.float32)
        flops = 2.0 * n**3
        numpy_s = _best(lambda a=a, b=b, out=out: np.matmul(a, b, out=out))
        found.append((flops / numpy_s, f"NumPy, {n} x {n}"))
        session = matmul_session(b, threads=usable_cores())
        runtime_s = _best(lambda s=session, a=a: s.run(None, {"a": a}))
        found.append((flops / runtime_s, f"ONNX Runtime, {n} x {n}"))
    return found


def matmul_session(weights: Any, *, threads: int) -> Any:
    """A session that multiplies with constant (hence prepacked) weights."""
    make, shape = onnx.helper, list(weights.shape)
    graph = make.make_graph(
        [make.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [make.make_tensor_value_info("a", onnx.TensorProto.FLOAT, shape)],
        [make.make_tensor_value_info("c", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(weights, "b")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def costs(bundle: Bundle, profile: str = "cpu") -> Costs:
    """Derives a model's work from its graphs."""
    spec = bundle.manifest.model
    width = spec.heads * spec.head_dim
    encoder, attentions = _matrix_sizes(bundle, "encoder", profile)
    decoder, _ = _matrix_sizes(bundle, "decoder", profile)
    attention = 4.0 * spec.frames**2 * width * attentions
    return Costs(
        encoder_flops=2.0 * spec.frames * encoder + attention,
        step_bytes=float(FLOAT * decoder),
        row_flops=2.0 * decoder,
        cross_bytes=float(2 * spec.layers * width * spec.frames * FLOAT),
        self_bytes=float(2 * spec.layers * width * FLOAT),
    )


def _matrix_sizes(bundle: Bundle, role: Any, profile: str) -> tuple[int, int]:
    """Elements of all constant matrices a graph multiplies with, and its softmaxes.

    A constant may reach its product through a Cast (weights stored as fp16).  Attention nodes,
    fused or not, hold one softmax each.
    """
    path = bundle.path / bundle.graph(role, profile).file
    graph = onnx.load(Path(path)).graph
    sizes = {item.name: int(np.prod(item.dims)) for item in graph.initializer}
    softmaxes = matrices = 0
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
        elif node.op_type in {"MatMul", "Gemm"}:
            matrices += sum(sizes.get(name, 0) for name in node.input[:2])
        softmaxes += node.op_type == "Softmax" or node.op_type.endswith("Attention")
    return matrices, softmaxes


def floor(found: Machine, work: Costs, lengths: list[int], rows: list[int]) -> dict[str, float]:
    """The least seconds for a song, see the module docstring.

    Args:
        found: The machine.
        work: The model.
        lengths: Tokens of every segment, end-of-sequence included.
        rows: Rows of every decoder step as it was scheduled.
    """
    tokens = sum(lengths)
    positions = sum(n * (n + 1) // 2 for n in lengths)  # a step reads what was written before it
    encoder = len(lengths) * work.encoder_flops / found.peak
    weights, row = work.step_bytes / found.bandwidth, work.row_flops / found.peak
    steps = sum(max(weights, count * row) for count in rows)
    caches = (tokens * work.cross_bytes + positions * work.self_bytes) / found.bandwidth
    return {
        "encoder": encoder,
        "steps": steps,
        "caches": caches,
        "floor": encoder + steps + caches,
        "floor_free": encoder + tokens * row + caches,
        "mean_rows": tokens / max(len(rows), 1),
    }


def as_json(found: Machine, work: Costs) -> dict[str, Any]:
    """Both, for a report."""
    return {"machine": asdict(found), "costs": asdict(work)}
