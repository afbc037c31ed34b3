"""The TensorRT backend on a fake GPU: what it says, what it moves, what it refuses."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from mt3_engines.building.builder import prepared_graph
from mt3_engines.running import backend as module
from mt3_engines.running.backend import TensorRtBackend, open_tensorrt
from mt3_engines.storage.keys import EngineTarget
from mt3_engines.storage.requests import BuildOptions, make_keys
from mt3_engines.storage.shapes import SEGMENTS, make_plan
from mt3_engines.storage.store import EngineStore
from mt3_engines.versions import TENSORRT
from mt3_runtime.backends.devices import Device
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import BundleError, DeviceError, OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from tests.engines.fake_gpu import FakeCuda, FakeTensorRt
from tests.families import with_channels, with_memory

SLOTS, CAPACITIES = (1, 2, 4), (32, 64)


@pytest.fixture
def store(tmp_path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


class Machine:
    """A bundle, its engines, and a fake GPU that runs them."""

    def __init__(
        self,
        path,
        store,
        version="10.16.1.11",
        wish=BuildOptions("fp32"),  # noqa: B008
        slots=SLOTS,
        order="late",
        maker=TENSORRT,
        targets=(),
        capability="9.0",
    ):
        self.bundle, self.store, self.maker = Bundle(path), store, maker
        self.cuda = FakeCuda(order, capability)
        plan = make_plan(self.bundle.manifest, slots, CAPACITIES)
        self.tensorrt = FakeTensorRt(self.cuda, version, plan.slots, plan.segments, maker)
        place = EngineTarget(version, capability, self.cuda.name, maker.name)
        if targets:
            place = EngineTarget(version, targets[0], "", maker.name, targets)
        self.infos = [
            store.put(
                key, prepared_graph(self.bundle, key).SerializeToString(), model="t", seconds=1
            )
            for key in make_keys(self.bundle, plan, wish, place)
        ]

    def backend(self, **options) -> TensorRtBackend:
        return TensorRtBackend(
            self.bundle,
            tensorrt=self.tensorrt,
            cuda=self.cuda,
            maker=self.maker,
            store=self.store,
            **options,
        )

    def model(self, **options) -> Model:
        return Model(self.bundle, self.backend(**options), auto_filter=False, decoding="greedy")


def tokens(model, audio):
    features = model.preprocess(audio, model.sample_rate)
    return [tuple(sequence.tokens) for sequence in model.forward(features)]


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
@pytest.mark.parametrize("workers", [1, 2])
def test_it_says_what_the_cpu_says(tiny_bundle, store, audio, version, workers):
    machine = Machine(tiny_bundle, store, version)
    expected = tokens(load_model(tiny_bundle, profile="portable"), audio)
    assert max(map(len, expected)) > CAPACITIES[-1]  # caches grow, and shrink again
    model = machine.model(workers=workers)
    assert tokens(model, audio) == expected
    assert tokens(model, audio) == expected  # on rows that were used before


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11"])
def test_real_weights_say_what_the_cpu_says(real_bundle, shared, store, version, monkeypatch):
    """Four seconds of a piano, through the graphs that engines are made of."""
    monkeypatch.setitem(globals(), "CAPACITIES", (256,))
    cpu = load_model(real_bundle, profile="cpu")
    features = cpu.preprocess(shared / "audio" / "piano_bach.mp3")[2:4]
    expected = [tuple(sequence.tokens) for sequence in cpu.forward(features)]
    model = Machine(real_bundle, store, version, slots=(2,)).model(workers=1)
    assert [tuple(sequence.tokens) for sequence in model.forward(features)] == expected


def test_channels(tiny_bundle, store, audio, tmp_path):
    path = with_channels(tiny_bundle, tmp_path / "channels", (1.0, 0.5, 2.0))
    machine = Machine(path, store)
    assert machine.infos[1].key.slots == (1, 2, 6)
    assert tokens(machine.model(), audio) == tokens(load_model(path, profile="portable"), audio)


def test_memory(tiny_bundle, tiny_weights, store, audio, tmp_path):
    path = with_memory(tiny_bundle, tmp_path / "memory", tiny_weights, tokens=8, rows=2)
    machine = Machine(path, store)
    assert tokens(machine.model(), audio) == tokens(load_model(path, profile="portable"), audio)


def test_half_is_close_enough_to_run(tiny_bundle, store, audio):
    machine = Machine(tiny_bundle, store, wish=BuildOptions("fp16"))
    backend = machine.backend()
    assert "fp16" in backend.description
    assert len(tokens(machine.model(), audio)) == 5


def test_little_crosses_the_bus(tiny_bundle, store):
    machine = Machine(tiny_bundle, store)
    lane = machine.backend().lane(4)
    first = list(machine.cuda.crossed)
    features = np.zeros((256, 512), np.float32)
    for slot in range(3):
        lane.load(slot, features)
    lane.step(3)  # records: the work is done once more
    before = list(machine.cuda.crossed)
    lane.step(3)
    # A launch replays copies of whole buckets of 4 rows, which the fake counts when recording.
    assert machine.cuda.crossed == before
    rows, bucket = 3, 4
    recorded = [2 * bucket * (8 + 4), 2 * bucket * 2 * (8 + 4)]
    mask = rows * 1536
    assert before == [first[0] + recorded[0] + mask, first[1] + recorded[1]]
    lane.allowed[1, 5] = False
    lane.step(3)
    assert machine.cuda.crossed[0] == before[0] + mask


def test_steps_are_recorded_once(tiny_bundle, store):
    machine = Machine(tiny_bundle, store)
    lane = machine.backend().lane(4)
    lane.load(0, np.zeros((256, 512), np.float32))
    count = machine.cuda.captures
    for _ in range(10):
        lane.step(1)  # one row was recorded for the proof that the device works
    assert machine.cuda.captures == count
    lane.load(1, np.zeros((256, 512), np.float32))
    for _ in range(10):
        lane.step(2)
    assert machine.cuda.captures == count + 1


def test_warming_up_records_all_steps_of_a_first_cache(tiny_bundle, store, audio):
    machine = Machine(tiny_bundle, store)
    model = machine.model(workers=2)
    model.warmup()
    encoders = 2 * len(SEGMENTS)
    assert machine.cuda.captures == encoders + 2 * len(SLOTS)
    expected = tokens(load_model(tiny_bundle, profile="portable"), audio)
    assert tokens(model, audio) == expected


def test_rows_are_taken_over_and_freed(tiny_bundle, store):
    machine = Machine(tiny_bundle, store)
    backend = machine.backend()
    lane = backend.lane(4)
    lane.load(0, np.zeros((256, 512), np.float32))
    lane.step(1)
    used = len(machine.cuda.memory)
    del lane
    gc.collect()
    lane = backend.lane(2)
    assert len(machine.cuda.memory) == used
    other = backend.lane(2)
    assert len(machine.cuda.memory) > used
    del lane, other
    backend.close()
    assert not machine.cuda.memory
    assert not machine.cuda.pins
    with pytest.raises(OptionError, match="built for 4 slots, not 5"):
        machine.backend().lane(5)


def test_stripped_engines_get_the_weights_back(tiny_bundle, store, audio):
    machine = Machine(tiny_bundle, store, wish=BuildOptions("fp32", stripped=True))
    assert tokens(machine.model(), audio[:40000]) == tokens(
        load_model(tiny_bundle, profile="portable"), audio[:40000]
    )
    machine.tensorrt.Refitter.refit_cuda_engine = lambda self: False
    with pytest.raises(BundleError, match="holds no weights"):
        machine.backend()


def test_what_tensorrt_refuses_is_refused(tiny_bundle, store):
    machine = Machine(tiny_bundle, store)
    encoder = machine.infos[0]
    store.put(encoder.key, b"broken", model="t", seconds=1)
    with pytest.raises(BundleError, match="TensorRT 10.16.1.11 refuses"):
        machine.backend()
    other = machine.infos[1].path.read_bytes()
    store.put(encoder.key, other, model="t", seconds=1)
    with pytest.raises(BundleError, match="other inputs and outputs"):
        machine.backend()
    encoder.path.write_bytes(b"changed")
    with pytest.raises(BundleError, match="digest differs"):
        machine.backend()


@pytest.mark.parametrize("method", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_failures_of_tensorrt_are_errors(tiny_bundle, store, monkeypatch, method):
    machine = Machine(tiny_bundle, store)
    monkeypatch.setattr(f"tests.engines.fake_gpu.Context.{method}", lambda *a: False)
    with pytest.raises(DeviceError, match="TensorRT"):
        machine.backend()
    assert machine.cuda.nothing_left()


def test_no_memory_for_a_context(tiny_bundle, store, monkeypatch):
    machine = Machine(tiny_bundle, store)
    monkeypatch.setattr("tests.engines.fake_gpu.Engine.create_execution_context", lambda *a: None)
    with pytest.raises(DeviceError, match="no execution context.*GPU is full"):
        machine.backend()
    assert machine.cuda.nothing_left()


def test_the_entry_point(tiny_bundle, store, monkeypatch):
    machine = Machine(tiny_bundle, store)
    monkeypatch.setenv("MT3_ENGINES", str(store.folder))
    monkeypatch.setattr(module, "import_tensorrt", lambda maker: machine.tensorrt)
    monkeypatch.setattr(module, "open_cuda", lambda index, maker: machine.cuda)
    device = Device.parse("tensorrt:0")
    backend = open_tensorrt(machine.bundle, device, threads=3, profile=None)
    assert (backend.workers, backend.slots) == (3, 4)
    assert "FAKE GPU" in backend.description
    with pytest.raises(OptionError):
        open_tensorrt(machine.bundle, device, threads=0)
    monkeypatch.setenv("MT3_TENSORRT_PRECISION", "fp16")
    with pytest.raises(DeviceError, match="--precision fp16"):
        open_tensorrt(machine.bundle, device)
    monkeypatch.setenv("MT3_TENSORRT_PRECISION", "int8")
    with pytest.raises(OptionError, match="fp32, fp16"):
        open_tensorrt(machine.bundle, device)
