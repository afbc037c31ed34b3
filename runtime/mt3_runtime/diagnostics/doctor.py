"""Diagnoses an installation: what is installed, what really works, how to repair the rest.

Contract: every `Finding` states one fact; one that is not all right carries the command that
repairs it.  Providers are judged by running a graph on them, not by their names: ONNX Runtime
lists CUDA on machines without a GPU, and falls back to the CPU without an error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from mt3_runtime.bundles.tiny_graphs import sum_model
from mt3_runtime.diagnostics import cpu_kernels, cuda_libraries, wheels
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.errors import DeviceError, OptionError
from mt3_runtime.imports.extras import absent, install, lacking, pip, requirement
from mt3_runtime.imports.lazy import HOLDERS
from mt3_runtime.models.cache import CACHE_VARIABLE, cache_dir
from mt3_runtime.models.installed import installed_models
from mt3_runtime.models.shipped import shipped_models

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

#: The providers this project uses; ONNX Runtime lists others, such as a cloud service.
PROVIDERS = (_CPU, _CUDA, "TensorrtExecutionProvider")

_GPU_WHEEL = "onnxruntime-gpu"

#: Entry points of functions ``(*, asked: bool)`` that yield findings about a device, under its
#: name; one of these has the subject ``device NAME``, and is `Level.OK` if a graph ran there.
CHECK_GROUP = "mt3_runtime.checks"

#: The TensorRT that ONNX Runtime's provider is linked to.
_TENSORRT = 10


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # something optional is absent
    PROBLEM = "problem"  # something is broken


@dataclass(frozen=True)
class Finding:
    """One checked fact.

    Attributes:
        subject: What was looked at.
        level: How it stands.
        detail: What was found, in one line.
        remedy: Command or advice that repairs it; empty where there is nothing to repair.
    """

    subject: str
    level: Level
    detail: str
    remedy: str = ""


def examine(device: str = "cpu") -> list[Finding]:
    """All checks, in the order of a report.

    Args:
        device: The kind of device that matters; looked at even where there is no trace of it, and
            that it does not work is a problem.
    """
    findings = [
        _system(),
        _cpu(),
        *_packages(),
        *_wheels(),
        *_extras(),
        *_gpu(),
        *_providers(device),
        *_registered(device),
        _sound_files(),
        _cache(),
        _models(),
    ]
    return [
        replace(one, level=Level.PROBLEM)
        if one.subject == _decisive(device) and one.level is Level.NOTE
        else one
        for one in findings
    ]


def works(findings: list[Finding], device: str = "cpu") -> bool:
    """Whether audio can be transcribed on a kind of device, a model given."""
    good = {finding.subject for finding in findings if finding.level is Level.OK}
    return {"numpy", "mido", _decisive(device)} <= good


def _decisive(device: str) -> str:
    """Subject of the finding that says whether a kind of device works."""
    return {"cpu": _CPU, "cuda": _CUDA}.get(device, f"device {device}")


def _registered(device: str) -> Iterator[Finding]:
    """What other packages find out about the devices they bring."""
    for entry in entry_points(group=CHECK_GROUP):
        subject, asked = f"device {entry.name}", entry.name == device
        try:
            yield from entry.load()(asked=asked)
        except ModuleNotFoundError as error:  # only the registration is here
            if asked:
                yield Finding(subject, Level.NOTE, absent("it", error), "use another device")
        except Exception as error:  # noqa: BLE001  others' code; all else is still worth saying
            text = f"its check fails: {type(error).__name__}: {' '.join(str(error).split())}"
            yield Finding(subject, Level.NOTE, text, f"ask whoever made {entry.value}")


def _system() -> Finding:
    usable, there = usable_cores(), os.cpu_count()
    cores = f"{usable} CPU cores" if usable == there else f"{usable} of {there} CPU cores usable"
    detail = f"Python {platform.python_version()}, {platform.platform()}, {cores}"
    return Finding("system", Level.OK, f"{detail}, {sys.executable}")


def _cpu() -> Finding:
    found = cpu_kernels.cpu()
    try:
        cpu_kernels.check_cpu()
    except DeviceError as error:
        return Finding("CPU", Level.PROBLEM, str(error), "use another machine")
    chosen = cpu_kernels.kernels(found.flags)
    idle = [flag for flag in cpu_kernels.UNUSED if flag in found.flags]
    more = f"; not used by it: {', '.join(idle)}" if idle else ""
    kernels = f"ONNX Runtime's kernels: {chosen}{more}" if chosen else "this system does not tell"
    return Finding("CPU", Level.OK, f"{found.name}; {kernels}")


def _packages() -> Iterator[Finding]:
    numbers = [number for holder in HOLDERS if (number := wheels.version(holder))]
    yield Finding("mt3-runtime", Level.OK, (numbers or ["run from the source tree"])[0])
    for name in ("numpy", "mido"):
        yield _package(name, Level.PROBLEM, pip({name: name}, "--force-reinstall"))
    for name, level, purpose in (
        ("soundfile", Level.PROBLEM, "reads audio files"),
        ("soxr", Level.PROBLEM, "resamples audio"),
        ("rich", Level.NOTE, "draws progress bars"),
    ):
        yield _package(name, level, pip(requirement(name, "cpu")), purpose)


def _package(name: str, missing: Level, remedy: str, purpose: str = "") -> Finding:
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: its C library is missing
        text = f"cannot be imported ({error})" + (f"; it {purpose}" if purpose else "")
        return Finding(name, missing, text, remedy)
    return Finding(name, Level.OK, wheels.version(name) or "of unknown version")


def _extras() -> Iterator[Finding]:
    """What other commands need; that of devices is told with them."""
    for extra, purpose in (
        ("export", "mt3 export"),
        ("calibration", "mt3 evaluate, mt3 calibrate"),
        ("viz", "mt3 plot, --plot"),
    ):
        missing = lacking(extra)
        if missing:
            text = f"absent: {', '.join(missing)}; needed by {purpose}"
            yield Finding(f"extra {extra}", Level.NOTE, text, install(extra))
        else:
            yield Finding(f"extra {extra}", Level.OK, "installed")


def _wheels() -> Iterator[Finding]:
    found = wheels.installed()
    if clash := wheels.clash():
        extra = "gpu" if _GPU_WHEEL in found else "cpu"
        yield Finding("onnxruntime", Level.PROBLEM, clash, wheels.remedy(extra))
    elif found:
        (listed,) = (f"{name} {number}" for name, number in found.items())
        yield Finding("onnxruntime", Level.OK, listed)
    if clash := wheels.cudnn_clash():
        advice = "keep programs of CUDA 12 and of CUDA 13 in environments of their own"
        yield Finding("cuDNN wheels", Level.PROBLEM, clash, advice)


def _gpu() -> Iterator[Finding]:
    """NVIDIA's software, where there is a GPU or a wheel that is meant for one."""
    driver, wheel = cuda_libraries.driver(), _GPU_WHEEL in wheels.installed()
    if driver is None and not wheel:
        return
    yield _driver(driver)
    if not wheel:
        text = "the installed ONNX Runtime cannot use it"
        yield Finding("CUDA", Level.NOTE, text, wheels.gpu_remedy())
        yield _tensorrt()
        return
    # What goes wrong is told of by `_providers`.
    with contextlib.suppress(ImportError, OSError, AttributeError, DeviceError):
        cpu_kernels.check_cpu()
        cuda_libraries.preload(importlib.import_module("onnxruntime"))
    major = cuda_libraries.wheel_cuda()
    if driver is not None and driver.cuda[0] < major:
        served = cuda_libraries.dotted(driver.cuda)
        text = f"ONNX Runtime is built for CUDA {major}, the driver serves {served}"
        yield Finding("CUDA", Level.PROBLEM, text, "update the NVIDIA driver (CUDA 13 needs 580)")
        return
    libraries = pip(requirement("onnxruntime", "gpu"))
    lacking, version = cuda_libraries.missing(major), cuda_libraries.runtime_version(major)
    if lacking:
        yield Finding("CUDA", Level.PROBLEM, f"not found: {', '.join(lacking)}", libraries)
    else:
        yield Finding("CUDA", Level.OK, f"{version} (ONNX Runtime is built for {major})")
    yield _library("cuDNN", cuda_libraries.cudnn_version(), libraries)
    yield _tensorrt()


def _driver(driver: cuda_libraries.Driver | None) -> Finding:
    if driver is None:
        advice = "install NVIDIA's driver; in a container: docker run --gpus all"
        return Finding("NVIDIA driver", Level.NOTE, "none (no libcuda.so.1)", advice)
    served = f"serves CUDA {cuda_libraries.dotted(driver.cuda)}"
    if not driver.gpus:
        why = driver.trouble or "it has no GPU"
        advice = "check nvidia-smi; in a container: docker run --gpus all"
        return Finding("NVIDIA driver", Level.NOTE, f"{served}, but {why}", advice)
    listed = ", ".join(f"cuda:{index} {gpu}" for index, gpu in enumerate(driver.gpus))
    return Finding("NVIDIA driver", Level.OK, f"{served}; {listed}")


def _library(name: str, version: str | None, remedy: str) -> Finding:
    if version is None:
        return Finding(name, Level.NOTE, "not found", remedy)
    return Finding(name, Level.OK, version)


def _tensorrt() -> Finding:
    version = cuda_libraries.tensorrt_version(_TENSORRT)
    return _library("TensorRT", version, pip(requirement("tensorrt", "trt")))


def _providers(device: str) -> Iterator[Finding]:
    try:
        cpu_kernels.check_cpu()
        runtime = importlib.import_module("onnxruntime")
        listed = runtime.get_available_providers()
    except DeviceError as error:
        yield Finding(_CPU, Level.PROBLEM, str(error), "use another machine")
        return
    except (ImportError, OSError, AttributeError) as error:  # AttributeError: a hollow package
        found = list(wheels.installed())
        again = {"onnxruntime": found[0] if found else "onnxruntime"}
        remedy = pip(again, "--force-reinstall") if found else install("cpu")
        yield Finding(_CPU, Level.PROBLEM, f"onnxruntime cannot be imported ({error})", remedy)
        return
    for name in PROVIDERS:
        if name in listed:
            yield _provider(runtime, name)
        elif name == _decisive(device):
            text = f"the installed ONNX Runtime lacks it (it has {', '.join(listed)})"
            yield Finding(name, Level.PROBLEM, text, wheels.gpu_remedy())


def _provider(runtime: ModuleType, name: str) -> Finding:
    reason = _in_the_way(runtime, name)  # asked first: one that fails to load prints to stderr
    try:
        if not reason:
            _run_graph(runtime, name)
            return Finding(name, Level.OK, "works")
    # ONNX Runtime's exceptions share no base below Exception.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())
    if name == _CPU:
        wheel = next(iter(wheels.installed()), "onnxruntime")
        remedy = pip({"onnxruntime": wheel}, "--force-reinstall")
        return Finding(name, Level.PROBLEM, f"fails: {reason}", remedy)
    advice = (
        f"{_tensorrt().remedy or 'update TensorRT'} (of use to other programs: device tensorrt "
        "does without)"
        if name.startswith("Tensorrt")
        else f"check the GPU driver (nvidia-smi), then: {pip(requirement('onnxruntime', 'gpu'))}"
    )
    return Finding(name, Level.NOTE, f"listed, but does not work here: {reason}", advice)


def _in_the_way(runtime: ModuleType, provider: str) -> str:
    """Why a provider cannot even be loaded; empty if nothing is known to be in its way."""
    if provider == _CPU:
        return ""
    cuda_libraries.preload(runtime)
    lacks = provider != _CUDA and cuda_libraries.tensorrt_version(_TENSORRT) is None
    return cuda_libraries.trouble() or ("there is no TensorRT" if lacks else "")


def _run_graph(runtime: ModuleType, provider: str) -> None:
    """Adds a number to itself on ``provider``.

    Raises:
        DeviceError: Another provider did the work, or the sum is wrong.
    """
    import numpy as np  # noqa: PLC0415  its absence is a finding, not a crash

    options = runtime.SessionOptions()
    options.log_severity_level = 4  # fatal only: the reason reaches us as an exception
    if provider != _CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session: Any = runtime.InferenceSession(
        sum_model(), options, providers=[provider], enable_fallback=0
    )
    used = session.get_providers()
    if provider not in used:
        raise DeviceError(f"the graph was given to {', '.join(used)}")
    (doubled,) = session.run(None, {"x": np.asarray([21.0], np.float32)})
    if doubled.tolist() != [42.0]:
        raise DeviceError(f"21 + 21 came out as {doubled.tolist()}")


def _sound_files() -> Finding:
    try:
        soundfile = importlib.import_module("soundfile")
        formats = soundfile.available_formats()
    except (ImportError, OSError) as error:
        remedy = pip(requirement("soundfile", "cpu"))
        return Finding("audio files", Level.PROBLEM, f"cannot be read ({error})", remedy)
    wanted = [name for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF") if name in formats]
    detail = f"{', '.join(wanted)} and {len(formats) - len(wanted)} more"
    library = f"libsndfile {soundfile.__libsndfile_version__}"
    if "MP3" in wanted:
        return Finding("audio files", Level.OK, f"{detail} ({library})")
    remedy = f"install libsndfile 1.1 or newer, or: {pip({'soundfile': 'soundfile'}, '--upgrade')}"
    return Finding("audio files", Level.NOTE, f"{detail}, but no MP3 ({library})", remedy)


def _cache() -> Finding:
    advice = f"set {CACHE_VARIABLE} to a folder you can write to"
    try:
        folder = cache_dir()
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        usable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    except (OptionError, OSError) as error:
        return Finding("cache folder", Level.PROBLEM, f"cannot be used ({error})", advice)
    if usable:
        state = "" if nearest == folder else " (made when first needed)"
        return Finding("cache folder", Level.OK, f"{folder}{state}")
    return Finding("cache folder", Level.PROBLEM, f"{folder} cannot be written", advice)


def _models() -> Finding:
    shipped = [f"{name} (comes with the package)" for name in shipped_models()]
    try:
        installed = installed_models()
    except OptionError as error:  # told of by `_cache`, too
        if not shipped:
            advice = f"set {CACHE_VARIABLE} to a folder you can read"
            return Finding("models", Level.PROBLEM, str(error), advice)
        return Finding("models", Level.OK, f"{', '.join(shipped)}; others cannot be looked for")
    if installed or shipped:
        return Finding("models", Level.OK, ", ".join([*installed, *shipped]))
    advice = "mt3 models pull magenta_mt3 && mt3 export magenta_mt3"
    return Finding("models", Level.NOTE, "none installed", advice)
