"""What bundles lie in: damaged archives, pipes, devices and links are refused, without blocking."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.bundles.bundle import MANIFEST, Bundle
from mt3_runtime.errors import BundleError, MT3Error
from mt3_runtime.loading import load_model
from mt3_runtime.schema import read_document

GRAPH = "decoder.cpu.onnx"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    path = tmp_path_factory.mktemp("packed") / "tiny.mt3"
    export_bundle(tiny_weights, variant_named("magenta_mt3"), path, source={"digest": "0" * 64})
    return path


@pytest.fixture
def folder(tmp_path: Path, tiny_weights: Weights) -> Path:
    path = tmp_path / "tiny"
    export_bundle(tiny_weights, variant_named("magenta_mt3"), path, source={"digest": "0" * 64})
    return path


def _open_all(path: Path) -> None:
    """Reads everything there is in a bundle."""
    bundle = Bundle(path)
    for graph in bundle.manifest.graphs:
        bundle.verified(graph)
        bundle.in_place(graph)


def _refused_or_whole(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with contextlib.suppress(BundleError):
        _open_all(path)


def _directory(data: bytes) -> tuple[int, int]:
    """Where the central directory begins and ends."""
    at = data.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<II", data, at + 12)
    return offset, offset + size


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_changed_directory_is_refused_or_whole(
    packed: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Versions, flags, methods, sizes, names, offsets, counts: every byte of the tables."""
    whole = bytearray(packed.read_bytes())
    start, _ = _directory(bytes(whole))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(start, len(whole) - 1))
        whole[at] = data.draw(st.sampled_from([0, 1, 3, 6, 8, 63, 99, 127, 128, 255]))
    _refused_or_whole(tmp_path_factory.getbasetemp() / "changed.mt3", bytes(whole))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.integers(1, 3000), place=st.integers(0, 3000), more=st.binary(max_size=40))
def test_a_spliced_archive_is_refused_or_whole(
    packed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    cut: int,
    place: int,
    more: bytes,
) -> None:
    whole = packed.read_bytes()
    at = len(whole) - place
    path = tmp_path_factory.getbasetemp() / "spliced.mt3"
    _refused_or_whole(path, whole[: at - cut] + more + whole[at:])
    _refused_or_whole(path, whole[:-cut])
    _refused_or_whole(path, more + whole)


def _with_field(data: bytes, name: str, offset: int, form: str, value: int) -> bytes:
    """Sets a number in the directory's entry of a member."""
    start, end = _directory(data)
    at = start
    while at < end:
        lengths = struct.unpack_from("<HHH", data, at + 28)
        if data[at + 46 : at + 46 + lengths[0]] == name.encode():
            changed = bytearray(data)
            struct.pack_into(form, changed, at + offset, value)
            return bytes(changed)
        at += 46 + sum(lengths)
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (6, "<H", 99),  # version needed
        (8, "<H", 1),  # encrypted
        (10, "<H", 8),  # deflated
        (10, "<H", 99),
        (20, "<I", 1),  # compressed size
        (24, "<I", (1 << 32) - 2),  # size
        (24, "<I", (1 << 32) - 1),  # size in a zip64 field that is not there
        (38, "<I", 0o120777 << 16),  # a link
        (38, "<I", 0o010644 << 16),  # a pipe
        (42, "<I", (1 << 32) - 2),  # offset
        (42, "<I", 1),
    ],
)
@pytest.mark.parametrize("member", [MANIFEST, GRAPH])
def test_a_wrong_entry_is_refused(
    packed: Path, tmp_path: Path, member: str, offset: int, form: str, value: int
) -> None:
    path = tmp_path / "x.mt3"
    path.write_bytes(_with_field(packed.read_bytes(), member, offset, form, value))
    with pytest.raises(BundleError):
        _open_all(path)


def test_a_name_in_bytes_that_are_no_text_is_refused(packed: Path, tmp_path: Path) -> None:
    data = _with_field(packed.read_bytes(), GRAPH, 8, "<H", 0x800)  # names are UTF-8
    start, _ = _directory(data)
    at = data.index(GRAPH.encode(), start)
    path = tmp_path / "x.mt3"
    path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", [MANIFEST, GRAPH])
def test_two_members_of_one_name_are_refused(packed: Path, tmp_path: Path, name: str) -> None:
    """Readers differ in which of them they take."""
    path = tmp_path / "x.mt3"
    path.write_bytes(packed.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, zipfile.ZipFile(packed).read(name))
    with pytest.raises(BundleError, match=f"2 members named {name}"):
        _open_all(path)


def test_a_changed_manifest_in_an_archive_is_refused(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    path = tmp_path / "x.mt3"
    path.write_bytes(data.replace(b'"licence": "n', b'"licence": "N', 1))
    with pytest.raises(BundleError, match="damaged"):
        Bundle(path)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.mkdir()


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.skipif(os.name != "posix", reason="such files are Unix's")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_pipe, "a named pipe"),
        (_socket, "a socket"),
        (_device, "a link"),
        (_dangling, "a link"),
        (_folder, "a folder"),
    ],
)
@pytest.mark.parametrize("member", [MANIFEST, GRAPH])
def test_members_that_are_no_files_are_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    member: str,
    make: Callable[[Path], None],
    kind: str,
) -> None:
    monkeypatch.chdir(folder)  # names of sockets are short
    (folder / member).unlink()
    make(Path(member))
    with pytest.raises(BundleError, match=f"{member} is {kind}, not a regular file"):
        _open_all(folder)


@pytest.mark.skipif(os.name != "posix", reason="such files are Unix's")
def test_a_linked_member_is_refused(folder: Path, tmp_path: Path) -> None:
    for member in (GRAPH, MANIFEST):
        (folder / member).rename(tmp_path / member)
        (folder / member).symlink_to(tmp_path / member)
        with pytest.raises(BundleError, match=f"{member} is a link"):
            _open_all(folder)


@pytest.mark.skipif(os.name != "posix", reason="such files are Unix's")
@pytest.mark.parametrize(("make", "kind"), [(_pipe, "a named pipe"), (_socket, "a socket")])
def test_a_bundle_that_is_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("x.mt3"))
    with pytest.raises(BundleError, match=rf"x\.mt3 is {kind}"):
        load_model(tmp_path / "x.mt3")
    with pytest.raises(BundleError, match="is a device"):
        Bundle("/dev/zero")


@pytest.mark.skipif(os.name != "posix", reason="such files are Unix's")
def test_a_document_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(BundleError, match="is a named pipe"):
        read_document(tmp_path / "x.json", "x", 1, most=10, otherwise="is none", remedy="")


@pytest.mark.skipif(os.name != "posix", reason="links need a right on Windows")
def test_a_link_to_a_bundle_is_the_bundle(folder: Path, packed: Path, tmp_path: Path) -> None:
    """Links in a bundle are refused; where a user keeps bundles is no business of ours."""
    for number, target in enumerate((folder, packed)):
        link = tmp_path / f"link{number}{target.suffix}"
        link.symlink_to(target)
        load_model(link, threads=1).warmup()


@pytest.mark.parametrize("how", ["written", "replaced"])
@pytest.mark.parametrize("packing", ["folder", "packed"])
def test_a_bundle_that_changes_while_it_is_loaded_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, packing: str, how: str
) -> None:
    source = request.getfixturevalue(packing)
    path = source / GRAPH if source.is_dir() else tmp_path / "x.mt3"
    if source.is_file():
        path.write_bytes(source.read_bytes())
    bundle = Bundle(source if source.is_dir() else path)
    graph = bundle.graph("decoder", "cpu")
    bundle.verified(graph)
    bundle.check_unchanged(graph)
    data = path.read_bytes()
    if how == "replaced":
        path.rename(tmp_path / "old")
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(BundleError, match="was changed while it was loaded"):
        bundle.check_unchanged(graph)


@pytest.mark.skipif(os.name != "posix", reason="names are text on Windows")
@pytest.mark.parametrize("suffix", [b"", b".mt3"])
def test_names_that_are_no_text_work(tmp_path: Path, tiny_weights: Weights, suffix: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff" + suffix))
    variant = variant_named("magenta_mt3")
    export_bundle(tiny_weights, variant, path, source={"digest": "0"}, storage="fp16")
    load_model(path, threads=1).warmup()


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(MT3Error):
        load_model(f"./{name}")
