"""The model inside the package: where it is found, when it is used, what is said about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.diagnostics import doctor
from mt3_runtime.errors import BundleNotFoundError, OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.models import catalogue, installed, shipped
from mt3_runtime.models.cache import cache_dir
from mt3_runtime.models.download import is_right
from tests import needs


@pytest.fixture
def package(monkeypatch, tmp_path, tiny_bundle):
    """A package with a model inside; nothing is installed."""
    data = tmp_path / "data"
    bundle = shutil.copytree(tiny_bundle, data / "default")
    row = {"path": "bundle.json", "size": (bundle / "bundle.json").stat().st_size}
    listing = {"files": [{**row, "sha256": "0" * 64}]}
    (data / "default.files.json").write_text(json.dumps(listing))
    monkeypatch.setattr(shipped, "FOLDER", data)
    monkeypatch.delenv("MT3_MODEL", raising=False)
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    catalogue.list_models.cache_clear()
    yield bundle
    catalogue.list_models.cache_clear()


def install(name: str) -> Path:
    folder = cache_dir() / "bundles" / name
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text("{}")
    return folder


def test_it_is_used_where_nothing_else_is(package):
    assert installed.resolve_model() == package
    with load_model() as model:
        assert model.info.name == "tiny"


def test_whatever_the_user_chose_comes_first(package, monkeypatch):
    mine = install("mine")
    assert installed.resolve_model() == mine
    assert installed.resolve_model("default") == package
    install("other")
    with pytest.raises(BundleNotFoundError, match="mine, other"):
        installed.resolve_model()
    monkeypatch.setenv("MT3_MODEL", "default")
    assert installed.resolve_model() == package
    own = install("default")
    assert installed.resolve_model("default") == own


def test_models_for_one_stem_are_not_taken_for_whole_songs(package, tiny_weights):
    variant, source = variant_named("magenta_mt3"), {"digest": "0" * 64}
    for stem in ("bass", "drums"):
        folder = cache_dir() / "bundles" / f"stem_{stem}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        export_bundle(tiny_weights, variant, folder, source=source, stem=stem)
        assert installed.resolve_model() == package
        assert installed.resolve_model(f"stem_{stem}") == folder
    assert installed.resolve_model("stem_bass").name == "stem_bass"
    mine = install("mine")  # one for anything comes first, whatever stands beside it
    assert installed.resolve_model() == mine


def test_it_is_listed_and_described(package, capsys):
    assert main(["models"]) == ExitCode.OK
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["default"][1] == "shipped"
    assert main(["models", "info", "default"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "Apache-2.0" in text
    assert "0" * 64 in text
    (found,) = [item for item in doctor.examine() if item.subject == "models"]
    assert found.detail == "default (comes with the package)"


def test_there_is_nothing_to_fetch(package, capsys):
    assert main(["models", "pull", "default"]) == ExitCode.USAGE
    assert "comes with this package" in capsys.readouterr().err
    with pytest.raises(OptionError, match="comes with this package"):
        catalogue.pulled_checkpoint("default")
    assert main(["models", "remove", "default"]) == ExitCode.USAGE
    assert (package / "bundle.json").is_file()


def test_it_is_exported_again_into_the_cache_and_stands_in_for_itself(package, capsys):
    assert main(["export", "default", "--profiles", "portable,compat"]) == ExitCode.OK
    made = cache_dir() / "bundles" / "default"
    assert capsys.readouterr().out == f"{made}\n"
    assert Bundle(made).profiles == ["portable", "compat"]
    assert Bundle(package).profiles == ["cpu", "portable", "compat"], "the package is as it was"
    for name in ("default", None):
        assert installed.resolve_model(name) == made
    mine = install("mine")
    assert installed.resolve_model() == mine, "it has the rank of the one it stands in for"
    install("other")
    with pytest.raises(BundleNotFoundError, match="mine, other"):
        installed.resolve_model()


def test_a_transcription_says_that_the_model_is_small(package, tmp_path, audio, capsys):
    soundfile = needs.package("soundfile")
    soundfile.write(tmp_path / "a.wav", audio[:16000], 16000)
    assert main(["transcribe", str(tmp_path / "a.wav")]) == ExitCode.OK
    assert "small model" in capsys.readouterr().err
    assert (tmp_path / "a.mid").is_file()
    assert main(["transcribe", str(tmp_path / "a.wav"), "-o", str(package / "x.mid")]) != 0
    assert sorted(path.suffix for path in package.iterdir() if path.suffix == ".mid") == []


def test_stems_without_a_model_of_their_own_go_to_it(package, tmp_path, audio, capsys):
    soundfile = needs.package("soundfile")
    (tmp_path / "song").mkdir()
    soundfile.write(tmp_path / "song" / "song bass.wav", audio[:16000], 16000)
    words = ["transcribe", str(tmp_path / "song"), "--per-stem", "-o", str(tmp_path / "x.mid")]
    assert main(words) == ExitCode.OK
    assert "default: bass" in capsys.readouterr().err


def test_a_package_without_weights_has_none(nothing_shipped):
    assert shipped.shipped_models() == {}
    assert "default" not in [model.name for model in catalogue.list_models()]
    with pytest.raises(OptionError, match="no model 'default'"):
        catalogue.get_model_info("default")


def test_the_files_of_the_package_are_those_of_the_catalogue(default_bundle):
    model = catalogue.get_model_info("default")
    assert {file.path for file in model.files} == {path.name for path in default_bundle.iterdir()}
    for file in model.files:
        assert is_right(default_bundle / file.path, size=file.size, sha256=file.sha256), file.path
    bundle = Bundle(default_bundle)
    assert bundle.profiles == ["cpu"]
    for graph in bundle.manifest.graphs:
        bundle.verified(graph)


def test_the_default_model_says_where_it_comes_from(default_bundle):
    manifest = Bundle(default_bundle).manifest
    assert (manifest.name, manifest.variant) == ("default", "default")
    assert (manifest.precision.weights, manifest.precision.arithmetic) == ("fp16", "fp32")
    assert manifest.licence.startswith("Apache-2.0")
    assert {"digest", "step", "sounds", "music"} <= set(manifest.source)
    for licence in ("MIT", "CC0"):
        assert licence in manifest.source["sounds"]
