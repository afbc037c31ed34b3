"""What many tests share: the tiny seeded bundle, the real weights and recordings where present."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.checkpoints.checkpoint import read_checkpoint
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.models import catalogue, shipped
from tests.seeded import seeded_normal, seeded_weights

SHARED = Path(os.environ.get("MT3_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_configure() -> None:
    """Lets processes that tests start in other folders import what this one imports."""
    if folders := os.environ.get("PYTHONPATH"):
        absolute = [str(Path(folder).resolve()) for folder in folders.split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(absolute)


@pytest.fixture(scope="session")
def tiny_weights() -> Weights:
    """The small network most tests run.

    Of forty seeds this one says most: on `audio` its segments have 57 to 159 tokens and 20 notes.
    """
    return seeded_weights(seed=21)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    """A bundle of the small network with all profiles; tests must not change it."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(
        tiny_weights,
        variant_named("magenta_mt3"),
        path,
        source={"layout": "seeded", "digest": "0" * 64},
        profiles=("cpu", "portable", "compat"),
        name="tiny",
    )
    return path


@pytest.fixture
def tiny_model(tiny_bundle: Path) -> Model:
    """The small network, loaded."""
    return load_model(tiny_bundle)


@pytest.fixture(scope="session")
def audio() -> npt.NDArray[np.float32]:
    """Nine seconds (five segments) of deterministic noise and tones at 16 kHz: float32 [n]."""
    time = np.arange(9 * 16000) / 16000
    tones = sum(np.sin(2 * np.pi * f * time * (1 + 0.01 * time)) for f in (110.0, 331.0, 1507.0))
    noise = seeded_normal("audio", (len(time),))
    return np.asarray(0.1 * tones + 0.05 * noise, np.float32)


@pytest.fixture
def nothing_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A package that was built without weights."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "no data")
    forget = catalogue.list_models.cache_clear  # a test may put something else in its place
    forget()
    yield
    forget()


@pytest.fixture(scope="session")
def default_bundle() -> Path:
    """The model that comes with the package; skips where it was built without."""
    models = shipped.shipped_models()
    if not models:
        pytest.skip(f"no default model in {shipped.FOLDER}: the package was built without weights")
    return models[shipped.DEFAULT]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real weights and recordings; skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"no real weights and recordings at {SHARED} (set MT3_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def real_weights(shared: Path) -> Weights:
    """Magenta's published MT3 weights."""
    return read_checkpoint(shared / "checkpoints" / "magenta_mt3").weights


@pytest.fixture(scope="session")
def real_bundle(
    tmp_path_factory: pytest.TempPathFactory, shared: Path, real_weights: Weights
) -> Path:
    """Magenta's MT3 as a bundle with all profiles."""
    path = tmp_path_factory.mktemp("bundles") / "magenta_mt3"
    contents = read_checkpoint(shared / "checkpoints" / "magenta_mt3")
    export_bundle(
        real_weights,
        variant_named("magenta_mt3"),
        path,
        source={"layout": contents.layout, "digest": contents.digest},
        profiles=("cpu", "portable", "compat"),
    )
    return path
