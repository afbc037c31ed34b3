from __future__ import annotations

import re
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from mt3_runtime import doctor
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.doctor import Level


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path))
    return tmp_path


def finding(subject: str) -> doctor.Finding:
    (found,) = [item for item in doctor.examine() if item.subject == subject]
    return found


def test_this_machine_is_fit(cache, capsys):
    assert main(["doctor"]) == ExitCode.OK
    report = capsys.readouterr().out
    assert re.search(r"^ok +CPUExecutionProvider +works$", report, re.MULTILINE)
    assert "libsndfile" in report
    assert "Transcription on the CPU works; problems found: 0." in report


def test_every_finding_that_is_not_all_right_has_a_remedy(cache):
    for item in doctor.examine():
        assert bool(item.remedy) == (item.level is not Level.OK)


def test_the_handmade_graph_is_a_valid_model():
    model = onnx.load_from_string(doctor.sum_graph())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Add"]


def test_a_missing_base_package_breaks_the_cpu_path(cache, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mido", None)
    assert main(["doctor"]) == ExitCode.UNUSABLE
    report = capsys.readouterr().out
    assert "-> pip install --force-reinstall mt3-runtime" in report
    assert "Transcription on the CPU does not work; problems found: 1." in report


def test_missing_comforts_do_not_break_the_cpu_path(cache, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert main(["doctor"]) == ExitCode.OK
    assert finding("rich").level is Level.NOTE
    assert finding("audio files").level is Level.PROBLEM
    assert "mt3-runtime[cpu]" in finding("soundfile").remedy


def test_without_onnx_runtime_the_extra_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(doctor, "ORT_WHEELS", ())
    found = finding("CPUExecutionProvider")
    assert found.level is Level.PROBLEM
    assert found.remedy == "pip install 'mt3-runtime[cpu]'"
    assert not doctor.cpu_works(doctor.examine())


def test_a_hollow_onnx_runtime_is_reinstalled(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    assert finding("CPUExecutionProvider").remedy == "pip install --force-reinstall onnxruntime"


def test_two_wheels_of_one_module_are_a_problem(cache, monkeypatch):
    versions = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    found = finding("onnxruntime")
    assert found.level is Level.PROBLEM
    assert found.remedy == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'mt3-runtime[gpu]'"
    )


class FakeRuntime:
    """Lists CUDA; what a session really does is told by the test."""

    class SessionOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_session_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

    def __init__(self, used: str = "", result: float = 42.0, error: str = "") -> None:
        self.used, self.result, self.error = used, result, error

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, graph, options, providers):  # noqa: N802
        (provider,) = providers
        if self.error:
            raise RuntimeError(self.error)
        if provider.startswith("CUDA"):
            assert options.entries == {"session.disable_cpu_ep_fallback": "1"}
        return SimpleNamespace(
            get_providers=lambda: [self.used or provider],
            run=lambda names, feed: [np.asarray([self.result], np.float32)],
        )


@pytest.mark.parametrize(
    ("runtime", "cuda", "cpu"),
    [
        (FakeRuntime(), "works", "works"),
        (FakeRuntime(used="CPUExecutionProvider"), "given to CPUExecutionProvider", "works"),
        (FakeRuntime(result=0.0), "came out as [0.0]", "came out as [0.0]"),
        (FakeRuntime(error="no\n  driver"), "no driver", "no driver"),
    ],
)
def test_a_provider_is_judged_by_what_it_does(cache, monkeypatch, runtime, cuda, cpu):
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    on_gpu, on_cpu = finding("CUDAExecutionProvider"), finding("CPUExecutionProvider")
    assert cuda in on_gpu.detail
    assert cpu in on_cpu.detail
    assert on_gpu.level is (Level.OK if cuda == "works" else Level.NOTE)
    assert on_cpu.level is (Level.OK if cpu == "works" else Level.PROBLEM)
    assert doctor.cpu_works(doctor.examine()) == (cpu == "works")
    assert not [item for item in doctor.examine() if "Azure" in item.subject]


def test_an_old_libsndfile_is_noted(cache, monkeypatch):
    old = SimpleNamespace(
        available_formats=lambda: {"WAV": "", "FLAC": ""}, __libsndfile_version__="1.0.31"
    )
    monkeypatch.setitem(sys.modules, "soundfile", old)
    found = finding("audio files")
    assert found.level is Level.NOTE
    assert "no MP3 (libsndfile 1.0.31)" in found.detail


def test_the_cache_folder_must_be_writable(cache, monkeypatch):
    assert finding("cache folder").detail == str(cache)
    monkeypatch.setenv("MT3_CACHE", str(cache / "new"))
    assert "made when first needed" in finding("cache folder").detail
    (cache / "file").write_text("")
    monkeypatch.setenv("MT3_CACHE", str(cache / "file" / "below"))
    found = finding("cache folder")
    assert found.level is Level.PROBLEM
    assert "MT3_CACHE" in found.remedy


def test_installed_models_are_listed(cache):
    assert "mt3 export" in finding("models").remedy
    (cache / "bundles" / "mine").mkdir(parents=True)
    (cache / "bundles" / "mine" / "bundle.json").write_text("{}")
    assert finding("models").detail == "mine"
