"""Finds NVIDIA's libraries, driver and GPUs, asking the libraries themselves.

Wheels, system packages and containers bring CUDA in different ways; what counts is which libraries
the loader finds and what they answer.  Nothing here needs a GPU: what is absent is None.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("mt3_runtime")

#: cuDeviceGetAttribute: compute capability, major and minor.
_MAJOR, _MINOR = 75, 76

#: The driver's library.
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

#: CUDA of the wheels from 1.27 on, where the wheel does not say it.
_DEFAULT = 13


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, compute capability (9, 0), and memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name} (compute {major}.{minor}, {self.memory / 2**30:.0f} GiB)"


@dataclass(frozen=True)
class Driver:
    """The driver: the newest CUDA it serves, (13, 0), its GPUs, and why there are none."""

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]
    trouble: str = ""


def preload(runtime: Any) -> None:
    """Loads CUDA and cuDNN from the ``nvidia`` wheels, where the loader would not look.

    ONNX Runtime does so for wheels in its own site-packages; those that came with PyTorch may lie
    in another one.  It prints what it does not find, and raises nothing: `trouble` says more, and
    is asked before ONNX Runtime is, whose log level belongs to the whole process.
    """
    _load_from_wheels(wheel_cuda())
    if hasattr(runtime, "preload_dlls"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            runtime.preload_dlls()
        if said.getvalue():
            log.debug("preloading CUDA libraries: %s", said.getvalue().strip())


def _load_from_wheels(major: int) -> None:
    """Loads libraries by path, each behind those it needs; they are found by name then."""
    folders = _wheel_folders(major)
    for name in (*_needed(major), f"libnvrtc.so.{major}", "libcudnn.so.9"):
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is not None:
            _open(str(path))


def _wheel_folders(major: int) -> list[Path]:
    """Where NVIDIA's wheels have their libraries, those of this version of CUDA first."""
    spec = importlib.util.find_spec("nvidia")  # a namespace: one root per site-packages
    roots = (spec.submodule_search_locations if spec else None) or ()
    folders = [folder for root in roots for folder in sorted(Path(root).glob("*/lib"))]
    return sorted(folders, key=lambda folder: folder.parent.name != f"cu{major}")


def is_there() -> bool:
    """Whether there is an NVIDIA GPU, as far as can be told without waking it up.

    The driver's files say so on Linux, in containers and on Jetson; elsewhere its library does.
    """
    if sys.platform != "linux":
        return _open(_DRIVER) is not None
    files = ("/proc/driver/nvidia/gpus", "/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu")
    windows = Path("/dev/dxg").exists() and _open(_DRIVER) is not None  # under Windows' Linux
    return windows or any(Path(file).exists() for file in files)


def driver() -> Driver | None:
    """Asks the driver; None where there is none."""
    library = _open(_DRIVER)
    if library is None:
        return None
    served = ctypes.c_int()
    try:
        library.cuDriverGetVersion(ctypes.byref(served))
    except AttributeError:  # a placeholder to link against
        return None
    cuda = (served.value // 1000, served.value % 1000 // 10)
    status = library.cuInit(0)
    if status:
        return Driver(cuda, (), f"cuInit failed with status {status}")
    return Driver(cuda, tuple(_gpus(library)))


def _gpus(library: Any) -> Iterator[Gpu]:
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        library.cuDeviceGetName(name, 256, index)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), index)
        capability = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            library.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)
            capability.append(value.value)
        yield Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value)


def trouble(index: int = 0) -> str:
    """Why ONNX Runtime's CUDA provider cannot work on a GPU; empty if nothing is in its way."""
    here, major = driver(), wheel_cuda()
    if here is None:
        return f"there is no NVIDIA driver ({_DRIVER})"
    if not here.gpus:
        return f"there is a driver, but no GPU ({here.trouble or 'none is listed'})"
    if index >= len(here.gpus):
        return f"there is no GPU {index}, only {len(here.gpus)} of them, counted from 0"
    if here.cuda[0] < major:
        return f"the driver serves CUDA {dotted(here.cuda)}, ONNX Runtime is built for {major}"
    lacking = missing(major)
    return f"libraries are missing: {', '.join(lacking)}" if lacking else ""


def wheel_cuda() -> int:
    """The major version of CUDA that the installed wheel of ONNX Runtime is built for."""
    try:
        about = importlib.import_module("onnxruntime.capi.build_and_package_info")
        return int(about.cuda_version.partition(".")[0])
    except (ImportError, OSError, AttributeError, ValueError):
        return _DEFAULT


def dotted(version: tuple[int, int]) -> str:
    """A version as people write it."""
    return ".".join(map(str, version))


def missing(major: int) -> list[str]:
    """Libraries of CUDA ``major`` that ONNX Runtime's CUDA provider needs and the loader lacks."""
    return [name for name in _needed(major) if _open(name) is None]


def _needed(major: int) -> tuple[str, ...]:
    """What the provider is linked to; cuDNN and cuFFT it loads where a graph needs them."""
    if sys.platform == "win32":
        return tuple(f"{name}64_{major}.dll" for name in ("cudart", "cublasLt", "cublas"))
    return (*(f"lib{name}.so.{major}" for name in ("cudart", "cublasLt", "cublas")),
            "libcurand.so.10")  # fmt: skip


def runtime_library() -> str:
    """Name of the CUDA runtime that ONNX Runtime's provider is linked to."""
    return _needed(wheel_cuda())[0]


def runtime_version(major: int) -> str | None:
    """Version of the CUDA runtime of this major version, such as 13.0."""
    library = _open(f"libcudart.so.{major}")
    if library is None:
        return None
    found = ctypes.c_int()
    library.cudaRuntimeGetVersion(ctypes.byref(found))
    return f"{found.value // 1000}.{found.value % 1000 // 10}"


def cudnn_version() -> str | None:
    """Version of cuDNN 9, such as 9.10.2."""
    library = _open("libcudnn.so.9")
    if library is None:
        return None
    library.cudnnGetVersion.restype = ctypes.c_size_t
    found = int(library.cudnnGetVersion())
    return f"{found // 10000}.{found % 10000 // 100}.{found % 100}"


def tensorrt_version(major: int) -> str | None:
    """Version of TensorRT of this major version, such as 10.16.1."""
    library = _open(f"libnvinfer.so.{major}")
    if library is None:
        return None
    found = int(library.getInferLibVersion())
    return f"{found // 10000}.{found % 10000 // 100}.{found % 100}"


def _open(name: str) -> Any | None:
    """Loads a shared library; None if the loader does not find it or one that it needs."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
