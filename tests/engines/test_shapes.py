"""The arithmetic of slots and capacities."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_engines.storage.shapes import (
    ShapePlan,
    decoder_shapes,
    encoder_shapes,
    make_plan,
    parse_numbers,
    smallest,
)
from mt3_runtime.bundles.bundle import Bundle, Manifest
from mt3_runtime.errors import OptionError
from tests import needs


@pytest.fixture
def manifest(tiny_bundle) -> Manifest:
    return Bundle(tiny_bundle).manifest


NUMBERS = st.lists(st.integers(1, 1024), min_size=1, max_size=8).map(tuple)


@pytest.mark.parametrize("channels", [1, 13])
def test_plans_hold_whatever_may_come(manifest, channels):
    model = replace(manifest.model, channels=channels)
    fitted = replace(manifest, model=model)
    longest = manifest.decoding.max_tokens

    @settings(deadline=None)  # a busy machine is no fault of the arithmetic
    @given(slots=NUMBERS, capacities=NUMBERS)
    def check(slots, capacities):
        plan = make_plan(fitted, slots, capacities)
        for buckets in (plan.slots, plan.capacities):
            assert list(buckets) == sorted(set(buckets))
            assert min(buckets) >= 1
        assert plan.capacities[-1] == longest
        assert plan.slots[-1] == max(slots) + channels - 1
        assert plan.slots[-1] >= channels
        assert set(plan.capacities) - {longest} <= set(capacities)
        for needed in range(1, plan.slots[-1] + 1):
            rows = plan.rows(needed)
            assert rows >= needed
            assert not [bucket for bucket in plan.slots if needed <= bucket < rows]

    check()


def test_a_plan_refuses_more_than_it_holds():
    plan = ShapePlan((1, 8), (128, 1024))
    assert (plan.rows(8), plan.capacity(129)) == (8, 1024)
    with pytest.raises(OptionError, match="9 is more than"):
        plan.rows(9)


@given(buckets=st.sets(st.integers(1, 99), min_size=1), needed=st.integers(0, 120))
def test_the_smallest_bucket_that_fits(buckets, needed):
    ascending = tuple(sorted(buckets))
    fitting = [bucket for bucket in ascending if bucket >= needed]
    if fitting:
        assert smallest(ascending, needed) == fitting[0]
    else:
        with pytest.raises(OptionError):
            smallest(ascending, needed)


@pytest.mark.parametrize("slots", [(), (0,), (-1, 8), (2000,), (1.5,), tuple(range(1, 10))])
def test_senseless_wishes_are_refused(manifest, slots):
    with pytest.raises(OptionError, match="slots must be"):
        make_plan(manifest, slots)


def test_numbers_are_read_strictly():
    assert parse_numbers("1, 8,32", "--slots") == (1, 8, 32)
    for text in ("", "1,,2", "a", "1.5", "-1", "٣", "9" * 10):
        with pytest.raises(OptionError, match="--slots takes numbers"):
            parse_numbers(text, "--slots")


def test_shapes_are_those_of_the_graphs(tiny_bundle, manifest):
    onnx = needs.package("onnx")
    for role, rows, shapes in (
        ("encoder", 1, encoder_shapes(manifest)),
        ("decoder", 5, decoder_shapes(manifest, 5, 64)),
    ):
        symbols = {"rows": rows, "capacity": 64}
        graph = onnx.load(tiny_bundle / f"{role}.portable.onnx").graph
        values = [*graph.input, *graph.output]
        assert set(shapes) == {value.name for value in values}
        for value in values:
            dims = value.type.tensor_type.shape.dim
            stated = tuple(symbols.get(dim.dim_param, dim.dim_value) for dim in dims)
            assert stated == shapes[value.name], value.name


def test_a_model_with_memory_has_a_second_input(manifest):
    model = replace(manifest.model, memory=4)
    decoding = replace(manifest.decoding, memory_tokens=16)
    shapes = encoder_shapes(replace(manifest, model=model, decoding=decoding))
    assert shapes["previous_ids"] == (1, 16)
    assert shapes["cross_key_0"][2] == manifest.model.frames + 4
