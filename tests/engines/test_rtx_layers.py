"""What the true compiler makes of attention, caches and precision: its own list of kernels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests import needs
from tests.conftest import _beside


@pytest.fixture(scope="module")
def kernels(tiny_bundle: Path) -> dict:
    """Of the decoder step of four layers in fp16, by its role."""
    beside = _beside(needs.python_of("rtx"))
    return json.loads(beside("-m", "tests.engines.rtx_layers", str(tiny_bundle), "fp16", "4", "64"))


def decoder(kernels: dict) -> list[dict]:
    return kernels["decoder"]["kernels"]


def layers(kernels: dict) -> int:
    names = {name for kernel in decoder(kernels) for name, *_ in kernel["writes"]}
    return sum(name.startswith("present_key_") for name in names)


def test_every_kernel_is_read(kernels) -> None:
    assert layers(kernels) > 1
    kinds = Counter(kernel["kind"] for kernel in decoder(kernels))
    assert set(kinds) <= {"kgen", "gemm", "shape_call", "signal", "wait", "copy"}, kinds
    assert kinds["gemm"] >= 6 * layers(kernels)
    assert kernels["encoder"]["kernels"]


def test_attention_is_one_kernel_with_its_softmax(kernels) -> None:
    """Product, scale, mask, fp32 softmax and product again; twice in a layer, reading fp16."""
    attention = [kernel for kernel in decoder(kernels) if "mha" in kernel["name"]]
    assert len(attention) == 2 * layers(kernels)
    for kernel in attention:
        assert len(kernel["nodes"]) >= 5  # both products, the softmax and its casts
        kinds = {kind for name, _, kind in kernel["reads"] if "arg" not in name}
        assert kinds <= {"Half", "Bool"}


def test_the_cache_is_written_where_it_is_read(kernels) -> None:
    """The same tensor goes in and comes out of the kernel that writes a column."""
    written = [
        {name for name, *_ in kernel["reads"]} & {name for name, *_ in kernel["writes"]}
        for kernel in decoder(kernels)
    ]
    found = {name for names in written for name in names if name.startswith("present_")}
    assert len(found) == 2 * layers(kernels)


def test_the_cache_is_copied_for_attention(kernels) -> None:
    """Both halves in every step, into the order that the attention kernel wants.

    Not what we hoped for; a version that reads it in place would fail here.
    """
    copies = [
        kernel
        for kernel in decoder(kernels)
        if kernel["name"].partition("_myl0")[0].endswith("Move")
        and any(name.startswith("present_") for name, *_ in kernel["reads"])
    ]
    assert len(copies) == 2 * layers(kernels)


def test_matrix_products_are_of_16_bits_but_the_output_head(kernels) -> None:
    products = [kernel for kernel in decoder(kernels) if kernel["kind"] == "gemm"]
    exact = [kernel for kernel in products if {k for *_, k in kernel["writes"]} == {"Float"}]
    assert len(exact) == 1
    assert all(
        {k for *_, k in kernel["reads"]} == {"Half"} for kernel in products if kernel not in exact
    )
