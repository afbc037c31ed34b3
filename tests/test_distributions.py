"""Both distributions of the tree: what they ask for, the same bytes twice, one line to MIDI."""

from __future__ import annotations

import email
import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests import needs
from tests.pace import HANGS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]
DEMO = ROOT / "calibration" / "demo" / "demo.flac"

_loader = importlib.machinery.SourceFileLoader("distributions", str(ROOT / "scripts/distributions"))
_spec = importlib.util.spec_from_loader("distributions", _loader)
distributions = importlib.util.module_from_spec(_spec)
_loader.exec_module(distributions)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both distributions, built twice: the folders, and the digests of each."""
    needs.package("hatchling")
    needs.package("build")
    folders = [tmp_path_factory.mktemp("built") for _ in "12"]
    return folders, [distributions.build(sys.executable, folder) for folder in folders]


def metadata(path: Path) -> email.message.Message:
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_a_build_gives_the_same_bytes_twice(built):
    (first, _), (digests, again) = built
    assert digests == again
    assert sorted(digests) == [
        f"mt3_runtime-{VERSION}-py3-none-any.whl", f"mt3_runtime-{VERSION}.tar.gz",
        f"mt3_runtime_core-{VERSION}-py3-none-any.whl", f"mt3_runtime_core-{VERSION}.tar.gz",
    ]  # fmt: skip
    assert (first / f"mt3_runtime-{VERSION}-py3-none-any.whl").stat().st_size < 50_000


def test_the_whole_is_the_core_with_an_onnx_runtime_and_file_reading(built):
    (folder, _), _ = built
    whole = metadata(folder / f"mt3_runtime-{VERSION}-py3-none-any.whl")
    core = metadata(folder / f"mt3_runtime_core-{VERSION}-py3-none-any.whl")
    assert whole["Version"] == core["Version"] == VERSION
    required = whole.get_all("Requires-Dist")
    assert [line for line in required if "extra ==" not in line] == [
        f"mt3-runtime-core[cpu]=={VERSION}"
    ]
    assert set(core.get_all("Provides-Extra")) - set(whole.get_all("Provides-Extra")) == {
        "gpu", "dev", "lint",
    }  # fmt: skip
    base = [line for line in core.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in base if "onnxruntime" in line]
    gpu = [line for line in core.get_all("Requires-Dist") if "'gpu'" in line or '"gpu"' in line]
    assert {re.split(r"[^\w-]", line)[0] for line in gpu if "onnx" in line} == {"onnxruntime-gpu"}
    for key in ("Requires-Python", "License-Expression", "Keywords", "Classifier", "Project-URL"):
        assert whole.get_all(key) == core.get_all(key), key


def test_the_whole_holds_no_code_and_brings_the_command_under_both_names(built):
    (folder, _), _ = built
    with zipfile.ZipFile(folder / f"mt3_runtime-{VERSION}-py3-none-any.whl") as archive:
        names = archive.namelist()
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        text = archive.read(points).decode()
    assert all(".dist-info/" in name for name in names)
    target = PROJECT["scripts"]["mt3"]
    assert f"mt3 = {target}" in text
    assert f"mt3-runtime = {target}" in text
    assert "mt3_runtime.commands" not in text  # registered once, by the core


def test_an_index_page_can_follow_the_links(built):
    (folder, _), _ = built
    for name in ("mt3_runtime", "mt3_runtime_core"):
        said = metadata(folder / f"{name}-{VERSION}-py3-none-any.whl").get_payload()
        targets = re.findall(r"\]\(([^)\s]+)\)", said)
        assert targets
        assert all(re.match(r"https://|#", target) for target in targets)


def test_urls_are_named_in_one_place():
    """Until there is an address, no other file may pretend that there is."""
    for url in PROJECT["urls"].values():
        assert ".invalid/" in url
    known = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert not [path for path in known if ".invalid/" in path.read_text(encoding="utf-8")]


def test_what_is_no_distribution_of_ours_in_dist_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        distributions.main(["--out", str(tmp_path)])
    assert "holds notes.txt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        distributions.main(["--tag", "v9.9.9"])
    assert f"the tag is v9.9.9, and the version in pyproject.toml {VERSION}" in (
        capsys.readouterr().err
    )
    assert (tmp_path / "notes.txt").read_text() == "mine"


def pip(*words: str | Path) -> subprocess.CompletedProcess[str]:
    if not os.environ.get("MT3_TEST_INSTALL"):
        needs.missing("install", "MT3_TEST_INSTALL is not set")
    return subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=HANGS, check=True
    )


def test_one_line_from_the_wheels_to_a_midi_file(built, tmp_path):
    """No extra is named, no model fetched."""
    (folder, _), _ = built
    place = tmp_path / "new"
    pip(sys.executable, "-m", "venv", place)
    scripts = place / ("Scripts" if os.name == "nt" else "bin")
    pip(scripts / "python", "-m", "pip", "install", "--quiet", *sorted(folder.glob("*.whl")))
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("MT3_", "PYTHON"))}
    for name in ("mt3", "mt3-runtime"):
        out = tmp_path / f"{name}.mid"
        words = [scripts / name, "transcribe", DEMO, "-o", out]
        subprocess.run(words, cwd=tmp_path, env=variables, timeout=HANGS, check=True)
        assert out.stat().st_size > 1000
    doctor = subprocess.run(
        [scripts / "mt3", "doctor"], env=variables, capture_output=True, text=True, timeout=HANGS,
        check=True,
    )  # fmt: skip
    assert re.search(rf"mt3-runtime\s+{re.escape(VERSION)}", doctor.stdout)


def test_the_core_for_a_gpu_brings_no_runtime_for_the_cpu(built, tmp_path):
    (folder, _), _ = built
    wheel = folder / f"mt3_runtime_core-{VERSION}-py3-none-any.whl"
    report = tmp_path / "report.json"
    pip(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
        "--only-binary=:all:", "--report", report, f"{wheel}[gpu]")  # fmt: skip
    names = {item["metadata"]["name"] for item in json.loads(report.read_text())["install"]}
    assert "onnxruntime-gpu" in names
    assert "onnxruntime" not in names
