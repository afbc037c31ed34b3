"""Made ``golden/modelopt.json``: int8 scales that NVIDIA's Model Optimizer finds for tiny graphs.

It pins other versions of onnx and ONNX Runtime than this project, so it was run once, by hand::

    python -m tests.quantisation.modelopt_recipe write DIR        # here
    python3 -m venv opt && opt/bin/pip install --no-deps nvidia-modelopt==0.47.0 onnx==1.21.0 \\
        onnxruntime==1.31.1 ...                                  # and what it asks for; torch
    opt/bin/python tests/quantisation/modelopt_recipe.py read DIR tests/quantisation/golden

Kept are the scale of every activation and the first scales of every weight.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

ROLES = ("encoder", "decoder")
FRAMES, ROWS, CAPACITY, COLUMNS = 12, 4, 64, 4


def graphs() -> dict[str, onnx.ModelProto]:
    """The graphs of profile ``portable`` of the small network most tests run."""
    from mt3_export.graphs.decoder import build_decoder
    from mt3_export.graphs.encoder import build_encoder
    from tests.seeded import seeded_weights

    weights = seeded_weights(seed=21)
    return {
        "encoder": build_encoder(weights, FRAMES, profile="portable"),
        "decoder": build_decoder(weights, FRAMES, max_tokens=CAPACITY, profile="portable"),
    }


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """What is fed to a graph: seeded numbers."""
    from tests.seeded import seeded_normal

    made = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = {"rows": ROWS, "capacity": CAPACITY}
        shape = tuple(sizes.get(d.dim_param, d.dim_value) for d in tensor.shape.dim)
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if kind == np.float32:
            made[value.name] = seeded_normal(value.name, shape)
        else:
            made[value.name] = np.full(shape, value.name != "positions", kind)
    return made


def write(folder: Path) -> None:
    for role, model in graphs().items():
        onnx.save(model, folder / f"{role}.onnx")
        np.savez(folder / f"{role}.npz", **feeds(model))


def read(folder: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    from modelopt.onnx.quantization import quantize

    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for role in ROLES:
        quantize(
            str(folder / f"{role}.onnx"),
            quantize_mode="int8",
            calibration_data=dict(np.load(folder / f"{role}.npz")),
            calibration_method="max",
            calibration_eps=["cpu"],
            op_types_to_quantize=["MatMul"],
            disable_mha_qdq=True,
            high_precision_dtype="fp32",
            dq_only=True,
            output_path=str(folder / f"{role}.int8.onnx"),
            log_level="ERROR",
        )
        found[role] = scales(onnx.load(folder / f"{role}.int8.onnx"))
    return found


def scales(model: onnx.ModelProto) -> dict[str, dict[str, list[float]]]:
    """By the name of a weight: the scale of what it is multiplied with, and its own first ones."""
    stored = {t.name: t for t in model.graph.initializer}
    writers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        pairs = [writers.get(name) for name in node.input]
        if node.op_type == "MatMul" and all(p and p.op_type == "DequantizeLinear" for p in pairs):
            values = [numpy_helper.to_array(stored[pair.input[1]]).ravel() for pair in pairs]
            kept = [[float(f"{x:.7g}") for x in each[:COLUMNS]] for each in values]
            found[pairs[1].input[0]] = {"activation": kept[0], "weight": kept[1]}
    return found


if __name__ == "__main__":
    action, place = sys.argv[1], Path(sys.argv[2])
    if action == "write":
        write(place)
    else:
        lines = json.dumps(read(place)).replace("}, ", "},\n")
        (Path(sys.argv[3]) / "modelopt.json").write_text(lines + "\n")
