"""Builds a TensorRT engine from a prepared graph.

polygraphy's loaders parse the graph into a strongly typed network, set the builder up and keep the
timing cache; what they do not know is set on TensorRT's own configuration.  Everything that decides
what is computed is in the graph (`mt3_engines.building.prepare`): no precision flag is ever set,
and TF32 is off, so that fp32 means fp32.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mt3_engines.building.operators import faults
from mt3_engines.building.prepare import prepare
from mt3_engines.optional import import_onnx, log
from mt3_engines.storage.keys import EngineKey, EngineTarget
from mt3_engines.storage.requests import PROFILE
from mt3_engines.storage.shapes import Shape, decoder_shapes, encoder_shapes
from mt3_engines.storage.store import EngineInfo, EngineStore
from mt3_engines.versions import parse_version
from mt3_runtime.errors import BundleError, DeviceError
from mt3_runtime.filesystem.atomic import make_folder
from mt3_runtime.imports.interrupts import Held

if TYPE_CHECKING:
    from onnx import ModelProto

    from mt3_runtime.bundles.bundle import Bundle, Manifest

T = TypeVar("T")

#: Called with (steps done, steps in all, phase) while TensorRT works.
Report = Callable[[float, float | None, str], None]

#: Seconds between looks for Ctrl-C: on Windows, no signal ends a wait.
_LOOK = 0.1


@dataclass(frozen=True)
class Tools:
    """The modules that build.

    Attributes:
        tensorrt: ``tensorrt``.
        loaders: ``polygraphy.backend.trt``.
        place: What they build for.
        use_gpu: Makes the GPU they build on the calling thread's; CUDA chooses one per thread.
    """

    tensorrt: Any
    loaders: Any
    place: EngineTarget
    use_gpu: Callable[[], None]


def prepared_graph(bundle: Bundle, key: EngineKey) -> ModelProto:
    """The graph an engine is built from, and later refitted from.

    Raises:
        BundleError: The bundle's graph is damaged, or TensorRT would not read it as it is meant.
        MissingDependencyError: onnx is not installed.
    """
    onnx = import_onnx()
    data = bundle.data(bundle.graph(key.role, PROFILE))
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's, which is not imported here
        raise BundleError(f"{key.role} graph of {bundle.path} is no ONNX: {error}.") from error
    version = parse_version(key.tensorrt)
    try:
        made = prepare(model, version, precision=key.precision, capacity=key.capacity)
    except ValueError as error:
        raise BundleError(f"{key.role} graph of {bundle.path}: {error}.") from error
    found = faults(made, version)
    if found:
        raise BundleError(
            f"TensorRT {version} does not read the {key.role} of {bundle.path} as it is meant: "
            f"{'; '.join(found)}. Please report it; device cuda runs this model."
        )
    return made


def profiles(manifest: Manifest, key: EngineKey) -> list[dict[str, Shape]]:
    """Shapes of all inputs, one dict for each number of rows."""
    if key.role == "encoder":
        shapes = [encoder_shapes(manifest)]
    else:
        shapes = [decoder_shapes(manifest, rows, key.capacity) for rows in key.slots]
    inputs = {name for graph in manifest.graphs if graph.role == key.role for name in graph.inputs}
    return [{name: shape for name, shape in one.items() if name in inputs} for one in shapes]


def build_engine(
    bundle: Bundle,
    key: EngineKey,
    *,
    store: EngineStore,
    tools: Tools,
    report: Report | None = None,
) -> EngineInfo:
    """Builds one engine and keeps it; Ctrl-C or SIGTERM cancels the build and keeps nothing.

    Raises:
        BundleError: The graph is damaged or unfit.
        DeviceError: TensorRT cannot build it, or the GPU has no such arithmetic.
        OutputError: It cannot be written.
    """
    lacking = key.lacking()
    if lacking:
        raise DeviceError(f"{bundle.path}: {lacking}. Use a bundle of int8, or the exact one.")
    graph = prepared_graph(bundle, key).SerializeToString()
    make_folder(store.folder)
    store.check_place(key)
    started = time.monotonic()
    poly, cancelled = tools.loaders, threading.Event()
    network = poly.NetworkFromOnnxBytes(graph, strongly_typed=True)
    arguments = config_arguments(bundle.manifest, key, store, tools)
    monitor = make_monitor(tools.tensorrt, report, cancelled)
    config = poly.PostprocessConfig(
        poly.CreateConfig(**arguments, progress_monitor=monitor),
        func=_finisher(tools.tensorrt, key),
    )
    cache = str(store.timing_cache(tools.place))
    build = poly.EngineBytesFromNetwork(network, config=config, save_timing_cache=cache)

    def work() -> Any:
        tools.use_gpu()
        return build()

    try:
        engine = cancellable(work, cancelled)
    except Exception as error:  # polygraphy has one class for everything, TensorRT none
        raise DeviceError(
            f"TensorRT {key.tensorrt} could not build the {key.role} engine: {error}. "
            "`mt3 build --log FILE` keeps what it said."
        ) from error
    seconds = time.monotonic() - started
    return store.put(key, bytes(engine), model=bundle.manifest.name, seconds=seconds)


def cancellable(work: Callable[[], T], cancelled: threading.Event) -> T:
    """Calls a long function of a C++ library so that Ctrl-C and SIGTERM can end it.

    Python handles signals in the main thread, between its own instructions: inside the library
    there are none.  So the work has a thread of its own, and this one waits for it.

    Args:
        work: The function; it lets other threads run, and looks at `cancelled` now and then.
        cancelled: Set when something is raised here, which is passed on once the work has ended.
    """
    with ThreadPoolExecutor(1) as thread:
        try:
            with Held():  # a thread whose start is interrupted is waited for by nobody
                made = thread.submit(work)
            while not made.done():
                wait([made], timeout=_LOOK)
        except BaseException:
            cancelled.set()
            raise
    return made.result()


def config_arguments(
    manifest: Manifest, key: EngineKey, store: EngineStore, tools: Tools
) -> dict[str, Any]:
    """What polygraphy's ``CreateConfig`` is called with, beside the monitor."""
    made = []
    for shapes in profiles(manifest, key):
        profile = tools.loaders.Profile()
        for name, shape in shapes.items():
            profile.add(name, min=shape, opt=shape, max=shape)
        made.append(profile)
    arguments: dict[str, Any] = {"profiles": made, "tf32": False}
    timing = store.timing_cache(tools.place)
    if timing.is_file():
        arguments["load_timing_cache"] = str(timing)
    if key.version_compatible:
        arguments["version_compatible"] = True
    if key.stripped:
        arguments["strip_plan"] = True
    if key.hardware != "this":
        arguments["hardware_compatibility_level"] = hardware_level(tools.tensorrt, key)
    return arguments


def hardware_level(tensorrt: Any, key: EngineKey) -> Any:
    """TensorRT's name for the GPUs an engine shall run on.

    Raises:
        DeviceError: This version of TensorRT has no such level.
    """
    name = {"same": "SAME_COMPUTE_CAPABILITY", "ampere_plus": "AMPERE_PLUS"}[key.hardware]
    level = getattr(tensorrt.HardwareCompatibilityLevel, name, None)
    if level is None:
        raise DeviceError(
            f"TensorRT {tensorrt.__version__} cannot build for {key.hardware!r} hardware. Use "
            "--hardware this, or --hardware ampere_plus."
        )
    return level


def _finisher(tensorrt: Any, key: EngineKey) -> Callable[[Any, Any, Any], None]:
    """Sets what polygraphy has no argument for."""

    def finish(_builder: Any, _network: Any, config: Any) -> None:
        if key.stripped:
            # The weights come back exactly as they were, so TensorRT may fold what it likes.
            config.set_flag(tensorrt.BuilderFlag.REFIT_IDENTICAL)
        # All rows in the same way, whatever their place, where TensorRT can promise that.  Exact
        # engines alone: it forbids some of the fastest products.
        flag = getattr(tensorrt.BuilderFlag, "DISTRIBUTIVE_INDEPENDENCE", None)
        if flag is not None and key.precision == "fp32":
            config.set_flag(flag)

    return finish


def make_monitor(tensorrt: Any, report: Report | None, cancelled: threading.Event) -> Any:
    """Reports the phases of a build, and ends it; TensorRT calls it from any thread."""

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]
        """Follows the innermost phase."""

        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """A phase begins."""
            self.steps[phase_name] = num_steps
            log.debug("%s (of %s): %d steps", phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """A step is done; True lets the build go on."""
            if report is not None:
                report(step + 1, self.steps.get(phase_name), phase_name)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            """A phase ends."""
            self.steps.pop(phase_name, None)

    return Monitor()
