"""What `mt3 doctor` says about TensorRT."""

from __future__ import annotations

import pytest

from mt3_engines import checks
from mt3_engines.checks import examine
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.diagnostics import cuda_libraries, doctor
from mt3_runtime.diagnostics.doctor import Level
from tests.engines.fake_gpu import FakeCuda, FakeTensorRt
from tests.engines.test_verify_on_gpu import Builder


class Graphs(Builder):
    """Gives graphs for engines, whatever the configuration."""

    def CreateConfig(self):  # noqa: N802  polygraphy's name
        return "config"

    def EngineBytesFromNetwork(self, network, config):  # noqa: N802
        return lambda: self.networks[-1][0]


@pytest.fixture
def machine(monkeypatch) -> FakeCuda:
    cuda = FakeCuda()
    monkeypatch.setattr(checks, "import_tensorrt", lambda: FakeTensorRt(cuda, "10.16.1", (1,)))
    monkeypatch.setattr(checks, "import_polygraphy", Graphs)
    monkeypatch.setattr(checks, "open_cuda", lambda index: cuda)
    monkeypatch.setattr(cuda_libraries, "driver", lambda: cuda_libraries.Driver((13, 0), ()))
    return cuda


def test_an_engine_is_built_and_run(machine):
    (found,) = examine(asked=False)
    assert (found.subject, found.level) == ("device tensorrt", Level.OK)
    assert found.detail == "TensorRT 10.16.1 builds and runs an engine on FAKE GPU"
    assert not found.remedy
    assert not machine.memory
    assert not machine.pins
    assert doctor.works(
        [doctor.Finding(name, Level.OK, "") for name in ("numpy", "mido")] + [found], "tensorrt"
    )


def test_what_comes_out_is_looked_at(machine, monkeypatch):
    monkeypatch.setattr("tests.engines.fake_gpu.Context.execute_async_v3", lambda *a: True)
    (found,) = examine(asked=False)
    assert found.level is Level.NOTE
    assert "fails: 21 + 21 came out as 0.0" in found.detail
    assert found.remedy


def test_what_is_missing_is_named_where_somebody_asks(capsys):
    assert list(examine(asked=False)) == []
    (found,) = examine(asked=True)
    assert found.level is Level.NOTE
    assert "tensorrt: No module named 'tensorrt'; " in found.detail
    assert "CUDA bindings: No module named" in found.detail
    assert "https://pypi.nvidia.com" in found.remedy


def test_the_command_asks(monkeypatch, machine, capsys):
    assert main(["doctor", "--device", "tensorrt"]) == ExitCode.OK
    assert "Transcription on device tensorrt works" in capsys.readouterr().out
