"""The CUDA backend without a GPU: the same code over ONNX Runtime's CPU provider and memory."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from mt3_runtime.backends import devices
from mt3_runtime.backends.devices import open_backend
from mt3_runtime.backends.ort_common import import_onnxruntime
from mt3_runtime.backends.ort_cpu import OrtCpuBackend
from mt3_runtime.backends.ort_gpu import ort_cuda
from mt3_runtime.backends.ort_gpu.ort_cuda import CPU, CUDA, OrtCudaBackend, padded
from mt3_runtime.backends.ort_gpu.ort_memory import Buffer, Copier, DeviceSpec, Staging
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.diagnostics import cuda_libraries
from mt3_runtime.diagnostics.cuda_libraries import preload
from mt3_runtime.errors import BundleError, DeviceError, OptionError
from mt3_runtime.model import Model, token_digest

HERE = DeviceSpec(CPU, "cpu")


def model(bundle: Path, **options) -> Model:
    found = Bundle(bundle)
    return Model(found, OrtCudaBackend(found, place=HERE, **options))


@pytest.fixture(scope="module")
def features(tiny_bundle: Path, audio) -> np.ndarray:
    return Model(Bundle(tiny_bundle), backend=None).preprocess(audio)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, features) -> list:
    bundle = Bundle(tiny_bundle)
    return Model(bundle, OrtCpuBackend(bundle, profile="portable")).forward(features)


@pytest.mark.parametrize(("slots", "threads"), [(1, 1), (3, 2), (32, 1)])
@pytest.mark.parametrize("capacity", [4, 128])
def test_tokens_are_those_of_the_cpu_backend(
    tiny_bundle, features, expected, slots, threads, capacity, monkeypatch
) -> None:
    """With every mix of padding, moving, growing and sharing."""
    monkeypatch.setattr(ort_cuda, "SLOTS", slots)
    monkeypatch.setattr(ort_cuda, "INITIAL_CAPACITY", capacity)
    found = model(tiny_bundle, threads=threads).forward(features)
    assert token_digest(found) == token_digest(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)


def test_masks_reach_the_device(tiny_bundle, features) -> None:
    bundle = Bundle(tiny_bundle)
    lanes = [
        OrtCudaBackend(bundle, place=HERE).lane(2),
        OrtCpuBackend(bundle, profile="portable").lane(2),
    ]
    for lane in lanes:
        lane.load(0, features[0])
        lane.load(1, features[1])
    for step in range(12):
        for lane in lanes:
            lane.allowed[:] = True
            lane.allowed[step % 2, : 40 * step] = False
            lane.step(2)
        assert lanes[0].top_ids.tolist() == lanes[1].top_ids.tolist()
        assert lanes[0].token_ids.tolist() == lanes[1].token_ids.tolist()
        assert lanes[0].positions.tolist() == [step + 1] * 2


def test_a_search_may_choose_another_token(tiny_bundle, features) -> None:
    bundle = Bundle(tiny_bundle)
    lanes = [
        OrtCudaBackend(bundle, place=HERE).lane(1),
        OrtCpuBackend(bundle, profile="portable").lane(1),
    ]
    for lane in lanes:
        lane.load(0, features[0])
        for _ in range(8):
            lane.step(1)
            lane.token_ids[0] = lane.top_ids[0, 1]
    assert lanes[0].top_ids.tolist() == lanes[1].top_ids.tolist()


def test_rows_behind_the_running_ones_do_no_harm(tiny_bundle, features) -> None:
    """Five rows run as eight; the three others once stood at the last position."""
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE)
    lane, alone = backend.lane(8), backend.lane(1)
    for slot in range(5):
        lane.load(slot, features[0])
    lane.positions[5:] = backend.max_tokens
    alone.load(0, features[0])
    for _ in range(10):
        lane.step(5)
        alone.step(1)
        assert lane.top_ids[:5].tolist() == alone.top_ids.tolist() * 5
    assert lane.positions.tolist() == [10] * 5 + [backend.max_tokens] * 3


def test_a_step_gives_the_same_however_often_it_runs(tiny_bundle, features, monkeypatch) -> None:
    """Recording a CUDA graph runs the step several times before it is replayed."""
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE)
    once, often = backend.lane(1), backend.lane(1)
    for lane in (once, often):
        lane.load(0, features[0])
    wrapped = SimpleNamespace(run_with_iobinding=None)

    def repeatedly(binding, options) -> None:
        for _ in range(3):
            decoder.run_with_iobinding(binding, options)

    decoder, wrapped.run_with_iobinding = backend.decoder, repeatedly
    for _ in range(10):
        once.step(1)
        backend.decoder = wrapped
        often.step(1)
        backend.decoder = decoder
        assert often.top_ids.tolist() == once.top_ids.tolist()


def test_memory_is_taken_over_by_the_next_lane(tiny_bundle, features) -> None:
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE)
    first = backend.lane(4)
    memory = first._memory
    second = backend.lane(4)
    assert second._memory is not memory
    del first
    gc.collect()
    assert backend.lane(4)._memory is memory


def test_reused_memory_gives_the_same_tokens(tiny_bundle, features, expected) -> None:
    """Caches that grew for one song are there for the next, which begins small again."""
    again = model(tiny_bundle, threads=1)
    digests = {token_digest(again.forward(features)) for _ in range(3)}
    assert digests == {token_digest(expected)}


def test_sessions_are_run_by_two_threads_however_many_ask(tiny_bundle, features) -> None:
    """ONNX Runtime keeps a cuBLAS workspace and all recorded graphs for each thread."""
    bundle, seen = Bundle(tiny_bundle), set()
    backend = OrtCudaBackend(bundle, place=HERE, threads=3)
    for role in ("encoder", "decoder"):
        session = getattr(backend, role)

        def run(binding, options=None, *, session=session, role=role) -> None:
            seen.add((role, threading.current_thread().name))
            session.run_with_iobinding(binding, options)

        names = ("io_binding", "get_inputs", "get_outputs")
        kept = {name: getattr(session, name) for name in names}
        setattr(backend, role, SimpleNamespace(run_with_iobinding=run, **kept))
    for _ in range(2):
        Model(bundle, backend).forward(features)
    assert seen == {("encoder", "cpu:0 encodes_0"), ("decoder", "cpu:0 decodes_0")}


def test_models_on_one_device_rest_while_another_records(tiny_bundle) -> None:
    first, second = (OrtCudaBackend(Bundle(tiny_bundle), place=HERE) for _ in range(2))
    assert first.turns is second.turns
    order, inside = [], threading.Event()

    def alone() -> None:
        inside.set()
        time.sleep(0.05)
        order.append("alone")

    other = threading.Thread(target=lambda: first.turns.alone(alone))
    other.start()
    inside.wait()
    second.turns.encoding.do(lambda: order.append("encoded"))
    other.join()
    assert order == ["alone", "encoded"]
    with pytest.raises(ZeroDivisionError):
        first.turns.decoding.do(lambda: 1 / 0)
    assert first.turns.decoding.do(lambda: 5) == 5


def test_warming_up_leaves_no_trace(tiny_bundle, features, expected) -> None:
    bundle = Bundle(tiny_bundle)
    backend = OrtCudaBackend(bundle, place=HERE)
    model = Model(bundle, backend)
    model.warmup()
    recorded = {rows for lanes in backend._idle.values() for m in lanes for rows, _ in m.recorded}
    assert recorded >= {1, 2, 4, 8, 16, 24, 32}
    assert token_digest(model.forward(features)) == token_digest(expected)


def test_the_description_says_what_runs_where(tiny_bundle) -> None:
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE, threads=3)
    assert backend.description == (
        f"cpu:0 (ONNX Runtime {onnxruntime.__version__}, profile portable, lanes: 3)"
    )
    backend.close()


@pytest.mark.parametrize(
    ("rows", "slots", "run"),
    [(1, 32, 1), (2, 32, 2), (3, 32, 4), (5, 32, 8), (9, 32, 16), (17, 32, 24), (31, 32, 32),
     (3, 3, 3), (33, 44, 44), (33, 512, 48), (49, 512, 64), (65, 512, 96), (129, 512, 192),
     (193, 524, 256), (512, 512, 512), (513, 524, 524)],
)  # fmt: skip
def test_rows_are_padded_to_few_numbers(rows, slots, run) -> None:
    assert padded(rows, slots) == run


def test_a_growing_cache_is_refused(tiny_bundle) -> None:
    with pytest.raises(OptionError, match="Use profile portable"):
        OrtCudaBackend(Bundle(tiny_bundle), place=HERE, profile="compat")


def test_a_damaged_graph_is_a_matter_of_the_bundle(tiny_bundle, tmp_path) -> None:
    """A graph that is what the manifest says, but no graph."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "torn"))
    manifest = json.loads((path / "bundle.json").read_bytes())
    (graph,) = [g for g in manifest["graphs"]
                if (g["role"], g["profile"]) == ("encoder", "portable")]  # fmt: skip
    graph["inputs"] = ["something"]
    (path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        OrtCudaBackend(Bundle(path), place=HERE)


def test_eight_seconds_of_music(shared, real_bundle) -> None:
    """Published weights: buffers on the device give the tokens of the CPU backend."""
    path = next(p for p in sorted((shared / "audio").iterdir()) if p.suffix == ".flac")
    bundle = Bundle(real_bundle)
    cpu = Model(bundle, OrtCpuBackend(bundle, profile="portable"))
    features = cpu.preprocess(path)[:4]
    expected = token_digest(cpu.forward(features))
    assert token_digest(model(real_bundle).forward(features)) == expected


# What a GPU's ONNX Runtime may answer ------------------------------------------------------------


class FakeSessions:
    """`onnxruntime`, but sessions come from the CPU and tell what the test wants told."""

    __version__ = onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = onnxruntime.RunOptions
    OrtValue = onnxruntime.OrtValue

    def __init__(self, used: str = CUDA, strays: tuple = (), refuses: str = "") -> None:
        self.used, self.strays, self.refuses = used, strays, refuses
        self.asked: list[dict[str, str]] = []

    def preload_dlls(self) -> None:
        print("no libcudart here")

    def InferenceSession(self, source, options, providers, enable_fallback):  # noqa: N802
        ((name, asked),) = providers
        assert (name, enable_fallback) == (CUDA, 0)
        self.asked.append(asked)
        if self.refuses and (asked.get("enable_cuda_graph") or self.refuses == "always"):
            raise RuntimeError("cannot\n  capture")
        part = SimpleNamespace(
            ep_name="CPUExecutionProvider",
            get_nodes=lambda: [SimpleNamespace(name=n, op_type=n) for n in self.strays],
        )
        real = onnxruntime.InferenceSession(source, providers=[CPU])
        return SimpleNamespace(
            get_inputs=real.get_inputs,
            get_outputs=real.get_outputs,
            get_providers=lambda: [self.used],
            get_provider_graph_assignment_info=lambda: [part] if self.strays else [],
        )


def refusal(monkeypatch, bundle: Path, runtime: FakeSessions, trouble: str = "") -> str:
    monkeypatch.setattr(ort_cuda, "import_onnxruntime", lambda: runtime)
    monkeypatch.setattr(cuda_libraries, "trouble", lambda index: trouble)
    with pytest.raises(DeviceError) as caught:
        OrtCudaBackend(Bundle(bundle), index=1)
    return str(caught.value)


def test_what_is_in_the_way_is_told_before_anything_is_tried(monkeypatch, tiny_bundle) -> None:
    runtime = FakeSessions()
    message = refusal(monkeypatch, tiny_bundle, runtime, trouble="there is no NVIDIA driver")
    assert message.startswith(
        "device cuda:1 was asked for, but does not work here: there is no NVIDIA driver. `mt3 doc"
    )
    assert not runtime.asked  # ONNX Runtime would write to stderr what it cannot load


def test_a_silent_fallback_is_refused(monkeypatch, tiny_bundle, capsys) -> None:
    message = refusal(monkeypatch, tiny_bundle, FakeSessions(used=CPU))
    assert message.startswith("device cuda:1 was asked for, but does not work here")
    assert "ONNX Runtime fell back to CPUExecutionProvider" in message
    assert "mt3 doctor" in message
    assert capsys.readouterr().out == ""  # what preloading prints is no data


@pytest.mark.parametrize("refuses", ["", "graphs"])
def test_a_node_elsewhere_is_refused_by_name(monkeypatch, tiny_bundle, refuses) -> None:
    runtime = FakeSessions(strays=("add", "mul", "sub", "div"), refuses=refuses)
    message = refusal(monkeypatch, tiny_bundle, runtime)
    assert "add (add) on CPUExecutionProvider" in message
    assert "sub (sub) on CPUExecutionProvider and 1 more" in message
    assert "encoder.portable.onnx" in message


def test_only_an_encoder_may_count_rows_on_the_host(monkeypatch, tiny_bundle) -> None:
    message = refusal(monkeypatch, tiny_bundle, FakeSessions(strays=("Concat",)))
    assert "decoder.portable.onnx would not run" in message


@pytest.mark.parametrize("refuses", ["graphs", "always"])
def test_a_refusal_for_another_reason_is_told(monkeypatch, tiny_bundle, refuses) -> None:
    message = refusal(monkeypatch, tiny_bundle, FakeSessions(refuses=refuses))
    assert "cannot capture" in message


def test_the_provider_is_asked_for_exact_products(monkeypatch, tiny_bundle) -> None:
    runtime = FakeSessions(strays=("x",))
    refusal(monkeypatch, tiny_bundle, runtime)
    assert runtime.asked[0]["use_tf32"] == "0"
    assert runtime.asked[0]["device_id"] == "1"


def test_options_come_from_the_environment(monkeypatch, tiny_bundle) -> None:
    """An unknown one is the provider's to refuse (test_fake_cuda.py)."""
    runtime = FakeSessions(strays=("x",))
    runtime.get_available_providers = lambda: [CUDA]
    for module in (ort_cuda, devices):
        monkeypatch.setattr(module, "import_onnxruntime", lambda: runtime)
    monkeypatch.setattr(cuda_libraries, "trouble", lambda index: "")
    monkeypatch.setenv("MT3_CUDA_OPTIONS", "use_tf32=1, enable_cuda_graph=0")
    for device in ("cuda:2", "auto"):
        with contextlib.suppress(DeviceError):
            open_backend(Bundle(tiny_bundle), device).close()
    assert [(asked["device_id"], asked["use_tf32"]) for asked in runtime.asked] == [
        ("2", "1"), ("0", "1"),
    ]  # fmt: skip
    assert not [asked for asked in runtime.asked if "enable_cuda_graph" in asked]
    for nonsense in ("use_tf32", "=1", "use_tf32="):
        monkeypatch.setenv("MT3_CUDA_OPTIONS", nonsense)
        with pytest.raises(OptionError, match="MT3_CUDA_OPTIONS must be like"):
            open_backend(Bundle(tiny_bundle), "cuda")


def test_a_failing_device_is_an_error_of_ours(tiny_bundle, features) -> None:
    backend = OrtCudaBackend(Bundle(tiny_bundle), place=HERE)
    lane = backend.lane(1)
    lane.load(0, features[0])

    def fail(binding, options) -> None:
        raise RuntimeError("out of\n memory")

    backend.decoder = SimpleNamespace(
        run_with_iobinding=fail, io_binding=backend.decoder.io_binding
    )
    with pytest.raises(DeviceError, match="cpu:0 failed: out of memory"):
        lane.step(1)


def test_an_old_runtime_has_nothing_to_preload_but_the_wheels(monkeypatch) -> None:
    loaded = []
    monkeypatch.setattr(cuda_libraries, "_load_from_wheels", loaded.append)
    preload(SimpleNamespace())  # nor is its log level touched, which is the whole process's
    assert loaded == [cuda_libraries.wheel_cuda()]


# Memory ------------------------------------------------------------------------------------------


def test_staged_tensors_share_one_buffer() -> None:
    runtime = import_onnxruntime()
    tensors = {"ids": ((1,), "tensor(int64)"), "at": ((), "tensor(int32)")}
    staging = Staging(runtime, HERE, 3, tensors=tensors)
    staging.arrays["ids"][:, 0] = [5, 6, 7]
    staging.arrays["at"][:] = [1, 2, 3]
    staging.write()
    staging.arrays["ids"][:] = 0
    staging.arrays["at"][:] = 0
    staging.read()
    assert staging.arrays["ids"].tolist() == [[5], [6], [7]]
    assert staging.arrays["at"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("element", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"])
def test_rows_move_and_caches_double(element) -> None:
    runtime = import_onnxruntime()
    copier = Copier(lambda source: runtime.InferenceSession(source, providers=[CPU]))
    make = lambda capacity: Buffer(  # noqa: E731
        runtime, HERE, 3, shape=(2, capacity, 4), element=element
    )
    old, new = [make(2), make(2)], [make(4), make(4)]
    size = old[0].row * 3
    bits = np.arange(size, dtype=np.uint8)
    for buffer in old:
        buffer.write(bits)
    copier.move(old, source=2, target=0)
    bits = bits.reshape(3, -1)
    bits[0] = bits[2]
    assert old[1].read().tolist() == bits.reshape(-1).tolist()
    copier.double(old, new)
    heads = bits.reshape(3, 2, -1)
    assert new[1].read().tolist() == np.concatenate([heads, heads], axis=2).reshape(-1).tolist()
