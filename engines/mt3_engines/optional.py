"""Imports TensorRT, polygraphy and the CUDA bindings, or names the extra that brings them."""

from __future__ import annotations

import logging
from typing import Any

from mt3_engines.running.cuda import Cuda
from mt3_engines.storage.keys import EngineTarget
from mt3_engines.versions import parse_version
from mt3_runtime.imports.extras import require

#: What TensorRT and polygraphy say.
log = logging.getLogger("mt3_engines")


def import_tensorrt() -> Any:
    """Imports TensorRT.

    Raises:
        MissingDependencyError: It is not installed, or its libraries are not found.
        DeviceError: Its version is not supported.
    """
    module = _import("tensorrt")
    parse_version(module.__version__)
    return module


def import_polygraphy() -> Any:
    """Imports polygraphy's TensorRT loaders, and makes it log instead of print.

    Raises:
        MissingDependencyError: It is not installed.
    """
    loaders = _import("polygraphy.backend.trt")
    logger = _import("polygraphy.logger").G_LOGGER
    logger.use_python_logging_system = True
    return loaders


def import_onnx() -> Any:
    """Imports onnx, which graphs are rewritten with.

    Raises:
        MissingDependencyError: It is not installed.
    """
    return _import("onnx")


def open_cuda(index: int) -> Cuda:
    """Opens a GPU.

    Raises:
        MissingDependencyError: The CUDA bindings are not installed.
        DeviceError: There is no such GPU, or no driver.
    """
    return Cuda(_import("cuda.bindings.runtime"), index)


def find_place(tensorrt: Any, cuda: Cuda) -> EngineTarget:
    """What engines are built for here."""
    return EngineTarget(tensorrt.__version__, cuda.capability, cuda.name)


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


def _import(name: str) -> Any:
    return require(name, "A TensorRT engine", "trt")
