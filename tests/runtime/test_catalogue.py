from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mt3_runtime
from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import VARIANTS, variant_named
from mt3_runtime.bundles import bundle
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.errors import (
    BundleNotFoundError,
    CheckpointError,
    DownloadError,
    OptionError,
    OutputError,
)
from mt3_runtime.models import catalogue, download, installed
from mt3_runtime.models.cache import cache_dir
from mt3_runtime.models.catalogue import ModelFile, ModelInfo
from tests.trees import snapshot
from tests.web_server import CONTENT, DIGEST, running


@pytest.fixture
def cache(monkeypatch, tmp_path, nothing_shipped):
    for name in ("MT3_MODEL", "MT3_MIRROR", "MT3_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install(cache: Path, name: str) -> Path:
    folder = cache / "bundles" / name
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text("{}")
    return folder


# What the catalogue says -------------------------------------------------------------------------


def test_every_name_and_alias_leads_to_one_model():
    models = catalogue.list_models()
    names = [name for model in models for name in (model.name, *model.aliases)]
    assert len(set(names)) == len(names)
    for model in models:
        assert {catalogue.get_model_info(name) for name in (model.name, *model.aliases)} == {model}
    assert catalogue.get_model_info("yourmt3").name == "yptf_moe_multi"
    wanted = "magenta_mt3 magenta_ismir2021 mt3_pytorch mr_mt3 ymt3_plus yptf_single yptf_multi"
    assert set(wanted.split()) <= set(names)


def test_every_entry_is_complete_and_pinned():
    for model in catalogue.list_models():
        assert model.summary
        assert model.licence
        assert model.licence_note
        assert model.source
        assert model.digests
        if not model.files:  # what cannot be pinned is fetched by hand, and it is said how
            assert model.revision is None
            assert "mt3 export" in model.note
            continue
        assert model.verified == ("not known" not in model.digests)
        if model.shipped:
            assert all(file.sha256 and file.size and "/" not in file.path for file in model.files)
            continue
        if model.revision is None:
            assert model.source.startswith("gs://")
        else:
            assert model.revision in model.files[0].url
        for file in model.files:
            assert file.url.startswith("https://")
            assert file.sha256 is None or (len(file.sha256) == 64 and int(file.sha256, 16))
            assert file.size is None or file.size > 0
            assert ".." not in Path(file.path).parts
            assert not Path(file.path).is_absolute()
            assert "/main/" not in file.url  # a branch moves, a revision does not


def test_the_magenta_checkpoint_is_known_file_by_file():
    model = catalogue.get_model_info("magenta_mt3")
    assert model.verified
    assert model.size == 171_589_452
    assert len(model.files) == 295
    assert model.files[0].url == "https://storage.googleapis.com/mt3/checkpoints/mt3/checkpoint"


def test_the_digests_of_the_magenta_checkpoint_are_those_of_its_files(shared):
    folder = shared / "checkpoints" / "magenta_mt3"
    model = catalogue.get_model_info("magenta_mt3")
    held = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {file.path for file in model.files} <= held
    for file in model.files:
        assert download.is_right(folder / file.path, size=file.size, sha256=file.sha256), file.path


def test_nothing_is_said_about_files_nobody_has_had():
    model = catalogue.get_model_info("ismir2021")
    assert len(model.files) == 295
    assert {(file.size, file.sha256) for file in model.files} == {(None, None)}
    assert (
        model.files[0].url == "https://storage.googleapis.com/mt3/checkpoints/ismir2021/checkpoint"
    )
    assert catalogue.get_model_info("mr_mt3").size is None


def test_one_checkpoint_under_two_names_has_one_digest():
    (weights, _) = catalogue.get_model_info("mt3_pytorch").files
    assert weights.sha256 is not None
    assert weights.sha256.startswith("b8a3807e")
    assert weights.size == 183_672_643


def test_what_counts_as_supported_is_what_the_exporter_knows():
    models = catalogue.list_models()
    known = {model.exporter for model in models} & set(VARIANTS)
    own = {model.exporter for model in models if model.shipped}
    hearing = {model.exporter for model in models if model.kind != "transcription"}
    assert hearing == {"ast", "hubert_genre", "yamnet"}
    assert {model.exporter for model in models if model.supported} == known | own | hearing


def test_a_classifier_says_what_it_was_taught_with(cache, capsys):
    for model in catalogue.list_models():
        assert bool(model.trained_on) == (model.kind != "transcription")
    assert main(["models", "info", "distilhubert_gtzan"]) == ExitCode.OK
    shown = capsys.readouterr().out
    for words in ("taught on:  GTZAN", "doubts:", "never licensed", "unverified"):
        assert words in shown
    assert main(["models", "pull", "distilhubert_gtzan"]) != ExitCode.OK
    said = capsys.readouterr().err
    assert "taught on GTZAN" in said
    assert "cannot be fetched from here" in said
    assert main(["models", "list"]) == ExitCode.OK
    listed = capsys.readouterr().out
    assert "yamnet" in listed
    assert "tagger: audio spectrogram transformer" in listed


def test_yamnet_in_the_catalogue_is_the_file_at_hand(shared):
    model = catalogue.get_model_info("yamnet")
    (file,) = model.files
    path = shared / "models" / "yamnet.tflite"
    assert model.verified
    assert download.is_right(path, size=file.size, sha256=file.sha256)


def test_a_pulled_classifier_is_exported_by_name_listed_and_removed(cache, shared, capsys):
    folder = cache / "checkpoints" / "yamnet"
    folder.mkdir(parents=True)
    shutil.copyfile(shared / "models" / "yamnet.tflite", folder / "yamnet.tflite")
    labels = shared / "models" / "yamnet_class_map.csv"
    assert main(["export", "yamnet", "--labels", str(labels)]) == ExitCode.OK
    assert (cache / "classifiers" / "yamnet" / "bundle.json").is_file()
    capsys.readouterr()
    assert main(["models"]) == ExitCode.OK
    line = next(row for row in capsys.readouterr().out.splitlines() if row.startswith("yamnet"))
    assert line.split()[1] == "installed"
    assert main(["models", "remove", "yamnet"]) == ExitCode.OK
    assert not (cache / "classifiers" / "yamnet").exists()
    assert not folder.exists()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(OptionError, match=r"'nonsense'.*magenta_mt3, "):
        catalogue.get_model_info("nonsense")


# Where things are --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, ".cache/mt3-runtime"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/mt3-runtime"),
        ("darwin", {}, "Library/Caches/mt3-runtime"),
        ("win32", {}, "AppData/Local/mt3-runtime"),
        ("win32", {"LOCALAPPDATA": "/y"}, "/y/mt3-runtime"),
        ("linux", {"MT3_CACHE": "/z"}, "/z"),
    ],
)
def test_the_cache_folder_is_the_platforms(monkeypatch, platform, variables, expected):
    for name in ("MT3_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache_dir() == Path.home() / expected


def test_installed_bundles_are_folders_or_single_files(cache):
    folder = install(cache, "yptf_moe_multi")
    (cache / "bundles" / "half-made").mkdir()
    (cache / "bundles" / "notes.txt").write_text("")
    single = cache / "bundles" / "mine.mt3"
    single.write_bytes(b"")
    assert installed.installed_models() == {"mine": single, "yptf_moe_multi": folder}
    assert installed.find_model("mine") == single
    assert installed.find_model("yourmt3") == folder
    assert installed.find_model("other") is None


def test_the_manifest_has_the_name_the_reader_expects():
    assert bundle.MANIFEST == installed.BUNDLE_FILE


def test_a_model_is_found_by_path_name_variable_or_alone(cache, monkeypatch, tmp_path):
    first = install(cache, "first")
    assert installed.resolve_model() == first
    second = install(cache, "second")
    with pytest.raises(BundleNotFoundError, match="first, second"):
        installed.resolve_model()
    monkeypatch.setenv("MT3_MODEL", "second")
    assert installed.resolve_model() == second
    assert installed.resolve_model("first") == first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert installed.resolve_model(elsewhere) == elsewhere


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "mt3 export magenta_mt3"),
        ("folder/bundle", "no bundle at folder/bundle"),
        ("bundle.mt3", "no bundle at bundle.mt3"),
        ("nonsense", "installed: none"),
        ("magenta_mt3", "mt3 models pull magenta_mt3"),
        ("yourmt3", "mt3 models pull yptf_moe_multi"),
    ],
)
def test_a_model_that_is_not_there_is_explained(cache, monkeypatch, tmp_path, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleNotFoundError, match=message):
        installed.resolve_model(name)


def test_a_model_that_cannot_be_exported_is_not_offered(cache, monkeypatch):
    unknown = replace(catalogue.get_model_info("ymt3_plus"), supported=False)
    monkeypatch.setattr(catalogue, "get_model_info", lambda _: unknown)
    with pytest.raises(BundleNotFoundError, match="ymt3_plus is known, but .* cannot export it"):
        installed.resolve_model("ymt3_plus")


@pytest.fixture
def stored(cache, tiny_bundle, tiny_weights):
    """Real bundles in the cache, a folder and a file, and a checkpoint as it was pulled."""
    for name in ("one", "yptf_moe_multi"):
        shutil.copytree(tiny_bundle, cache / "bundles" / name)
    source = {"layout": "seeded", "digest": "0" * 64}
    out = cache / "bundles" / "two.mt3"
    export_bundle(tiny_weights, variant_named("magenta_mt3"), out, source=source)
    pulled = cache / "checkpoints" / "mt3_pytorch"
    pulled.mkdir(parents=True)
    (pulled / "config.json").write_bytes(b"1")
    download.part_of(pulled / "mt3.pth").write_bytes(b"23")
    (cache / "mine.txt").write_text("keep")
    return cache


def test_removing_takes_what_we_stored_and_nothing_else(stored, tiny_bundle):
    size = sum(path.stat().st_size for path in tiny_bundle.iterdir())
    assert installed.remove_model("yourmt3") == size
    assert installed.remove_model("one") == size
    assert set(installed.installed_models()) == {"two"}
    assert installed.remove_model("two") > 1000
    assert installed.remove_model("two") == 0
    assert installed.remove_model("mt3_pytorch") == 3
    found = {path.relative_to(stored).as_posix() for path in stored.rglob("*")}
    assert found == {"mine.txt", "bundles", "checkpoints"}


@pytest.mark.parametrize(
    ("name", "path", "named"),
    [
        ("one", "bundles/one/notes.txt", "notes.txt"),
        ("one", "bundles/one/folder/a", "folder"),
        ("one", "bundles/one/bundle.json", "bundle.json"),
        ("one", "checkpoints/one/mine.ckpt", "mine.ckpt"),
        ("two", "bundles/two.mt3", "two.mt3"),
        ("two", "bundles/two/film.mkv", "film.mkv"),
        ("mt3_pytorch", "checkpoints/mt3_pytorch/tuned.pth", "tuned.pth"),
        ("mt3_pytorch", "checkpoints/mt3_pytorch/mt3.pth.part", "mt3.pth.part"),
        ("mt3_pytorch", "checkpoints/mt3_pytorch/a/mt3.pth", "mt3.pth"),
        ("yourmt3", "bundles/yourmt3/mine.txt", "mine.txt"),
    ],
)
def test_removing_refuses_whole_what_is_not_all_ours(stored, capsys, name, path, named):
    (stored / path).parent.mkdir(parents=True, exist_ok=True)
    (stored / path).write_bytes(b"mine")
    before = snapshot(stored)
    assert main(["models", "remove", name]) == ExitCode.FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert snapshot(stored) == before


@pytest.mark.parametrize("path", ["bundles/linked", "bundles/linked.mt3", "checkpoints/linked"])
def test_links_into_the_cache_are_not_removed(stored, path):
    target = stored / "bundles" / ("two.mt3" if path.endswith("mt3") else "one")
    (stored / path).symlink_to(target)
    before = snapshot(stored)
    with pytest.raises(OutputError, match="is a link"):
        installed.remove_model("linked")
    assert snapshot(stored) == before


@pytest.mark.parametrize("name", ["", ".", "..", "../cache", "bundles/one", "/"])
def test_names_that_lead_elsewhere_are_nothing_that_is_stored(stored, name):
    before = snapshot(stored)
    assert installed.remove_model(name) == 0
    assert snapshot(stored) == before


FILES = st.dictionaries(
    st.sampled_from(["bundle.json", "config.json", "mt3.pth", "a.txt", "encoder.cpu.onnx"]),
    st.binary(max_size=20),
    min_size=1,
)


@settings(max_examples=50, deadline=None)
@given(files=FILES, kind=st.sampled_from(["bundles", "checkpoints"]))
def test_whatever_was_put_under_a_name_stays(tmp_path_factory, files, kind):
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("cache")
        patch.setenv("MT3_CACHE", str(place))
        (place / kind / "own").mkdir(parents=True)
        for name, content in files.items():
            (place / kind / "own" / name).write_bytes(content)
        before = snapshot(place)
        with pytest.raises(OutputError):
            installed.remove_model("own")
        assert snapshot(place) == before


@pytest.fixture
def server():
    with running() as started:
        yield started


# Whole models ------------------------------------------------------------------------------------


def known(**changes: object) -> ModelInfo:
    values = {
        "name": "tiny",
        "aliases": ("small",),
        "family": "mt3",
        "summary": "a test",
        "exporter": "tiny",
        "supported": True,
        "licence": "none",
        "licence_note": "None needed.",
        "source": "here",
        "revision": None,
        "digests": "made up",
        "note": "Ask the author.",
        "files": (
            ModelFile("a b/one", "https://host.invalid/one", len(CONTENT), DIGEST),
            ModelFile("two", "https://host.invalid/two", len(CONTENT), DIGEST),
        ),
    }
    return ModelInfo(**{**values, **changes})


@pytest.fixture
def tiny(cache, server, monkeypatch):
    monkeypatch.setattr(catalogue, "list_models", lambda: (known(),))
    monkeypatch.setenv("MT3_MIRROR", f"{server.url}/mirror/")
    return cache / "checkpoints" / "tiny"


def test_a_model_is_fetched_from_the_mirror(tiny, server):
    seen: list[tuple[int, int | None]] = []
    assert catalogue.download_model("small", progress=lambda *p: seen.append(p)) == tiny
    assert server.paths == ["/mirror/tiny/a%20b/one", "/mirror/tiny/two"]
    assert (tiny / "a b" / "one").read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert (len(CONTENT), 2 * len(CONTENT)) in seen
    assert seen[-1] == (2 * len(CONTENT), 2 * len(CONTENT))
    assert catalogue.download_model("tiny") == tiny


def test_files_nobody_verified_need_consent(tiny, monkeypatch):
    files = (ModelFile("one", "https://host.invalid/one", None, None),)
    monkeypatch.setattr(catalogue, "list_models", lambda: (known(files=files),))
    with pytest.raises(DownloadError, match="--allow-unverified"):
        catalogue.download_model("tiny")
    catalogue.download_model("tiny", allow_unverified=True)
    assert (tiny / "one").read_bytes() == CONTENT
    assert catalogue.get_model_info("tiny").size is None


def test_the_files_of_a_model_share_the_bound(server, cache, monkeypatch):
    files = tuple(ModelFile(name, f"{server.url}/{name}", None, None) for name in ("a", "b", "c"))
    monkeypatch.setattr(catalogue, "list_models", lambda: (known(files=files),))
    monkeypatch.setattr(catalogue, "MOST", 2 * len(CONTENT) + 5)
    with pytest.raises(DownloadError, match="more than 5 bytes"):
        catalogue.download_model("tiny", allow_unverified=True)
    assert server.paths == ["/a", "/b", "/c"]


def test_an_entry_of_the_catalogue_may_have_mirrors():
    row = {
        "name": "x", "aliases": [], "family": "mt3", "summary": "s", "exporter": "e",
        "supported": True, "licence": "l", "licence_note": "", "source": "s", "revision": None,
        "digests": "d", "note": "", "base_url": "https://a/", "mirrors": ["https://b/", "https://c/"],
        "files": [
            {"path": "one two", "size": 1, "sha256": None},
            {"path": "three", "size": 1, "sha256": None, "url": "https://d/3",
             "mirrors": ["https://e/3"]},
        ],
    }  # fmt: skip
    one, three = catalogue._model(row).files
    assert (one.url, one.mirrors) == (
        "https://a/one%20two",
        ("https://b/one%20two", "https://c/one%20two"),
    )
    assert (three.url, three.mirrors) == ("https://d/3", ("https://e/3",))


def test_a_model_is_pulled_from_its_mirrors(server, cache, monkeypatch):
    file = ModelFile("one", "http://127.0.0.1:9/x", len(CONTENT), DIGEST, (f"{server.url}/one",))
    monkeypatch.setattr(catalogue, "list_models", lambda: (known(files=(file,)),))
    assert (catalogue.download_model("tiny") / "one").read_bytes() == CONTENT
    assert server.paths == ["/one"]


def test_what_was_pulled_is_checked_before_it_is_used(tiny, cache, server, monkeypatch):
    with pytest.raises(CheckpointError, match="not on this machine.*mt3 models pull tiny"):
        catalogue.pulled_checkpoint("small")
    catalogue.download_model("tiny")
    assert catalogue.pulled_checkpoint("small") == tiny
    (tiny / "two").write_bytes(b"x" * len(CONTENT))
    with pytest.raises(CheckpointError, match="two is not the file the catalogue describes"):
        catalogue.pulled_checkpoint("tiny")
    (tiny / "two").unlink()
    with pytest.raises(CheckpointError, match="two is missing.*mt3 models pull tiny"):
        catalogue.pulled_checkpoint("tiny")
    monkeypatch.setattr(catalogue, "list_models", lambda: (known(files=known().files[:1]),))
    assert catalogue.pulled_checkpoint("tiny") == tiny / "a b" / "one"


def test_a_model_whose_files_are_unknown_says_what_to_do(tiny, monkeypatch):
    monkeypatch.setattr(catalogue, "list_models", lambda: (known(files=()),))
    with pytest.raises(DownloadError, match="Ask the author"):
        catalogue.download_model("tiny")


@pytest.mark.parametrize(("value", "allowed"), [("1", False), ("0", True), ("", True)])
def test_the_offline_variable_forbids_requests(tiny, server, monkeypatch, value, allowed):
    monkeypatch.setenv("MT3_OFFLINE", value)
    if allowed:
        catalogue.download_model("tiny")
    else:
        with pytest.raises(DownloadError, match="MT3_OFFLINE"):
            catalogue.download_model("tiny")
    assert bool(server.paths) == allowed


# mt3 models --------------------------------------------------------------------------------------


def test_the_list_shows_state_and_licence(cache, capsys):
    install(cache, "magenta_mt3")
    install(cache, "my_own")
    assert main(["models"]) == ExitCode.OK
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["magenta_mt3"].split()[1] == "installed"
    assert rows["my_own"].split()[1] == "installed"
    assert rows["yptf_single"].split()[1] == "exportable"
    assert "GPL-3.0" in rows["yptf_single"]
    assert " SHA-256 " in rows["yptf_single"]
    assert " unverified " in rows["magenta_ismir2021"]
    assert main(["models", "list"]) == ExitCode.OK


def test_info_tells_the_doubts(cache, capsys):
    assert main(["models", "info", "yourmt3"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "name:       yptf_moe_multi" in text
    assert "doubts:" in text
    assert "ae38e415c79efd5592dcb9b658cdb99ddb11d4c4e1eaa364cab04a052473fc25   561544628  " in text
    main(["models", "info", "magenta_mt3"])
    assert "files:      295 (--files lists them)" in capsys.readouterr().out
    main(["models", "info", "magenta_mt3", "--files"])
    assert len(capsys.readouterr().out.splitlines()) > 295
    main(["models", "info", "mr_mt3"])
    assert "\nunverified " in capsys.readouterr().out
    assert main(["models", "info", "nonsense"]) == ExitCode.USAGE


def test_where_prints_the_folder_and_nothing_else(cache, capsys):
    assert main(["models", "where"]) == ExitCode.OK
    assert capsys.readouterr().out == f"{cache}\n"


def test_pull_prints_the_folder_on_stdout_and_the_licence_on_stderr(tiny, capsys):
    assert main(["models", "pull", "tiny"]) == ExitCode.OK
    captured = capsys.readouterr()
    assert captured.out == f"{tiny}\n"
    assert "None needed." in captured.err
    assert "mt3 export tiny" in captured.err


def test_a_failed_pull_is_one_line(tiny, server, capsys):
    server.content = b"x" * len(CONTENT)
    assert main(["models", "pull", "tiny"]) == ExitCode.UNUSABLE
    assert capsys.readouterr().err.count("error: ") == 1


def test_the_data_files_are_plain_json():
    folder = Path(mt3_runtime.__file__).parent
    paths = [folder / "catalogue.json", *(folder / "data").glob("*.json")]
    assert len(paths) > 2
    for path in paths:
        assert json.loads(path.read_text(encoding="utf-8"))
