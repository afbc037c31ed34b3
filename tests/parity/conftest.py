"""The recordings decoded with the real weights, once for all tests, and the original's Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from tests import needs
from tests.pace import HANGS
from tests.parity.recordings import Oracle, Run, extract, transcribe

RECIPES = Path(__file__).with_name("recipes")


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """Runs a recipe among the original implementations of MT3, in their own environment."""
    return _oracle("oracle")


@pytest.fixture(scope="session")
def yourmt3_oracle() -> Oracle:
    """The same for YourMT3, which needs another version of transformers."""
    return _oracle("yourmt3")


def _oracle(name: str) -> Oracle:
    python = needs.python_of(name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(recipe: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, RECIPES / recipe, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def real_model(real_bundle: Path) -> Model:
    """Magenta's MT3 with exact weights."""
    return load_model(real_bundle)


@pytest.fixture(scope="session")
def features(real_model: Model, shared: Path) -> dict[str, np.ndarray]:
    """Features of all recordings in full length."""
    return extract(real_model, shared)


@pytest.fixture(scope="session")
def greedy_runs(real_model: Model, features: dict[str, np.ndarray]) -> dict[str, Run]:
    """All recordings, decoded as by default."""
    return transcribe(real_model, features, "greedy")


@pytest.fixture(scope="session")
def t5x_runs(real_model: Model, features: dict[str, np.ndarray]) -> dict[str, Run]:
    """All recordings, decoded as in Magenta's notebook."""
    return transcribe(real_model, features, "t5x")
