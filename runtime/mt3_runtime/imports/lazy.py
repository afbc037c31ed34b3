"""Lazy imports of public names, and former import paths.

Contract: a package's `__getattr__` from `forward` finds public names in the modules that define
them, so that importing a package costs nothing (`mt3 --help` need not wait for NumPy).  `FORMER`
lists modules that the documentation named before they moved; `keep_former_paths` makes an import
of such a name give the module of today, the same object under both names.

This runs before anything else of ours: what it imports, Python has imported already.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # typing's own costs more to import than all of this package
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

#: Former module -> module of today, both within `mt3_runtime`.
FORMER = {
    "backends.ort_cuda": "backends.ort_gpu.ort_cuda",
    "bundle": "bundles.bundle",
    "catalogue": "models.catalogue",
    "devices": "backends.devices",
    "formats": "files.formats",
    "installed": "models.installed",
    "instruments": "notes.instruments",
    "manifest": "bundles.manifest",
    "midi": "files.midi",
    "search": "decoding.search",
    "segments": "audio.segments",
    "stems": "notes.stems",
    "vocabulary": "notes.vocabulary",
}


def forward(
    package: str,
    homes: "Mapping[str, Sequence[str]]",
    computed: "Mapping[str, Callable[[], object]] | None" = None,
) -> "Callable[[str], object]":
    """Makes a package's `__getattr__`.

    Args:
        package: Its dotted name.
        homes: Public names by the module, relative to the package, that defines them.
        computed: Names whose values are made when they are asked for.
    """
    modules = {name: home for home, names in homes.items() for name in names}

    def find(name: str) -> object:
        if computed and name in computed:
            return computed[name]()
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return find


#: Distributions that may hold this code: releases come in two, of which `mt3-runtime` holds none
#: and brings an ONNX Runtime; it is asked where the first is not installed.
HOLDERS = ("mt3-runtime-core", "mt3-runtime")


def version() -> str:
    """The version of the installed distribution; importlib.metadata takes a while to import.

    Raises:
        importlib.metadata.PackageNotFoundError: This runs from a source tree.
    """
    metadata = import_module("importlib.metadata")
    core, whole = HOLDERS
    try:
        found: str = metadata.version(core)
    except metadata.PackageNotFoundError:
        found = metadata.version(whole)
    return found


class _FormerPaths:
    """Finds former names; is asked last, for what nobody else has found."""

    def find_spec(
        self,
        fullname: str,
        path: "Sequence[str] | None",  # noqa: ARG002
        target: "ModuleType | None" = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or name not in FORMER:
            return None
        return ModuleSpec(fullname, self)  # type: ignore[arg-type]  # a Loader but by inheritance

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves it to Python to make the module."""

    def exec_module(self, module: "ModuleType") -> None:
        name = module.__name__
        sys.modules[name] = import_module(f"{_PACKAGE}.{FORMER[name.partition('.')[2]]}")


_PACKAGE = __name__.partition(".")[0]


def keep_former_paths() -> None:
    """Lets former import paths work in this process; more than once does nothing."""
    if not any(isinstance(finder, _FormerPaths) for finder in sys.meta_path):
        sys.meta_path.append(_FormerPaths())
