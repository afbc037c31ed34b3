"""Who may import whom, and what: the architecture as a test.

The imports are read from the source, so a lazy import counts as well; where laziness is the rule,
the test tells imports at the top of a module from those inside a function.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Room -> (package, rooms it may import).
ROOMS = {
    "runtime": ("mt3_runtime", set()),
    "export": ("mt3_export", {"mt3_runtime"}),
    "engines": ("mt3_engines", {"mt3_runtime"}),
    "calibration": ("mt3_calibration", {"mt3_runtime", "mt3_export", "mt3_engines"}),
}

#: What the runtime may import at all, and what of it only inside a function.
RUNTIME_MAY = {"numpy", "onnxruntime", "mido", "soundfile", "soxr", "rich"}
RUNTIME_LAZY = {"onnxruntime", "soundfile", "soxr", "rich"}

#: Frameworks no user of the runtime needs.
FRAMEWORKS = ("torch", "jax", "flax", "tensorflow", "transformers", "librosa", "scipy", "onnx")

PRESENT = [
    room for room, (package, _) in ROOMS.items() if list((ROOT / room / package).glob("*.py"))
]


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room / ROOMS[room][0]).rglob("*.py"))


@functools.cache
def imports(path: Path) -> frozenset[tuple[str, bool]]:
    """Top-level package of every import of a module, and whether it runs on import."""
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
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and _is_import_module(node):
            names = [node.args[0].value]
        else:
            continue
        for name in names:
            yield name.partition(".")[0], id(node) not in lazy


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _is_import_module(node: ast.Call) -> bool:
    return (
        ast.unparse(node.func).endswith("import_module")
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )


def third_party(room: str) -> set[tuple[str, bool]]:
    package = ROOMS[room][0]
    found = {item for path in modules(room) for item in imports(path)}
    return {
        (name, eager)
        for name, eager in found
        if name not in sys.stdlib_module_names and name != package
    }


@pytest.mark.parametrize("room", PRESENT)
def test_dependencies_between_rooms_point_one_way(room):
    packages = {package for package, _ in ROOMS.values()}
    used = {name for name, _ in third_party(room)} & packages
    assert used <= ROOMS[room][1]


def test_the_runtime_needs_little():
    used = third_party("runtime")
    assert {name for name, _ in used} <= RUNTIME_MAY
    assert not {name for name, eager in used if eager} & RUNTIME_LAZY


def test_the_exporter_needs_no_framework_but_for_its_traced_routes():
    frameworks = set(FRAMEWORKS) - {"onnx"}
    found = {path.stem for path in modules("export") if {n for n, _ in imports(path)} & frameworks}
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
        "if TYPE_CHECKING:\n    import f\n"
        "def g():\n    import h\n    importlib.import_module('i.j')\n"
    )
    assert imports(path) == {
        ("a", True),
        ("c", True),
        ("typing", True),
        ("f", False),
        ("h", False),
        ("i", False),
    }


def test_nobody_imports_an_outer_folder():
    for folder in (*ROOMS, "tests", "benchmarks", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {name for name, _ in imports(path)} & set(ROOMS), path


@pytest.mark.parametrize("room", ROOMS)
def test_outer_folders_are_not_packages(room):
    assert not list((ROOT / room).glob("*.py"))


@pytest.mark.parametrize("room", PRESENT)
def test_packages_are_typed_and_open_with_a_short_init(room):
    package = ROOT / room / ROOMS[room][0]
    assert (package / "py.typed").is_file()
    assert len((package / "__init__.py").read_text(encoding="utf-8").splitlines()) < 20


@pytest.mark.parametrize("room", PRESENT)
def test_every_module_opens_with_its_contract(room):
    for path in modules(room):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_runtime_imports_with_every_framework_blocked():
    code = f"""
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FRAMEWORKS!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
import mt3_runtime
for module in pkgutil.walk_packages(mt3_runtime.__path__, "mt3_runtime."):
    importlib.import_module(module.name)
assert not set({FRAMEWORKS!r}) & set(sys.modules)
for name in {sorted(RUNTIME_LAZY - {"onnxruntime"})!r}:
    assert name not in sys.modules, name
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
