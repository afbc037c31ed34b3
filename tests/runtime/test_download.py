"""Downloads: whole and right or not at all, over nothing else, whatever the server does."""

from __future__ import annotations

import http.client
import io
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from mt3_runtime.errors import DownloadError
from mt3_runtime.models import catalogue, connection, download
from tests.pace import HANGS
from tests.web_server import CONTENT, DIGEST, Handler, Server, running


@pytest.fixture
def server():
    with running() as started:
        yield started


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
    assert left(target) == [".mt3-model.bin.part"]
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
    monkeypatch.setattr(connection, "SILENT", 0.2)
    server.stop_after = 1000
    server.stall.clear()
    with pytest.raises(DownloadError, match=r"timed out.*run the same command again"):
        fetch(server, target)
    assert download.part_of(target).read_bytes() == CONTENT[:1000]
    server.stall.set()
    server.stop_after = None
    fetch(server, target)
    assert server.ranges_seen == [None, "bytes=1000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_that_sends_another_range_cannot_be_mistaken(server, target, monkeypatch):
    target.parent.mkdir()
    part = download.part_of(target)
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
    fetch(server, target)  # complete and wrong: all of it is fetched again
    assert target.read_bytes() == CONTENT


def test_what_cannot_be_checked_is_not_continued(server, target):
    target.parent.mkdir()
    download.part_of(target).write_bytes(b"of another day")
    fetch(server, target, sha256=None)
    assert server.ranges_seen == [None]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("start", [b"", CONTENT[:1000]])
def test_redirections_are_followed(server, target, start):
    target.parent.mkdir()
    download.part_of(target).write_bytes(start)
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
    handler = connection.Redirects()
    asked = urllib.request.Request("https://host.invalid/a")
    answer = (io.BytesIO(), 302, "Found", http.client.HTTPMessage())
    assert handler.redirect_request(asked, *answer, "https://other.invalid/b") is not None
    with pytest.raises(DownloadError, match="'http://other.invalid/b', which is not as safe"):
        handler.redirect_request(asked, *answer, "http://other.invalid/b")


def test_a_server_without_ranges_starts_over(server, target):
    target.parent.mkdir()
    download.part_of(target).write_bytes(b"stale")
    server.ranges = False
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"x" * len(CONTENT), CONTENT + b"more"])
def test_wrong_bytes_are_thrown_away(server, target, content):
    server.content = content
    with pytest.raises(DownloadError, match="not the file the catalogue describes"):
        fetch(server, target)
    assert left(target) == []


def test_a_wrong_rest_is_thrown_away_and_fetched_again(server, target):
    target.parent.mkdir()
    download.part_of(target).write_bytes(b"not the beginning")
    fetch(server, target)
    assert server.ranges_seen == ["bytes=17-", None]
    assert target.read_bytes() == CONTENT


def test_a_part_that_is_complete_needs_no_network(target):
    target.parent.mkdir()
    download.part_of(target).write_bytes(CONTENT)
    length = download.fetch("http://127.0.0.1:9/never", target, size=len(CONTENT), sha256=DIGEST)
    assert length == len(CONTENT)
    assert left(target) == ["model.bin"]


def test_an_unknown_size_and_digest_still_notice_a_broken_transfer(server, target):
    server.stop_after = 1000
    with pytest.raises(DownloadError, match="before the end"):
        fetch(server, target, size=None, sha256=None)
    server.stop_after = None
    assert fetch(server, target, size=None, sha256=None) == len(CONTENT)


@pytest.mark.parametrize("size", [len(CONTENT), 3])
def test_another_file_in_place_is_not_replaced(server, target, size):
    target.parent.mkdir()
    target.write_bytes(b"x" * size)
    with pytest.raises(DownloadError, match="not replaced.*delete it"):
        fetch(server, target)
    assert target.read_bytes() == b"x" * size
    assert server.paths == []


def test_a_file_that_comes_in_meanwhile_is_not_replaced(server, target):
    with pytest.raises(DownloadError, match="not replaced"):
        fetch(server, target, progress=lambda _: target.write_bytes(b"mine"))
    assert target.read_bytes() == b"mine"


def test_links_are_left_alone(server, target, tmp_path):
    target.parent.mkdir()
    for link in (target, download.part_of(target)):
        (tmp_path / "mine").write_bytes(b"mine")
        link.symlink_to(tmp_path / "mine")
        with pytest.raises(DownloadError, match=r"not replaced|left alone"):
            fetch(server, target)
        assert (tmp_path / "mine").read_bytes() == b"mine"
        link.unlink()
    (tmp_path / "mine").write_bytes(CONTENT)
    target.symlink_to(tmp_path / "mine")  # the right file, kept elsewhere
    assert fetch(server, target) == len(CONTENT)
    assert server.paths == []


def test_a_part_of_another_program_is_left_alone(server, target):
    target.parent.mkdir()
    foreign = target.with_name("model.bin.part")  # as browsers name theirs
    foreign.write_bytes(b"half of it")
    fetch(server, target)
    assert foreign.read_bytes() == b"half of it"


# Endless and slow servers ------------------------------------------------------------------------


@pytest.fixture
def raw():
    """Serves the bytes that a generator yields, as they are, to every request."""
    made: list[socket.socket] = []

    def serve(answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        made.append(listener)

        def run() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, suppress(OSError):
                        client.recv(65536)
                        for block in answer():
                            client.sendall(block)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/model.bin"

    yield serve
    for listener in made:
        listener.close()


def endless(head: bytes):
    def answer():
        yield head
        while True:
            yield b"x" * 1000

    return answer


def test_an_endless_file_of_unknown_size_is_cut_off(raw, target):
    url = raw(endless(b"HTTP/1.1 200 OK\r\n\r\n"))
    seen: list[int] = []
    with pytest.raises(DownloadError, match="more than 50000 bytes.*thrown away"):
        download.fetch(url, target, size=None, sha256=None, most=50_000, progress=seen.append)
    assert max(seen) < 3_000_000  # at most a block more
    assert left(target) == []


@pytest.mark.parametrize("sha256", [None, DIGEST])
def test_a_file_that_is_announced_as_too_large_is_not_begun(raw, target, sha256):
    url = raw(endless(b"HTTP/1.1 200 OK\r\nContent-Length: 50001\r\n\r\n"))
    seen: list[int] = []
    with pytest.raises(DownloadError, match="more than 50000 bytes"):
        download.fetch(url, target, size=None, sha256=sha256, most=50_000, progress=seen.append)
    assert seen == []
    assert left(target) == []


def test_an_endless_file_of_known_size_is_cut_off(raw, target):
    url = raw(endless(b"HTTP/1.1 200 OK\r\n\r\n"))
    with pytest.raises(DownloadError, match="not the file the catalogue describes"):
        download.fetch(url, target, size=len(CONTENT), sha256=DIGEST)
    assert left(target) == []


def test_the_usual_bound_is_above_every_published_file():
    sizes = [file.size or 0 for model in catalogue.list_models() for file in model.files]
    assert max(sizes) < download.MOST <= 1 << 30


def drip(*parts: bytes):
    def answer():
        for part in parts:
            for byte in part:
                yield bytes([byte])
                time.sleep(0.02)

    return answer


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK", b"x" * 2000),  # the status line never ends
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 400),  # the headers never end
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 400),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n", b"x" * 2000),
    ],
)
@pytest.mark.parametrize("size", [None, 2000])
def test_a_server_that_drips_is_given_up(raw, target, monkeypatch, parts, size):
    monkeypatch.setattr(connection, "WINDOW", 0.3)
    with pytest.raises(DownloadError, match=r"bytes per second.*the same command again"):
        download.fetch(raw(drip(*parts)), target, size=size, sha256=None)
    assert not target.exists()


def test_what_dripped_is_continued(raw, server, target, monkeypatch):
    monkeypatch.setattr(connection, "WINDOW", 0.3)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT)

    def answer():
        yield head
        yield from drip(CONTENT)()

    with pytest.raises(DownloadError, match="What has arrived is kept"):
        download.fetch(raw(answer), target, size=len(CONTENT), sha256=DIGEST)
    assert download.part_of(target).stat().st_size > 0
    fetch(server, target)
    assert server.ranges_seen[0].startswith("bytes=")
    assert target.read_bytes() == CONTENT


def test_a_slow_disk_is_no_slow_server(server, target, monkeypatch):
    monkeypatch.setattr(connection, "WINDOW", 0.3)
    monkeypatch.setattr(connection, "SLOWEST", 1 << 20)
    monkeypatch.setattr(download, "_BLOCK", 1000)
    assert fetch(server, target, progress=lambda _: time.sleep(0.1)) == len(CONTENT)


# Several addresses -------------------------------------------------------------------------------


def test_the_next_address_is_tried_and_goes_on_where_the_first_one_broke(server, target):
    with running() as other:
        other.stop_after = 1000
        mirrors = [f"{server.url}/copy"]
        download.fetch(
            f"{other.url}/first", target, size=len(CONTENT), sha256=DIGEST, mirrors=mirrors
        )
    assert server.paths == ["/copy"]
    assert server.ranges_seen == ["bytes=1000-"]
    assert target.read_bytes() == CONTENT


def test_what_a_bad_address_sent_does_not_spoil_the_next_one(server, target):
    with running() as other:
        other.content, other.stop_after = b"x" * len(CONTENT), 1000
        fetch_from = f"{other.url}/evil"
        mirrors = [f"{server.url}/copy"]
        download.fetch(fetch_from, target, size=len(CONTENT), sha256=DIGEST, mirrors=mirrors)
    assert server.ranges_seen == ["bytes=1000-", None]
    assert target.read_bytes() == CONTENT


def test_all_addresses_that_failed_are_named_with_the_reason(server, target):
    mirrors = [f"{server.url}/missing", "http://127.0.0.1:9/never"]
    server.content = b"x" * len(CONTENT)
    with pytest.raises(DownloadError, match="any of its 3 addresses") as told:
        fetch(server, target, mirrors=mirrors)
    message = str(told.value)
    for part in (
        f"{server.url}/model.bin: what it sent is not the file",
        f"{server.url}/missing: the server answers 404 Not Found",
        "http://127.0.0.1:9/never: <urlopen error",
    ):
        assert part in message
    assert left(target) == []


def test_every_address_must_be_of_the_web(server, target):
    with pytest.raises(DownloadError, match="file:///x is not an http"):
        fetch(server, target, mirrors=["file:///x"])
    assert server.paths == []


def test_a_full_disk_is_not_tried_elsewhere(server, target, monkeypatch):
    def full(file, block):
        raise download._DiskError("What arrives cannot be written (No space left on device).")

    monkeypatch.setattr(download, "_write", full)
    with pytest.raises(DownloadError, match="No space left"):
        fetch(server, target, mirrors=[f"{server.url}/copy"])
    assert server.paths == ["/model.bin"]


# Several programs --------------------------------------------------------------------------------


PULL = """
import sys
from pathlib import Path
from mt3_runtime.models.download import fetch
print(fetch(sys.argv[1], Path(sys.argv[2]), size=int(sys.argv[3]), sha256=sys.argv[4] or None))
"""


def test_two_programs_that_fetch_one_file_both_end_well(server, target):
    server.stop_after = 1000
    server.stall.clear()  # the first one stays in the middle
    server.content = CONTENT
    words = [sys.executable, "-c", PULL, f"{server.url}/x", str(target), str(len(CONTENT)), DIGEST]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = download.part_of(target)
    while not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    second = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    assert second.poll() is None  # it waits
    server.stop_after = None
    server.stall.set()  # the first one's connection ends too early; the second one goes on
    said = [process.communicate(timeout=HANGS) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [1, 0]
    assert "What has arrived is kept" in said[0][1]
    assert said[1][0].strip() == str(len(CONTENT))
    assert server.ranges_seen == [None, "bytes=1000-"]
    assert target.read_bytes() == CONTENT
    assert left(target) == ["model.bin"]


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_many_threads_that_fetch_one_file_ask_for_it_once(server, target, monkeypatch, sha256):
    monkeypatch.setattr(download, "_LOOK", 0.01)
    send = Handler.send_response

    def slowly(self, code, message=None):
        time.sleep(0.2)
        send(self, code, message)

    monkeypatch.setattr(Handler, "send_response", slowly)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: fetch(server, target, sha256=sha256), range(6)))
    assert found == [len(CONTENT)] * 6
    assert server.paths == ["/model.bin"]
    assert left(target) == ["model.bin"]


def test_a_part_that_another_program_takes_between_two_looks_is_no_odd_file(
    server, target, monkeypatch
):
    """Asked twice, whether it is there and what it is, the second answer may be of nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = download.part_of(target)
    looks = []

    def taken(path, real=os.lstat):
        if os.fspath(path) == os.fspath(part):
            looks.append(path)
            if len(looks) == 1:
                part.write_bytes(b"")
                found = real(path)
                part.unlink()
                return found
        return real(path)

    monkeypatch.setattr(os, "lstat", taken)
    assert fetch(server, target) == len(CONTENT)
    assert looks
    assert left(target) == ["model.bin"]


def test_who_waits_for_one_that_fails_fetches_it_itself(server, target, monkeypatch):
    monkeypatch.setattr(download, "_LOOK", 0.01)
    contents = iter([b"x" * len(CONTENT), CONTENT])
    serve = Handler.do_GET

    def next_content(self):
        time.sleep(0.2)
        self.server.content = next(contents)
        serve(self)

    monkeypatch.setattr(Handler, "do_GET", next_content)
    with ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(fetch, server, target) for _ in range(2)]
    assert sorted(type(one.exception()) for one in tries if one.exception()) == [DownloadError]
    assert target.read_bytes() == CONTENT
    assert left(target) == ["model.bin"]


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
