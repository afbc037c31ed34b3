"""Training is tested where PyTorch is: in an environment of its own, as ours must not have it."""

from __future__ import annotations

import os
import re
import subprocess
from importlib import util
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROOMS = ("runtime", "export", "engines", "calibration")


@pytest.mark.skipif(
    util.find_spec("torch") is not None, reason="PyTorch is here, so these tests run by themselves"
)
@pytest.mark.parametrize("name", ["test_initialisation.py", "test_network.py", "test_train.py"])
def test_what_needs_pytorch_passes_beside_it(name):
    python = os.environ.get("MT3_TORCH_PYTHON")
    if not python:
        pytest.skip("needs MT3_TORCH_PYTHON, see tests/training/torch-requirements.txt")
    ended = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in ROOMS)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-1000:]
    assert re.search(r"\d+ passed", ended.stdout)
