"""Rows of a lane that grow with the queue, on a fake GPU that counts bytes and may be full."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_engines.running.rows import DeviceRows
from mt3_engines.storage import shapes
from mt3_engines.storage.store import EngineStore
from mt3_runtime.backends.ort_gpu.lane_widths import (
    SHARE,
    WIDTHS,
    has_room,
    lane_bytes,
    lane_widths,
)
from mt3_runtime.errors import DeviceError
from mt3_runtime.loading import load_model
from tests.engines.fake_gpu import FakeCuda
from tests.engines.test_backend import CAPACITIES, Machine

WIDE = (1, 2, 4, 8)


@pytest.fixture
def store(tmp_path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def few(monkeypatch) -> None:
    """Lanes begin with two rows."""
    monkeypatch.setattr(shapes, "WIDTHS", (2, 4, 8))


def needed(machine: Machine, rows: int, buffers: int = 1) -> int:
    """What the formula says."""
    longest = machine.bundle.manifest.decoding.max_tokens
    return lane_bytes(
        machine.bundle.manifest.model, rows, sorted({*CAPACITIES, longest}),
        cross_element=4, cache_element=4, buffers=buffers,
    )  # fmt: skip


def widths(backend) -> list[int]:
    return sorted(rows.rows for rows in backend._all)


@pytest.fixture(scope="module")
def features(tiny_bundle, audio) -> np.ndarray:
    """Twelve segments that end at different times."""
    found = load_model(tiny_bundle).preprocess(audio)
    return np.concatenate([found, *(found * scale for scale in (0.5, 0.7, 1.3))])[:12]


@pytest.fixture(scope="module")
def expected(tiny_bundle, features) -> list:
    return said(load_model(tiny_bundle, profile="portable"), features)


def said(model, features) -> list[tuple[int, ...]]:
    return [tuple(sequence.tokens) for sequence in model.forward(features)]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("version", "order"),
    [("10.3.0", 1), ("11.4.0.106", "first")],
)
def test_tokens_are_the_same_however_many_rows(
    tiny_bundle, store, features, expected, version, order
):
    machine = Machine(tiny_bundle, store, version, order=order, slots=WIDE)
    model = machine.model(workers=1)
    assert said(model, features) == expected
    assert widths(model._backend) == [2, 4, 8]
    made = machine.cuda.most
    assert said(model, features) == expected  # the widest are there, and taken at once
    assert machine.cuda.most == made
    model.close()
    assert machine.cuda.nothing_left()


@pytest.mark.usefixtures("few")
def test_few_segments_take_few_rows(tiny_bundle, store, features, expected):
    machine = Machine(tiny_bundle, store, slots=WIDE)
    model = machine.model(workers=1)
    assert said(model, features[:2]) == expected[:2]
    assert widths(model._backend) == [2]


@pytest.mark.parametrize(("version", "buffers"), [("10.3.0", 2), ("11.4.0.106", 1)])
def test_the_formula_is_what_is_allocated(tiny_bundle, store, version, buffers):
    """Between two numbers of rows; encoders and marks are the same."""
    machine = Machine(tiny_bundle, store, version, slots=WIDE)
    engines = machine.backend()._engines
    used = []
    for count in (2, 8):
        before = machine.cuda.used()
        rows = DeviceRows(engines, count)
        for capacity in engines.plan.capacities:
            rows._cache(capacity)
        used.append(machine.cuda.used() - before)
    difference = needed(machine, 8, buffers) - needed(machine, 2, buffers)
    assert used[1] - used[0] == difference


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("most", "reached"), [(2, [2]), (4, [2, 4]), (8, [2, 4, 8])])
def test_a_full_gpu_keeps_lanes_small(
    tiny_bundle, store, features, expected, most, reached, monkeypatch
):
    """Too little for the next number of rows, and enough for this one."""
    machine = Machine(tiny_bundle, store, slots=WIDE)
    asked = []

    def available(cuda) -> int:
        asked.append(cuda.used())
        return int(needed(machine, most) / SHARE) + 100

    monkeypatch.setattr(FakeCuda, "available", available)
    model = machine.model(workers=1)
    assert model._backend.slots == most
    assert said(model, features) == expected
    assert widths(model._backend) == reached
    assert asked


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("left", [0, 5, 12])
def test_memory_that_others_took_is_done_without(tiny_bundle, store, features, expected, left):
    """It was free when it was asked for: the n-th thing fails, and is given back."""
    machine = Machine(tiny_bundle, store, slots=WIDE)
    model = machine.model(workers=1)
    backend, cuda = model._backend, machine.cuda
    lane = backend.lane(8)
    for slot in range(2):
        lane.load(slot, features[slot])
    lane.step(2)
    before = cuda.used()
    cuda.left = left
    assert not lane.widen()
    cuda.left = None
    assert (lane.room, cuda.used()) == (2, before)
    lane.step(2)
    assert lane.widen()
    assert lane.room == 4
    del lane
    assert said(model, features) == expected


@pytest.mark.usefixtures("few")
def test_no_memory_for_the_first_rows_is_one_sentence(tiny_bundle, store):
    machine = Machine(tiny_bundle, store, slots=WIDE)
    machine.cuda.size = needed(machine, 1) // 2
    with pytest.raises(DeviceError, match=r"out of memory") as refusal:
        machine.backend()
    assert "\n" not in str(refusal.value)
    assert machine.cuda.nothing_left()


@pytest.mark.parametrize(
    ("most", "channels", "rows"),
    [(512, 1, (32, 128, 512)), (524, 13, (44, 140, 524)), (32, 1, (32,)), (3, 1, (3,)),
     (130, 3, (34, 130)), (100, 1, (32, 100))],
)  # fmt: skip
def test_widths(most, channels, rows):
    assert lane_widths(most, channels) == rows
    assert WIDTHS == (32, 128, 512)


@pytest.mark.parametrize(
    ("slots", "rows"),
    [((1, 8, 32), (32,)), ((1, 8, 32, 128, 512), (32, 128, 512)), ((1, 4), (4,)),
     ((1, 64, 100), (64, 100)), ((1, 8, 44), (44,))],
)  # fmt: skip
def test_engines_of_any_rows_have_widths(slots, rows):
    assert shapes.ShapePlan(slots, (128,)).widths == rows


def test_nothing_is_taken_where_nobody_knows_what_is_free():
    assert not has_room(1, None)
    assert has_room(800, 1000)
    assert not has_room(801, 1000)
