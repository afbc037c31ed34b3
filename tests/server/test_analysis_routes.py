"""Routes of installed packages: what they get, what goes wrong, what is said where they are not."""

from __future__ import annotations

import io
import threading
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.errors import OptionError
from mt3_runtime.extensions.service_routes import ROUTE_GROUP, RouteRequest
from mt3_server.api import analysis_route
from tests.server.running import running

SEEN: list[RouteRequest] = []


def heard(request: RouteRequest) -> dict[str, object]:
    """A route: what is asked of it, and what of the upload it can see."""
    SEEN.append(request)
    if request.options.get("fail") == "option":
        raise OptionError("fail is nothing that one asks for.")
    if request.options.get("fail") == "bug":
        raise ZeroDivisionError
    samples = request.samples(int(request.options.get("rate", "8000")))
    result = request.transcribe(auto_filter=False)
    return {
        "digest": result.token_digest,
        "samples": len(samples),
        "level": float(np.abs(samples).max()),
        "dtype": str(samples.dtype),
        "thread": threading.current_thread() is threading.main_thread(),
    }


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    entries = {
        "tags": EntryPoint("tags", f"{__name__}:heard", ROUTE_GROUP),
        "genre": EntryPoint("genre", "no_such_package.at_all:route", ROUTE_GROUP),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis_route, "route_entries", lambda: entries)
        patch.setattr(EntryPoint, "load", _load)
        with running(model, tmp_path_factory.mktemp("spool")) as made:
            yield made
            made.idle()


def _load(entry: EntryPoint):
    """Tests are no installed package."""
    if entry.value.endswith(":heard"):
        return heard
    raise ModuleNotFoundError("No module named 'no_such_package'", name="no_such_package")


def test_a_route_hears_the_upload_and_the_engine(found, model, upload):
    expected = model.transcribe_notes(io.BytesIO(upload), auto_filter=False)
    with found.client() as client:
        answer = client.post("/v1/tags", params={"rate": 16000, "model": "tiny"}, content=upload)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["digest"] == expected.token_digest
    assert told["samples"] == len(load_audio(io.BytesIO(upload), target_rate=16000))
    assert told["dtype"] == "float32"
    assert told["thread"] is False
    assert dict(SEEN[-1].options) == {"rate": "16000"}
    assert not SEEN[-1].upload.exists()


@pytest.mark.parametrize(
    ("options", "status", "kind"),
    [
        ({"fail": "option"}, 422, "option"),
        ({"fail": "bug"}, 500, "internal"),
        ({"rate": 10**9}, 422, "option"),
        ({"model": "../x"}, 422, "option"),
        ([("rate", "8000"), ("rate", "8000")], 422, "option"),
    ],
)
def test_what_goes_wrong_is_answered(found, upload, options, status, kind):
    with found.client() as client:
        answer = client.post("/v1/tags", params=options, content=upload)
    assert (answer.status_code, answer.json()["type"]) == (status, kind)
    assert "ZeroDivision" not in answer.text


def test_audio_that_cannot_be_read_is_the_client_s_fault(found):
    with found.client() as client:
        answer = client.post("/v1/tags", content=b"no audio")
    assert answer.status_code in (400, 415)
    assert answer.json()["message"].startswith("The upload")


@pytest.mark.parametrize("name", ["genre", "assess"])
def test_a_route_that_is_not_installed_says_what_to_install(found, upload, name):
    with found.client() as client:
        answer = client.post(f"/v1/{name}", content=upload)
    assert answer.status_code == 404
    assert answer.json()["type"] == "not_installed"
    assert "nstall" in answer.json()["message"]
    with found.client() as client:
        assert client.post("/v1/nothing", content=upload).json()["type"] == "not_found"
