"""Finds which wheels of ONNX Runtime are installed: several own one import name.

Two together overwrite each other's files: the one installed last wins, and removing one leaves a
package that can be imported but is hollow.
"""

from __future__ import annotations

import platform
from importlib import metadata

from mt3_runtime.imports import extras

#: Distributions that all install the module `onnxruntime`.
ORT_WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-qnn",
)


#: Distributions that all install `nvidia/cudnn/lib/libcudnn.so.9`, each for another CUDA.
CUDNN_WHEELS = ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13")


def version(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed() -> dict[str, str]:
    """The installed wheels of ONNX Runtime and their versions."""
    return {name: found for name in ORT_WHEELS if (found := version(name))}


def clash() -> str:
    """Says that several wheels are installed; empty if they are not."""
    found = installed()
    if len(found) < 2:
        return ""
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    return f"{listed} are installed together and overwrite each other"


def cudnn_clash() -> str:
    """Says that cuDNN is installed for two CUDAs, of which one is gone; empty if it is not."""
    found = [f"{name} {number}" for name in CUDNN_WHEELS if (number := version(name))]
    if len(found) < len(CUDNN_WHEELS):
        return ""
    return f"{' and '.join(found)} hold one file, libcudnn.so.9, so the last one took its place"


def remedy(extra: str) -> str:
    """The command that leaves one wheel, that of an extra of `mt3-runtime`."""
    found, wanted = installed(), extras.pip(extras.requirement("onnxruntime", extra))
    remove = f"pip uninstall -y {' '.join(found)} && " if found and not extras.frozen() else ""
    return f"{remove}{wanted}"


def gpu_remedy() -> str:
    """What to do for a GPU: the GPU wheel, where there is one for this processor."""
    if platform.machine() in ("aarch64", "arm64"):
        return "use device tensorrt (there is no GPU wheel of ONNX Runtime for 64-bit Arm)"
    return remedy("gpu")
