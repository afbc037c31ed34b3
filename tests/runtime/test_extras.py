from __future__ import annotations

import importlib
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mt3_runtime.cli import ExitCode, main
from mt3_runtime.diagnostics import wheels
from mt3_runtime.errors import MissingDependencyError
from mt3_runtime.imports import extras

ROOT = Path(__file__).parents[2]


@pytest.fixture
def absent(monkeypatch):
    """Puts packages out of the way: ``absent("soxr", "rich")``."""

    def put_away(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return put_away


def test_only_what_is_absent_is_installed(absent):
    absent("soundfile", "rich")
    assert extras.install("cpu") == 'pip install "rich>=13" "soundfile>=0.12.1"'
    assert extras.lacking("cpu").keys() == {"soundfile", "rich"}


def test_a_wheel_of_onnx_runtime_that_is_there_is_left_alone(absent, monkeypatch):
    """Whichever it is: a second one would overwrite it."""
    absent("soxr")
    monkeypatch.setattr(wheels, "installed", lambda: {"onnxruntime-gpu": "1.31.1"})
    assert extras.install("cpu") == extras.install("gpu") == 'pip install "soxr>=0.5"'


def test_what_is_there_and_does_not_work_is_installed_again(monkeypatch):
    def broken(name: str):
        raise OSError("libsndfile.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingDependencyError, match="libsndfile") as caught:
        extras.require("soundfile", "Reading", "cpu")
    assert "pip install --force-reinstall" in str(caught.value)


def test_tensorrt_is_on_another_index(absent):
    absent("tensorrt", "polygraphy")
    line = extras.install("trt")
    assert '"polygraphy>=' in line
    assert line.endswith(" --extra-index-url https://pypi.nvidia.com")


def test_only_absences_that_an_extra_mends_get_another_name(absent):
    absent("msgpack")
    with (
        pytest.raises(MissingDependencyError, match=r"T5X needs msgpack.*extra \[export\]"),
        extras.named("T5X"),
    ):
        importlib.import_module("msgpack")
    with pytest.raises(ModuleNotFoundError) as caught, extras.named("T5X"):
        importlib.import_module("mt3_runtime.no_such_module")
    assert not isinstance(caught.value, MissingDependencyError)
    ours = MissingDependencyError("said already")
    with pytest.raises(MissingDependencyError, match="said already") as told, extras.named("T5X"):
        raise ours
    assert told.value is ours


def test_the_extras_of_the_purpose_come_first(absent):
    absent("onnx", "matplotlib")
    with pytest.raises(MissingDependencyError, match=r"extra \[trt\]: .*\"onnx>="):
        extras.require("onnx", "An engine", "trt")
    with pytest.raises(MissingDependencyError, match=r"extra \[viz\]: .*\"matplotlib>="):
        extras.require("matplotlib", "An engine", "trt")


@pytest.mark.parametrize("name", ["soundfile", "onnx"])
def test_a_frozen_program_is_not_told_of_pip(absent, monkeypatch, name):
    absent(name)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(MissingDependencyError) as caught:
        extras.require(name, "This")
    assert f"build this program again with {name} in it" in str(caught.value)
    assert "pip" not in str(caught.value)


@pytest.mark.parametrize("frozen", [True, False])
def test_without_metadata_there_is_still_advice(absent, monkeypatch, frozen):
    def missing(name: str):
        raise metadata.PackageNotFoundError(name)

    absent("soundfile")
    monkeypatch.setattr(metadata, "requires", missing)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    for cached in (extras._brought, extras._extras):
        cached.cache_clear()
        monkeypatch.setattr(extras, cached.__name__, cached.__wrapped__)
    with pytest.raises(MissingDependencyError) as caught:
        extras.require("soundfile", "Reading", "cpu")
    advice = "build this program again with" if frozen else 'pip install "soundfile"'
    assert advice in str(caught.value)


def test_the_doctor_of_a_frozen_program_speaks_of_no_pip(absent, monkeypatch, capsys):
    absent("onnx", "rich", "soundfile", "matplotlib", "mir_eval")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert main(["doctor"]) == ExitCode.OK
    report = capsys.readouterr().out
    assert report.count("build this program again") >= 5
    assert "pip " not in report


#: A line that would ask an index for this project: its name, or an extra of it, to be installed.
_BY_NAME = re.compile(
    r"(?:pip3?|uv|pipx)\b[^`\n]*\binstall\b[^`\n]*\bmt3[-_]runtime\b(?![^\s`\"']*\.whl)"
)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("pip install 'mt3-runtime[cpu]'", True),
        ('pip install --upgrade "mt3-runtime[gpu,trt]" --extra-index-url x', True),
        ("uv pip install mt3_runtime", True),
        ("pip install --force-reinstall mt3-runtime", True),
        ('pip install ".[cpu]"', False),
        ('pip install "./mt3_runtime_core-0.2.0-py3-none-any.whl[cpu]"', False),
    ],
)
def test_the_search_for_such_lines_finds_them(line, wrong):
    assert bool(_BY_NAME.search(line)) == wrong


def test_nobody_is_told_to_install_the_project_by_name():
    """No index has it, and its name there is free for anybody to take."""
    folders = [
        "runtime",
        "export",
        "engines",
        "calibration",
        "docs",
        "docker",
        "scripts",
        "examples",
    ]
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {".py", ".md", ".js", ".html", ".Dockerfile", ".txt", ""}
    for path in [*paths, *ROOT.glob("*.md")]:
        if path.suffix in texts and "node_modules" not in path.parts:  # others' files
            found = _BY_NAME.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path}: {found[0]}"
