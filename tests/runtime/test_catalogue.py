from __future__ import annotations

import hashlib
import http.client
import io
import json
import threading
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mt3_export.variants import VARIANTS
from mt3_runtime.bundles import bundle
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.errors import (
    BundleNotFoundError,
    CheckpointError,
    DownloadError,
    OptionError,
)
from mt3_runtime.models import catalogue, download, installed
from mt3_runtime.models.cache import cache_dir
from mt3_runtime.models.catalogue import ModelFile, ModelInfo

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


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
        assert model.files
        assert model.digests
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
    assert {model.exporter for model in models if model.supported} == known | own


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


def test_clearing_removes_what_we_stored_and_nothing_else(cache):
    install(cache, "one")
    install(cache, "two")
    (cache / "bundles" / "three.mt3").write_bytes(b"12345")
    (cache / "checkpoints" / "one").mkdir(parents=True)
    (cache / "mine.txt").write_text("keep")
    assert installed.remove_model("three") == 5
    assert installed.remove_model("one") == 2
    assert set(installed.installed_models()) == {"two"}
    assert installed.remove_model("two") == 2
    assert installed.remove_model("two") == 0
    install(cache, "yptf_moe_multi")
    assert installed.remove_model("yourmt3") == 2
    assert (cache / "mine.txt").exists()


# Downloads ---------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves ``content``; the attributes make it misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.stop_after: int | None = None
        self.ranges = True
        self.stall = threading.Event()
        self.stall.set()
        self.redirect = ""
        self.ranges_seen: list[str | None] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers["Range"]
        server.ranges_seen.append(wanted)
        server.paths.append(self.path)
        if self.path.endswith("missing"):
            self.send_error(404)
            return
        if server.redirect and self.path != "/elsewhere":
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if not server.ranges:
            start = 0
        if wanted and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            total = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.stop_after])
        server.stall.wait(20)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.stall.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "deep" / "model.bin"


def fetch(server: Server, target: Path, **options: object) -> int:
    wanted = {"size": len(CONTENT), "sha256": DIGEST, **options}
    return download.fetch(f"{server.url}/model.bin", target, **wanted)


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, target):
    seen: list[int] = []
    assert fetch(server, target, progress=seen.append) == len(CONTENT)
    assert target.read_bytes() == CONTENT
    assert left(target) == ["model.bin"]
    assert fetch(server, target, progress=seen.append, offline=True) == len(CONTENT)
    assert server.ranges_seen == [None]
    assert seen == sorted(seen)
    assert seen[-2:] == [len(CONTENT)] * 2


def test_a_broken_transfer_goes_on_where_it_broke(server, target):
    server.stop_after = 1000
    with pytest.raises(DownloadError, match="again"):
        fetch(server, target)
    assert left(target) == ["model.bin.part"]
    server.stop_after = None
    fetch(server, target)
    assert server.ranges_seen == [None, "bytes=1000-"]
    assert target.read_bytes() == CONTENT
    assert left(target) == ["model.bin"]


def test_a_server_that_ends_too_early_without_saying_so_is_found_out(server, target):
    server.content = CONTENT[:1000]
    with pytest.raises(DownloadError, match=f"1000 of {len(CONTENT)} bytes"):
        fetch(server, target)
    with pytest.raises(DownloadError, match=f"1000 of {len(CONTENT)} bytes"):
        fetch(server, target)  # this time the server answers 416: nothing after byte 1000
    assert not target.exists()


def test_a_server_that_falls_silent_is_given_up_and_nothing_is_lost(server, target, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    server.stop_after = 1000
    server.stall.clear()
    with pytest.raises(DownloadError, match=r"timed out.*run the same command again"):
        fetch(server, target)
    assert target.with_name("model.bin.part").read_bytes() == CONTENT[:1000]
    server.stall.set()
    server.stop_after = None
    fetch(server, target)
    assert server.ranges_seen == [None, "bytes=1000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_that_sends_another_range_cannot_be_mistaken(server, target, monkeypatch):
    target.parent.mkdir()
    part = target.with_name("model.bin.part")
    part.write_bytes(CONTENT[:1000])
    send = Handler.send_header
    monkeypatch.setattr(
        Handler,
        "send_header",
        lambda self, name, value: send(self, name, value.replace("bytes 1000-", "bytes 999-")),
    )
    with pytest.raises(DownloadError, match="ended after"):
        fetch(server, target)
    assert part.read_bytes() == CONTENT[1000:]  # taken for the beginning, which it is not
    part.write_bytes(CONTENT[1000:] + bytes(1000))
    with pytest.raises(DownloadError, match="thrown away"):
        fetch(server, target)
    assert left(target) == []


def test_what_cannot_be_checked_is_not_continued(server, target):
    target.parent.mkdir()
    target.with_name("model.bin.part").write_bytes(b"of another day")
    fetch(server, target, sha256=None)
    assert server.ranges_seen == [None]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("start", [b"", CONTENT[:1000]])
def test_redirections_are_followed(server, target, start):
    target.parent.mkdir()
    target.with_name("model.bin.part").write_bytes(start)
    server.redirect = "/elsewhere"
    fetch(server, target)
    assert server.paths == ["/model.bin", "/elsewhere"]
    assert server.ranges_seen[1] == (f"bytes={len(start)}-" if start else None)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("/again", "infinite loop"),
        ("file:///etc/passwd", "not allowed"),
        ("ftp://127.0.0.1:9/x", "not as safe"),
        ("data:,x", "not allowed"),
    ],
)
def test_redirections_to_nowhere_good_are_not(server, target, to, message):
    server.redirect = to
    with pytest.raises(DownloadError, match=message):
        fetch(server, target)
    assert not target.exists()


def test_a_secure_address_may_not_lead_to_an_insecure_one():
    handler = download._Redirects()
    asked = urllib.request.Request("https://host.invalid/a")
    answer = (io.BytesIO(), 302, "Found", http.client.HTTPMessage())
    assert handler.redirect_request(asked, *answer, "https://other.invalid/b") is not None
    with pytest.raises(DownloadError, match="'http://other.invalid/b', which is not as safe"):
        handler.redirect_request(asked, *answer, "http://other.invalid/b")


def test_a_server_without_ranges_starts_over(server, target):
    target.parent.mkdir()
    target.with_name("model.bin.part").write_bytes(b"stale")
    server.ranges = False
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"x" * len(CONTENT), CONTENT + b"more"])
def test_wrong_bytes_are_thrown_away(server, target, content):
    server.content = content
    with pytest.raises(DownloadError, match="not the file the catalogue describes"):
        fetch(server, target)
    assert left(target) == []


def test_a_wrong_rest_is_thrown_away_and_the_next_try_succeeds(server, target):
    target.parent.mkdir()
    target.with_name("model.bin.part").write_bytes(b"not the beginning")
    with pytest.raises(DownloadError, match="thrown away"):
        fetch(server, target)
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_a_part_that_is_complete_needs_no_network(target):
    target.parent.mkdir()
    target.with_name("model.bin.part").write_bytes(CONTENT)
    length = download.fetch("http://127.0.0.1:9/never", target, size=len(CONTENT), sha256=DIGEST)
    assert length == len(CONTENT)
    assert left(target) == ["model.bin"]


def test_an_unknown_size_and_digest_still_notice_a_broken_transfer(server, target):
    server.stop_after = 1000
    with pytest.raises(DownloadError, match="before the end"):
        fetch(server, target, size=None, sha256=None)
    server.stop_after = None
    assert fetch(server, target, size=None, sha256=None) == len(CONTENT)


def test_a_damaged_file_in_place_is_replaced(server, target):
    target.parent.mkdir()
    target.write_bytes(b"x" * len(CONTENT))
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_offline_means_no_request(server, target):
    with pytest.raises(DownloadError, match="MT3_OFFLINE"):
        fetch(server, target, offline=True)
    assert server.paths == []


def test_what_the_server_answers_is_told(server, target):
    with pytest.raises(DownloadError, match="404 Not Found"):
        download.fetch(f"{server.url}/missing", target, size=None, sha256=None)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file"])
def test_only_web_addresses_are_fetched(target, url):
    with pytest.raises(DownloadError, match="not an http or https address"):
        download.fetch(url, target, size=None, sha256=None)


def test_no_server_at_all_is_one_sentence(target):
    with pytest.raises(DownloadError, match="could not be fetched"):
        download.fetch("http://127.0.0.1:9/x", target, size=None, sha256=None)


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
    folder = Path(catalogue.__file__).parent
    for path in (folder / "catalogue.json", *(folder / "data").glob("*.json")):
        assert json.loads(path.read_text(encoding="utf-8"))
