"""What is installed here, what really works, and how to repair the rest.

Contract: every `Finding` states one fact; one that is not all right carries the command that
repairs it.  Providers are judged by running a graph on them, not by their names: ONNX Runtime
lists CUDA on machines without a GPU, and falls back to the CPU without an error.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from types import ModuleType
from typing import Any

from mt3_runtime import catalogue
from mt3_runtime.errors import DeviceError, OptionError

#: Distributions that all install the module `onnxruntime`; two of them overwrite each other.
ORT_WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-qnn",
)

_CPU = "CPUExecutionProvider"

#: The providers this project uses; ONNX Runtime lists others, such as a cloud service.
PROVIDERS = (_CPU, "CUDAExecutionProvider", "TensorrtExecutionProvider")

_CPU_EXTRA = "pip install 'mt3-runtime[cpu]'"


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


def examine() -> list[Finding]:
    """All checks, in the order of a report."""
    return [
        _system(),
        *_packages(),
        *_wheels(),
        *_providers(),
        _sound_files(),
        _cache(),
        _models(),
    ]


def cpu_works(findings: list[Finding]) -> bool:
    """Whether audio can be transcribed on the CPU, a model given."""
    needed = {"numpy", "mido", _CPU}
    good = {finding.subject for finding in findings if finding.level is Level.OK}
    return needed <= good


def _system() -> Finding:
    cores = os.cpu_count()
    detail = f"Python {platform.python_version()}, {platform.platform()}, {cores} CPU cores"
    return Finding("system", Level.OK, f"{detail}, {sys.executable}")


def _packages() -> Iterator[Finding]:
    yield Finding("mt3-runtime", Level.OK, _version("mt3-runtime") or "run from the source tree")
    for name in ("numpy", "mido"):
        yield _package(name, Level.PROBLEM, "pip install --force-reinstall mt3-runtime")
    yield _package("soundfile", Level.PROBLEM, _CPU_EXTRA, "reads audio files")
    yield _package("soxr", Level.PROBLEM, _CPU_EXTRA, "resamples audio")
    yield _package("rich", Level.NOTE, _CPU_EXTRA, "draws progress bars")


def _package(name: str, missing: Level, remedy: str, purpose: str = "") -> Finding:
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: its C library is missing
        text = f"cannot be imported ({error})" + (f"; it {purpose}" if purpose else "")
        return Finding(name, missing, text, remedy)
    return Finding(name, Level.OK, _version(name) or "of unknown version")


def _wheels() -> Iterator[Finding]:
    wheels = {name: found for name in ORT_WHEELS if (found := _version(name))}
    listed = ", ".join(f"{name} {found}" for name, found in wheels.items())
    if len(wheels) > 1:
        # Removing only one leaves a hollow package: they share their files.
        extra = "gpu" if "onnxruntime-gpu" in wheels else "cpu"
        yield Finding(
            "onnxruntime",
            Level.PROBLEM,
            f"{listed} are installed together and overwrite each other",
            f"pip uninstall -y {' '.join(wheels)} && pip install 'mt3-runtime[{extra}]'",
        )
    elif wheels:
        yield Finding("onnxruntime", Level.OK, listed)


def _providers() -> Iterator[Finding]:
    try:
        runtime = importlib.import_module("onnxruntime")
        listed = runtime.get_available_providers()
    except (ImportError, OSError, AttributeError) as error:  # AttributeError: a hollow package
        wheels = [name for name in ORT_WHEELS if _version(name)]
        remedy = f"pip install --force-reinstall {wheels[0]}" if wheels else _CPU_EXTRA
        yield Finding(_CPU, Level.PROBLEM, f"onnxruntime cannot be imported ({error})", remedy)
        return
    for name in PROVIDERS:
        if name in listed:
            yield _provider(runtime, name)


def _provider(runtime: ModuleType, name: str) -> Finding:
    try:
        _run_graph(runtime, name)
    # ONNX Runtime's exceptions share no base below Exception.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())
        if name == _CPU:
            remedy = "pip install --force-reinstall onnxruntime"
            return Finding(name, Level.PROBLEM, f"fails: {reason}", remedy)
        advice = "check the GPU driver (nvidia-smi), then: pip install 'mt3-runtime[gpu]'"
        return Finding(name, Level.NOTE, f"listed, but does not work here: {reason}", advice)
    return Finding(name, Level.OK, "works")


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
    session: Any = runtime.InferenceSession(sum_graph(), options, providers=[provider])
    used = session.get_providers()
    if provider not in used:
        raise DeviceError(f"the graph was given to {', '.join(used)}")
    (doubled,) = session.run(None, {"x": np.asarray([21.0], np.float32)})
    if doubled.tolist() != [42.0]:
        raise DeviceError(f"21 + 21 came out as {doubled.tolist()}")


def sum_graph() -> bytes:
    """The smallest useful ONNX model, ``y = x + x`` on one float, serialised by hand.

    Field numbers are those of onnx.proto3.  IR version 8 and opset 17 are old enough for every
    ONNX Runtime and TensorRT this project can meet.
    """
    dimension = _field(1, b"\x08\x01")  # dim { dim_value: 1 }
    tensor = b"\x08\x01" + _field(2, dimension)  # elem_type: FLOAT, shape

    def value(name: bytes) -> bytes:
        return _field(1, name) + _field(2, _field(1, tensor))  # name, type { tensor_type }

    node = _field(1, b"x") + _field(1, b"x") + _field(2, b"y") + _field(4, b"Add")
    graph = _field(1, node) + _field(2, b"sum") + _field(11, value(b"x")) + _field(12, value(b"y"))
    opset = b"\x10\x11"  # version: 17
    return b"\x08\x08" + _field(7, graph) + _field(8, opset)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field (lengths below 128 take one byte)."""
    return bytes([number << 3 | 2, len(content)]) + content


def _sound_files() -> Finding:
    try:
        soundfile = importlib.import_module("soundfile")
        formats = soundfile.available_formats()
    except (ImportError, OSError) as error:
        return Finding("audio files", Level.PROBLEM, f"cannot be read ({error})", _CPU_EXTRA)
    wanted = [name for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF") if name in formats]
    detail = f"{', '.join(wanted)} and {len(formats) - len(wanted)} more"
    library = f"libsndfile {soundfile.__libsndfile_version__}"
    if "MP3" in wanted:
        return Finding("audio files", Level.OK, f"{detail} ({library})")
    remedy = "install libsndfile 1.1 or newer, or: pip install --upgrade soundfile"
    return Finding("audio files", Level.NOTE, f"{detail}, but no MP3 ({library})", remedy)


def _cache() -> Finding:
    advice = f"set {catalogue.CACHE_VARIABLE} to a folder you can write to"
    try:
        folder = catalogue.cache_dir()
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        usable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    except (OptionError, OSError) as error:
        return Finding("cache folder", Level.PROBLEM, f"cannot be used ({error})", advice)
    if usable:
        state = "" if nearest == folder else " (made when first needed)"
        return Finding("cache folder", Level.OK, f"{folder}{state}")
    return Finding("cache folder", Level.PROBLEM, f"{folder} cannot be written", advice)


def _models() -> Finding:
    try:
        installed = catalogue.installed_models()
    except OptionError as error:
        return Finding("models", Level.PROBLEM, str(error))
    if installed:
        return Finding("models", Level.OK, ", ".join(installed))
    advice = "mt3 models pull magenta_mt3 && mt3 export magenta_mt3"
    return Finding("models", Level.NOTE, "none installed", advice)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
