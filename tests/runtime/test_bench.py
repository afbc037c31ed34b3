"""`mt3 bench` on the small network.  Nothing here depends on how long anything takes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_runtime.cli import ExitCode, main
from mt3_runtime.commands import bench_command as bench
from mt3_runtime.commands import machine
from mt3_runtime.model import Model


@pytest.fixture
def recordings(audio, tmp_path) -> list[str]:
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for path in paths:
        soundfile.write(path, audio, 16000, subtype="FLOAT")
    return paths


def test_json_holds_every_figure(tiny_bundle: Path, tiny_model: Model, recordings, capsys) -> None:
    arguments = ["bench", *recordings, "--model", str(tiny_bundle), "--runs", "2", "--json"]
    assert main([*arguments, "--threads", "1"]) == ExitCode.OK
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    expected = tiny_model.transcribe_notes(recordings[0])
    assert report["model"] == {"name": "tiny", "export_id": tiny_model.info.export_id}
    assert report["precision"] == "fp32"
    assert "threads: 1" in report["device"]
    assert report["runs"] == 2
    assert report["load_s"] > 0
    assert report["warm_up_s"] > 0
    assert 10 * 2**20 < report["peak_rss_bytes"] < 2**40
    assert report["versions"]["numpy"] == np.__version__
    assert [row["audio"] for row in report["recordings"]] == recordings
    for row in report["recordings"]:
        assert row.keys() == set(bench.Timing.__dataclass_fields__)
        assert row["seconds"] == pytest.approx(9.0)
        assert row["segments"] == 5
        assert row["tokens"] == sum(segment.token_count for segment in expected.segments)
        assert row["notes"] == len(expected.notes)
        assert row["token_digest"] == expected.token_digest
        assert min(row["features_s"], row["network_s"], row["whole_s"]) > 0
        assert row["times_real_time"] == pytest.approx(row["seconds"] / row["whole_s"])
    assert "b.wav: run 2 of 2" in captured.err


def test_the_table_is_made_of_the_same_figures(tiny_bundle, tiny_model, recordings, capsys) -> None:
    assert main(["bench", recordings[0], "-m", str(tiny_bundle), "--runs", "1"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "model    tiny (fp32), cpu" in text
    assert f"onnxruntime {machine.versions(['onnxruntime'])['onnxruntime']}" in text
    header, row = text.splitlines()[-2:]
    assert header.split()[:5] == ["audio", "length", "features", "network", "whole"]
    digest = tiny_model.transcribe_notes(recordings[0]).token_digest
    assert row.split()[:2] == ["a.wav", "9.00"]
    assert row.split()[-1] == digest[:12]


def test_without_audio_a_signal_is_made(tiny_bundle: Path, capsys) -> None:
    assert main(["bench", "-m", str(tiny_bundle), "--runs", "1", "--json"]) == ExitCode.OK
    (row,) = json.loads(capsys.readouterr().out)["recordings"]
    assert row["audio"] == "test signal, 30 s"
    assert row["seconds"] == pytest.approx(30.0)
    assert row["segments"] == 15
    assert row["tokens"] > 0


def test_the_signal_is_sound(tiny_model: Model) -> None:
    signal = bench.plucked_notes(16000)
    assert signal.dtype == np.float32
    assert signal.shape == (30 * 16000,)
    assert 0.1 < np.abs(signal).max() <= 1.0
    quarters = np.abs(signal).reshape(120, 4000).max(axis=1)
    assert quarters.min() > 0.005  # it sounds from beginning to end
    assert np.array_equal(signal, bench.plucked_notes(16000))


def test_impossible_requests_are_refused_before_the_model_is_loaded(capsys) -> None:
    assert main(["bench", "--model", "/nowhere", "--runs", "0"]) == ExitCode.USAGE
    assert "--runs must be at least 1, got 0" in capsys.readouterr().err
    assert main(["bench", "/no.wav", "--model", "/nowhere"]) == ExitCode.FAILED
    assert "no audio file at /no.wav" in capsys.readouterr().err


def test_a_machine_is_described_in_one_line() -> None:
    found = machine.machine()
    assert found["cores"] >= 1
    assert found["cpu"]
    line = machine.describe(found)
    assert f"{found['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB" in line
    assert "GiB" not in machine.describe({**found, "memory_bytes": None})


def test_only_installed_distributions_have_versions() -> None:
    assert machine.versions(["numpy", "no-such-thing"]) == {"numpy": np.__version__}


def test_peak_memory_follows_allocations() -> None:
    before = machine.peak_rss()
    block = np.ones(64 * 2**20, np.uint8)
    after = machine.peak_rss()
    assert before is not None
    assert after is not None
    assert after >= before
    assert after > block.nbytes


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_without_proc(monkeypatch, platform: str, unit: int) -> None:
    import resource

    monkeypatch.setattr(machine, "Path", lambda _: Path("/no/such/file"))
    monkeypatch.setattr(machine.sys, "platform", platform)
    peak = machine.peak_rss()
    assert peak is not None
    assert peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert machine.machine()["cpu"]  # falls back to what Python knows
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_rss() is None


def test_a_system_without_sysconf_has_unknown_memory(monkeypatch, tiny_bundle: Path) -> None:
    monkeypatch.delattr(machine.os, "sysconf")
    assert machine.machine()["memory_bytes"] is None


def test_unknown_memory_is_called_so() -> None:
    report = {
        "model": {"name": "m"},
        "precision": "fp32",
        "device": "cpu",
        "machine": machine.machine(),
        "versions": {},
        "load_s": math.pi,
        "warm_up_s": 1.0,
        "runs": 1,
        "peak_rss_bytes": None,
        "recordings": [],
    }
    assert "memory   unknown at most" in bench.table(report)
    assert "load     3.142 s" in bench.table(report)
