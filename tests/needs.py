"""What tests may lack: recordings, original implementations, wheels, tools, each under one name.

A test that lacks something says so through this module and is skipped.  ``MT3_REQUIRE`` names, with
commas between them, what must be there: a test that lacks one of those fails, so that nobody takes
a run that proved nothing for one that proved everything.
"""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]

#: The environments that live beside the tested one -> the variable that names their Python.
PYTHONS = {
    "oracle": "MT3_ORACLE_PYTHON",
    "yourmt3": "MT3_YOURMT3_PYTHON",
    "torch": "MT3_TORCH_PYTHON",
    "jax2tf": "MT3_JAX2TF_PYTHON",
    "gpu-wheel": "MT3_GPU_WHEEL_PYTHON",
    "rtx": "MT3_RTX_PYTHON",
    "triton": "MT3_TRITON_PYTHON",
    "numpy1": "MT3_NUMPY1_PYTHON",
    "ray": "MT3_RAY_PYTHON",
    "openvino": "MT3_OPENVINO_PYTHON",
    "pages": "MT3_PAGES_PYTHON",
}

#: What tests may lack -> how to get it.  These are the names that ``MT3_REQUIRE`` takes.
NEEDS = {
    "shared": "set MT3_SHARED to the folder with real weights and recordings",
    "oracle": "tests/parity/oracle-requirements.txt",
    "yourmt3": "tests/parity/yourmt3-requirements.txt",
    "torch": "tests/training/torch-requirements.txt",
    "jax2tf": "tests/export/jax2tf-requirements.txt",
    "gpu-wheel": "tests/runtime/gpu-wheel-requirements.txt",
    "rtx": "tests/engines/rtx-requirements.txt",
    "triton": "tests/server/triton-requirements.txt, and nvidia-pytriton without what it asks for",
    "numpy1": "tests/server/numpy1-requirements.txt",
    "ray": "tests/server/ray-requirements.txt",
    "openvino": "tests/runtime/openvino-requirements.txt",
    "pages": "tests/web/pages-requirements.txt",
    "compiler": "apt-get install gcc binutils",
    "bindings": "python tests/engines/bindings.py FOLDER, and set MT3_TENSORRT_BINDINGS to FOLDER",
    "install": "set MT3_TEST_INSTALL=1 where a package index is in reach",
    "debootstrap": "set MT3_TEST_ROOT=1, as root with debootstrap, or to a root made by it",
    "default-model": "build the package with runtime/mt3_runtime/data",
    "extras": "pip install '.[cpu,formats,serve,export,calibration,viz,dev]'",
    "soundfonts": "pip install tinysoundfont, apt-get install fluidr3mono-gm-soundfont "
    "timgm6mb-soundfont",
    "freedoom": "apt-get install freedoom",
    "ffmpeg": "apt-get install ffmpeg",
    "fluidsynth": "apt-get install fluidsynth",
    "timidity": "apt-get install timidity",
    "encoders": "nothing to do: this libsndfile or FFmpeg reads the format and does not write it",
    "midi-readers": "pip install music21 partitura",
    "node": "apt-get install nodejs npm",
    "node-modules": "npm ci --ignore-scripts --prefix runtime/web",
    "chromium": "apt-get install chromium",
    "firefox": "apt-get install firefox-esr",
    "curl": "apt-get install curl",
    "control-groups": "run as root where the kernel lets a group be made",
    "gpu": "run where there is an NVIDIA GPU",
}


def required() -> frozenset[str]:
    """The names in ``MT3_REQUIRE``; raises `pytest.UsageError` for one that means nothing."""
    names = {name.strip() for name in os.environ.get("MT3_REQUIRE", "").split(",")} - {""}
    if unknown := sorted(names - NEEDS.keys()):
        raise pytest.UsageError(
            f"MT3_REQUIRE names {', '.join(unknown)}; expected some of {', '.join(NEEDS)}"
        )
    return frozenset(names)


def missing(name: str, reason: str) -> NoReturn:
    """Skips the test that lacks ``name``, or fails it where ``MT3_REQUIRE`` has that name."""
    said = f"{name} is missing: {reason} ({NEEDS[name]})"
    if name in required():
        pytest.fail(f"{said}; MT3_REQUIRE asks for it", pytrace=False)
    pytest.skip(said, allow_module_level=True)


def shared_folder() -> Path:
    """The folder with real weights and recordings."""
    folder = Path(os.environ.get("MT3_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        missing("shared", f"there is no folder {folder}")
    return folder


def python_of(name: str) -> str:
    """The Python of one of the environments in `PYTHONS`."""
    variable = PYTHONS[name]
    python = os.environ.get(variable)
    if not python:
        missing(name, f"{variable} is not set")
    if shutil.which(python) is None:
        missing(name, f"{variable} is {python}, which cannot be started")
    return python


def package(module: str, name: str = "extras") -> ModuleType:
    """Imports a package that users need not have."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing(name, str(error))


def tool(program: str, name: str | None = None) -> str:
    """Path of a program; without ``name`` it is called as in `NEEDS`."""
    path = shutil.which(program)
    if path is None:
        missing(name or program, f"there is no {program} on the path")
    return path


def node_modules() -> Path:
    """The folder of packages that the tests of the JavaScript runtime use."""
    folder = ROOT / "runtime" / "web" / "node_modules"
    if not folder.is_dir():
        missing("node-modules", f"there is no folder {folder}")
    return folder


def torch() -> ModuleType:
    """PyTorch, for modules that do nothing without it.

    The tested environment must not have it.  `test_with_torch.py` runs every module that asks here
    in the one that has, and lacks something where there is none.
    """
    try:
        return importlib.import_module("torch")
    except ImportError:
        pytest.skip("PyTorch is elsewhere: test_with_torch.py runs this", allow_module_level=True)
