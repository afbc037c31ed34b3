"""The page in Chromium: what a person sees, presses and gets, and what it says of bad input."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import wave
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mt3_export.static_site import build_site, page_folder
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.errors import MissingDependencyError, OutputError
from mt3_runtime.files.formats import render
from mt3_runtime.loading import load_model
from mt3_runtime.models.shipped import shipped_models
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import stem_of
from tests import needs
from tests.pace import HANGS

RATE = 16000
DEMO = needs.ROOT / "calibration" / "demo" / "demo.flac"
WEB = needs.ROOT / "runtime" / "web"
SECONDS = 4


def _shipped() -> Bundle:
    if "default" not in shipped_models():
        needs.missing("default-model", "the package was built without it")
    return Bundle(shipped_models()["default"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web") / "site"
    build_site(_shipped(), path, packages=needs.node_modules())
    return path


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("song") / "song.wav"
    samples = load_audio(DEMO, target_rate=RATE)[: SECONDS * RATE]
    whole = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(whole.tobytes())
    return path


def test_the_page_in_chromium(site: Path, song: Path, tmp_path: Path) -> None:
    """Progress, tables, keys, playback, both themes, phone width, axe, bad input, offline."""
    browser, program = needs.tool("chromium"), needs.tool("node")
    midi = tmp_path / "song.mid"
    script = Path(__file__).with_name("page.mjs")
    done = subprocess.run(
        [program, script, browser, site, song, midi, tmp_path],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    checks = [key for line in done.stdout.splitlines() for key in json.loads(line)]
    assert checks == [
        "message",
        "midi",
        "keyboard",
        "playback",
        "accessible",
        "bad input",
        "offline",
    ]
    with load_model(_shipped().path, device="cpu") as model:
        expected = io.BytesIO()
        model.transcribe_notes(song, auto_filter=False).to_midi().save(file=expected)
    assert midi.read_bytes() == expected.getvalue()
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"page-{name}.png" for name in ("transcribing", "light", "dark", "phone")
    }


def test_what_goes_wrong_around_the_page(site: Path, song: Path, tmp_path: Path) -> None:
    """Models, files, storage, browsers that lack something, reloads, tabs in the background."""
    browser, program = needs.tool("chromium"), needs.tool("node")
    done = subprocess.run(
        [program, Path(__file__).with_name("faults.mjs"), browser, site, song, tmp_path],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    checks = [key for line in done.stdout.splitlines() for key in json.loads(line)]
    assert checks == ["model", "files", "stopped", "reload", "lacking", "storage"]


def test_the_page_in_firefox(site: Path, song: Path, tmp_path: Path) -> None:
    """Bytes of the MIDI file, keys, the roll."""
    browser, program = needs.tool("firefox-esr", "firefox"), needs.tool("node")
    script, midi = Path(__file__).with_name("firefox_page.mjs"), tmp_path / "song.mid"
    done = subprocess.run(
        [program, script, browser, site, song, midi],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert checks == ["midi", "keyboard", "drawn"]
    with load_model(_shipped().path, device="cpu") as model:
        expected = io.BytesIO()
        model.transcribe_notes(song, auto_filter=False).to_midi().save(file=expected)
    assert midi.read_bytes() == expected.getvalue()


def test_notes_are_edited_and_results_compared(site: Path, song: Path, tmp_path: Path) -> None:
    """Every edit has its way back; stems are those that the service writes, byte for byte."""
    browser, program = needs.tool("chromium"), needs.tool("node")
    done = subprocess.run(
        [program, Path(__file__).with_name("edits.mjs"), browser, site, song, tmp_path],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    checks: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        checks |= json.loads(line)
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(checks.pop("stems")[0])))
    names = ["one note", "roll", "instrument", "sounding", "sounds", "comparison", "several files"]
    assert list(checks) == names
    assert archive.testzip() is None
    with load_model(_shipped().path, device="cpu") as model:
        expected = model.transcribe_notes(song, auto_filter=False).stems()
    assert archive.namelist() == [f"{name}.mid" for name in expected]
    for name, notes in expected.items():
        assert archive.read(f"{name}.mid") == render(notes, "midi")


def test_stems_are_those_of_the_runtime() -> None:
    """Every program and percussion key belongs to the same stem in JavaScript."""
    needs.tool("node")
    module = (WEB / "page" / "stems.js").as_uri()
    script = f"""
        import {{ stemOf }} from {json.dumps(module)};
        const every = (isDrum) => Array.from({{ length: 128 }}, (_, i) =>
            stemOf({{ program: isDrum ? 0 : i, pitch: isDrum ? i : 60, isDrum }}));
        console.log(JSON.stringify([every(false), every(true)]));
    """
    command = [needs.tool("node"), "--input-type=module", "-e", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANGS)
    programs, keys = json.loads(done.stdout)
    assert programs == [stem_of(Note(0, 1, 60, 100, program)).name for program in range(128)]
    assert keys == [stem_of(Note(0, 1, key, 100, is_drum=True)).name for key in range(128)]


def test_sounds_are_those_of_the_digests_and_whole() -> None:
    """Every program and key; the licences lie beside them, and the page stays small."""
    folder = page_folder()
    wanted = json.loads((folder / "third-party.json").read_text(encoding="utf-8"))["vendor"]
    for name, digest in wanted.items():
        assert hashlib.sha256((folder / "vendor" / name).read_bytes()).hexdigest() == digest
    licences = (folder / "vendor" / "LICENCES.txt").read_text(encoding="utf-8")
    assert set(wanted) | {"LICENCES.txt"} == {path.name for path in (folder / "vendor").iterdir()}
    assert all(name in licences for name in ("Apache License", "Frank Wen", "Permission is hereby"))
    assert (folder / "vendor" / "general-midi.sf3").stat().st_size < 1_000_000
    places = [folder / "index.html", folder / "page.css"]
    places += [path for part in ("src", "page", "vendor") for path in (folder / part).iterdir()]
    assert sum(len(zlib.compress(path.read_bytes(), 9)) for path in places) < 1_600_000
    needs.node_modules()
    command = [needs.tool("node"), Path(__file__).with_name("sounds.mjs")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANGS)
    assert done.stdout.startswith("128 programs")


def test_the_page_beside_a_server(song: Path) -> None:
    """Notes come from there; a busy, an unwilling and a dying server are told in a sentence."""
    browser, program = needs.tool("chromium"), needs.tool("node")
    needs.node_modules()
    done = subprocess.run(
        [program, Path(__file__).with_name("server_page.mjs"), browser, page_folder(), song],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert checks == ["notes", "leakage", "settings", "bad answers"]


def test_the_page_asks_nobody_else() -> None:
    """No address of another host in what the page loads, and a policy that forbids any."""
    index = (WEB / "index.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]+)"', index)
    assert policy
    sources = dict(part.split(" ", 1) for part in policy[1].split("; "))
    assert sources["default-src"] == "'none'"
    assert sources["connect-src"] == sources["worker-src"] == "'self'"
    assert sources["script-src"] == "'self' 'wasm-unsafe-eval'"
    for path in [WEB / "index.html", WEB / "page.css", *(WEB / "page").glob("*.js")]:
        assert "://" not in path.read_text(encoding="utf-8"), path


def test_a_site_has_all_it_needs(site: Path) -> None:
    worker = (site / "service-worker.js").read_text(encoding="utf-8")
    listed = json.loads(worker.split("\n")[0].removeprefix("globalThis.mt3Site = ").rstrip(";"))
    files = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    assert set(listed["files"]) == (files - {"service-worker.js"}) | {"./"}
    manifest = Bundle(site / "model").manifest
    assert [graph.inputs[0] for graph in manifest.graphs] == ["features"]
    assert "MIT" in (site / "ort" / "NOTICE.txt").read_text(encoding="utf-8")


def test_equal_inputs_give_equal_sites(site: Path, tmp_path: Path) -> None:
    build_site(_shipped(), tmp_path / "again", packages=needs.node_modules())
    for path in (p for p in site.rglob("*") if p.is_file()):
        assert (tmp_path / "again" / path.relative_to(site)).read_bytes() == path.read_bytes()


def test_the_command_says_where_it_is(tmp_path: Path, capsys) -> None:
    _shipped()
    packages = str(needs.node_modules())
    out = tmp_path / "site"
    arguments = ["web", "build", "-o", str(out), "--packages", packages]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "MiB" in printed.err
    assert main(arguments) != 0  # it is there now
    assert "remove it, or choose another" in capsys.readouterr().err
    assert (out / "index.html").is_file()


def test_a_site_may_offer_webgpu(tmp_path: Path) -> None:
    site = tmp_path / "site"
    files = build_site(_shipped(), site, packages=needs.node_modules(), webgpu=True)
    assert {"ort.webgpu.min.mjs", "ort.wasm.min.mjs"} <= {path.name for path in files}
    text = (site / "index.html").read_text(encoding="utf-8")
    assert '<meta name="offline" content="yes" />' in text
    assert '<meta name="webgpu" content="yes" />' in text


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("site", "file"):
        with pytest.raises(OutputError, match="there already"):
            build_site(_shipped(), tmp_path / name, packages=tmp_path)
    assert (tmp_path / "site" / "letter.txt").read_text() == "dear"


def test_other_files_than_those_of_the_digests_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "packages" / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    (folder / "ort.wasm.min.mjs").write_text("something else")
    with pytest.raises(MissingDependencyError, match="not that of onnxruntime-web"):
        build_site(_shipped(), tmp_path / "site", packages=tmp_path / "packages")
    assert not (tmp_path / "site").exists()


def test_without_npm_the_way_out_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    _shipped()
    monkeypatch.setenv("PATH", "")
    assert main(["web", "build", "-o", str(tmp_path / "site")]) not in (0, ExitCode.USAGE)
    assert "--packages" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_digests_are_those_of_the_lock_file() -> None:
    wanted = json.loads((page_folder() / "third-party.json").read_text(encoding="utf-8"))
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    locked = lock["packages"][f"node_modules/{wanted['package']}"]
    assert locked["version"] == wanted["version"]
    assert locked["integrity"].startswith("sha512-")
