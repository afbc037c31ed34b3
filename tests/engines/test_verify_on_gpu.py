"""The one command for a machine with TensorRT, on the fake one."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from mt3_engines import verify_on_gpu as module
from mt3_engines.storage.shapes import make_plan
from mt3_engines.verification import Agreement, Answers, Run, StepRow, compare, report
from mt3_engines.verify_on_gpu import main
from mt3_engines.versions import RTX, TENSORRT
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.cli import ExitCode
from mt3_runtime.decoding.types import Sequence
from mt3_runtime.errors import DeviceError, OutputError
from tests.engines.fake_gpu import FakeCuda, FakeTensorRt
from tests.engines.test_build import Loaders


def run(*sequences, shift=0.0) -> Run:
    made = [
        Sequence(np.array(s, np.int32), np.full(len(s), -1.0 + shift, np.float32), truncated=False)
        for s in sequences
    ]
    return Run(made, [0.5, 0.25, 1.0])


def test_comparing():
    expected = run([5, 6, 1], [7, 1])
    assert compare(run([5, 6, 1], [7, 1], shift=0.25), expected) == Agreement(2, 2, 0.25)
    assert compare(run([5, 9, 1], [7, 1], shift=0.5), expected) == Agreement(1, 2, 0.5)
    assert compare(run([9, 6, 1], [7, 8, 1]), expected) == Agreement(0, 2, 0.0)
    assert compare(run([5, 6], [7, 1]), expected) == Agreement(1, 2, 0.0)
    assert run([1, 2], [3]).digest != run([1], [2, 3]).digest


def test_the_report_says_whether_the_promise_is_kept():
    same, other = run([5, 1]), run([6, 1])
    text, fine = report(["line"], [], {"a.wav": {"cpu": same, "fp32": same, "fp16": other}})
    assert fine
    assert "| a.wav | fp16 | 0.500 | 2 | 4 |" in text
    assert "1 of 1 segments" in text
    for results in ({"a.wav": {"cpu": same, "fp32": other}}, {"a.wav": {"cpu": same}}, {}):
        _, fine = report([], [], results)
        assert not fine


def test_nothing_is_promised_for_quantised_products():
    same, other = run([5, 1]), run([6, 1])
    text, fine = report([], [], {"a.wav": {"cpu": same, "fp32": other}}, promised=False)
    assert fine
    assert "fp32: 0 of 1 segments as on the CPU.\n" in text
    assert not report([], [], {}, promised=False)[1]


class Builder(Loaders):
    """Makes the graph itself the engine."""

    def EngineBytesFromNetwork(self, network, config, save_timing_cache):  # noqa: N802
        return lambda: self.networks[-1][0]

    def PostprocessConfig(self, config, func):  # noqa: N802
        func(None, None, Config())
        return "finished"


class Config:
    """Accepts what the builder of TensorRT for RTX is set to."""

    def set_flag(self, flag) -> None: ...

    clear_flag = set_flag


def machine_of(maker, version, capability, tiny_bundle, monkeypatch) -> FakeCuda:
    plan = make_plan(Bundle(tiny_bundle).manifest, (1, 4))
    cuda, loaders = FakeCuda(capability=capability), Builder()
    tensorrt = FakeTensorRt(cuda, version, plan.slots, maker=maker)
    tensorrt.BuilderFlag = SimpleNamespace(TF32=1, REQUIRE_USER_ALLOCATION=2)
    settings = SimpleNamespace(CreateConfigRTX=loaders.CreateConfig)
    monkeypatch.setitem(sys.modules, "polygraphy.backend.tensorrt_rtx", settings)
    monkeypatch.setattr(module, "CAPACITIES", (64,))
    monkeypatch.setattr(module, "import_tensorrt", lambda asked: tensorrt)
    monkeypatch.setattr(module, "import_polygraphy", lambda asked: loaders)
    monkeypatch.setattr(module, "open_cuda", lambda index, asked: cuda)
    return cuda


@pytest.fixture
def machine(tiny_bundle, monkeypatch) -> FakeCuda:
    return machine_of(TENSORRT, "10.16.1.11", "9.0", tiny_bundle, monkeypatch)


def test_build_parity_and_speed_in_one_command(tiny_bundle, machine, tmp_path, audio):
    soundfile.write(tmp_path / "song.wav", audio[:70000], 16000)
    arguments = [
        *(str(tiny_bundle), str(tmp_path / "song.wav"), "-o", str(tmp_path / "report.md")),
        *("--engines", str(tmp_path / "engines"), "--slots", "1,4", "--repeats", "1"),
    ]
    assert main(arguments) in (ExitCode.OK, ExitCode.FAILED)  # tiny networks are full of ties
    text = (tmp_path / "report.md").read_text()
    for part in ("| song.wav | cpu |", "| song.wav | fp32 |", "| song.wav | fp16 |", "FAKE GPU",
                 "| fp32 | 1 |", "| fp16 | 4 |"):  # fmt: skip
        assert part in text
    engines = sorted((tmp_path / "engines").glob("*.engine"))
    assert len(engines) == 6
    times = [path.stat().st_mtime_ns for path in engines]
    main(arguments)  # takes those that are there
    assert [path.stat().st_mtime_ns for path in engines] == times


def test_engines_are_compared_with_another_bundle(tiny_bundle, machine, tmp_path, audio):
    other = tmp_path / "quantised"
    shutil.copytree(tiny_bundle, other)
    manifest = Bundle(other).manifest
    precision = Precision("fp8", weights="fp8", arithmetic="fp8")
    (other / "bundle.json").write_bytes(replace(manifest, precision=precision).to_json())
    soundfile.write(tmp_path / "song.wav", audio[:40000], 16000)
    arguments = [
        *(str(other), str(tmp_path / "song.wav"), "-o", str(tmp_path / "report.md")),
        *("--engines", str(tmp_path / "engines"), "--slots", "1,4", "--repeats", "1"),
    ]
    assert main(arguments) == ExitCode.UNUSABLE  # no CPU has fp8
    assert main([*arguments, "--exact", str(tiny_bundle)]) == ExitCode.OK
    text = (tmp_path / "report.md").read_text()
    assert "fp8 in fp16" in text
    assert "promise" not in text


def test_what_fails_is_reported_beside_the_rest(tiny_bundle, machine, tmp_path, audio, monkeypatch):
    soundfile.write(tmp_path / "song.wav", audio[:40000], 16000)
    build = module.build_engine

    def fail(bundle, key, **options):
        if key.precision == "fp16":
            raise DeviceError("no kernel for this")
        return build(bundle, key, **options)

    monkeypatch.setattr(module, "build_engine", fail)
    arguments = [
        *(str(tiny_bundle), str(tmp_path / "song.wav"), str(tmp_path / "none.wav")),
        *("-o", str(tmp_path / "report.md"), "--engines", str(tmp_path / "engines")),
        *("--slots", "1,4", "--repeats", "1"),
    ]
    assert main(arguments) == ExitCode.FAILED
    text = (tmp_path / "report.md").read_text()
    assert "FAILED fp16: no kernel for this" in text
    assert "none.wav" in text
    assert "| song.wav | fp32 |" in text
    assert "| song.wav | fp16 |" not in text


@pytest.mark.parametrize(
    ("capability", "precisions"), [("8.9", ["fp32", "fp16"]), ("12.0", ["fp32", "fp16"]),
                                   ("7.5", ["fp16"])],
)  # fmt: skip
def test_rtx_is_verified_by_the_same_command(
    tiny_bundle, tmp_path, audio, monkeypatch, capability, precisions
):
    machine_of(RTX, "1.7.1.116", capability, tiny_bundle, monkeypatch)
    soundfile.write(tmp_path / "song.wav", audio[:40000], 16000)
    arguments = [
        *(str(tiny_bundle), str(tmp_path / "song.wav"), "--for", "rtx", "--repeats", "1"),
        *("-o", str(tmp_path / "report.md"), "--engines", str(tmp_path / "engines")),
        *("--slots", "1,4"),
    ]
    assert main(arguments) in (ExitCode.OK, ExitCode.FAILED)
    text = (tmp_path / "report.md").read_text()
    assert "FAILED" not in text
    assert [p for p in ("fp32", "fp16") if f"| song.wav | {p} |" in text] == precisions
    assert ("promise" in text) is ("fp32" in precisions)
    assert "rtx (FAKE GPU, TensorRT for RTX 1.7.1.116" in text


def test_hopper_is_no_gpu_for_rtx(tiny_bundle, tmp_path, monkeypatch, capsys):
    machine_of(RTX, "1.7.1.116", "9.0", tiny_bundle, monkeypatch)
    words = [str(tiny_bundle), "song.wav", "--for", "rtx", "-o", str(tmp_path / "x.md")]
    assert main(words) == ExitCode.UNUSABLE
    assert "device tensorrt or cuda serves it" in capsys.readouterr().err
    assert not (tmp_path / "x.md").exists()


def test_a_run_that_was_cut_short_goes_on(tiny_bundle, machine, tmp_path, audio, monkeypatch):
    """Ctrl-C in the second recording: the first one is not repeated."""
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, audio[:40000] * (0.5 if name == "b.wav" else 1.0), 16000)
    arguments = [
        *(str(tiny_bundle), str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--repeats", "1"),
        *("-o", str(tmp_path / "report.md"), "--engines", str(tmp_path / "engines")),
        *("--slots", "1,4", "--answers", str(tmp_path / "answers.json")),
    ]
    real, asked = module.measure, []

    def interrupted(models, features, repeats):
        asked.append(len(features))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(models, features, repeats)

    monkeypatch.setattr(module, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert not (tmp_path / "report.md").exists()
    main(arguments)
    assert len(asked) == 3
    text = (tmp_path / "report.md").read_text()
    assert "| a.wav | fp32 |" in text
    assert "| b.wav | fp32 |" in text
    main(arguments)
    assert len(asked) == 3
    assert main([*arguments, "--repeats", "2"]) == ExitCode.UNUSABLE


@pytest.mark.parametrize("content", ["", "[]", '{"mine": 1}', '{"format": "mt3 verification 0"}'])
def test_answers_replace_no_other_file(tmp_path, content):
    path = tmp_path / "notes.json"
    path.write_text(content)
    with pytest.raises(OutputError, match=r"holds no answers of a verification; choose another"):
        Answers(path, {})
    assert path.read_text() == content


def test_answers_of_another_gpu_are_refused(tmp_path):
    path = tmp_path / "answers.json"
    Answers(path, {"GPU": "A", "bundle": "x"}).keep("song", {"cpu": run([5, 1])})
    with pytest.raises(OutputError, match="is of another GPU; remove it"):
        Answers(path, {"GPU": "B", "bundle": "x"})
    found = Answers(path, {"GPU": "A", "bundle": "x"})
    assert found.get("song", {"cpu": 1})["cpu"].digest == run([5, 1]).digest
    assert found.get("song", {"cpu": 1, "fp32": 1}) is None
    assert found.get("other", {"cpu": 1}) is None


def test_steps_stand_in_the_report():
    same = run([5, 1])
    rows = [StepRow("fp16", 512, 0.001, 5 << 20, 6 << 20)]
    text, _ = report([], [], {"a.wav": {"cpu": same, "fp32": same}}, steps=rows)
    assert "| fp16 | 512 | 1.000 | 512000 | 5 | 6 |" in text


def test_what_is_missing_is_said(tiny_bundle, tmp_path, capsys):
    song = str(tmp_path / "song.wav")
    assert main([str(tiny_bundle), song, "-o", str(tmp_path / "x.md")]) == ExitCode.UNUSABLE
    assert "the extra [trt]: pip install" in capsys.readouterr().err
