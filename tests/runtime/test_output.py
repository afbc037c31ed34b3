"""A target is always the old file or a whole new one, and nothing is left beside it."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from mt3_runtime.errors import OutputError
from mt3_runtime.filesystem import atomic as output
from mt3_runtime.filesystem.atomic import (
    check_output,
    write_atomic,
    write_new,
    write_output,
    write_stream,
)
from tests.pace import HANGS

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions, pipes or limits")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_create_and_replace(tmp_path):
    path = tmp_path / "song.mid"
    write_atomic(path, b"first")
    write_atomic(str(path), b"second, longer")
    write_atomic(path, b"")
    assert path.read_bytes() == b""
    assert names(tmp_path) == ["song.mid"]


def test_names_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("n" * 251 + ".mid")
    write_atomic(path, b"data")
    assert path.read_bytes() == b"data"


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_files_get_the_usual_permissions(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "song.mid", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "song.mid").stat().st_mode) == mode


@posix
def test_replaced_files_keep_their_permissions(tmp_path):
    path = tmp_path / "song.mid"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomic(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@posix
def test_links_stay_links(tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "song.mid"
    target.write_bytes(b"old")
    link, dangling = tmp_path / "link.mid", tmp_path / "dangling.mid"
    link.symlink_to("real/song.mid")
    dangling.symlink_to("real/new.mid")
    for path in (link, dangling):
        check_output(path)
        write_atomic(path, b"new")
        assert path.is_symlink()
        assert path.read_bytes() == b"new"
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "real") == ["new.mid", "song.mid"]


def _full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("function", ["write", "fsync"])
def test_a_full_disk_harms_nothing(tmp_path, monkeypatch, function, existing):
    path = tmp_path / "song.mid"
    if existing:
        path.write_bytes(b"old")
    monkeypatch.setattr(output.os, function, _full)
    with pytest.raises(OutputError, match=r"cannot write .*song\.mid: No space left"):
        write_atomic(path, b"new")
    assert names(tmp_path) == ["song.mid"] * existing
    assert not existing or path.read_bytes() == b"old"


@posix
def test_a_limit_in_the_middle_of_the_data_harms_nothing(tmp_path):
    import resource

    path = tmp_path / "song.mid"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            write_atomic(path, b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (names(tmp_path), path.read_bytes()) == (["song.mid"], b"old")


def test_an_interruption_harms_nothing(tmp_path, monkeypatch):
    path = tmp_path / "song.mid"
    path.write_bytes(b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(output.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert (names(tmp_path), path.read_bytes()) == (["song.mid"], b"old")


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(output.os, "write", lambda fd, data: write(fd, data[:7]))
    write_atomic(tmp_path / "song.mid", bytes(range(100)))
    assert (tmp_path / "song.mid").read_bytes() == bytes(range(100))


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def only_files(descriptor):
        calls.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if calls[-1]:
            raise OSError(errno.EINVAL, "not here")
        sync(descriptor)

    monkeypatch.setattr(output.os, "fsync", only_files)
    write_atomic(tmp_path / "song.mid", b"data")
    assert calls in ([False, True], [False])  # Windows cannot even open a folder
    assert (tmp_path / "song.mid").read_bytes() == b"data"


def test_many_writers_of_one_target(tmp_path):
    path = tmp_path / "song.mid"
    bodies = [bytes([65 + i]) * 300_000 for i in range(8)]
    seen = set()

    def work(body):
        for _ in range(5):
            write_atomic(path, body)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=work, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= set(bodies)
    assert names(tmp_path) == ["song.mid"]


def test_two_processes_with_one_target(tmp_path):
    path = tmp_path / "song.mid"
    program = (
        "import sys\n"
        "from mt3_runtime.filesystem.atomic import write_atomic\n"
        "for _ in range(20):\n"
        "    write_atomic(sys.argv[1], sys.argv[2].encode() * 200_000)\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), letter],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for letter in "ab"
    ]
    assert [worker.wait(timeout=HANGS) for worker in workers] == [0, 0]
    assert path.read_bytes() in (b"a" * 200_000, b"b" * 200_000)
    assert names(tmp_path) == ["song.mid"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "it is a folder; name a file"),
        ("none/song.mid", "No such file or directory"),
        ("file/song.mid", "Not a directory|No such file"),
        ("a\0b.mid", "NUL|null"),
    ],
)
def test_impossible_targets(tmp_path, name, message):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=message):
        write_atomic(tmp_path / name, b"data")
    assert names(tmp_path) == ["file"]


@posix
def test_devices_and_pipes_are_written_in_place(tmp_path):
    check_output("/dev/null")
    write_atomic("/dev/null", b"data")
    assert Path("/dev/null").is_char_device()

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    write_atomic(pipe, b"x" * 200_000)
    reader.join()
    assert received == [b"x" * 200_000]
    assert pipe.is_fifo()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_device():
    with pytest.raises(OutputError, match="No space left"):
        write_atomic("/dev/full", b"data")
    with (
        Path("/dev/full").open("wb") as stream,
        pytest.raises(OutputError, match="to the stream: No space left"),
    ):
        write_stream(stream.fileno(), b"data")


# --- streams ------------------------------------------------------------------------------------


class Raw(io.RawIOBase):
    """An unbuffered stream that takes at most 3 bytes at a time."""

    def __init__(self, room):
        super().__init__()
        self.data = b""
        self.room = room

    def writable(self):
        return True

    def write(self, data):
        if len(self.data) >= self.room:
            return None
        self.data += bytes(data[:3])
        return min(3, len(data))


def test_streams_get_everything():
    raw, buffer = Raw(room=100), io.BytesIO()
    write_stream(raw, b"0123456789")
    write_stream(buffer, b"0123456789")
    assert raw.data == buffer.getvalue() == b"0123456789"
    with pytest.raises(OutputError, match="non-blocking and full"):
        write_stream(Raw(room=5), b"0123456789")


def test_closed_streams():
    stream = io.BytesIO()
    stream.close()
    with pytest.raises(OutputError, match="closed file"):
        write_stream(stream, b"data")


def test_a_reader_that_went_away():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with pytest.raises(OutputError, match="the reader closed the pipe"):
            write_stream(writing, b"data")
    finally:
        os.close(writing)


def test_dash_is_standard_output(capfdbinary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sys.stdout.write("text first\n")
    write_output("-", b"MThd\x00\xff")
    assert capfdbinary.readouterr().out == b"text first\nMThd\x00\xff"
    assert names(tmp_path) == []
    write_output("song.mid", b"file")
    assert (tmp_path / "song.mid").read_bytes() == b"file"


@pytest.mark.parametrize("stdout", [None, SimpleNamespace()])
def test_no_standard_output(monkeypatch, stdout):
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(OutputError, match="no standard output"):
        write_output("-", b"data")


# --- checks ahead of the work -------------------------------------------------------------------


def test_good_outputs_pass_and_nothing_is_touched(tmp_path):
    (tmp_path / "old.mid").write_bytes(b"old")
    (tmp_path / "song.wav").write_bytes(b"audio")
    inputs = [tmp_path / "song.wav", "missing.wav", b"not a path", io.BytesIO(), [0.0]]
    check_output("-", inputs)
    check_output(tmp_path / "new.mid", inputs)
    check_output(tmp_path / "old.mid", inputs)
    assert names(tmp_path) == ["old.mid", "song.wav"]


def test_outputs_that_cannot_work_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name, message in [
        (".", "it is a folder"),
        ("none/song.mid", "there is no folder .*none; create it first"),
        ("file/song.mid", "there is no folder"),
        ("a\0b", "cannot write"),
    ]:
        with pytest.raises(OutputError, match=message):
            check_output(tmp_path / name)


def test_an_input_is_never_overwritten_under_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "song.mid"
    source.write_bytes(b"input")
    (tmp_path / "hard.mid").hardlink_to(source)
    (tmp_path / "soft.mid").symlink_to(source)
    for path in (source, "song.mid", "./song.mid", "hard.mid", "soft.mid"):
        with pytest.raises(OutputError, match="also an input; choose another name"):
            check_output(path, [str(source)])
    with pytest.raises(OutputError, match="also an input"):
        check_output("later.mid", [tmp_path / "later.mid"])


def test_no_part_of_a_bundle_is_overwritten(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "one.mt3").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    bundles = [tmp_path / "link", tmp_path / "one.mt3"]
    for name in ("bundle/bundle.json", "link/new.json", "one.mt3"):
        with pytest.raises(OutputError, match="part of the model"):
            check_output(tmp_path / name, bundles=bundles)
    check_output(tmp_path / "bundle.json", bundles=bundles)


def test_new_files_replace_nothing(tmp_path):
    path = tmp_path / "file"
    write_new(path, b"ours")
    write_new(path, b"ours")
    with pytest.raises(OutputError, match="not replaced"):
        write_new(path, b"other")
    assert path.read_bytes() == b"ours"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="not replaced"):
        write_new(tmp_path / "link", b"ours")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(OutputError, match="not replaced"):
        write_new(tmp_path, b"ours")


def test_permissions(tmp_path, monkeypatch):
    path = tmp_path / "song.mid"
    path.write_bytes(b"old")
    denied = {os.fspath(path)}
    monkeypatch.setattr(output.os, "access", lambda p, mode: os.fspath(p) not in denied)
    with pytest.raises(OutputError, match="the file is read-only"):
        check_output(path)
    denied.clear()
    denied.add(os.fspath(tmp_path))
    with pytest.raises(OutputError, match="no permission to write in"):
        check_output(tmp_path / "new.mid")
