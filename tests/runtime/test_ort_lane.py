"""Lanes of the CUDA backend whose rows grow with the queue, over the CPU provider."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mt3_runtime.backends.ort_cpu import OrtCpuBackend
from mt3_runtime.backends.ort_gpu import lane_widths, ort_cuda, ort_memory, ort_slots
from mt3_runtime.backends.ort_gpu.lane_widths import SHARE, lane_bytes
from mt3_runtime.backends.ort_gpu.ort_cuda import CPU, OrtCudaBackend
from mt3_runtime.backends.ort_gpu.ort_memory import Buffer, DeviceSpec
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import DeviceError
from mt3_runtime.model import Model, token_digest

HERE = DeviceSpec(CPU, "cpu")


class Memory:
    """The device's memory: counts what buffers take, and ends."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0

    def buffer(self, runtime, place, rows, *, shape, element) -> Buffer:
        made = Buffer(runtime, place, rows, shape=shape, element=element)
        size = rows * made.row
        if self.taken + size > self.size:
            raise RuntimeError("CUDA error 2: out of memory")
        self.taken += size
        return made

    def free(self, place) -> int:
        return self.size - self.taken


@pytest.fixture
def memory(monkeypatch) -> Memory:
    """Plenty of it, and lanes that begin with two rows."""
    made = Memory(1 << 40)
    for module in (ort_memory, ort_slots):
        monkeypatch.setattr(module, "Buffer", made.buffer)
    monkeypatch.setattr(ort_cuda, "free_memory", made.free)
    monkeypatch.setattr(lane_widths, "WIDTHS", (2, 4, 8))
    monkeypatch.setattr(ort_cuda, "SLOTS", 8)
    monkeypatch.setattr(ort_cuda, "INITIAL_CAPACITY", 16)
    return made


@pytest.fixture(scope="module")
def features(tiny_bundle: Path, audio) -> np.ndarray:
    """Twelve segments that end at different times."""
    found = Model(Bundle(tiny_bundle), backend=None).preprocess(audio)
    return np.concatenate([found, *(found * scale for scale in (0.5, 0.7, 1.3))])[:12]


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, features) -> str:
    bundle = Bundle(tiny_bundle)
    return token_digest(Model(bundle, OrtCpuBackend(bundle, profile="portable")).forward(features))


def needed(backend: OrtCudaBackend, rows: int) -> int:
    return lane_bytes(backend.spec, rows, backend.capacities, cross_element=4, cache_element=4)


def widths(backend: OrtCudaBackend) -> list[int]:
    """Of all memory that no lane has."""
    gc.collect()
    return sorted(rows for rows, found in backend._idle.items() if found)


@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_are_the_same_however_many_rows(
    tiny_bundle, memory, features, expected, threads
) -> None:
    bundle = Bundle(tiny_bundle)
    backend = OrtCudaBackend(bundle, place=HERE, threads=threads)
    assert (backend.slots, backend.lane(8).room) == (8, 2)
    model = Model(bundle, backend)
    assert token_digest(model.forward(features)) == expected
    assert widths(backend) == [2, 4, 8]
    if threads == 1:
        before = memory.taken
        assert token_digest(model.forward(features)) == expected
        assert memory.taken == before  # what was allocated once is taken again


def test_few_segments_take_few_rows(tiny_bundle, memory, features) -> None:
    bundle = Bundle(tiny_bundle)
    backend = OrtCudaBackend(bundle, place=HERE, threads=1)
    Model(bundle, backend).forward(features[:2])
    assert widths(backend) == [2]


def test_the_formula_is_what_is_allocated(tiny_bundle, memory) -> None:
    """Up to the alignment of what is sent together, and but for the features of one segment."""
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE)
    taken = []
    for rows in (64, 128):
        before = memory.taken
        slots = backend._allocate(rows)
        for capacity in backend.capacities:
            slots.cache(capacity)
        taken.append(memory.taken - before)
    assert taken[1] - taken[0] == needed(backend, 128) - needed(backend, 64)


@pytest.mark.parametrize(("most", "slots"), [(2, 2), (4, 4), (8, 8)])
def test_a_full_device_keeps_lanes_small(
    tiny_bundle, memory, features, expected, most, slots, monkeypatch
) -> None:
    bundle = Bundle(tiny_bundle)
    wanted = int(needed(OrtCudaBackend(bundle, place=HERE), most) / SHARE) + 1
    monkeypatch.setattr(ort_cuda, "free_memory", lambda place: wanted)
    backend = OrtCudaBackend(bundle, place=HERE, threads=1)
    assert backend.slots == slots
    assert token_digest(Model(bundle, backend).forward(features)) == expected
    assert max(widths(backend)) == slots


def test_memory_that_others_took_is_done_without(tiny_bundle, memory, features, expected) -> None:
    """It was free when it was asked for, and is gone before it is allocated."""
    bundle = Bundle(tiny_bundle)
    backend = OrtCudaBackend(bundle, place=HERE, threads=1)
    lane = backend.lane(8)
    lane.load(0, features[0])
    lane.step(1)
    memory.size, real = memory.taken + 1000, memory.size
    backend._has_room = lambda rows: True
    assert not lane.widen()
    assert lane.room == 2
    lane.step(1)
    memory.size = real
    assert lane.widen()
    assert lane.room == 4
    del lane
    assert token_digest(Model(bundle, backend).forward(features)) == expected


def test_no_memory_for_a_cache_that_grows_is_one_sentence(tiny_bundle, memory, features) -> None:
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE, threads=1)
    lane = backend.lane(2)
    lane.load(0, features[0])
    lane.step(1)
    memory.size = memory.taken + 1000
    for _ in range(15):
        lane.step(1)
    with pytest.raises(DeviceError, match="out of memory. If its memory is full, use") as refusal:
        lane.step(1)
    assert "\n" not in str(refusal.value)


def test_a_host_without_a_gpu_has_the_first_rows_alone(tiny_bundle) -> None:
    assert OrtCudaBackend(Bundle(tiny_bundle), place=HERE).slots == lane_widths.WIDTHS[0]


def test_lanes_that_end_after_close_give_nothing_back(tiny_bundle, memory, features) -> None:
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE, threads=1)
    lanes = [backend.lane(8), backend.lane(1)]
    lanes[0].load(0, features[0])
    assert lanes[0].widen()
    backend.close()
    backend.close()
    uses = [
        lambda: lanes[0].load(0, features[0]),
        lambda: lanes[0].step(1),
        lambda: lanes[0].move(1, 0),
        lanes[0].widen,
        lambda: backend.lane(8),
    ]
    for use in uses:
        with pytest.raises(DeviceError, match=r"^This model was closed; load it again\.$"):
            use()
    uses.clear()
    lanes.clear()
    del use
    gc.collect()
    assert not backend._idle


# Recording ---------------------------------------------------------------------------------------


def test_a_cache_that_grows_holds_nobody_off(tiny_bundle, features, monkeypatch) -> None:
    """Encoding goes on; only a step that is recorded wants the device for itself."""
    monkeypatch.setattr(ort_cuda, "INITIAL_CAPACITY", 16)
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE, threads=1)
    alone, real = [], backend.turns.alone

    def count(work):
        alone.append(1)
        return real(work)

    for song in range(2):
        lane = backend.lane(1)
        lane.load(0, features[0])
        monkeypatch.setattr(backend.turns, "alone", count)
        for _ in range(40):
            lane.step(1)
        monkeypatch.setattr(backend.turns, "alone", real)
        assert len(alone) == 3, song  # caches of 16, 32 and 64 columns, once
        del lane
        gc.collect()


@pytest.mark.parametrize("graphs", [True, False])
def test_a_step_whose_recording_fails_runs_without(tiny_bundle, features, graphs, caplog) -> None:
    """Once; a device that fails twice is an error."""
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE, threads=1)
    backend.cuda_graph = graphs
    lane, plain = backend.lane(1), backend.lane(1)
    for one in (lane, plain):
        one.load(0, features[0])
    decoder, failures = backend.decoder, [1]

    def fail_once(binding, options) -> None:
        if failures:
            raise RuntimeError(f"capture {failures.pop()}:\n operation not permitted")
        decoder.run_with_iobinding(binding, options)

    backend.decoder = SimpleNamespace(run_with_iobinding=fail_once, io_binding=decoder.io_binding)
    if not graphs:
        with pytest.raises(DeviceError, match="operation not permitted"):
            lane.step(1)
        return
    for _ in range(5):
        lane.step(1)
        plain.step(1)
        assert lane.top_ids.tolist() == plain.top_ids.tolist()
    assert "could not be recorded and runs slower: capture 1: operation not" in caplog.text
    assert lane._memory.plain == {(1, 128)}
    memory = lane._memory
    del lane
    gc.collect()
    again = backend.lane(1)
    assert again._memory is memory
    assert not memory.plain


def test_warming_up_records_two_caches(tiny_bundle, monkeypatch) -> None:
    monkeypatch.setattr(ort_cuda, "INITIAL_CAPACITY", 16)
    monkeypatch.setattr(ort_cuda, "SLOTS", 4)
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE, threads=1)
    backend.warmup()
    gc.collect()
    (memory,) = backend._idle[4]
    assert memory.recorded == {(rows, columns) for rows in (1, 2, 4) for columns in (16, 32)}
