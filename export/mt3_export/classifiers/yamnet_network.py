"""YAMNet: reads the 8-bit TensorFlow Lite file that its user has, writes its graph.

    features [rows, 96, 257]  ->  logits [rows, 521]

The file computes with 8-bit numbers, and so does the graph, to the bit: an 8-bit convolution's sums
stay below 2^24 (checked here, against the weights), where fp32 holds every whole number, so that
ordinary convolutions of whole numbers are exact in any order, on every device.  Behind each, the
sum is scaled, rounded to even and bounded, as TensorFlow Lite does.

The front end is cut where its graph has magnitudes: the mel matrix comes from the file, and its
product and the logarithm stay in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto

from mt3_export.classifiers.model_folder import checked_labels
from mt3_export.classifiers.tflite import TfliteModel, TfliteOperator
from mt3_export.graphs.graph_builder import Graph
from mt3_export.weights import FloatArray
from mt3_runtime.audio.filter_bank import hann_window
from mt3_runtime.bundles.classifier import FrontEnd, MagnitudeConfig, WindowSpec
from mt3_runtime.errors import CheckpointError

RATE, FRAME, HOP, FFT, FRAMES = 16000, 400, 160, 512, 96
OPSET = 17
#: Whole numbers from here on are not all fp32 numbers.
_EXACT = 1 << 24
_LOW, _HIGH = -128, 127
#: The last layer's 8-bit scores are steps of 1/256.
SCORE_STEPS = 256
_RELU6 = 3
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED")


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """One 8-bit layer: y = bound(round(sum(w (x - zero)) + bias) * scale) + zero of the output).

    Attributes:
        kind: ``CONV_2D``, ``DEPTHWISE_CONV_2D``, ``MEAN`` or ``FULLY_CONNECTED``.
        name: Of its output.
        weights: Whole numbers in ONNX's order of axes; empty for ``MEAN``.
        bias: Whole numbers, one a channel.
        scale: From sums to steps of the output, one a channel.
        bounds: Lowest and highest output, less its zero.
        pads: Begin of time and frequency, end of time and frequency.
        stride: Over time and frequency.
    """

    kind: str
    name: str
    weights: FloatArray
    bias: FloatArray
    scale: FloatArray
    bounds: tuple[float, float]
    pads: tuple[int, int, int, int]
    stride: int


@dataclass(frozen=True, eq=False)
class YamnetWeights:
    """The network.

    Attributes:
        taper: Float [400], of every frame.
        mel: Float [257, 64], from magnitudes to mel bands.
        offset: Added before the logarithm.
        step: Of the 8-bit log-mel.
        zero: What stands for 0 there.
        layers: In order.
        logit_step: Of the last layer.
        labels: From the file attached to the network; empty where there is none.
    """

    taper: FloatArray
    mel: FloatArray
    offset: float
    step: float
    zero: int
    layers: tuple[IntegerLayer, ...]
    logit_step: float
    labels: tuple[str, ...]


def read_yamnet(model: TfliteModel, where: str) -> YamnetWeights:
    """Understands the operators of the file.

    Raises:
        CheckpointError: It is another network, or another form of this one.
    """
    try:
        with np.errstate(all="ignore"):  # what is no number is refused by name
            return _understood(model, where)
    except (IndexError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{where} is damaged, or no YAMNet: {error!s:.120}") from error


def _understood(model: TfliteModel, where: str) -> YamnetWeights:
    """The network, or whatever NumPy and Python say of numbers that make no sense."""
    kinds = [operator.kind for operator in model.operators]
    try:
        quantise, logistic = kinds.index("QUANTIZE"), kinds.index("LOGISTIC")
        log = kinds.index("LOG")
        window, mel = kinds.index("MUL"), kinds.index("FULLY_CONNECTED")
    except ValueError:
        raise CheckpointError(
            f"{where} is not YAMNet's 8-bit classifier with samples as input and scores as "
            "output, the only TensorFlow Lite network that can be exported"
        ) from None
    steps = [o for o in model.operators[quantise + 1 : logistic] if o.kind in _LAYERS]
    inner = {o.kind for o in model.operators[quantise + 1 : logistic]} - {*_LAYERS, "22", "49"}
    order = window < mel < log < quantise < logistic
    if inner or not order or len(steps) < 3 or not steps[-1].kind == "FULLY_CONNECTED":
        raise CheckpointError(f"{where} has operators that YAMNet has not: {sorted(inner)}")
    start = model.tensors[model.operators[quantise].outputs[0]]
    taper = _taper(model, model.operators[window], where)
    matrix, offset = (model.tensors[i].data for i in model.operators[mel].inputs[1:3])
    if matrix is None or offset is None or matrix.shape[1:] != (FFT // 2 + 1,):
        raise CheckpointError(f"{where} has no mel matrix for {FFT // 2 + 1} magnitudes")
    if not np.isfinite(matrix).all() or not offset.min() == offset.max() > 0:
        raise CheckpointError(f"{where} has a mel matrix of strange numbers")
    layers = _layers(model, steps, (FRAMES, matrix.shape[0]), where)
    last = model.tensors[steps[-1].outputs[0]]
    return YamnetWeights(
        taper,
        np.ascontiguousarray(matrix.T, np.float32),
        float(offset[0]),
        float(start.scales[0]),
        int(start.zero_points[0]),
        layers,
        float(last.scales[0]),
        _attached_labels(model, where),
    )


def _taper(model: TfliteModel, operator: TfliteOperator, where: str) -> FloatArray:
    window = model.tensors[operator.inputs[1]].data
    if window is None or window.shape != (FRAME,):
        raise CheckpointError(f"{where} has no window of {FRAME} samples")
    if not np.abs(window - hann_window(FRAME)).max() < 1e-6:
        raise CheckpointError(f"{where} has another window than Hann's")
    return window.astype(np.float32)


def _attached_labels(model: TfliteModel, where: str) -> tuple[str, ...]:
    texts = [text for name, text in model.attached.items() if name.endswith(".txt")]
    if len(texts) != 1:
        return ()
    names: list[object] = [line.strip() for line in texts[0].splitlines() if line.strip()]
    return checked_labels(names, f"{where}: its attached list of labels")


def _layers(
    model: TfliteModel, steps: list[TfliteOperator], size: tuple[int, int], where: str
) -> tuple[IntegerLayer, ...]:
    found = []
    for step in steps:
        try:
            layer, size = _layer(model, step, size)
        except (IndexError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{where}: a {step.kind} cannot be understood: {error}"
            ) from error
        found.append(layer)
    return tuple(found)


def _layer(
    model: TfliteModel, step: TfliteOperator, size: tuple[int, int]
) -> tuple[IntegerLayer, tuple[int, int]]:
    """A layer and the size of what it gives, over time and frequency."""
    before, after = model.tensors[step.inputs[0]], model.tensors[step.outputs[0]]
    zero_out = int(after.zero_points[0])
    step_in, step_out = before.scales[0], after.scales[0]
    if step_in <= 0 or not np.isfinite(step_in) or step_out <= 0 or not np.isfinite(step_out):
        raise ValueError("a step is no positive number")
    bounds = (float(_LOW - zero_out), float(_HIGH - zero_out))
    nothing = np.zeros(0, np.float32)
    if step.kind == "MEAN":
        scale = np.float32(step_in / (step_out * np.float32(size[0] * size[1])))
        layer = IntegerLayer(
            "MEAN", after.name, nothing, nothing, np.array([scale]), bounds, (0, 0, 0, 0), 1
        )
        return layer, (1, 1)
    kernel, bias = (model.tensors[index] for index in step.inputs[1:3])
    if kernel.data is None or bias.data is None or kernel.data.dtype != np.int8:
        raise ValueError("its weights are not 8-bit constants")
    if kernel.zero_points.any():
        raise ValueError("its weights have a zero other than 0")
    weights, channels = _turned(kernel.data, step.kind)
    _check_exact(weights, bias.data)
    scale = (step_in * kernel.scales / step_out).astype(np.float32)
    if scale.shape not in ((1,), (channels,)) or not np.isfinite(scale).all():
        raise ValueError(f"{len(scale)} scales for {channels} channels")
    stride = _stride(step)
    if step.options.get("activation") == _RELU6:
        bounds = (max(bounds[0], 0.0), min(bounds[1], float(np.rint(6.0 / step_out))))
    pads, given = (0, 0, 0, 0), (1, 1)
    if step.kind != "FULLY_CONNECTED":
        pads, given = _same(size, weights.shape[2:], stride)
    values = bias.data.astype(np.float32)
    kind = step.kind
    return IntegerLayer(kind, after.name, weights, values, scale, bounds, pads, stride), given


def _stride(step: TfliteOperator) -> int:
    """The stride of a convolution whose options are those of this network; 1 of other layers."""
    options, stride = step.options, step.options.get("stride_height", 1)
    if options.get("stride_width", 1) != stride or not 1 <= stride <= 4:
        raise ValueError("its strides differ")
    if options.get("activation", 0) not in (0, _RELU6) or options.get("padding", 0):
        raise ValueError("its activation is not ReLU6, or its padding not SAME")
    return stride


def _turned(kernel: npt.NDArray[np.int8], kind: str) -> tuple[FloatArray, int]:
    """Weights in ONNX's order, output channels first, and how many these are."""
    if kind == "CONV_2D":
        kernel = kernel.transpose(0, 3, 1, 2)
    elif kind == "DEPTHWISE_CONV_2D":
        kernel = kernel.transpose(3, 0, 1, 2)
    return np.ascontiguousarray(kernel, np.float32), len(kernel)


def _check_exact(weights: FloatArray, bias: npt.NDArray[np.int32]) -> None:
    """Every sum of 8-bit inputs, less their zero, is a whole number that fp32 has."""
    largest = 255 * np.abs(weights).reshape(len(weights), -1).sum(axis=1, dtype=np.float64)
    if bias.shape != (len(weights),) or (largest + np.abs(bias)).max() >= _EXACT:
        raise ValueError(f"its sums pass {_EXACT:,}, or its bias has the shape {bias.shape}")


def _same(
    size: tuple[int, int], kernel: tuple[int, ...], stride: int
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """TensorFlow's padding SAME: what is odd is added at the end; and the size of the output."""
    given = (-(-size[0] // stride), -(-size[1] // stride))
    whole = [
        max((out - 1) * stride + length - n, 0)
        for out, length, n in zip(given, kernel, size, strict=True)
    ]
    begin = [n // 2 for n in whole]
    return (begin[0], begin[1], whole[0] - begin[0], whole[1] - begin[1]), given


def front_end_of_yamnet(weights: YamnetWeights) -> FrontEnd:
    """The manifest's section."""
    taper = tuple(map(float, weights.taper))
    return FrontEnd(magnitude=MagnitudeConfig(RATE, FRAME, HOP, FFT, FRAMES, taper))


def window_of_yamnet() -> WindowSpec:
    """Windows of 0.975 s, 0.48 s apart, as its authors hear recordings."""
    samples = (FRAMES - 1) * HOP + FRAME
    return WindowSpec(samples, FRAMES // 2 * HOP, FRAME)


def build_yamnet(weights: YamnetWeights, *, metadata: dict[str, str]) -> ModelProto:
    """Writes the graph, of standard operators only.

    Whole numbers up to 127 are fp16 numbers too, and so all weights are stored in half the bytes.
    """
    graph = Graph("yamnet", opset=OPSET, storage="fp16")
    size = weights.mel.shape[0]
    features = graph.input("features", TensorProto.FLOAT, ["rows", FRAMES, size])
    mel = graph.op("MatMul", features, graph.parameter("mel", weights.mel, exact=True))
    log = graph.op("Log", graph.op("Add", mel, graph.constant(weights.offset, np.float32)))
    x = _bounded(
        graph,
        graph.op("Mul", log, graph.constant(np.float32(1) / np.float32(weights.step), np.float32)),
        (float(_LOW - weights.zero), float(_HIGH - weights.zero)),
    )
    x = graph.op("Unsqueeze", x, graph.constant([1], np.int64))
    for index, layer in enumerate(weights.layers):
        x = _build_layer(graph, layer, x, index)
    logits = graph.op("Mul", x, graph.constant(weights.logit_step, np.float32))
    graph.op("Identity", logits, out="logits")
    graph.output("logits", TensorProto.FLOAT, ["rows", len(weights.layers[-1].bias)])
    return graph.build(metadata)


def _build_layer(graph: Graph, layer: IntegerLayer, x: str, index: int) -> str:
    name = f"layers.{index}"
    if layer.kind == "MEAN":
        x = graph.op("ReduceSum", x, graph.constant([2, 3], np.int64), keepdims=0)
        scaled = graph.op("Mul", x, graph.constant(layer.scale[0], np.float32))
        return _bounded(graph, scaled, layer.bounds)
    if layer.kind == "FULLY_CONNECTED":
        kernel = graph.parameter(f"{name}.kernel", layer.weights.T)
        x = graph.op("MatMul", x, kernel)
        x = graph.op("Add", x, graph.parameter(f"{name}.bias", layer.bias))
        scale = graph.parameter(f"{name}.scale", layer.scale)
        return _bounded(graph, graph.op("Mul", x, scale), layer.bounds)
    group = len(layer.weights) if layer.kind == "DEPTHWISE_CONV_2D" else 1
    kernel = graph.parameter(f"{name}.kernel", layer.weights)
    bias = graph.parameter(f"{name}.bias", layer.bias)
    strides = [layer.stride, layer.stride]
    pads = list(layer.pads)
    x = graph.op("Conv", x, kernel, bias, strides=strides, pads=pads, group=group)
    # Rounds what is whole already: ONNX Runtime would otherwise multiply the scale into the kernel,
    # whose numbers were whole no more.
    x = graph.op("Round", x)
    scale = graph.parameter(f"{name}.scale", layer.scale.reshape(1, -1, 1, 1), exact=True)
    return _bounded(graph, graph.op("Mul", x, scale), layer.bounds)


def _bounded(graph: Graph, x: str, bounds: tuple[float, float]) -> str:
    low, high = (graph.constant(bound, np.float32) for bound in bounds)
    return graph.op("Clip", graph.op("Round", x), low, high)
