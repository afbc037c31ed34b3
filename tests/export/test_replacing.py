"""Exporting over something: an older bundle gives way whole, everything else stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_export.bundle_writer import check_target, export_bundle, new_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import main
from mt3_runtime.errors import OutputError
from tests.trees import snapshot


def export(weights: Weights, out: Path, digest: str = "0" * 64) -> None:
    source = {"layout": "seeded", "digest": digest}
    export_bundle(weights, variant_named("magenta_mt3"), out, source=source)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    """A bundle, as a folder and as a file; tests must not change it."""
    place = tmp_path_factory.mktemp("whole")
    export(tiny_weights, place / "model")
    export(tiny_weights, place / "model.mt3")
    return place


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "place"))


def refused(place: Path, out: Path, *names: str) -> None:
    """That nothing is written over what is at ``out``, and that the message names it."""
    before = snapshot(place)
    with pytest.raises(OutputError, match="choose") as refusal, new_bundle(out) as folder:
        (folder / "bundle.json").write_text("new")
    assert snapshot(place) == before
    for name in names:
        assert name in str(refusal.value)


# Folders -----------------------------------------------------------------------------------------


def webapp(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "src").mkdir(parents=True)
    (folder / "bundle.json").write_text('{"name": "webapp"}')
    (folder / "thesis.txt").write_text("years of work")
    (folder / "src" / "a.js").write_text("1")


def marker_only(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "bundle.json").write_text('{"format": "mt3-runtime.bundle", "version": 1}')


def graph_is_a_folder(folder: Path) -> None:
    (folder / "encoder.cpu.onnx").unlink()
    (folder / "encoder.cpu.onnx").mkdir()
    (folder / "encoder.cpu.onnx" / "mine.txt").write_text("mine")


def graph_is_a_link(folder: Path) -> None:
    (folder / "encoder.cpu.onnx").rename(folder.parent / "mine.onnx")
    (folder / "encoder.cpu.onnx").symlink_to(folder.parent / "mine.onnx")


def manifest_is_a_link(folder: Path) -> None:
    (folder / "bundle.json").rename(folder.parent / "mine.json")
    (folder / "bundle.json").symlink_to(folder.parent / "mine.json")


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (webapp, "model"),
        (marker_only, "model"),
        (write("bundle.json", "{ no JSON"), "bundle.json"),
        (write("bundle.json", "[" * 100_000), "bundle.json"),
        (write("notes.txt", "mine"), "notes.txt"),
        (write(".hidden", "mine"), ".hidden"),
        (write("encoder.portable.onnx", "mine"), "encoder.portable.onnx"),
        (write("encoder.cpu.onnx", "tuned by hand"), "encoder.cpu.onnx"),
        (write("ranges.json", '{"of": "mountains"}'), "ranges.json"),
        (graph_is_a_folder, "encoder.cpu.onnx"),
        (graph_is_a_link, "encoder.cpu.onnx"),
        (manifest_is_a_link, "bundle.json"),
        (lambda folder: (folder / "empty").mkdir(), "empty"),
    ],
)
def test_a_folder_that_is_not_only_a_bundle_stays(copy: Path, change, named: str) -> None:
    change(copy / "model")
    refused(copy, copy / "model", named)


def test_the_first_few_foreign_names_are_told_and_the_rest_counted(copy: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt"):
        (copy / "model" / name).write_text("mine")
    refused(copy, copy / "model", "a.txt, b.txt, c.txt and 2 more")


def test_what_belongs_to_a_bundle_goes_with_it(copy: Path, tiny_weights: Weights) -> None:
    (copy / "model" / "ranges.json").write_text('{"format": "mt3-runtime.ranges"}')
    (copy / "model" / "decoder.cpu.onnx").unlink()
    export(tiny_weights, copy / "model", digest="1" * 64)
    assert Bundle(copy / "model").manifest.source["digest"] == "1" * 64
    assert not (copy / "model" / "ranges.json").exists()
    assert sorted(path.name for path in copy.iterdir()) == ["model", "model.mt3"]


def test_a_link_to_a_bundle_stays_a_link(copy: Path, tiny_weights: Weights) -> None:
    for name in ("model", "model.mt3"):
        link = copy / f"link-{name}"
        link.symlink_to(copy / name)
        export(tiny_weights, link, digest="1" * 64)
        assert link.is_symlink()
        assert Bundle(copy / name).manifest.source["digest"] == "1" * 64


def test_a_link_to_a_foreign_folder_is_refused(copy: Path) -> None:
    (copy / "music").mkdir()
    (copy / "music" / "song.mid").write_text("mine")
    (copy / "link").symlink_to(copy / "music")
    refused(copy, copy / "link", "song.mid")


# Archives ----------------------------------------------------------------------------------------


def zipped(*names: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, '{"name": "webapp"}')

    return change


def with_member(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "mine")


def with_comment(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"mine"


def with_broken_extra(path: Path) -> None:
    """The content of a member is not what its checksum says."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ranges.json", '{"format": "mt3-runtime.ranges"}')
    path.write_bytes(path.read_bytes().replace(b'"mt3-runtime.ranges"', b'"mt3-runtime-ranges"'))


def with_gap(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-22] + b"mine" + data[-22:])


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes() + b"a movie"),
        lambda path: path.write_bytes(b"#!/bin/sh\n" + path.read_bytes()),
        with_comment,
        with_gap,
        with_broken_extra,
        lambda path: path.write_text("movie"),
        lambda path: path.write_bytes(b""),
        zipped("photo.jpg"),
        zipped("bundle.json"),
        with_member,
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_a_file_that_is_not_our_archive_stays(copy: Path, change) -> None:
    change(copy / "model.mt3")
    before = sorted(copy.rglob("*"))
    content = (copy / "model.mt3").read_bytes() if (copy / "model.mt3").is_file() else None
    with pytest.raises(OutputError, match="choose"):
        check_target(copy / "model.mt3")
    with pytest.raises(OutputError, match="choose"), new_bundle(copy / "model.mt3"):
        pass
    assert sorted(copy.rglob("*")) == before
    if content is not None:
        assert (copy / "model.mt3").read_bytes() == content


def test_an_older_archive_is_replaced(copy: Path, tiny_weights: Weights) -> None:
    export(tiny_weights, copy / "model.mt3", digest="1" * 64)
    assert Bundle(copy / "model.mt3").manifest.source["digest"] == "1" * 64
    assert len(zipfile.ZipFile(copy / "model.mt3").namelist()) == 3


def test_an_archive_that_another_program_packed_is_replaced(
    copy: Path, tiny_weights: Weights
) -> None:
    """Info-ZIP adds times and owners to every member."""
    with zipfile.ZipFile(copy / "model.mt3", "w") as archive:
        for path in sorted((copy / "model").iterdir()):
            member = zipfile.ZipInfo(path.name)
            member.extra = b"UT\x05\x00\x03\0\0\0\0"
            archive.writestr(member, path.read_bytes())
    export(tiny_weights, copy / "model.mt3", digest="1" * 64)
    assert Bundle(copy / "model.mt3").manifest.source["digest"] == "1" * 64


# Failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OSError(16, "Device or resource busy"), KeyboardInterrupt()])
def test_if_the_new_folder_cannot_be_moved_the_old_bundle_survives(
    copy: Path, monkeypatch: pytest.MonkeyPatch, kind: BaseException
) -> None:
    before, rename = snapshot(copy), Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise kind
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    expected = OutputError if isinstance(kind, OSError) else KeyboardInterrupt
    with pytest.raises(expected), new_bundle(copy / "model"):
        pass
    assert snapshot(copy) == before


def test_if_it_cannot_be_moved_back_either_the_message_says_where_it_is(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = snapshot(copy / "model"), Path.rename

    def once(self: Path, target: Path) -> Path:
        if self.name in ("new", "old"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(OutputError, match="is now") as told, new_bundle(copy / "model"):
        pass
    (kept,) = copy.glob(".mt3-*.part/old")
    assert str(kept) in str(told.value)
    assert snapshot(kept) == before


@pytest.mark.parametrize("name", ["model", "model.mt3"])
def test_what_comes_in_while_the_bundle_is_made_stays(copy: Path, name: str) -> None:
    written = copy / name / "notes.txt" if name == "model" else copy / name
    before = snapshot(copy)
    with pytest.raises(OutputError, match="choose"), new_bundle(copy / name):
        written.write_text("mine")
    assert snapshot(copy) == before | {str(written.relative_to(copy)): b"mine"}


# The command -------------------------------------------------------------------------------------


def test_the_command_refuses_before_it_reads_the_checkpoint(copy: Path, capsys) -> None:
    webapp(copy / "model")
    (copy / "precious.mt3").write_text("movie")
    before = snapshot(copy)
    for out in ("model", "precious.mt3"):
        assert main(["export", str(copy), "-o", str(copy / out)]) == 1
        assert "choose another place with -o" in capsys.readouterr().err
    assert snapshot(copy) == before


NAMES = st.sampled_from(["bundle.json", "encoder.cpu.onnx", "a.txt", "b", "ranges.json"])
CONTENTS = st.one_of(
    st.binary(max_size=30),
    st.fixed_dictionaries(
        {}, optional={"format": st.just("mt3-runtime.bundle"), "version": st.just(1)}
    ).map(lambda document: json.dumps(document).encode()),
)


@settings(max_examples=60, deadline=None)
@given(files=st.dictionaries(NAMES, CONTENTS, min_size=1), packed=st.booleans())
def test_any_other_folder_or_file_stays(tmp_path_factory, files, packed) -> None:
    place = tmp_path_factory.mktemp("any")
    out = place / ("out.mt3" if packed else "out")
    if packed:
        out.write_bytes(b"".join(files.values()))
    else:
        out.mkdir()
        for name, content in files.items():
            (out / name).write_bytes(content)
    refused(place, out)
