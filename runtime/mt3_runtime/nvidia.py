"""What of NVIDIA's software is here, asked of the libraries themselves.

Wheels, system packages and containers bring CUDA in different ways; what counts is which libraries
the loader finds and what they answer.  Nothing here needs a GPU: what is absent is None.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("mt3_runtime")

#: cuDeviceGetAttribute: compute capability, major and minor.
_MAJOR, _MINOR = 75, 76

#: CUDA of the wheels from 1.27 on, where the wheel does not say it.
_DEFAULT = 13

#: Version of cuFFT that comes with a major version of CUDA; cuRAND and cuDNN kept theirs.
_CUFFT = {12: 11, 13: 12}


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
    """Loads CUDA and cuDNN from the ``nvidia`` wheels, where ONNX Runtime would not look.

    It prints what it does not find, and raises nothing: the session that comes next says more.
    """
    runtime.set_default_logger_severity(3)  # errors: it warns of what nobody asked for
    if hasattr(runtime, "preload_dlls"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            runtime.preload_dlls()
        if said.getvalue():
            log.debug("preloading CUDA libraries: %s", said.getvalue().strip())


def driver() -> Driver | None:
    """Asks the driver; None where there is none."""
    library = _open("libcuda.so.1")
    if library is None:
        return None
    served = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(served))
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


def trouble() -> str:
    """Why ONNX Runtime's CUDA provider cannot work here; empty if nothing is in its way."""
    here, major = driver(), wheel_cuda()
    if here is None:
        return "there is no NVIDIA driver (libcuda.so.1)"
    if not here.gpus:
        return f"there is a driver, but no GPU ({here.trouble or 'none is listed'})"
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
    cufft = [f"libcufft.so.{_CUFFT[major]}"] if major in _CUFFT else []
    names = [f"lib{name}.so.{major}" for name in ("cudart", "cublas", "cublasLt")]
    return [name for name in (*names, "libcurand.so.10", *cufft) if _open(name) is None]


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
