"""Opens the backend of a device by name: `auto`, `cpu`, `cuda[:n]`, `tensorrt[:n]`.

``auto`` takes the best backend that works and says which; any other name means that device and
nothing else.  Backends other than those of ONNX Runtime register themselves through the entry point
group ``mt3_runtime.backends``, under the device's name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from mt3_runtime.backends.ort_common import import_onnxruntime
from mt3_runtime.backends.ort_cpu import OrtCpuBackend
from mt3_runtime.backends.ort_cuda import CUDA, OrtCudaBackend, options_of_environment
from mt3_runtime.diagnostics import wheels
from mt3_runtime.errors import DeviceError, OptionError
from mt3_runtime.extras import absent

if TYPE_CHECKING:
    from mt3_runtime.backends.base import Backend
    from mt3_runtime.bundles.bundle import Bundle

log = logging.getLogger("mt3_runtime")

BACKEND_GROUP = "mt3_runtime.backends"

#: Graph profiles there are.
KNOWN_PROFILES = ("cpu", "portable", "compat")

#: Graph profiles a device can run, best first.
PROFILES = {"cuda": ("portable",), "tensorrt": ("portable",)}

_NAME = re.compile(r"(auto|cpu|cuda|tensorrt)(?::(\d{1,3}))?")


@dataclass(frozen=True)
class Device:
    """A kind of device and which one of its kind."""

    kind: str
    index: int = 0

    @classmethod
    def parse(cls, name: str) -> Device:
        """Reads ``auto``, ``cpu``, ``cuda[:n]`` or ``tensorrt[:n]``.

        Raises:
            OptionError: It is none of them.
        """
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if not match or (match[2] and match[1] in ("auto", "cpu")):
            raise OptionError(f"device must be auto, cpu, cuda[:n] or tensorrt[:n], got {name!r}.")
        return cls(match[1], int(match[2] or 0))


def open_backend(
    bundle: Bundle, device: str, *, threads: int | None = None, profile: str | None = None
) -> Backend:
    """Loads a bundle's graphs on a device.

    Raises:
        DeviceError: The device cannot be used here; the message says why and what to do.
        BundleError: The bundle lacks the graphs this device needs, or is damaged.
        OptionError: The device's name, the profile or ``threads`` makes no sense.
    """
    wanted = Device.parse(device)
    if profile is not None and profile not in KNOWN_PROFILES:
        raise OptionError(f"profile must be one of {', '.join(KNOWN_PROFILES)}, got {profile!r}.")
    if wanted.kind == "auto":
        backend = _best(bundle, threads, profile)
        log.info("device auto: using %s", backend.description)
        return backend
    if wanted.kind == "cpu":
        return OrtCpuBackend(bundle, threads=threads, profile=profile)
    if wanted.kind == "cuda":
        _check_provider()
        _check_profile(bundle, wanted, profile)
        return _open_cuda(bundle, wanted.index, threads, profile)
    _check_profile(bundle, wanted, profile)
    return _registered(wanted)(bundle, wanted, threads, profile)


def _best(bundle: Bundle, threads: int | None, profile: str | None) -> Backend:
    """The GPU where ONNX Runtime has one, the bundle graphs for it, and both work; else the CPU."""
    graphs = set(PROFILES["cuda"] if profile is None else (profile,)) & set(PROFILES["cuda"])
    if CUDA in import_onnxruntime().get_available_providers():
        try:
            if graphs & set(bundle.profiles):
                return _open_cuda(bundle, 0, threads, profile)
            log.info("device auto: not using cuda:0, because: no graphs of profile portable")
        except DeviceError as error:
            log.info("device auto: not using cuda:0, because: %s", error)
    return OrtCpuBackend(bundle, threads=threads, profile=profile)


def _open_cuda(bundle: Bundle, index: int, threads: int | None, profile: str | None) -> Backend:
    options = options_of_environment()
    return OrtCudaBackend(bundle, index=index, threads=threads, profile=profile, options=options)


def _check_provider() -> None:
    """Refuses a GPU that ONNX Runtime knows nothing of."""
    available = import_onnxruntime().get_available_providers()
    if CUDA not in available:
        clash = wheels.clash()
        raise DeviceError(
            "device cuda was asked for, but the installed ONNX Runtime has no CUDA provider (it "
            f"has {', '.join(available)}){f': {clash}' if clash else ''}. On a machine with an "
            f"NVIDIA GPU: {wheels.gpu_remedy()}. Otherwise use device cpu."
        )


def _check_profile(bundle: Bundle, device: Device, profile: str | None) -> None:
    usable = PROFILES[device.kind] if profile is None else (profile,)
    if profile is not None and profile not in PROFILES[device.kind]:
        raise OptionError(
            f"profile {profile} does not run on device {device.kind}; it runs "
            f"{' and '.join(PROFILES[device.kind])}."
        )
    if not set(usable) & set(bundle.profiles):
        bundle.graph("decoder", usable[0])  # raises, and names the export command


def _registered(device: Device) -> Callable[..., Backend]:
    for entry in entry_points(group=BACKEND_GROUP, name=device.kind):
        try:
            return cast("Callable[..., Backend]", entry.load())
        except ModuleNotFoundError as error:
            what = f"device {device.kind} was asked for; it"
            raise DeviceError(f"{absent(what, error)} Otherwise use device cpu.") from error
    raise DeviceError(
        f"device {device.kind} was asked for, but no installed package provides a backend for it. "
        "Install mt3-runtime again, with the extra [trt], or use device cuda or cpu."
    )
