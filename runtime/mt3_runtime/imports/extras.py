"""Optional packages: the extra that brings each, the line that installs it, and its lazy import.

Contract: whatever only an extra brings is imported through `require` or inside `named`, and its
absence is a `MissingDependencyError` with the extra and a line that works where it is read.  That
line names the packages themselves, as this installation's own metadata ask for them: nothing has to
be known of where mt3-runtime came from, and no index is asked for it by name.  Packages that are
there are left out, so that no second wheel of ONNX Runtime gets beside the first.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType

from mt3_runtime.errors import MissingDependencyError, MT3Error
from mt3_runtime.imports.interrupts import Held
from mt3_runtime.imports.lazy import HOLDERS

#: Name of the project, and of what most people install.
DISTRIBUTION = "mt3-runtime"

#: Import names that are not the distribution's, with underscores.
_MODULES = {
    "onnxruntime-gpu": "onnxruntime",
    "tensorrt-cu13": "tensorrt",
    "cuda-bindings": "cuda",
    "python-multipart": "python_multipart",
    "tensorflow-cpu": "tensorflow",
}

#: What pip must be told beside the names: TensorRT's libraries are on NVIDIA's own index.
_INDEXES = {"tensorrt": "--extra-index-url https://pypi.nvidia.com"}

_REQUIREMENT = re.compile(r"(?P<text>(?P<name>[\w.-]+)[^;]*?)\s*;\s*extra == .(?P<extra>.+).")


def require(module: str, purpose: str, *extras: str) -> ModuleType:
    """Imports an optional package, or says which extra brings it.

    Args:
        module: Its import name.
        purpose: What needs it, the subject of "... needs it".
        extras: As in `named`.

    Raises:
        MissingDependencyError: The package, or a library below it, is not installed.
    """
    try:
        with Held():
            return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a C library is missing
        raise _missing(module, error, purpose, extras) from error


@contextmanager
def named(purpose: str, *extras: str) -> Iterator[None]:
    """Turns the absence of an optional package into the error that names its extra.

    Args:
        purpose: What needs it, the subject of "... needs it".
        extras: All that the purpose needs; a package of none of them has an extra of its own.

    Raises:
        MissingDependencyError: An import failed, and an extra brings the package.
    """
    try:
        yield
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if isinstance(error, MT3Error) or module not in _extras():
            raise
        raise _missing(module, error, purpose, extras) from error


def install(*extras: str) -> str:
    """The command that installs what some extras bring and this environment lacks."""
    wanted = {module: text for extra in extras for module, text in _brought().get(extra, ())}
    found = lacking(*extras)
    return pip(found) if found else pip(wanted, "--force-reinstall")  # there, and broken


def lacking(*extras: str) -> dict[str, str]:
    """Requirements of some extras, by import name, whose packages this environment lacks."""
    wanted = [(module, text) for extra in extras for module, text in _brought().get(extra, ())]
    return {module: text for module, text in wanted if not _is_there(module)}


def pip(packages: dict[str, str], *options: str) -> str:
    """The command that installs packages; in a frozen program, which has no pip, other advice.

    Args:
        packages: Requirements by import name.
        options: Of ``pip install``.
    """
    if frozen():
        return f"build this program again with {' and '.join(packages)} in it"
    indexes = [_INDEXES[module] for module in packages if module in _INDEXES]
    quoted = [f'"{text}"' for text in dict.fromkeys(packages.values())]
    return " ".join(["pip install", *options, *quoted, *indexes])


def frozen() -> bool:
    """Whether this is a program of its own (PyInstaller and the like), where nothing installs."""
    return bool(getattr(sys, "frozen", False))


def requirement(module: str, extra: str) -> dict[str, str]:
    """What an extra asks of one package, for `pip`; its bare name where that is not known."""
    found = dict(_brought().get(extra, ()))
    return {module: found.get(module, module)}


def absent(what: str, error: ModuleNotFoundError) -> str:
    """Says that something which entry points promise has no code here, and what to do.

    Parts of an installation can be left out: frozen programs hold what they import.
    """
    top = (error.name or "").partition(".")[0] or "its package"
    remedy = pip({top: top}) if frozen() else "install the distribution it belongs to again"
    return f"{what} is registered, but cannot be loaded ({error}): {remedy}."


def _missing(
    module: str, error: Exception, purpose: str, extras: tuple[str, ...]
) -> MissingDependencyError:
    top = module.partition(".")[0]
    bringing = _extras().get(top, ())
    if not set(bringing) & set(extras):
        extras = bringing[:1]
    remedy = (
        f"It comes with the extra [{','.join(extras)}]: {install(*extras)}"
        if extras
        else f"To repair that: {pip({top: top})}"
    )
    return MissingDependencyError(
        f"{purpose} needs {top}, which cannot be imported ({error}). {remedy}"
    )


@functools.cache
def _brought() -> dict[str, tuple[tuple[str, str], ...]]:
    """By extra, the import names and requirements of what it brings."""
    lines: list[str] = []
    for holder in HOLDERS:  # the first that is installed says what the extras bring
        try:
            lines = metadata.requires(holder) or []
        except metadata.PackageNotFoundError:  # frozen without either: nothing is known then
            continue
        break
    found: dict[str, list[tuple[str, str]]] = {}
    for match in filter(None, map(_REQUIREMENT.fullmatch, lines)):
        name = match["name"].lower()
        module = _MODULES.get(name, name.replace("-", "_"))
        found.setdefault(match["extra"], []).append((module, match["text"]))
    return {extra: tuple(packages) for extra, packages in found.items()}


@functools.cache
def _extras() -> dict[str, tuple[str, ...]]:
    """By import name, the extras that bring it, those that bring little else first."""
    brought = _brought()
    modules = {module for packages in brought.values() for module, _ in packages}
    smallest = sorted(brought, key=lambda extra: len(brought[extra]))
    return {
        module: tuple(extra for extra in smallest if module in dict(brought[extra]))
        for module in modules
    }


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: it was put out of the way, or half-imported
        return False
