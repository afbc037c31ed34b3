"""Names of folders, listed once: the answers are those of the operating system."""

import os

import pytest

from mt3_runtime.filesystem.folder_names import _FEW, FolderNames


@pytest.mark.parametrize("relative", [False, True])
def test_answers_are_those_of_the_system(tmp_path, monkeypatch, relative):
    """Before the folder is listed and afterwards; of files, folders, links, and what is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "good").symlink_to("file")
    (tmp_path / "torn").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    names = FolderNames()
    for _ in range(2 * _FEW):
        for name in ("file", "folder", "good", "torn", "round", "missing", "file/below", "\0"):
            path = name if relative else str(tmp_path / name)
            assert names.exists(path) == os.path.exists(path)
            assert names.is_link(path) == os.path.islink(path)


def test_a_folder_is_listed_once_and_only_if_much_is_asked_of_it(tmp_path, monkeypatch):
    asked = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(path) or scandir(path))
    names = FolderNames()
    for number in range(_FEW):
        assert not names.exists(str(tmp_path / str(number)))
    assert not asked
    for number in range(10 * _FEW):
        (tmp_path / f"new{number}").touch()
        assert names.exists(str(tmp_path / f"new{number}"))  # also what came in since
    assert asked == [str(tmp_path)]
    assert not names.exists(str(tmp_path / "none" / "x"))


def test_a_folder_that_cannot_be_listed_is_asked_for_each_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    names = FolderNames()
    monkeypatch.setattr(os, "scandir", lambda _: (_ for _ in ()).throw(PermissionError()))
    assert all(names.exists(str(tmp_path / "file")) for _ in range(3 * _FEW))
