from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from mt3_runtime.bundles.tiny_graphs import copy_model, double_model, product_model, sum_model


@pytest.mark.parametrize(
    "model", [sum_model(), copy_model(1), copy_model(40), double_model(3), product_model()]
)
def test_the_models_are_valid(model: bytes) -> None:
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)


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
    rows, columns = np.full((2, 64), 255, np.uint8), np.full((64, 3), -128, np.int8)
    (found,) = run(product_model(), {"rows": rows, "columns": columns})
    assert found.tolist() == [[64 * 255 * -128] * 3] * 2
