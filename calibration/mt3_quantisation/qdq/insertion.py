"""Inserts QuantizeLinear/DequantizeLinear pairs around weight products.

The result is ordinary ONNX that says what an engine shall compute: activations are quantised with
one scale per tensor, weights are stored in 8 bits with one scale per output column (int8) or one
for all (fp8), and everything else is as it was.  Rules of TensorRT's parser and builder decide the
form:

- symmetric, zero points of 0: it knows no others;
- weights as stored integers with a DequantizeLinear: it takes them since version 10, and the file
  is a quarter as large as with fp32 weights and a QuantizeLinear;
- one pair for all products of an activation, as NVIDIA's own tool writes it, and none behind a
  product: what follows is a residual sum, a norm or a gate, which stay exact;
- fp8 with a single scale on both sides, as only such products become fp8 kernels.

ONNX Runtime would choose fp8 scales by the standard deviation, which loses twice as much as the
range does; here every scale comes from the `Ranges`, for both formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from mt3_quantisation.forms.products import WeightProduct
from mt3_runtime.errors import BundleError

if TYPE_CHECKING:
    from onnx import ModelProto

    from mt3_quantisation.qdq.ranges import TensorRange

#: Formats of the products.
Format = Literal["int8", "fp8"]
FORMATS: tuple[Format, ...] = get_args(Format)

#: Largest value of the format: int8 leaves -128 out, fp8 is E4M3 without infinities.
LARGEST: dict[Format, float] = {"int8": 127.0, "fp8": 448.0}
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
#: The smallest scale: that of fp16 numbers, which all scales are, so that they are the same numbers
#: in an engine whose rest is fp16.
_SMALLEST = np.float16(2.0**-24)


def insert(
    model: ModelProto,
    products: Sequence[WeightProduct],
    ranges: dict[str, TensorRange],
    kind: Format,
) -> ModelProto:
    """Quantises products of a graph.

    Args:
        model: The graph; left as it is.
        products: Those to quantise.
        ranges: Of its activations, by tensor.
        kind: ``int8`` or ``fp8``.

    Returns:
        The graph with Q/DQ pairs; parameters keep their names.

    Raises:
        BundleError: An activation has no range.
    """
    from onnx import ModelProto as Model  # noqa: PLC0415  0.3 s

    missing = sorted({p.activation for p in products} - set(ranges))
    if missing:
        raise BundleError(f"The ranges do not say anything about {', '.join(missing)}.")
    source = Model()
    source.CopyFrom(model)
    if not products:
        return source
    weights = _weights(source, products)
    scales = _activation_scales(products, ranges, kind) | _weight_scales(weights, kind)
    made = _quantise(source, products, scales, kind)
    _own_names(made, weights)
    _leave_others(made, products)
    made.ir_version = model.ir_version
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    del made.opset_import[:]
    made.opset_import.extend(model.opset_import)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    del made.graph.value_info[:]
    for tensor in made.graph.initializer:  # the tool reads the graph from a file of two parts
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return made


def _quantise(
    model: ModelProto,
    products: Sequence[WeightProduct],
    scales: dict[str, list[dict[str, Any]]],
    kind: Format,
) -> ModelProto:
    """What ONNX Runtime's quantiser makes of the graph."""
    from onnxruntime.quantization import QuantType  # noqa: PLC0415  1 s
    from onnxruntime.quantization.calibrate import TensorData  # noqa: PLC0415
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer  # noqa: PLC0415

    stored = QuantType.QInt8 if kind == "int8" else QuantType.QFLOAT8E4M3FN
    for entries in scales.values():
        for entry in entries:
            entry["quant_type"] = stored
    amax = {
        product.activation: scales[product.activation][0]["scale"] * np.float32(LARGEST[kind])
        for product in products
    }
    quantiser = QDQQuantizer(
        model,
        per_channel=kind == "int8",
        reduce_range=False,
        weight_qType=stored,
        activation_qType=stored,
        tensors_range={
            name: TensorData(lowest=np.float32(-value), highest=np.float32(value))
            for name, value in amax.items()
        },
        nodes_to_quantize=[product.node for product in products],
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            "QuantizeBias": False,
            "TensorQuantOverrides": scales,
        },
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    made: ModelProto = quantiser.model.model
    return made


def _weights(
    model: ModelProto, products: Sequence[WeightProduct]
) -> dict[str, npt.NDArray[np.float32]]:
    from onnx import numpy_helper  # noqa: PLC0415

    wanted = {product.weight for product in products}
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in wanted}


def _activation_scales(
    products: Sequence[WeightProduct], ranges: dict[str, TensorRange], kind: Format
) -> dict[str, list[dict[str, Any]]]:
    return {
        product.activation: [_entry(ranges[product.activation].amax, kind)] for product in products
    }


def _weight_scales(
    weights: dict[str, npt.NDArray[np.float32]], kind: Format
) -> dict[str, list[dict[str, Any]]]:
    """One scale per column of a weight [in, out], or one for all."""
    scales = {}
    for name, values in weights.items():
        if kind == "fp8":
            scales[name] = [_entry(float(np.abs(values).max()), kind)]
        else:
            scales[name] = [
                {**_entry(float(column), kind), "axis": 1} for column in np.abs(values).max(axis=0)
            ]
    return scales


def _entry(amax: float, kind: Format) -> dict[str, Any]:
    import ml_dtypes  # noqa: PLC0415  onnx brings it

    zero = np.zeros((), np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn)
    exact = amax / LARGEST[kind]
    scale = np.float16(exact)
    if float(scale) < exact:  # rounded up, so that nothing is clipped
        scale = np.nextafter(scale, np.float16(np.inf))
    return {"scale": np.array(max(scale, _SMALLEST), np.float32), "zero_point": zero}


def _own_names(model: ModelProto, weights: dict[str, npt.NDArray[np.float32]]) -> None:
    """Gives the stored weights their parameters' names back; ``weight_quantized`` is the tool's."""
    names = {f"{name}_quantized": name for name in weights}
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)


def _leave_others(model: ModelProto, products: Sequence[WeightProduct]) -> None:
    """Lets what was not asked for read the exact values again.

    The tool hands what it has dequantised to everybody, and a router that reads the same values as
    the experts would choose by rounded ones.
    """
    graph, asked = model.graph, {product.node for product in products}
    exact = {node.output[0]: node.input[0] for node in graph.node if node.op_type == _Q}
    exact |= {
        node.output[0]: exact[node.input[0]]
        for node in graph.node
        if node.op_type == _DQ and node.input[0] in exact
    }
    for node in graph.node:
        if node.name not in asked and node.op_type != _DQ:
            for index, name in enumerate(node.input):
                node.input[index] = exact.get(name, name)
