"""Training is tested where PyTorch is: in an environment of its own, as ours must not have it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = sorted(
    path.name
    for path in HERE.glob("test_*.py")
    if "\ntorch = needs.torch()" in path.read_text(encoding="utf-8")
)


def test_there_are_such_modules():
    assert {"test_network.py", "test_train.py"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_what_needs_pytorch_passes_beside_it(name, beside_torch):
    said = beside_torch("-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / name)
    assert re.search(r"\d+ passed", said.splitlines()[-1]), said
