"""`mt3 doctor` for the devices tensorrt and rtx: which parts are there, and whether they work.

The proof is an engine that adds a number to itself, built and run as those of models are.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from mt3_engines.building.builder import config_class
from mt3_engines.optional import (
    find_place,
    import_onnx,
    import_polygraphy,
    import_tensorrt,
    make_logger,
    open_cuda,
)
from mt3_engines.running.contexts import Contexts
from mt3_engines.running.device_memory import DeviceMemory
from mt3_engines.targets import check_gpu
from mt3_engines.versions import MAKERS, RTX, TENSORRT, Maker
from mt3_runtime.bundles.tiny_graphs import sum_model
from mt3_runtime.diagnostics import cuda_libraries
from mt3_runtime.diagnostics.doctor import Finding, Level
from mt3_runtime.errors import DeviceError, MT3Error
from mt3_runtime.imports.extras import install, require


def examine(*, asked: bool, maker: Maker = TENSORRT) -> Iterator[Finding]:
    """Findings about TensorRT; none on a machine where nobody would expect it to work.

    Args:
        asked: Somebody wants to know in any case.
        maker: Which TensorRT.
    """
    others = [other.module for other in MAKERS.values() if other is not maker]
    if not asked and any(map(importlib.util.find_spec, others)):
        return  # one process can prove one of them: polygraphy decides when it is imported
    subject = f"device {maker.name}"
    found: dict[str, Any] = {}
    missing: dict[str, MT3Error] = {}

    def polygraphy() -> Any:
        if maker.module in found:
            return import_polygraphy(maker)
        return require("polygraphy", f"A {maker.title} engine", maker.extra)

    parts: dict[str, Callable[[], Any]] = {
        maker.module: partial(import_tensorrt, maker),
        "polygraphy": polygraphy,
        "onnx": import_onnx,
        "CUDA bindings": partial(open_cuda, 0, maker),
    }
    for name, get in parts.items():
        try:
            found[name] = get()
        except MT3Error as error:
            missing[name] = error
    if not asked and (maker.module not in found or cuda_libraries.driver() is None):
        return
    if missing:
        reason = "; ".join(f"{name}: {_brief(e)}" for name, e in missing.items())
        builds = maker is RTX and set(missing) == {"CUDA bindings"}
        also = ", but engines are built here, for other machines" if builds else ""
        remedy = "run them on a machine with a GPU" if builds else install(maker.extra)
        yield Finding(subject, Level.NOTE, f"does not work: {reason}{also}", remedy)
        return
    version = found[maker.module].__version__
    try:
        place = find_place(found[maker.module], found["CUDA bindings"], maker)
        if maker is RTX:
            check_gpu(place)
        config = config_class(found["polygraphy"], [place.capability] if maker is RTX else [])
        _run_engine(found[maker.module], found["polygraphy"], found["CUDA bindings"], config())
    except Exception as error:  # noqa: BLE001  polygraphy and TensorRT have no class of their own
        reason = " ".join(str(error).split())
        advice = "`mt3 build --log FILE` keeps what TensorRT says"
        yield Finding(subject, Level.NOTE, f"{maker.title} {version} fails: {reason}", advice)
        return
    gpu = found["CUDA bindings"].name
    yield Finding(subject, Level.OK, f"{maker.title} {version} builds and runs an engine on {gpu}")


def _brief(error: MT3Error) -> str:
    """Why a part is missing: the import that failed, or what the GPU said."""
    cause = error if isinstance(error, DeviceError) else error.__cause__ or error
    return str(cause).rstrip(".")


def examine_rtx(*, asked: bool) -> Iterator[Finding]:
    """`examine` for TensorRT for RTX."""
    return examine(asked=asked, maker=RTX)


def _run_engine(tensorrt: Any, loaders: Any, cuda: Any, config: Any) -> None:
    """Builds and runs ``21 + 21``.

    Raises:
        DeviceError: It came out as something else.
        Exception: Whatever TensorRT, polygraphy or CUDA raise.
    """
    network = loaders.NetworkFromOnnxBytes(sum_model(), strongly_typed=True)
    data = loaders.EngineBytesFromNetwork(network, config=config)()
    runtime = tensorrt.Runtime(make_logger(tensorrt))
    contexts = Contexts(tensorrt, runtime.deserialize_cuda_engine(bytes(data)))
    with contextlib.closing(DeviceMemory(cuda)) as memory:
        stream, twin, result = memory.stream(), memory.exchange(4), memory.allocate(4)
        twin.array(np.float32, (1,))[:] = 21.0
        cuda.upload(twin.device, twin.host, 4, stream)
        context = contexts.make(
            0,
            shapes={"x": (1,)},
            addresses={"x": twin.device, "y": result},
            stream=cuda.stream_handle(stream),
            scratch=memory.allocate,
        )
        memory.keep(context)
        ran = context.execute_async_v3(cuda.stream_handle(stream))
        cuda.download(twin.host, result, 4, stream)
        cuda.synchronize(stream)
        value = twin.array(np.float32, (1,))[0]
        if not ran or value != 42.0:
            raise DeviceError(f"21 + 21 came out as {value}")
