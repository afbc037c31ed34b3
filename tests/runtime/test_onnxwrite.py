from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from mt3_runtime.bundles.tiny_graphs import copy_model, double_model, product_model, sum_model


@pytest.mark.parametrize(
    ("model", "operator", "ends"),
    [
        (sum_model(), "Add", (["x"], ["y"])),
        (copy_model(1), "Identity", (["from_0"], ["to_0"])),
        (copy_model(40), "Identity", ([f"from_{k}" for k in range(40)], None)),
        (double_model(3), "Concat", (["from_0", "from_1", "from_2"], ["to_0", "to_1", "to_2"])),
        (product_model(), "MatMulInteger", (["rows", "columns"], ["product"])),
    ],
)
def test_the_models_are_valid_and_old_enough(model: bytes, operator: str, ends) -> None:
    loaded = onnx.load_from_string(model)
    onnx.checker.check_model(loaded, full_check=True)
    assert loaded.ir_version == 8
    assert [(opset.domain, opset.version) for opset in loaded.opset_import] == [("", 17)]
    assert {node.op_type for node in loaded.graph.node} == {operator}
    inputs, outputs = ends
    assert [value.name for value in loaded.graph.input] == inputs
    outputs = outputs or [name.replace("from", "to") for name in inputs]
    assert [value.name for value in loaded.graph.output] == outputs


def run(model: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_copies_are_equal() -> None:
    feeds = {f"from_{k}": np.arange(k + 3, dtype=np.int32) for k in range(20)}
    for found, expected in zip(run(copy_model(20), feeds), feeds.values(), strict=True):
        assert found.tolist() == expected.tolist()


def test_doubles_repeat_every_row() -> None:
    matrix = np.asarray([[1, 2], [3, 4]], np.int32)
    (found,) = run(double_model(1), {"from_0": matrix})
    assert found.tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]


def test_the_sum_is_one() -> None:
    (found,) = run(sum_model(), {"x": np.asarray([21.0], np.float32)})
    assert found.tolist() == [42.0]


def test_products_of_bytes_are_exact() -> None:
    """Of bytes whose pairs of products fit 16 bits: others some CPUs cut off (test_precision)."""
    rows, columns = np.full((2, 64), 127, np.uint8), np.full((64, 3), -128, np.int8)
    (found,) = run(product_model(), {"rows": rows, "columns": columns})
    assert found.tolist() == [[64 * 127 * -128] * 3] * 2
