"""Nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("tensorrt", "polygraphy", "cuda", "onnx", "torch")


def test_every_module_imports_without_the_heavy_packages():
    code = f"""
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
import mt3_engines
for module in pkgutil.walk_packages(mt3_engines.__path__, "mt3_engines."):
    importlib.import_module(module.name)
assert not set({HEAVY!r}) & set(sys.modules)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
