"""Imports TensorRT, polygraphy and the CUDA bindings, or names the extra that brings them.

TensorRT and TensorRT for RTX may both be installed; a process builds with one of them, as
polygraphy decides between them when it is imported.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from mt3_engines.running.cuda import Cuda
from mt3_engines.storage.keys import EngineTarget
from mt3_engines.versions import TENSORRT, Maker
from mt3_runtime.diagnostics import cuda_libraries
from mt3_runtime.errors import DeviceError
from mt3_runtime.imports.extras import require

#: What TensorRT and polygraphy say.
log = logging.getLogger("mt3_engines")


def import_tensorrt(maker: Maker = TENSORRT) -> Any:
    """Imports TensorRT.

    Raises:
        MissingDependencyError: It is not installed, or its libraries are not found.
        DeviceError: Its version is not supported.
    """
    module = _import(maker.module, maker)
    maker.version(module.__version__)
    return module


def import_polygraphy(maker: Maker = TENSORRT) -> Any:
    """Imports polygraphy's TensorRT loaders, and makes it log instead of print.

    Raises:
        MissingDependencyError: It is not installed.
        DeviceError: This process has it for another maker already.
    """
    # The logger first: until then it prints, also that it has no colours, and stdout is data.
    logger = _import("polygraphy.logger", maker).G_LOGGER
    logger.use_python_logging_system, logger.colors = True, False
    settings = _import("polygraphy.config", maker)
    other = maker is not TENSORRT
    if settings.USE_TENSORRT_RTX is not other:
        if "polygraphy.backend.trt" in sys.modules:
            raise DeviceError(
                f"This process has built engines of another TensorRT; those of {maker.title} need "
                "a process of their own."
            )
        settings.USE_TENSORRT_RTX = other
    return _import("polygraphy.backend.trt", maker)


def import_onnx() -> Any:
    """Imports onnx, which graphs are rewritten with.

    Raises:
        MissingDependencyError: It is not installed.
    """
    return _import("onnx", TENSORRT)


def open_cuda(index: int, maker: Maker = TENSORRT) -> Cuda:
    """Opens a GPU.

    Raises:
        MissingDependencyError: The CUDA bindings are not installed.
        DeviceError: There is no such GPU, or no driver, or one that is too old.
    """
    runtime = _import("cuda.bindings.runtime", maker)
    try:
        return Cuda(runtime, index)
    except DeviceError as error:  # CUDA says the same of no driver and of an old one
        here, what = cuda_libraries.driver(), f"device {maker.name} needs an NVIDIA GPU"
        if here is None:
            remedy = "install the driver, or use device cpu"
            raise DeviceError(f"{what}, and there is no driver here: {remedy}.") from error
        said = str(error).rstrip(".")
        served = cuda_libraries.dotted(here.cuda)
        raise DeviceError(f"{what}; {said}. The driver serves CUDA {served}.") from error


def find_place(tensorrt: Any, cuda: Cuda, maker: Maker = TENSORRT) -> EngineTarget:
    """What engines run on here, and are built for if no targets are named."""
    return EngineTarget(tensorrt.__version__, cuda.capability, cuda.name, maker.name)


def make_logger(tensorrt: Any) -> Any:
    """A logger for TensorRT that hands everything to Python's logging."""
    levels = {
        tensorrt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        tensorrt.ILogger.Severity.ERROR: logging.ERROR,
        tensorrt.ILogger.Severity.WARNING: logging.WARNING,
        tensorrt.ILogger.Severity.INFO: logging.INFO,
    }

    class Logger(tensorrt.ILogger):  # type: ignore[misc]
        """Its base is a class of the bindings, which must be initialised by hand."""

        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT, from any thread."""
            log.log(levels.get(severity, logging.DEBUG), "%s", msg)

    return Logger()


def _import(name: str, maker: Maker) -> Any:
    return require(name, f"A {maker.title} engine", maker.extra)
