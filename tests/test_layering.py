"""Who may import whom, and what: the architecture as a test.

The imports are read from the source, so a lazy import and one for annotations alone count as well;
where laziness is the rule, the test tells imports at the top of a module from those in a function.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Package -> the folder it lies in, and the packages it may import.
PACKAGES: dict[str, tuple[str, set[str]]] = {
    "mt3_runtime": ("runtime", set()),
    "mt3_analysis": ("runtime", {"mt3_runtime"}),
    "mt3_server": ("runtime", {"mt3_runtime", "mt3_analysis"}),
    "mt3_export": ("export", {"mt3_runtime"}),
    "mt3_engines": ("engines", {"mt3_runtime"}),
    "mt3_synthesis": ("calibration", {"mt3_runtime"}),
    "mt3_evaluation": ("calibration", {"mt3_runtime", "mt3_analysis", "mt3_synthesis"}),
    "mt3_training": (
        "calibration",
        {"mt3_runtime", "mt3_analysis", "mt3_export", "mt3_synthesis", "mt3_evaluation"},
    ),
    "mt3_quantisation": (
        "calibration",
        {"mt3_runtime", "mt3_export", "mt3_engines", "mt3_synthesis", "mt3_evaluation"},
    ),
}
FOLDERS = {folder for folder, _ in PACKAGES.values()}

#: The packages inside the runtime from the bottom up: each may import those ahead of it.
RUNTIME_ORDER = (
    ("errors", "progress"),
    ("imports", "filesystem", "arguments"),
    ("schema",),
    ("audio",),
    ("notes",),
    ("leakage",),
    ("reading",),
    ("files",),
    ("bundles",),
    ("models",),
    ("diagnostics",),
    ("backends",),
    ("decoding",),
    (
        "request",
        "recording",
        "transcription",
        "engine",
        "model",
        "loading",
        "per_stem",
        "stem_routing",
        "extensions",
    ),
    ("cli", "batch", "commands", "__main__"),
)

#: What the runtime may import at all, and what of it only inside a function.
RUNTIME_MAY = {"numpy", "onnxruntime", "mido", "soundfile", "soxr", "av", "rich", "yaml"}
RUNTIME_LAZY = {"onnxruntime", "soundfile", "soxr", "av", "rich", "yaml"}

#: Frameworks no user of the runtime needs.
FRAMEWORKS = ("torch", "jax", "flax", "tensorflow", "transformers", "librosa", "scipy", "onnx")

#: Base names that every package may have.
COMMON_NAMES = {"__init__", "__main__", "base", "commands", "checks"}
MOST_MODULES = 12
MOST_LINES = 400
LONGEST_INIT = 20


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / PACKAGES[package][0] / package).rglob("*.py"))
    theirs = ("hook-", "pyi_rth_")  # what PyInstaller runs
    return [path for path in found if not path.name.startswith(theirs)]


ALL = {package: modules(package) for package in PACKAGES}
PRESENT = [package for package, found in ALL.items() if found]
PATHS = [path for found in ALL.values() for path in found]


def dotted(path: Path) -> str:
    """The name a module is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in PATHS}


@functools.cache
def imports(path: Path) -> frozenset[tuple[str, bool]]:
    """What a module imports, dotted, and whether that happens when it is imported itself."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(node)
        for owner in ast.walk(tree)
        if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(owner)
        for node in ast.walk(owner)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module or "" for name in inner]
        elif isinstance(node, ast.Call) and _is_import_module(node):
            names = [node.args[0].value]
        else:
            continue
        for name in names:
            yield name, id(node) not in lazy


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _is_import_module(node: ast.Call) -> bool:
    return (
        ast.unparse(node.func).endswith("import_module")
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )


def top_level(package: str) -> set[tuple[str, bool]]:
    """What of others a package imports."""
    found = {
        (name.partition(".")[0], eager) for path in ALL[package] for name, eager in imports(path)
    }
    return {
        (name, eager)
        for name, eager in found
        if name not in sys.stdlib_module_names and name != package
    }


@pytest.mark.parametrize("package", PRESENT)
def test_dependencies_between_packages_point_one_way(package):
    used = {name for name, _ in top_level(package)} & set(PACKAGES)
    assert used <= PACKAGES[package][1]


def layer(module: str) -> int:
    """How high a module of the runtime lies."""
    name = module.split(".")[1]
    found = [height for height, names in enumerate(RUNTIME_ORDER) if name in names]
    assert len(found) == 1, f"{module}: say in RUNTIME_ORDER where it belongs"
    return found[0]


def test_packages_of_the_runtime_import_downwards_only():
    runtime = {name: path for name, path in MODULES.items() if name.startswith("mt3_runtime.")}
    upwards = [
        f"{module} imports {name}"
        for module, path in runtime.items()
        for name, _ in imports(path)
        if name.startswith("mt3_runtime.") and layer(name) > layer(module)
    ]
    assert not upwards


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: {name for name, _ in imports(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    assert not circle(graph)


def test_a_circle_is_found():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_no_base_name_twice():
    names = Counter(path.stem for path in PATHS if path.stem not in COMMON_NAMES)
    names.update({path.parent.name for path in PATHS})
    assert [name for name, count in names.items() if count > 1] == []


def test_no_folder_holds_more_modules_than_one_can_survey():
    counts = Counter(path.parent for path in PATHS if path.stem != "__init__")
    assert {str(f): count for f, count in counts.items() if count > MOST_MODULES} == {}


def test_no_module_is_longer_than_one_can_read():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PATHS}
    assert {str(path): length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_the_runtime_needs_little():
    used = top_level("mt3_runtime")
    assert {name for name, _ in used} <= RUNTIME_MAY
    assert not {name for name, eager in used if eager} & RUNTIME_LAZY


def test_the_analysis_needs_what_the_runtime_needs():
    used = {name for name, _ in top_level("mt3_analysis")} - {"mt3_runtime"}
    assert used <= RUNTIME_MAY
    eager = {name for name, eager in top_level("mt3_analysis") if eager}
    assert not eager & RUNTIME_LAZY


def test_the_exporter_needs_no_framework_but_for_its_traced_routes():
    frameworks = set(FRAMEWORKS) - {"onnx"}
    found = {
        path.stem
        for path in ALL["mt3_export"]
        if {name.partition(".")[0] for name, _ in imports(path)} & frameworks
    }
    assert found == {"flax_network", "jax2tf_route", "torch_network", "torch_route"}
    code = (
        "import sys, mt3_export.routes.traced_graphs; sys.exit(any(n in sys.modules for n in {!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", code.format(frameworks)], check=False)
    assert ended.returncode == 0


def test_the_reader_of_imports_sees_all_kinds(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\nfrom c.d import e\nfrom typing import TYPE_CHECKING\n"
        "from mt3_runtime import errors\n"
        "if TYPE_CHECKING:\n    import f\n"
        "def g():\n    import h\n    importlib.import_module('i.j')\n"
    )
    assert imports(path) == {
        ("a.b", True),
        ("c.d", True),
        ("typing", True),
        ("mt3_runtime.errors", True),
        ("f", False),
        ("h", False),
        ("i.j", False),
    }


def test_nobody_imports_an_outer_folder():
    for folder in (*FOLDERS, "tests", "benchmarks", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {name.partition(".")[0] for name, _ in imports(path)} & FOLDERS, path


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_outer_folders_are_not_packages(folder):
    assert not list((ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("package", PRESENT)
def test_packages_are_typed(package):
    assert (ROOT / PACKAGES[package][0] / package / "py.typed").is_file()


def test_packages_open_with_a_short_init():
    folders = {path.parent for path in PATHS}
    lengths = {f: len((f / "__init__.py").read_text("utf-8").splitlines()) for f in folders}
    assert {str(f): length for f, length in lengths.items() if length >= LONGEST_INIT} == {}


@pytest.mark.parametrize("package", PRESENT)
def test_every_module_opens_with_its_contract(package):
    for path in ALL[package]:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_runtime_imports_with_every_framework_blocked():
    code = f"""
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FRAMEWORKS!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
import mt3_analysis, mt3_runtime
for package in (mt3_runtime, mt3_analysis):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
assert not set({FRAMEWORKS!r}) & set(sys.modules)
for name in {sorted(RUNTIME_LAZY - {"onnxruntime"})!r}:
    assert name not in sys.modules, name
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_former_import_paths_give_the_modules_of_today():
    code = """
import mt3_runtime
from mt3_runtime.bundle import Manifest
from mt3_runtime.audio import load_audio, open_audio, open_blocks
from mt3_runtime.formats import load_notes, render
from mt3_runtime.midi import from_midi, to_midi
from mt3_runtime.notes import Note, Probabilities, SegmentReport
from mt3_runtime.leakage import Change, LeakageReport, Stretch
from mt3_runtime import catalogue, instruments, search
import mt3_runtime.models.catalogue
assert catalogue is mt3_runtime.models.catalogue, catalogue
assert mt3_runtime.Note is Note
assert Manifest.__module__ == "mt3_runtime.bundles.manifest"
try:
    import mt3_runtime.nothing_of_the_kind
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("found what does not exist")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
