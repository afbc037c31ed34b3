"""ONNX Runtime reports nothing and leaves nothing in the home folder, whoever imports it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mt3_runtime.imports import telemetry

LOAD = "from mt3_runtime import load_model; load_model('default')"


def home_after(tmp_path, code, **variables):
    """What a program leaves in an empty home folder."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name != telemetry.VARIABLE}
    kept = {name: value for name, value in kept.items() if not name.startswith(("XDG_", "MT3_C"))}
    subprocess.run(
        [sys.executable, "-c", code], env=kept | {"HOME": str(home)} | variables, check=True
    )
    return sorted(path.name for path in home.rglob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="where the id lies differs")
@pytest.mark.parametrize(
    "code",
    [
        LOAD,
        "import mt3_runtime, onnxruntime",
        "from mt3_runtime.diagnostics.doctor import examine; list(examine())",
        "import mt3_runtime.backends.ort_cpu; from onnxruntime.quantization import QuantType",
    ],
)
def test_nothing_is_left_in_the_home_folder(tmp_path, code):
    assert home_after(tmp_path, code) == []


def test_who_sets_the_variable_decides(monkeypatch):
    for value in ("0", "", "1"):
        monkeypatch.setenv(telemetry.VARIABLE, value)
        telemetry.refuse()
        assert os.environ[telemetry.VARIABLE] == value


def test_a_runtime_that_is_loaded_already_is_asked(monkeypatch):
    asked = []
    monkeypatch.delenv(telemetry.VARIABLE)
    monkeypatch.setattr("onnxruntime.disable_telemetry_events", lambda: asked.append(1))
    telemetry.refuse()
    assert asked == [1]
    assert os.environ[telemetry.VARIABLE] == "1"
    telemetry.refuse()
    assert asked == [1]


def test_older_releases_have_no_telemetry_to_turn_off(monkeypatch):
    monkeypatch.delenv(telemetry.VARIABLE)
    monkeypatch.setitem(sys.modules, "onnxruntime", object())
    telemetry.refuse()
    assert os.environ[telemetry.VARIABLE] == "1"
