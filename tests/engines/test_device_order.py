"""Order and ownership on the fake GPU: late work, missing waits, failures in the middle, close."""

from __future__ import annotations

import ast
import gc
import inspect
import itertools
import sys
from collections import Counter

import numpy as np
import pytest

from mt3_engines.running import rows as rows_module
from mt3_engines.running.device_memory import DeviceMemory
from mt3_engines.running.rows import DeviceRows
from mt3_engines.storage import shapes
from mt3_engines.storage.store import EngineStore
from mt3_runtime.errors import DeviceError
from mt3_runtime.loading import load_model
from tests.engines.fake_gpu import ORDERS, FakeCuda
from tests.engines.test_backend import CAPACITIES, SLOTS, Machine, tokens

SILENCE = np.zeros((256, 512), np.float32)


@pytest.fixture
def store(tmp_path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def expected(tiny_bundle, audio):
    return tokens(load_model(tiny_bundle, profile="portable"), audio)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])
def test_every_allowed_order_gives_the_same_tokens(
    tiny_bundle, store, audio, expected, version, order
):
    machine = Machine(tiny_bundle, store, version, order=order)
    assert tokens(machine.model(workers=1), audio) == expected


def work(machine) -> list[np.ndarray]:
    """Log-probabilities of a lane that encodes more than once, moves, refills and outgrows."""
    lane = machine.backend().lane(6)
    segments = np.random.default_rng(0).normal(size=(8, 256, 512)).astype(np.float32)
    found = []

    def steps(count: int) -> None:
        for _ in range(count):
            lane.step(6)
            found.append(lane.top_log_probs[:6].copy())

    for slot in range(6):
        lane.load(slot, segments[slot])
    steps(2)
    lane.move(5, 0)
    lane.load(5, segments[6])
    lane.load(4, segments[7])
    steps(CAPACITIES[0])
    return found


def right(machine, expected) -> bool:
    """Whether all is right; what a library or the fake itself refuses is wrong as well."""
    try:
        found = work(machine)
    except Exception:  # noqa: BLE001
        return False
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


#: Every wait of the rows, and every mark that one is for: method, stream, mark.
WAITS = [
    ("wait", "_decoding", "_encoded"),
    ("wait", "_encoding", "_moved"),
    ("wait_here", None, "_encoded"),
    ("record", "_encoding", "_encoded"),
    ("record", "_decoding", "_moved"),
    ("synchronize", "_decoding", None),
]


def test_no_wait_is_forgotten_here():
    """Those in the source are those whose absence is tried, here and in `take_over`."""
    found = Counter()
    for node in ast.walk(ast.parse(inspect.getsource(rows_module))):
        name = getattr(getattr(node, "func", None), "attr", "")
        if isinstance(node, ast.Call) and name in {method for method, *_ in WAITS}:
            found[name] += 1
    assert found == {"wait": 2, "wait_here": 1, "record": 2, "synchronize": 1 + 2}


@pytest.mark.parametrize(("method", "stream", "event"), WAITS)
def test_each_missing_wait_is_seen(tiny_bundle, store, monkeypatch, method, stream, event):
    """Takes one wait out of the rows; some order must give other tokens then."""
    whole = getattr(FakeCuda, method)
    lanes: list[DeviceRows] = []
    make = DeviceRows._make

    def remember(self):
        lanes.append(self)
        make(self)

    def without(self, *arguments):
        names = [name for name in (stream, event) if name]
        for rows in lanes:
            parts = [vars(rows).get(name) for name in names]
            recording = any(s.recorded is not None for s in self.streams)
            ready = hasattr(rows, "capacity") and not recording
            if ready and all(any(p is a for a in arguments) for p in parts):
                return
        whole(self, *arguments)

    slots = (1, 6)
    expected = work(Machine(tiny_bundle, store, order="soon", slots=slots))
    assert all(right(Machine(tiny_bundle, store, order=o, slots=slots), expected) for o in ORDERS)
    monkeypatch.setattr(DeviceRows, "_make", remember)
    monkeypatch.setattr(FakeCuda, method, without)
    seen = []
    for order in ORDERS:
        lanes.clear()
        seen.append(right(Machine(tiny_bundle, store, order=order, slots=slots), expected))
        if not seen[-1]:
            return
    pytest.fail(f"no order notices: {seen}")


def exchanged(machine) -> list[np.ndarray]:
    """Log-probabilities of a lane that gets more rows, while another one takes the old ones."""
    backend = machine.backend()
    lane = backend.lane(4)
    segments = np.random.default_rng(0).normal(size=(6, 256, 512)).astype(np.float32)
    found = []
    for slot in range(2):
        lane.load(slot, segments[slot])
    lane.step(2)
    lane.load(1, segments[2])
    lane.move(1, 0)  # on the GPU it may not be done yet
    assert lane.widen()
    other = backend.lane(2)
    for slot in range(2):
        other.load(slot, segments[3 + slot])
    other.step(2)
    lane.load(2, segments[5])
    for _ in range(3):
        lane.step(3)
        found.append(lane.top_log_probs[:3].copy())
    return found


@pytest.mark.parametrize("missing", [0, 1])
def test_each_missing_wait_of_an_exchange_is_seen(tiny_bundle, store, monkeypatch, missing):
    """For the old rows before they are copied, and for the copies before others write there."""
    monkeypatch.setattr(shapes, "WIDTHS", (2, 4))
    slots, whole, calls = (1, 2, 4), FakeCuda.synchronize, []

    def results(order) -> list[np.ndarray]:
        return exchanged(Machine(tiny_bundle, store, order=order, slots=slots))

    def same(order) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(results(order), expected, strict=True))

    expected = results("soon")
    assert all(map(same, ORDERS))

    def without(self, stream):
        if sys._getframe(1).f_code.co_name == "take_over":
            calls.append(stream)
            if (len(calls) - 1) % 2 == missing:
                return
        whole(self, stream)

    monkeypatch.setattr(FakeCuda, "synchronize", without)
    assert not all(map(same, ORDERS))
    assert calls


# What was made is freed ---------------------------------------------------------------------------


def test_whatever_fails_when_a_lane_is_made_nothing_stays(tiny_bundle, store):
    machine = Machine(tiny_bundle, store)
    backend = machine.backend()
    held = backend.lane(1)
    before = (len(machine.cuda.memory), len(machine.cuda.pins), len(machine.cuda.graphs))
    for count in itertools.count():
        machine.cuda.left = count
        try:
            lane = backend.lane(1)
        except DeviceError:
            after = (len(machine.cuda.memory), len(machine.cuda.pins), len(machine.cuda.graphs))
            assert after == before, count
        else:
            break
    assert count > 30
    machine.cuda.left = None
    lane.load(0, SILENCE)
    lane.step(1)
    del lane, held
    backend.close()
    assert machine.cuda.nothing_left()


def test_a_step_that_cannot_be_recorded_may_be_tried_again(tiny_bundle, store):
    """The n-th context, or its scratch memory, or the caches of a larger capacity fail."""
    machine = Machine(tiny_bundle, store)
    backend = machine.backend()
    lane = backend.lane(4)
    lane.load(0, SILENCE)
    lane.positions[:] = CAPACITIES[0]
    for count in itertools.count():
        machine.cuda.left = count
        try:
            lane.step(3)
        except DeviceError:
            continue
        break
    assert count > 2
    machine.cuda.left = None
    backend.close()
    assert machine.cuda.nothing_left()


def test_all_is_freed_though_something_cannot_be():
    cuda = FakeCuda()
    memory = DeviceMemory(cuda)
    memory.allocate(8)
    lost = memory.allocate(16)
    memory.exchange(8)
    del cuda.memory[lost]
    with pytest.raises(KeyError):
        memory.close()
    assert cuda.nothing_left()
    memory.close()


def test_the_reason_of_a_failed_recording_is_said(tiny_bundle, store, monkeypatch):
    """Not what the end of the recording says about it."""
    machine = Machine(tiny_bundle, store)
    backend = machine.backend()
    lane = backend.lane(4)
    lane.load(0, SILENCE)
    execute = rows_module.DeviceRows._execute

    def fail(self, context, stream):
        if stream.recorded is not None:
            raise DeviceError("the reason")
        execute(self, context, stream)

    monkeypatch.setattr(rows_module.DeviceRows, "_execute", fail)
    with pytest.raises(DeviceError, match="the reason"):
        lane.step(3)
    monkeypatch.undo()
    lane.step(3)  # the stream is fit for use again


def test_lanes_that_end_after_close_give_nothing_back(tiny_bundle, store):
    machine = Machine(tiny_bundle, store)
    backend = machine.backend()
    lanes = [backend.lane(2), backend.lane(4)]
    backend.close()
    assert machine.cuda.nothing_left()
    for use in (lambda lane: lane.step(1), lambda lane: lane.move(1, 0)):
        with pytest.raises(DeviceError, match="closed"):
            use(lanes[0])
    with pytest.raises(DeviceError, match="closed"):
        backend.lane(1)
    lanes.clear()
    gc.collect()
    assert backend._free == []
    with pytest.raises(DeviceError, match="closed"):
        backend.lane(1)
    backend.close()


# Encoding together, capacities --------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_segments_are_encoded_together(tiny_bundle, store, count):
    """As many launches as groups of four, and one for each of the rest; the same result."""
    machine = Machine(tiny_bundle, store, slots=(12,))
    launched = []
    lane = machine.backend().lane(12)
    launch, encoders = machine.cuda.launch, lane._rows._encoders

    def count_launch(graph, stream):
        launched.extend(n for n, encoder in encoders.items() if encoder is graph)
        launch(graph, stream)

    machine.cuda.launch = count_launch
    rng = np.random.default_rng(0)
    for slot in range(count):
        lane.load(slot, rng.normal(size=(256, 512)).astype(np.float32))
    lane.step(count)
    together, rest = divmod(count, 4)
    assert launched == [4] * together + [1] * rest


def test_what_is_loaded_may_be_overwritten(tiny_bundle, store, audio):
    machine = Machine(tiny_bundle, store)
    lane = machine.backend().lane(2)
    features = np.ones((256, 512), np.float32)
    lane.load(0, features)
    features[:] = 0
    lane.load(1, features)
    lane.step(2)
    assert not np.array_equal(lane.top_log_probs[0], lane.top_log_probs[1])


def capacities(lane, positions) -> list[int]:
    """Capacity of each step."""
    found = []
    for position in positions:
        lane.positions[:] = position
        lane.step(1)
        found.append(lane._rows.capacity)
    return found


def test_a_smaller_cache_takes_over_when_much_of_it_stays_free(tiny_bundle, store):
    small, large = CAPACITIES
    lane = Machine(tiny_bundle, store).backend().lane(1)
    lane.load(0, SILENCE)
    hover = [small - 1, small, small - 1, small - 2] * 3
    assert capacities(lane, hover) == [small, *[large] * (len(hover) - 1)]
    limit = small - small // 4
    assert capacities(lane, [limit, limit - 1, limit, small]) == [large, small, small, large]


def test_rows_that_outgrow_everything_are_refused(tiny_bundle, store):
    machine = Machine(tiny_bundle, store)
    lane = machine.backend().lane(max(SLOTS))
    lane.load(0, SILENCE)
    lane.positions[:] = machine.bundle.manifest.decoding.max_tokens
    with pytest.raises(ValueError, match="more than the engines were built for"):
        lane.step(1)
