from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mt3_runtime import nvidia
from mt3_runtime.cli import ExitCode

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    driver = nvidia.driver()
    if not SCRIPT.exists() or (driver and driver.gpus):
        pytest.skip("there is a GPU, or no benchmark")
    found = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert found.returncode == ExitCode.UNUSABLE, found.stderr
    assert found.stderr.count("\n") == 1
    assert "no NVIDIA GPU here" in found.stderr
    assert not found.stdout
