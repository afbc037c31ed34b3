"""`mt3 doctor` for TensorRT devices: which parts are there, and whether they work.

The proof is an engine that adds a number to itself, built and run as those of models are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mt3_engines.optional import (
    import_onnx,
    import_polygraphy,
    import_tensorrt,
    make_logger,
    open_cuda,
)
from mt3_runtime.bundles.tiny_graphs import sum_model
from mt3_runtime.diagnostics import cuda_libraries
from mt3_runtime.diagnostics.doctor import Finding, Level
from mt3_runtime.errors import DeviceError, MT3Error
from mt3_runtime.imports.extras import install

_SUBJECT = "device tensorrt"


def examine(*, asked: bool) -> Iterator[Finding]:
    """Findings about TensorRT; none on a machine where nobody would expect it to work.

    Args:
        asked: Somebody wants to know in any case.
    """
    parts: dict[str, Callable[[], Any]] = {
        "tensorrt": import_tensorrt,
        "polygraphy": import_polygraphy,
        "onnx": import_onnx,
        "CUDA bindings": lambda: open_cuda(0),
    }
    found, missing = {}, {}
    for name, get in parts.items():
        try:
            found[name] = get()
        except MT3Error as error:
            missing[name] = error
    if not asked and ("tensorrt" not in found or cuda_libraries.driver() is None):
        return
    if missing:
        reason = "; ".join(f"{name}: {e.__cause__ or e}" for name, e in missing.items())
        yield Finding(_SUBJECT, Level.NOTE, f"does not work: {reason}", install("trt"))
        return
    version = found["tensorrt"].__version__
    try:
        _run_engine(found["tensorrt"], found["polygraphy"], found["CUDA bindings"])
    except Exception as error:  # noqa: BLE001  polygraphy and TensorRT have no class of their own
        reason = " ".join(str(error).split())
        advice = "`mt3 build --log FILE` keeps what TensorRT says"
        yield Finding(_SUBJECT, Level.NOTE, f"TensorRT {version} fails: {reason}", advice)
        return
    gpu = found["CUDA bindings"].name
    yield Finding(_SUBJECT, Level.OK, f"TensorRT {version} builds and runs an engine on {gpu}")


def _run_engine(tensorrt: Any, loaders: Any, cuda: Any) -> None:
    """Builds and runs ``21 + 21``.

    Raises:
        DeviceError: It came out as something else.
        Exception: Whatever TensorRT, polygraphy or CUDA raise.
    """
    network = loaders.NetworkFromOnnxBytes(sum_model(), strongly_typed=True)
    data = loaders.EngineBytesFromNetwork(network, config=loaders.CreateConfig())()
    runtime = tensorrt.Runtime(make_logger(tensorrt))
    engine = runtime.deserialize_cuda_engine(bytes(data))
    context = engine.create_execution_context()
    stream, device = cuda.stream(), [cuda.allocate(4), cuda.allocate(4)]
    host = cuda.pinned(4)
    host.view(np.float32)[:] = 21.0
    cuda.upload(device[0], host, 4, stream)
    context.set_input_shape("x", (1,))
    for name, address in zip("xy", device, strict=True):
        context.set_tensor_address(name, address)
    ran = context.execute_async_v3(cuda.stream_handle(stream))
    cuda.download(host, device[1], 4, stream)
    cuda.synchronize(stream)
    result = host.view(np.float32)[0]
    cuda.free_pinned(host)
    for address in device:
        cuda.free(address)
    cuda.close_stream(stream)
    if not ran or result != 42.0:
        raise DeviceError(f"21 + 21 came out as {result}")
