"""ONNX Runtime's CUDA provider itself, over a CUDA that computes nothing (fake_cuda.c).

Which nodes it takes, what it copies and when it records are then its own answers, on any machine
with a C compiler.  The wheel is large and excludes the CPU one, so it lives in an environment of
its own: gpu-wheel-requirements.txt, its Python in MT3_GPU_WHEEL_PYTHON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import onnx
import pytest

import mt3_runtime
from mt3_engines.building.half_precision import to_half
from mt3_export.graphs.decoder import build_decoder
from mt3_export.graphs.encoder import build_encoder
from mt3_runtime.backends.ort_gpu.ort_cuda import SHAPE_OPERATORS
from tests import needs
from tests.seeded import TINY_MOE, TINY_MULTI, TINY_SINGLE, TINY_YMT3, seeded_weights

HERE = Path(__file__).parent

#: What a handle-making function must leave behind its pointer.
HANDLES = ("cublasCreate_v2", "cublasLtCreate")
TEXTS = ("cublasGetStatusName", "cublasGetStatusString")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tested package alone: what else is installed here must not be found."""
    folder = tmp_path_factory.mktemp("packages")
    shutil.copytree(Path(mt3_runtime.__file__).parent, folder / "mt3_runtime")
    metadata = folder / "mt3_runtime-0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: mt3-runtime\nVersion: 0\n")
    return folder


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the libraries that the provider is linked to."""
    python = needs.python_of("gpu-wheel")
    for program in ("gcc", "nm"):
        needs.tool(program, "compiler")
    folder = tmp_path_factory.mktemp("cuda")
    site = Path(subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip())  # fmt: skip
    provider = site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    wanted: dict[str, list[str]] = {}
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", provider], text=True)
    for name, library in re.findall(r" U (\w+)(?:@(libcu\S+))?", symbols):
        if library or re.match(r"cu[A-Z]", name):
            wanted.setdefault(library or "libcuda.so.1", []).append(name)
    own = (HERE / "fake_cuda.c").read_text()
    for library, names in wanted.items():
        whole = [HERE / "fake_cuda.c"] if library.startswith("libcudart") else []
        if library.startswith("libcuda."):
            continue
        missing = [name for name in names if not (whole and f"{name}(" in own)]
        build(folder, library, missing, *whole, f"-I{site / 'nvidia' / 'cu13' / 'include'}")
    if "libcurand.so.10" not in wanted:
        build(folder, "libcurand.so.10", ["nothing_here"])
    driver = HERE / "fake_driver.c"
    missing = [name for name in wanted.get("libcuda.so.1", ()) if name not in driver.read_text()]
    build(folder, "libcuda.so.1", missing, driver)
    return folder


def stub(name: str) -> str:
    if name in HANDLES:
        said = 'fputs("cuda: cublas\\n", stderr); '
        return f"int {name}(void **h) {{ {said}*h = calloc(1, 64); return 0; }}\n"
    if name in TEXTS:
        return f'const char *{name}(int s) {{ return "fake"; }}\n'
    return f"int {name}() {{ return 0; }}\n"


def build(folder: Path, library: str, names: list[str], *more: object) -> None:
    source, versions = folder / f"{library}.c", folder / f"{library}.map"
    source.write_text("#include <stdio.h>\n#include <stdlib.h>\n" + "".join(map(stub, names)))
    versions.write_text(f"{library} {{ global: *; }};\n")
    subprocess.run(
        ["gcc", "-w", "-std=gnu11", "-shared", "-fPIC", source, *map(str, more),
         f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}", "-o", folder / library],
        check=True,
    )  # fmt: skip


PRELUDE = """
import sys
import numpy as np
import onnxruntime
from mt3_runtime.diagnostics import cuda_libraries
from mt3_runtime.backends.ort_gpu import ort_cuda
from mt3_runtime.backends.ort_gpu.ort_cuda import OrtCudaBackend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import DeviceError

# These would load the real CUDA runtime of the wheels.
onnxruntime.preload_dlls = lambda: None
cuda_libraries._load_from_wheels = lambda major: None

def say(what):
    print("then:", what, file=sys.stderr, flush=True)

def silence_shape(backend):
    return backend.shapes["encoder"]["features"]

bundle = Bundle(sys.argv[1])
"""

LANE = """
backend = OrtCudaBackend(bundle, cuda_graph=sys.argv[2] == "graphs")
print(backend.description)
silence = np.zeros(backend.shapes["encoder"]["features"], np.float32)
lane = backend.lane(4)
"""


@pytest.fixture
def run(packages: Path, libraries: Path, tiny_bundle: Path):
    """Runs a script; returns its output, and what CUDA was asked for after each `say`."""
    return partial(_run, packages, libraries, tiny_bundle)


def _run(
    packages: Path, libraries: Path, bundle: Path, script: str, *arguments: str
) -> tuple[str, dict[str, list[str]]]:
    paths = {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": str(libraries)}
    found = subprocess.run(
        [needs.python_of("gpu-wheel"), "-c", PRELUDE + script, bundle, *arguments],
        env=os.environ | paths, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    events: dict[str, list[str]] = {}
    now = events.setdefault("loading", [])
    for line in found.stderr.splitlines():
        if line.startswith("then: "):
            now = events.setdefault(line[6:], [])
        elif line.startswith("cuda: "):
            now.append(line[6:])
    return found.stdout, events


@pytest.mark.parametrize("way", ["graphs", "plain"])
def test_a_step_crosses_the_bus_twice(run, way) -> None:
    script = (
        LANE
        + """
say("load"); lane.load(0, silence)
lane.load(1, silence)
lane.step(2)
say("step"); lane.step(2)
say("end")
"""
    )
    out, events = run(script, way)
    assert out.startswith("cuda:0 (ONNX Runtime 1.")
    assert ("CUDA graphs" in out) == (way == "graphs")
    assert any(event.startswith("copy to device") for event in events["load"])
    to, *between, back = events["step"]
    assert between == (["replay"] if way == "graphs" else [])
    assert to.startswith("copy to device ")
    assert back.startswith("copy to host ")
    assert int(to.split()[-1]) <= 1024  # tokens and positions
    assert int(back.split()[-1]) <= 1024  # two ids and their log-probabilities


def test_graphs_are_recorded_once_per_rows_and_capacity(run) -> None:
    script = (
        LANE
        + """
for slot in range(4):
    lane.load(slot, silence)
for rows in (4, 3, 4, 2, 1):
    say(f"rows {rows}"); lane.step(rows)
say("move"); lane.move(2, 0)
say("mask"); lane.allowed[0, 5:] = False
lane.step(2)
lane.positions[:] = 128
say("grow"); lane.step(2)
say("grown"); lane.step(2)
say("next song")
memory = lane._memory
del lane
lane = backend.lane(4)
assert lane._memory is memory
lane.load(0, silence)
say("warm"); backend.warmup()
say("end")
"""
    )
    _, events = run(script, "graphs")
    recorded = {name: found.count("record") for name, found in events.items()}
    assert recorded["rows 4"] == 1  # three rows run as four
    assert recorded["rows 3"] == 0
    assert (recorded["rows 2"], recorded["rows 1"]) == (1, 1)
    assert (recorded["grow"], recorded["grown"]) == (1, 0)
    assert recorded["warm"] % 7 == 0
    assert recorded["warm"]
    grown = [event for event in events["grow"] if event.startswith("copy to device")]
    # Zeros of a new cache do not come from the host: nothing but a step's tokens and positions.
    assert all(int(event.split()[-1]) <= 1024 for event in grown)
    moved = [event for event in events["move"] if event != "cublas"]
    assert moved
    assert all(event.startswith("copy on device") for event in moved)
    masks = [event for event in events["mask"] if event.startswith("copy to device")]
    assert len(masks) == 2


def test_a_step_that_cannot_be_recorded_runs_without(run) -> None:
    """Another library of the process allocates meanwhile: the recording is lost, the step is not.

    The next lane with that memory records it.
    """
    script = (
        LANE
        + """
import gc, os
lane.load(0, silence)
lane.load(1, silence)
os.environ["FAKE_CUDA_BROKEN"] = "1"
say("broken"); lane.step(2)
say("plain"); lane.step(2)
print(lane.positions[:2].tolist())
del lane; gc.collect()
lane = backend.lane(4)
lane.load(0, silence)
lane.load(1, silence)
say("again"); lane.step(2)
say("replayed"); lane.step(2)
say("end")
"""
    )
    out, events = run(script, "graphs")
    assert "[2, 2]" in out
    assert events["broken"].count("record") == 1
    assert not {"record", "replay"} & set(events["plain"])
    assert "record" in events["again"]
    assert "replay" in events["replayed"]


def test_lanes_get_rows_as_long_as_there_is_memory(run) -> None:
    """The driver is asked what is free, and has an account of its own."""
    script = """
import os
from mt3_runtime.backends.ort_gpu import lane_widths
from mt3_runtime.backends.ort_gpu.ort_memory import free_memory
lane_widths.WIDTHS, ort_cuda.SLOTS = (4, 16, 64), 64
backend = OrtCudaBackend(bundle)
needed = lane_widths.lane_bytes(
    backend.spec, 64, backend.capacities, cross_element=4, cache_element=4
)
for spare in (8 << 30, needed * 11 // 10):
    lane = backend.lane(backend.slots)
    used = (8 << 30) - free_memory(backend.place) if spare < 8 << 30 else 0
    os.environ["FAKE_CUDA_BYTES"] = str(used + spare)
    rooms = [lane.room]
    while lane.widen():
        rooms.append(lane.room)
    print(backend.slots, *rooms)
    kept = lane
"""
    out, _ = run(script)
    assert out.splitlines() == ["64 4 16 64", "64 16"]  # of what the first one gave back


def test_what_crosses_the_bus_in_a_step_is_pinned(run) -> None:
    script = """
backend = OrtCudaBackend(bundle)
say("lane"); lane = backend.lane(4)
for staging in (lane._memory.taken, lane._memory.given):
    print(staging._host.ctypes.data)
say("closing"); del lane; backend.close()
"""
    out, events = run(script)
    taken, given = out.split()
    assert {f"pinned {taken}", f"pinned {given}"} <= set(events["lane"])


def test_a_second_song_records_nothing(run) -> None:
    """Every call has threads of its own; ONNX Runtime keeps graphs and cuBLAS for each."""
    script = """
from mt3_runtime.model import Model
ort_cuda.INITIAL_CAPACITY, ort_cuda.SLOTS = 1024, 32
ort = ort_cuda.OrtCudaBackend(bundle)
model = Model(bundle, ort, auto_filter=False)
say("warmup"); model.warmup()
features = np.random.default_rng(0).random((40, *silence_shape(ort)), np.float32)
for song in range(2):
    say(f"song {song}"); model.forward(features)
say("end")
"""
    _, events = run(script)
    assert events["warmup"].count("record") >= 7
    assert events["song 0"].count("replay") > 100
    assert "record" not in events["song 0"]
    assert not {"record", "cublas"} & set(events["song 1"])


def test_what_has_no_kernel_is_refused_by_name(run) -> None:
    script = """
try:
    OrtCudaBackend(bundle, profile="cpu")
except DeviceError as error:
    print(error)
"""
    out, _ = run(script)
    assert "(GroupQueryAttention) on CPUExecutionProvider" in out
    assert "decoder.cpu.onnx would not run on CUDAExecutionProvider as a whole" in out


@pytest.mark.parametrize("shape", [TINY_YMT3, TINY_SINGLE, TINY_MULTI, TINY_MOE])
def test_all_families_have_kernels(run, tmp_path, shape) -> None:
    """Convolutions, latents, rotary embeddings, experts, channels.

    The encoder with latents counts its rows on the host.
    """
    weights = seeded_weights(shape)
    for name, model in (
        ("encoder", build_encoder(weights, 12, profile="portable")),
        ("decoder", build_decoder(weights, 12, max_tokens=64, profile="portable")),
    ):
        onnx.save(model, tmp_path / f"{name}.onnx")
    script = """
for path in sys.argv[2:]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = ["CUDAExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    for part in session.get_provider_graph_assignment_info():
        print(part.ep_name, *(f"{node.name}:{node.op_type}" for node in part.get_nodes()))
"""
    out, _ = run(script, str(tmp_path / "encoder.onnx"), str(tmp_path / "decoder.onnx"))
    assert "CUDAExecutionProvider" in out
    nodes = [node.partition(":")[2] for line in out.splitlines() if not line.startswith("CUDA")
             for node in line.split()[1:]]  # fmt: skip
    assert set(nodes) <= set(SHAPE_OPERATORS)
    assert len(nodes) <= 1


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_graphs_of_16_bits_run_as_a_whole(packages, libraries, tiny_bundle, tmp_path, kind) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / kind))
    manifest = json.loads((path / "bundle.json").read_bytes())
    for graph in manifest["graphs"]:
        if graph["profile"] == "portable":
            model = onnx.load(path / graph["file"])
            to_half(model, kind)
            data = model.SerializeToString()
            (path / graph["file"]).write_bytes(data)
            graph |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    precision = manifest["precision"]
    precision |= {key: kind for key, value in precision.items() if value == "fp32"}
    (path / "bundle.json").write_text(json.dumps(manifest))
    script = LANE + (
        """
lane.load(0, silence)
lane.load(1, silence)
lane.step(2)
lane.move(1, 0)
lane.positions[:] = 128
say("grow"); lane.step(2)
say("step"); lane.step(2)
say("end")
"""
    )
    out, events = _run(packages, libraries, path, script, "graphs")
    assert out.startswith("cuda:0")
    assert "record" in events["grow"]
    assert "replay" in events["step"]


def test_options_reach_the_provider(run) -> None:
    script = """
for options in ({"gpu_mem_limit": str(2**30)}, {"no_such_option": "1"}):
    try:
        print("fine", OrtCudaBackend(bundle, options=options).description)
    except DeviceError as error:
        print("refused", error)
"""
    out, _ = run(script)
    fine, refused = out.splitlines()
    assert fine.startswith("fine cuda:0")
    assert refused.startswith("refused")
    assert "no_such_option" in refused


def test_without_cuda_the_device_is_refused(packages, tmp_path, tiny_bundle) -> None:
    script = """
try:
    OrtCudaBackend(bundle)
except DeviceError as error:
    print(error)
"""
    out, _ = _run(packages, tmp_path, tiny_bundle, script)
    assert out.startswith("device cuda:0 was asked for, but does not work here: there is no NVIDIA")
    assert "mt3 doctor" in out
