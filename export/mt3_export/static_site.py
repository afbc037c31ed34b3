"""Builds a static site of the page: a folder that any web server can give out, and works offline.

It holds the page, one graph of a model that reads features (`mt3_export.single_file`), and ONNX
Runtime for browsers, whose three files come from the npm registry by name and version and are
checked against the digests in ``third-party.json``.  A service worker keeps all of it, under a name
made of all digests, so that a site of another model or version is another one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from mt3_export.single_file import export_single_file
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import MissingDependencyError, OutputError
from mt3_runtime.filesystem.atomic import exists, real_path
from mt3_runtime.filesystem.folders import folder_beside

#: Where the page is: in an installed package, and in a checkout.
_PLACES = (
    Path(__file__).parents[1] / "mt3_server" / "page",
    Path(__file__).parents[2] / "runtime" / "web",
)
_PARTS = ("src", "page", "vendor")
_FILES = ("index.html", "page.css")
_WORKER = "service-worker.js"
_NPM_SECONDS = 300
"""How long the registry may take for 30 MB."""


def page_folder() -> Path:
    """The folder of the page's files.

    Raises:
        MissingDependencyError: This installation was built without them.
    """
    for folder in _PLACES:
        if (folder / "index.html").is_file():
            return folder
    raise MissingDependencyError("The page is not part of this installation; install the wheel.")


def build_site(
    bundle: Bundle, out: Path, *, packages: Path | None = None, webgpu: bool = False
) -> list[Path]:
    """Writes a site.

    Args:
        bundle: The model, with profile ``cpu``.
        out: A folder that does not exist, or is empty.
        packages: A folder ``node_modules`` that has ONNX Runtime; None to fetch it by npm.
        webgpu: Whether the page may offer to compute on graphics processors; 27 MB more.

    Returns:
        Its files, relative to the folder.

    Raises:
        OutputError: Something is in the way, or the folder cannot be written.
        MissingDependencyError: There is no npm, or the files are not those of the digests.
        MT3Error: As `export_single_file`.
    """
    target = real_path(out)
    if exists(target) and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{out} is there already; remove it, or choose another place with -o.")
    web = page_folder()
    with folder_beside(target) as folder:
        for name in _FILES:
            shutil.copy(web / name, folder / name)
        for name in _PARTS:
            shutil.copytree(web / name, folder / name, ignore=shutil.ignore_patterns(_WORKER))
        _add_runtime(web, folder / "ort", packages, webgpu=webgpu)
        export_single_file(bundle, folder / "model", start="features")
        _make_offline(web, folder, {"offline", "webgpu"} if webgpu else {"offline"})
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        if target.is_dir():
            target.rmdir()  # it is empty
        folder.rename(target)
    return files


def _add_runtime(web: Path, folder: Path, packages: Path | None, *, webgpu: bool) -> None:
    """Copies ONNX Runtime for browsers, and refuses other files than those of the digests."""
    wanted = json.loads((web / "third-party.json").read_text(encoding="utf-8"))
    name, version = wanted["package"], wanted["version"]
    digests = wanted["files"] | (wanted["webgpu_files"] if webgpu else {})
    with TemporaryDirectory() as temporary:
        if packages is None:
            dist = _fetch(f"{name}@{version}", Path(temporary), list(digests))
        else:
            dist = packages / name / "dist"
        folder.mkdir()
        for file, digest in digests.items():
            source = dist / file
            data = source.read_bytes() if source.is_file() else b""
            if hashlib.sha256(data).hexdigest() != digest:
                raise MissingDependencyError(
                    f"{source} is missing or not that of {name} {version}; leave out --packages, "
                    "or install that version."
                )
            (folder / file).write_bytes(data)
    notice = f"{name} {version}, {wanted['licence']}\n"
    (folder / "NOTICE.txt").write_text(notice, encoding="utf-8")


def _fetch(package: str, folder: Path, files: list[str]) -> Path:
    """Fetches a package from the npm registry; no script of it runs."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependencyError(
            f"{package} is fetched with npm, which is not here. Install Node.js, or name a folder "
            "node_modules that has the package with --packages."
        )
    command = [npm, "pack", package, "--ignore-scripts", "--pack-destination", str(folder)]
    done = subprocess.run(  # noqa: S603  npm, with a name of ours
        command, capture_output=True, text=True, timeout=_NPM_SECONDS, check=False, cwd=folder
    )
    packed = next(folder.glob("*.tgz"), None)
    if done.returncode or packed is None:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MissingDependencyError(f"{package} could not be fetched: {last}")
    with tarfile.open(packed) as archive:
        for file in files:
            member = archive.extractfile(f"package/dist/{file}")
            if member:
                (folder / file).write_bytes(member.read())
    return folder


def _make_offline(web: Path, folder: Path, marks: set[str]) -> None:
    """Adds the service worker, which knows all files, and tells the page what the site has."""
    index = folder / "index.html"
    text = index.read_text(encoding="utf-8")
    head = '<meta charset="utf-8" />'
    told = "".join(f'\n    <meta name="{mark}" content="yes" />' for mark in sorted(marks))
    index.write_text(text.replace(head, head + told), encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    names = ["./", *(path.relative_to(folder).as_posix() for path in paths)]
    site = json.dumps({"version": f"mt3-{digest.hexdigest()[:16]}", "files": names})
    worker = (web / "page" / _WORKER).read_text(encoding="utf-8")
    (folder / _WORKER).write_text(f"globalThis.mt3Site = {site};\n{worker}", encoding="utf-8")
