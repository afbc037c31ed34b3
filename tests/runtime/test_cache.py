"""A cache folder that is unknown or unreadable is in the way of those only who need it."""

from __future__ import annotations

import json
import logging
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from mt3_runtime.cli import ExitCode, main
from mt3_runtime.diagnostics import doctor
from mt3_runtime.diagnostics.doctor import Level
from mt3_runtime.errors import BundleNotFoundError, OptionError
from mt3_runtime.files.formats import load_notes
from mt3_runtime.loading import load_model
from mt3_runtime.models import cache, installed
from mt3_runtime.models.catalogue import download_model, pulled_checkpoint
from mt3_runtime.models.installed import find_model, installed_models, remove_model, resolve_model
from tests.test_bad_input import UNPRIVILEGED

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "calibration" / "demo" / "demo.flac"

#: A process that permission bits bind, as root's are not bound, and perhaps of no known user.
RUN = (
    UNPRIVILEGED
    + """
import pwd, sys

def no_such_user(uid):
    raise KeyError("getpwuid(): uid not found")

if sys.argv.pop(1) == "unknown":
    pwd.getpwuid = no_such_user
from mt3_runtime.cli import main
sys.exit(main())
"""
)


def unknown(monkeypatch, tmp_path) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "MT3_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def no_such_user(_: int):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", no_such_user)


def denied(monkeypatch, tmp_path) -> None:
    """Somebody else's home; permission bits do not bind root, so the system call is replaced."""
    monkeypatch.delenv("MT3_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
    real = Path.iterdir

    def iterdir(path: Path):
        if (tmp_path / "theirs") in (path, *path.parents):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)


@pytest.fixture(params=[unknown, denied])
def unusable(request, monkeypatch, tmp_path):
    monkeypatch.delenv("MT3_MODEL", raising=False)
    request.param(monkeypatch, tmp_path)
    return request.param


def test_the_model_in_the_package_is_used(unusable, default_bundle, caplog):
    caplog.set_level(logging.INFO, "mt3_runtime")
    assert resolve_model() == find_model("default") == resolve_model("default") == default_bundle
    assert resolve_model(str(default_bundle)) == default_bundle
    levels = {record.levelno for record in caplog.records}
    assert levels == {logging.WARNING if unusable is denied else logging.INFO}
    with load_model("default") as model:
        assert model.info.name == "default"


def test_a_file_here_is_used(unusable, tiny_bundle, monkeypatch):
    monkeypatch.chdir(tiny_bundle.parent)
    assert resolve_model(tiny_bundle.name) == tiny_bundle


@pytest.mark.parametrize("call", [
    lambda: resolve_model("magenta_mt3"),
    lambda: resolve_model("no-such-model"),
    lambda: remove_model("magenta_mt3"),
    lambda: download_model("magenta_mt3"),
    lambda: pulled_checkpoint("magenta_mt3"),
    installed_models,
])  # fmt: skip
def test_who_needs_something_of_it_is_told_how_to_choose_another(unusable, call):
    with pytest.raises(OptionError, match="MT3_CACHE"):
        call()


def test_without_a_model_in_the_package_the_reason_is_said(unusable, nothing_shipped):
    with pytest.raises(OptionError, match="MT3_CACHE"):
        resolve_model()


def test_the_list_of_models_is_printed_all_the_same(unusable, default_bundle, capsys):
    for words in (["models"], ["models", "info", "default"]):
        assert main(words) == ExitCode.OK
        captured = capsys.readouterr()
        assert "shipped" in captured.out
        assert captured.err.startswith("mt3: warning: ")
        assert "MT3_CACHE" in captured.err


def test_the_doctor_tells_the_truth(unusable, default_bundle):
    findings = {item.subject: item for item in doctor.examine()}
    assert findings["models"].level is Level.OK
    assert "default" in findings["models"].detail
    assert "cannot be looked for" in findings["models"].detail
    assert doctor.works(list(findings.values()))


def test_the_doctor_knows_when_there_is_no_model_at_all(unusable, nothing_shipped):
    (found,) = [item for item in doctor.examine() if item.subject == "models"]
    assert found.level is Level.PROBLEM
    assert "MT3_CACHE" in found.remedy


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
@pytest.mark.parametrize("home", ["unknown", "denied"])
@pytest.mark.parametrize("model", [[], ["-m", "default"]])
def test_a_user_without_a_home_transcribes(home, model, tmp_path, default_bundle):
    """The true thing, in a process of its own."""
    dropped = ("HOME", "MT3_CACHE", "MT3_MODEL", "XDG_CACHE_HOME")
    variables = {name: value for name, value in os.environ.items() if name not in dropped}
    theirs, output = tmp_path / "theirs", tmp_path / "x.mid"
    theirs.mkdir(mode=0)
    if home == "denied":
        variables["HOME"] = str(theirs)
    words = [home, "transcribe", str(DEMO), "-o", str(output), *model]
    ended = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    theirs.chmod(0o700)
    assert ended.returncode == ExitCode.OK, ended.stderr
    assert ("Permission denied" in ended.stderr) == (home == "denied")
    assert len(load_notes(output)) > 100


def test_odd_places_hold_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("nowhere", "file", "file/below", "loop", "loop/below"):
        assert cache.contents(tmp_path / name) == []


def test_a_bundle_that_is_somebody_elses_hides_no_others(tmp_path, monkeypatch):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path))
    for name in ("mine", "theirs"):
        (tmp_path / "bundles" / name).mkdir(parents=True)
        (tmp_path / "bundles" / name / "bundle.json").write_text(json.dumps({}))
    real = Path.is_file

    def is_file(path: Path) -> bool:
        if path.parent.name == "theirs":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert list(installed_models()) == ["mine", "theirs"]
    assert find_model("mine") == tmp_path / "bundles" / "mine"


# The names that mt3-infer's users type -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("mt3_pytorch", "mt3_pytorch"),
        ("accurate", "mt3_pytorch"),
        ("official", "mt3_pytorch"),
        ("baseline", "mt3_pytorch"),
        ("fast", "mt3_pytorch"),
        ("yourmt3", "yptf_moe_multi"),
        ("multitask", "yptf_moe_multi"),
        ("mr_mt3", "mr_mt3_context64"),
        ("magenta_mt3", "magenta_mt3"),
    ],
)
def test_names_of_mt3_infer(name, model, tmp_path, monkeypatch):
    """Each gives the model that docs/MIGRATION.md says, or says how to get it."""
    monkeypatch.setenv("MT3_CACHE", str(tmp_path))
    with pytest.raises(BundleNotFoundError, match=f"mt3 models pull {model}`.*mt3 export {model}`"):
        load_model(name)
    (tmp_path / "bundles" / model).mkdir(parents=True)
    (tmp_path / "bundles" / model / "bundle.json").write_text("{}")
    assert resolve_model(name) == tmp_path / "bundles" / model


def test_a_bundle_here_wins_over_an_alias_and_not_over_a_name(tmp_path, monkeypatch):
    """`fast` is what somebody calls a bundle of that precision."""
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for folder in ("cache/bundles/mt3_pytorch", "mt3_pytorch", "fast", "official"):
        Path(folder).mkdir(parents=True)
        Path(folder, "bundle.json").write_text("{}")
    Path("official", "bundle.json").unlink()  # any other folder is none
    assert resolve_model("fast") == tmp_path / "fast"
    assert resolve_model("official") == tmp_path / "cache/bundles/mt3_pytorch"
    assert resolve_model("mt3_pytorch") == tmp_path / "cache/bundles/mt3_pytorch"


def test_what_is_not_the_same_by_that_name_is_said(capsys):
    for name in ("default", "mr_mt3"):
        if name == "default" and not installed.shipped_models():
            continue
        assert main(["models", "info", name]) == ExitCode.OK
        said = " ".join(capsys.readouterr().out.split())
        assert f"What mt3-infer calls {name} is mt3_pytorch." in said
