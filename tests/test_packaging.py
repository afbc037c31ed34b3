"""What is in the wheel, what it asks for, and that tests see the installed packages."""

from __future__ import annotations

import email
import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from mt3_training.shipping.ship import LIMIT
from tests import needs

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = [
    Path(path) for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    needs.package("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel):
    names = wheel.namelist()
    packages = {package.name for package in PACKAGES}
    tops = {name.partition("/")[0] for name in names}
    # The page lies where the service gives it out.
    assert tops - packages - {"mt3_server"} == {"mt3_runtime_core-0.2.0.dist-info"}
    assert {"mt3_server/page/index.html", "mt3_server/page/page/app.js"} <= set(names)
    page = sum(wheel.getinfo(name).compress_size for name in names if "/page/" in name)
    assert page < 1.6e6
    for package in PACKAGES:
        sources = {
            path.relative_to(ROOT / package.parent).as_posix()
            for path in (ROOT / package).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        assert sources <= set(names)
        assert f"{package.name}/py.typed" in names
    assert "mt3_runtime/catalogue.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    heavy = [name for name in names if name.endswith((".onnx", ".npz", ".pth", ".mt3"))]
    assert all(name.startswith("mt3_runtime/data/default/") for name in heavy)


def test_the_default_model_is_in_the_wheel_and_small(wheel, default_bundle):
    place = "mt3_runtime/data/default/"
    packed = {name.removeprefix(place) for name in wheel.namelist() if name.startswith(place)}
    assert packed == {path.name for path in default_bundle.iterdir()}
    assert sum(path.stat().st_size for path in default_bundle.iterdir()) <= LIMIT
    assert "mt3_runtime/data/default.files.json" in wheel.namelist()


def test_the_default_model_is_in_the_source_distribution(tmp_path, default_bundle):
    needs.package("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = archive.getnames()
    place = "/runtime/mt3_runtime/data/default/"
    packed = {name.rpartition(place)[2] for name in names if place in name}
    assert packed == {path.name for path in default_bundle.iterdir()}


def test_the_metadata_of_the_wheel(wheel):
    metadata = email.message_from_bytes(wheel.read("mt3_runtime_core-0.2.0.dist-info/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    required = metadata.get_all("Requires-Dist")
    base = {re.split(r"[^\w-]", line)[0] for line in required if "extra ==" not in line}
    assert base == {"numpy", "mido"}
    extras = "cpu gpu trt rtx formats serve ray export torch jax2tf calibration viz dev lint"
    assert set(metadata.get_all("Provides-Extra")) == set(extras.split())


def test_the_classifiers_name_the_systems_there_are_wheels_for(wheel):
    """docs/deployment.md has the same list in words."""
    metadata = email.message_from_bytes(wheel.read("mt3_runtime_core-0.2.0.dist-info/METADATA"))
    found = {line for line in metadata.get_all("Classifier") if line.startswith("Operating System")}
    assert found == {
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Operating System :: POSIX :: Linux",
    }
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)$", str(metadata), re.MULTILINE)
    assert f"Python {versions[0]} to {versions[-1]}" in page


def test_no_extra_mixes_the_two_onnx_runtimes():
    for extra, lines in PROJECT["project"]["optional-dependencies"].items():
        runtimes = {line for line in lines if line.startswith("onnxruntime")}
        assert len(runtimes) == (1 if extra in ("cpu", "gpu") else 0)


def test_every_entry_point_leads_somewhere():
    groups = PROJECT["project"]["entry-points"]
    targets = [target for group in groups.values() for target in group.values()]
    for target in [*targets, *PROJECT["project"]["scripts"].values()]:
        module, _, attribute = target.partition(":")
        assert hasattr(importlib.import_module(module), attribute), target


def test_registered_commands_answer_to_their_names():
    for name, target in PROJECT["project"]["entry-points"]["mt3_runtime.commands"].items():
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)()
        assert command.name == name
        assert command.help


def test_the_readme_shows_the_command_that_ci_runs():
    command = "scripts/test"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for script in (command, ".ci/run", "scripts/nightly", ".ci/environments.sh"):
        sourced = script.endswith(".sh")
        assert sourced or (ROOT / script).stat().st_mode & 0o111, f"{script} is not executable"
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_the_changelog_knows_this_version():
    version = PROJECT["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
