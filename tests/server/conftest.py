"""What the tests of the service share: a service of the small network, and an upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mt3_runtime.loading import load_model
from mt3_runtime.model import Model


@pytest.fixture(scope="session")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with load_model(tiny_bundle, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def upload(audio, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Nine seconds of audio as a FLAC file."""
    from tests.server.running import flac

    return flac(audio, tmp_path_factory.mktemp("upload") / "audio.flac")


@pytest.fixture(scope="module")
def served(model: Model, tmp_path_factory: pytest.TempPathFactory):
    """A service with ordinary settings."""
    from tests.server.running import running

    with running(model, tmp_path_factory.mktemp("spool"), rate=1e6, burst=10**6) as found:
        yield found
        found.idle()


@pytest.fixture
def client(served) -> Iterator[httpx.Client]:
    with served.client() as made:
        yield made
