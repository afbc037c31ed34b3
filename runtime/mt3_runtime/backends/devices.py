"""Opens the backend of a device by name, one of `DEVICES`.

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

from mt3_runtime.arguments.argument_checks import as_choice
from mt3_runtime.backends import ort_plugin
from mt3_runtime.backends.ort_common import import_onnxruntime
from mt3_runtime.backends.ort_cpu import OrtCpuBackend
from mt3_runtime.backends.ort_gpu.ort_cuda import CUDA, OrtCudaBackend, options_of_environment
from mt3_runtime.diagnostics import cuda_libraries, wheels
from mt3_runtime.errors import BundleError, DeviceError, OptionError
from mt3_runtime.imports.extras import absent
from mt3_runtime.models.installed import export_advice
from mt3_runtime.models.shipped import shipped_models

if TYPE_CHECKING:
    from mt3_runtime.backends.base import Backend
    from mt3_runtime.bundles.bundle import Bundle

log = logging.getLogger("mt3_runtime")

BACKEND_GROUP = "mt3_runtime.backends"

#: Graph profiles there are.
KNOWN_PROFILES = ("cpu", "portable", "compat")

#: Graph profiles a device can run, best first.
PROFILES = {
    "cuda": ("portable",),
    "tensorrt": ("portable",),
    "rtx": ("portable",),
    "plugin": ort_plugin.PROFILES,
}

#: Devices as messages and help name them.
DEVICES = "auto, cpu, cuda[:n], tensorrt[:n], rtx[:n] or plugin:NAME[:n]"

#: Devices that are not ONNX Runtime's -> the extra that brings what they need.
_EXTRAS = {"tensorrt": "trt", "rtx": "rtx"}

#: Compute capability from which on GPUs have bf16.
BF16_CAPABILITY = (8, 0)

_NAME = re.compile(r"(auto|cpu|cuda|tensorrt|rtx|plugin:([a-z][a-z0-9-]{0,63}))(?::(\d{1,3}))?")


@dataclass(frozen=True)
class Device:
    """A kind of device and which one of its kind; of kind ``plugin``, of which plug-in."""

    kind: str
    index: int = 0
    plugin: str = ""

    @classmethod
    def parse(cls, name: str) -> Device:
        """Reads a name of `DEVICES`.

        Raises:
            OptionError: It is none of them.
        """
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if not match or (match[3] and match[1] in ("auto", "cpu")):
            raise OptionError(f"device must be {DEVICES}, got {name!r}.")
        return cls(match[1].partition(":")[0], int(match[3] or 0), match[2] or "")


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
    if profile is not None:
        as_choice("profile", profile, KNOWN_PROFILES)
    if wanted.kind == "auto":
        backend = _best(bundle, threads, profile)
        log.info("device auto: using %s", backend.description)
        return backend
    if wanted.kind == "cpu":
        return OrtCpuBackend(bundle, threads=threads, profile=profile)
    if profile is not None and profile not in PROFILES[wanted.kind]:
        raise OptionError(
            f"profile {profile} does not run on device {wanted.kind}; it runs "
            f"{' and '.join(PROFILES[wanted.kind])}."
        )
    return _open_gpu(bundle, wanted, threads, profile)


def _open_gpu(bundle: Bundle, device: Device, threads: int | None, profile: str | None) -> Backend:
    """Opens a device that may not be here: it is asked first, and the bundle second."""
    if device.kind == "cuda":
        _check_provider()
    opener = _OPENERS[device.kind] if device.kind in _OPENERS else _registered(device)
    try:
        return opener(bundle, device, threads, profile)
    except BundleError:
        check_profile(bundle, device.kind)
        raise


def check_profile(bundle: Bundle, kind: str) -> None:
    """Refuses a bundle without graphs for a kind of device.

    Raises:
        BundleError: It has none; the message says how to make them.
    """
    usable, have = PROFILES[kind], bundle.profiles
    if set(usable) & set(have):
        return
    shipped = bundle.path in shipped_models().values()
    what = f"The model {bundle.manifest.name}, part of the package," if shipped else bundle.path
    raise BundleError(
        f"{what} has graphs of profile {', '.join(have) or 'none'}, and device {kind} runs "
        f"{' or '.join(usable)}. {export_advice(bundle, usable[0])}"
    )


def _best(bundle: Bundle, threads: int | None, profile: str | None) -> Backend:
    """The GPU where ONNX Runtime has one, the bundle graphs for it, and both work; else the CPU."""
    possible = cuda_libraries.is_there() or CUDA in import_onnxruntime().get_available_providers()
    if possible and profile in (None, *PROFILES["cuda"]):
        try:
            return _open_gpu(bundle, Device("cuda"), threads, profile)
        except DeviceError as error:
            reason: Exception = error
        except BundleError as error:
            if set(PROFILES["cuda"]) & set(bundle.profiles):
                raise
            reason = error
        _tell(f"device auto: not using cuda:0, because: {reason}")
    return OrtCpuBackend(bundle, threads=threads, profile=profile)


def _tell(text: str) -> None:
    """Says why the CPU does the work: once, aloud where somebody paid for a GPU."""
    aloud = cuda_libraries.is_there() and text not in _told
    _told.add(text)
    log.log(logging.WARNING if aloud else logging.INFO, "%s", text)


#: What was said aloud in this process.
_told: set[str] = set()


def _open_cuda(bundle: Bundle, device: Device, threads: int | None, profile: str | None) -> Backend:
    _check_arithmetic(bundle, device)
    options = options_of_environment()
    return OrtCudaBackend(
        bundle, index=device.index, threads=threads, profile=profile, options=options
    )


def _open_plugin(
    bundle: Bundle, device: Device, threads: int | None, profile: str | None
) -> Backend:
    return ort_plugin.OrtPluginBackend(
        bundle, device.plugin, index=device.index, threads=threads, profile=profile
    )


#: Devices that are ONNX Runtime's.
_OPENERS: dict[str, Callable[..., Backend]] = {"cuda": _open_cuda, "plugin": _open_plugin}


def _check_arithmetic(bundle: Bundle, device: Device) -> None:
    """Refuses a bundle of bf16 for a GPU that has none, before anything is loaded."""
    known = cuda_libraries.driver() if bundle.manifest.precision.arithmetic == "bf16" else None
    gpus = known.gpus[device.index : device.index + 1] if known else ()
    for gpu in gpus:
        if gpu.capability < BF16_CAPABILITY:
            needed = cuda_libraries.dotted(BF16_CAPABILITY)
            raise DeviceError(
                f"{bundle.path} computes in bf16, which {gpu} does not have: that takes compute "
                f"capability {needed} (Ampere) or newer. Use a bundle of fp16, or the exact one."
            )


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


def _registered(device: Device) -> Callable[..., Backend]:
    for entry in entry_points(group=BACKEND_GROUP, name=device.kind):
        try:
            return cast("Callable[..., Backend]", entry.load())
        except ModuleNotFoundError as error:
            what = f"device {device.kind} was asked for; it"
            raise DeviceError(f"{absent(what, error)} Otherwise use device cpu.") from error
    raise DeviceError(
        f"device {device.kind} was asked for, but no installed package provides a backend for it. "
        f"Install mt3-runtime again, with the extra [{_EXTRAS[device.kind]}], or use device cuda "
        "or cpu."
    )
