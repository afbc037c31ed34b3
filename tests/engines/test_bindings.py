"""Our calls against the published bindings of TensorRT and CUDA: names, signatures, subclasses.

The bindings are imported over stub libraries in processes of their own; `bindings.py` makes the
folder that ``MT3_TENSORRT_BINDINGS`` names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mt3_engines
from tests import needs
from tests.engines.bindings import TENSORRT

PACKAGE = Path(mt3_engines.__file__).parent

#: Every function of TensorRT we call, with the parameters we give it, in order.
CALLS = {
    "Runtime.__init__": ("logger",),
    "Runtime.deserialize_cuda_engine": ("serialized_engine",),
    "ICudaEngine.create_execution_context": ("strategy",),
    "ICudaEngine.get_tensor_name": ("index",),
    "ICudaEngine.get_device_memory_size_for_profile_v2": ("profile_index",),
    "IExecutionContext.set_optimization_profile_async": ("profile_index", "stream_handle"),
    "IExecutionContext.set_input_shape": ("name", "shape"),
    "IExecutionContext.set_tensor_address": ("name", "memory"),
    "IExecutionContext.execute_async_v3": ("stream_handle",),
    "IExecutionContext.update_device_memory_size_for_shapes": (),
    "IExecutionContext.set_device_memory": ("memory", "size"),
    "Refitter.__init__": ("engine", "logger"),
    "Refitter.refit_cuda_engine": (),
    "OnnxParserRefitter.__init__": ("refitter", "logger"),
    "OnnxParserRefitter.refit_from_bytes": ("model",),
    "IBuilderConfig.set_flag": ("flag",),
    # Those TensorRT calls, ours override.
    "ILogger.log": ("severity", "msg"),
    "IProgressMonitor.phase_start": ("phase_name", "parent_phase", "num_steps"),
    "IProgressMonitor.step_complete": ("phase_name", "step"),
    "IProgressMonitor.phase_finish": ("phase_name",),
    # Those polygraphy calls for us.
    "Builder.create_network": ("flags",),
    "Builder.build_serialized_network": ("network", "config"),
    "IOptimizationProfile.set_shape": ("input", "min", "opt", "max"),
    "IBuilderConfig.add_optimization_profile": ("profile",),
    "IBuilderConfig.create_timing_cache": ("serialized_timing_cache",),
    "IBuilderConfig.set_timing_cache": ("cache", "ignore_mismatch"),
    "OnnxParser.parse": ("model",),
}
#: What is read or set without a call.
ATTRIBUTES = (
    "Runtime.engine_host_code_allowed",
    "ICudaEngine.num_io_tensors",
    "ExecutionContextAllocationStrategy.USER_MANAGED",
    "IBuilderConfig.progress_monitor",
    "IBuilderConfig.hardware_compatibility_level",
    "HardwareCompatibilityLevel.AMPERE_PLUS",
    "BuilderFlag.STRIP_PLAN",
    "BuilderFlag.REFIT_IDENTICAL",
    "BuilderFlag.TF32",
    "BuilderFlag.VERSION_COMPATIBLE",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    *(f"ILogger.Severity.{name}" for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO")),
)
#: Used where there; what to do without is in the code.
OPTIONAL = {
    "BuilderFlag.DISTRIBUTIVE_INDEPENDENCE": (False, True, True),
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": (False, True, True),
    "INetworkDefinition.add_kv_cache_update": (False, True, True),
    # Of TensorRT for RTX alone (test_rtx_compiler.py).
    "CudaGraphStrategy": (False, False, False),
    "DynamicShapesKernelSpecializationStrategy": (False, False, False),
    "BuilderFlag.REQUIRE_USER_ALLOCATION": (False, False, False),
}

LOOK = """
import functools, json, sys, tensorrt
def look(path):
    try:
        found = functools.reduce(getattr, path.split("."), tensorrt)
    except AttributeError:
        return None
    return found.__doc__ or ""
print(json.dumps({path: look(path) for path in json.loads(sys.argv[1])}))
"""

#: Our own code over the real classes.
RUN = """
import logging, sys, tensorrt, threading
from pathlib import Path
from types import SimpleNamespace
from mt3_engines.building.builder import Tools, config_arguments, hardware_level, make_monitor
from mt3_engines.storage.keys import EngineKey, EngineTarget
from mt3_engines.optional import import_tensorrt, log, make_logger
from mt3_engines.storage.store import EngineStore
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import DeviceError

said, seen = [], []
log.addHandler(SimpleNamespace(level=0, handle=lambda record: said.append(record.getMessage())))
log.setLevel(logging.INFO)
make_logger(tensorrt).log(tensorrt.ILogger.Severity.ERROR, "heard")
assert said == ["heard"], said
cancelled = threading.Event()
monitor = make_monitor(tensorrt, lambda *step: seen.append(step), cancelled)
assert isinstance(monitor, tensorrt.IProgressMonitor)
monitor.phase_start("phase", None, 2)
assert monitor.step_complete("phase", 0) is True
cancelled.set()
assert monitor.step_complete("phase", 1) is False
monitor.phase_finish("phase")
assert seen == [(1, 2, "phase"), (2, 2, "phase")]
place = EngineTarget(import_tensorrt().__version__, "9.0", "GPU")
key = EngineKey("e", "decoder", "a", 1, "fp16", (1, 8), 64, place.tensorrt, "9.0", "GPU",
                version_compatible=True, hardware="ampere_plus", stripped=True)
assert hardware_level(tensorrt, key) is tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
import polygraphy.backend.trt as loaders
from mt3_engines.optional import import_polygraphy
assert import_polygraphy() is loaders
tools = Tools(tensorrt, loaders, place, print)
manifest = Bundle(Path(sys.argv[1])).manifest
arguments = config_arguments(manifest, key, EngineStore(Path(sys.argv[2])), tools)
config = loaders.PostprocessConfig(
    loaders.CreateConfig(**arguments, progress_monitor=monitor), func=print
)
network = loaders.NetworkFromOnnxBytes(b"", strongly_typed=True)
build = loaders.EngineBytesFromNetwork(network, config=config, save_timing_cache="x")
assert callable(build) and len(arguments["profiles"]) == 2
from mt3_engines.checks import _run_engine
try:
    _run_engine(tensorrt, loaders, None, loaders.CreateConfig())
except (AttributeError, NameError):
    raise
except Exception as error:  # the stubs make nothing
    print(error)
else:
    raise AssertionError("this is a real TensorRT")
try:
    tensorrt.Runtime(make_logger(tensorrt))
except TypeError:  # the stubs make nothing
    pass
else:
    raise AssertionError("this is a real TensorRT")
"""

CUDA = """
import json, sys
from cuda.bindings import runtime
from mt3_engines.running.cuda import Cuda
from mt3_runtime.errors import DeviceError
print(json.dumps({name: getattr(runtime, name).__doc__ for name in sys.argv[1:]}))
runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
for kind in ("HostToDevice", "DeviceToHost", "DeviceToDevice"):
    getattr(runtime.cudaMemcpyKind, "cudaMemcpy" + kind)
assert int(runtime.cudaStream_t(7)) == 7
try:
    Cuda(runtime, 99)
except DeviceError as error:
    assert "CUDA: cudaGetDeviceCount failed" in str(error) or "no GPU 99" in str(error), error
else:
    raise AssertionError("a hundred GPUs?")
"""


def python(code: str, place: str, *arguments: str) -> str:
    """Runs a program where the bindings of a folder can be imported."""
    bindings = os.environ.get("MT3_TENSORRT_BINDINGS")
    if not bindings:
        needs.missing("bindings", "MT3_TENSORRT_BINDINGS is not set")
    folder = Path(bindings).resolve() / place
    paths = [str(folder), *(str(Path(p).resolve()) for p in sys.path if p)]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def signatures(doc: str) -> list[list[str]]:
    """Names of the parameters, one list per overload."""
    found = re.findall(r"\w+\((self: [^)]*(?:\([^)]*\)[^)]*)*)\) ->", doc)
    return [re.findall(r"(?:^|, )(\w+):", text)[1:] for text in found]


@pytest.mark.parametrize("version", TENSORRT)
def test_every_call_exists_with_its_parameters(version):
    paths = [*CALLS, *ATTRIBUTES]
    docs = json.loads(python(LOOK, version, json.dumps(paths)))
    assert [path for path in paths if docs[path] is None] == []
    for path, parameters in CALLS.items():
        overloads = signatures(docs[path])
        fitting = [names for names in overloads if names[: len(parameters)] == list(parameters)]
        assert fitting, f"{path} takes {overloads}"


def test_what_only_some_versions_have():
    for index, version in enumerate(TENSORRT):
        docs = json.loads(python(LOOK, version, json.dumps(list(OPTIONAL))))
        for path, there in OPTIONAL.items():
            assert (docs[path] is not None) is there[index], (version, path)


@pytest.mark.parametrize("version", TENSORRT)
def test_our_code_runs_over_the_real_classes(version, tiny_bundle, tmp_path):
    needs.package("polygraphy")
    python(RUN, version, str(tiny_bundle), str(tmp_path))


def test_the_table_names_what_the_code_uses():
    """Classes and enumerations that our source takes from TensorRT are all in the table."""
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    used = set(re.findall(r"\b(?:self\._)?tensorrt\.([A-Z]\w+)", source))
    known = {path.partition(".")[0] for path in (*CALLS, *ATTRIBUTES, *OPTIONAL)}
    assert used
    assert used <= known


def test_cuda_has_every_call_with_as_many_parameters():
    source = (PACKAGE / "running" / "cuda.py").read_text(encoding="utf-8")
    names = sorted(set(re.findall(r'"(cuda[A-Z]\w+)"', source)))
    docs = json.loads(python(CUDA, "cuda", *names).splitlines()[0])
    given = {
        "cudaMemcpyAsync": 5,
        "cudaMemcpy2DAsync": 8,
        "cudaMemsetAsync": 4,
        "cudaStreamBeginCapture": 2,
        "cudaGraphInstantiate": 2,
        "cudaGraphLaunch": 2,
        "cudaStreamWaitEvent": 3,
        "cudaEventRecord": 2,
        "cudaHostAlloc": 2,
        "cudaGetDeviceCount": 0,
        "cudaMemGetInfo": 0,
    }
    assert set(given) <= set(names)
    for name in names:
        inside = docs[name].partition("(")[2].partition(")")[0]
        count = len([part for part in inside.split(",") if part.strip()])
        assert count == given.get(name, 1), docs[name].partition("\n")[0]
