from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mt3_runtime.cli import ExitCode

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides those that are here
    found = run()
    assert found.returncode == ExitCode.UNUSABLE, found.stderr
    assert found.stderr.count("\n") == 1
    assert "there is no NVIDIA GPU here" in found.stderr
    assert not found.stdout


def test_a_rehearsal_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """All parts over the CPU with a tiny network; a side that cannot start is named."""
    wanted = ("--rehearse", "--seconds", 5, "--rows", 1, "--steps", 4, "--copies", 2, "--runs", 1,
              "--torch-python", tmp_path / "no-python", "--work", tmp_path)  # fmt: skip
    first = run(*wanted, "--minutes", 0)
    assert first.returncode == ExitCode.FAILED, first.stderr
    assert "UNFINISHED: run again" in first.stdout
    second = run(*wanted)
    assert second.returncode == ExitCode.OK, second.stderr
    assert "FAILED torch fp32" in second.stdout
    assert "UNFINISHED" not in second.stdout
    answers = json.loads((tmp_path / "gpu.json").read_text())["answers"]
    assert set(answers) == {"tokens", "step 1", "network", "song", "many", "files", "first note",
                            "memory"}  # fmt: skip
    for part in answers.values():
        assert [len(part[side]) for side in ("cuda", "cuda, plain", "cuda fp16", "rtx fp32")] == [
            1,
            1,
            1,
            1,
        ]
    for side in ("cuda", "rtx fp32"):
        (found,) = answers["tokens"][side]
        assert found["equal"] == found["total"] > 0
    third = run(*wanted)
    assert third.returncode == ExitCode.OK
    assert "steps" not in third.stderr  # nobody is asked again


@pytest.mark.parametrize("name", ["out.json", "out.txt"])
def test_a_report_replaces_no_other_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    for out in (tmp_path / "out.json", tmp_path / "out.txt"):
        found = run("--rehearse", "--work", tmp_path / "work", "--out", out)
        assert found.returncode == 1
        assert "choose another --out" in found.stderr or "takes a JSON file" in found.stderr
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    assert [path.name for path in tmp_path.iterdir()] == [name]
