"""Downloads files, resumable and verified by size and SHA-256.

Contract: a file appears under its own name only after its size and SHA-256 are right, and never in
the place of another one.  Until then it is ``.mt3-NAME.part`` beside it, which a later call or
another address continues, and which is thrown away when it turns out wrong.  An interrupted or
concurrent download can therefore never be mistaken for a model: who continues a part holds a lock
on it, and others wait and take what is there then (not on Windows, nor on file systems without
locks).

Only files with a known digest are continued: of others nothing would tell that they had changed in
between.  A file of unknown size may have `MOST` bytes.
"""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mt3_runtime.errors import DownloadError
from mt3_runtime.filesystem.ownership import is_irregular
from mt3_runtime.models.connection import open_address

MOST = 1 << 30
"""Bytes of a file whose size nobody knows; the largest published checkpoint has 0.76e9."""

#: Bytes per read: 1 MiB keeps the progress lively and the system calls few.
_BLOCK = 1 << 20

#: Seconds between two looks at a part that another program is fetching.
_LOOK = 0.2

Report = Callable[[int], None]


class _Wanted(NamedTuple):
    """What a file must be: its size and lower-case SHA-256, each None if unknown; bytes at most."""

    size: int | None
    sha256: str | None
    most: int


class _WrongContentError(DownloadError):
    """What arrived is not the file, or too much; it was thrown away."""


class _DiskError(DownloadError):
    """What arrived cannot be written; another address would not help."""


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None,
    sha256: str | None,
    mirrors: Sequence[str] = (),
    most: int = MOST,
    offline: bool = False,
    progress: Report | None = None,
) -> int:
    """Makes ``target`` the file published at ``url``, unless it already is.

    Args:
        url: http or https address.
        target: Where the file goes; folders are made as needed.
        size: Expected length in bytes; None accepts any up to ``most``.
        sha256: Expected digest, lower-case hex; None accepts any.
        mirrors: Further addresses of the same file, tried in their order.
        most: Bytes of a file of unknown size.
        offline: Refuse to use the network (a file already in place still counts).
        progress: Called with the bytes of this file that are there.

    Returns:
        The file's length in bytes.

    Raises:
        DownloadError: With the reason at every address, and whether running again will help; or
            another file is in the way, which is left alone.
    """
    report = progress or (lambda _: None)
    wanted = _Wanted(size, sha256, most if size is None else size)
    length = _in_place(target, wanted)
    if length is None and offline:
        raise DownloadError(
            f"{target.name} is not in {target.parent}, and MT3_OFFLINE forbids to download it."
        )
    for address in (url, *mirrors):
        if length is None and not address.startswith(("https://", "http://")):
            raise DownloadError(f"{address} is not an http or https address.")
    if length is None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            length = _fetch((url, *mirrors), target, wanted, report)
        except OSError as error:
            if isinstance(error, DownloadError):
                raise
            raise DownloadError(
                f"{target} cannot be written: {error.strerror or error}."
            ) from error
    report(length)
    return length


def part_of(target: Path) -> Path:
    """Where a file is kept until all of it has arrived."""
    return target.with_name(f".mt3-{target.name}.part")


def is_right(path: Path, *, size: int | None, sha256: str | None) -> bool:
    """Whether a file has this size and SHA-256, as far as they are known."""
    if size is not None and path.stat().st_size != size:
        return False
    if sha256 is None:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _in_place(target: Path, wanted: _Wanted) -> int | None:
    """Length of the file if it is there and right, None if nothing is there."""
    if not os.path.lexists(target):  # looked at first: another program may put it there by now
        return None
    if target.is_file() and is_right(target, size=wanted.size, sha256=wanted.sha256):
        return target.stat().st_size
    raise DownloadError(
        f"{target} is there and is not the file the catalogue describes, so it is not "
        "replaced. Move it elsewhere or delete it, and run the same command again."
    )


def _fetch(addresses: Sequence[str], target: Path, wanted: _Wanted, report: Report) -> int:
    """Takes turns with other programs, and tries all addresses."""
    part = part_of(target)
    with _locked(part, report) as file:
        found = _in_place(target, wanted)  # another program may have been faster
        if found is not None:
            return found
        failures: dict[str, str] = {}
        wrong = False
        for address in addresses:
            try:
                length = _from_one(address, file, part, wanted, report)
            except _DiskError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                wrong = wrong or isinstance(error, _WrongContentError)
                failures[address] = str(error) or type(error).__name__
                continue
            if os.name == "nt":  # nothing that is open can be moved there
                file.close()
            _in_place(target, wanted)  # what came in meanwhile is not replaced
            part.replace(target)
            return length
        if wanted.sha256 is None:
            _throw_away(file)  # nobody could tell what it is a part of
        kept = file.tell() > 0
    raise DownloadError(_refusal(target.name, failures, kept=kept, wrong=wrong))


def _refusal(name: str, failures: dict[str, str], *, kept: bool, wrong: bool) -> str:
    """Says why which address failed, and what to do."""
    if len(failures) == 1:
        ((address, reason),) = failures.items()
        what = f"{address} could not be fetched: {reason}"
    else:
        reasons = "; ".join(f"{address}: {reason}" for address, reason in failures.items())
        what = f"{name} could not be fetched from any of its {len(failures)} addresses: {reasons}"
    if kept:
        return f"{what}. What has arrived is kept; run the same command again to continue."
    repeats = ", and if this repeats, do not use that source" if wrong else " later"
    return f"{what}. Run the same command again{repeats}."


@contextmanager
def _locked(part: Path, report: Report) -> Iterator[BinaryIO]:
    """Opens a part to append to it, when no other program does; an empty one is not left behind."""
    while True:
        if is_irregular(part):
            raise DownloadError(f"{part} is no regular file, so it is left alone; see what it is.")
        with part.open("ab") as file:
            while not _try_to_lock(file):
                with suppress(FileNotFoundError):
                    report(part.stat().st_size)
                time.sleep(_LOOK)
            if not _is_same(file, part):  # the other program has put it in its place
                continue
            try:
                yield file
            finally:
                with suppress(OSError, ValueError):  # ValueError: closed, as it is in its place
                    if file.tell() == 0 and _is_same(file, part):
                        part.unlink()
            return


def _try_to_lock(file: BinaryIO) -> bool:
    try:
        import fcntl  # noqa: PLC0415  not on Windows, where nobody is kept out
    except ModuleNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _from_one(address: str, file: BinaryIO, part: Path, wanted: _Wanted, report: Report) -> int:
    """Fetches what is missing from one address; all of it again if what was there is wrong."""
    begun = file.tell() if wanted.sha256 is not None else 0
    try:
        _receive(address, file, begun, wanted, report)
        return _verify(file, part, wanted)
    except _WrongContentError:
        if not begun:
            raise
    _receive(address, file, 0, wanted, report)
    return _verify(file, part, wanted)


def _receive(address: str, file: BinaryIO, start: int, wanted: _Wanted, report: Report) -> None:
    """Fetches into a part what lies behind its first ``start`` bytes; stops soon after enough."""
    if wanted.size is not None and start >= wanted.size:  # complete, or too long: see `_verify`
        return
    headers = {"User-Agent": "mt3-runtime"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = open_address(address, headers)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing after `start`: `_verify` judges what is there
        raise DownloadError(f"the server answers {error.code} {error.reason}") from error
    with response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if not resumed:
            _throw_away(file)
        _copy(response, file, wanted, report)


def _copy(
    source: http.client.HTTPResponse, file: BinaryIO, wanted: _Wanted, report: Report
) -> None:
    done = file.tell()
    unbounded = wanted.size is None
    too_much = unbounded and done + (source.length or 0) > wanted.most
    while not too_much and (block := source.read1(_BLOCK)):  # what is there: a stall loses nothing
        _write(file, block)
        done += len(block)
        report(done)
        if done > wanted.most:  # it cannot become right any more
            too_much = unbounded
            break
    if too_much:
        _throw_away(file)
        raise _WrongContentError(
            f"it sends more than {wanted.most} bytes, which no published checkpoint has; what had "
            "arrived was thrown away"
        )
    os.fsync(file.fileno())
    if source.length and done <= wanted.most:  # bytes the server announced and did not send
        raise DownloadError(f"the connection broke {source.length} bytes before the end")


def _verify(file: BinaryIO, part: Path, wanted: _Wanted) -> int:
    length = part.stat().st_size
    if wanted.size is not None and length < wanted.size:
        raise DownloadError(f"it ended after {length} of {wanted.size} bytes")
    if not is_right(part, size=wanted.size, sha256=wanted.sha256):
        _throw_away(file)
        raise _WrongContentError(
            f"what it sent is not the file the catalogue describes ({wanted.size} bytes, SHA-256 "
            f"{wanted.sha256}); it was thrown away"
        )
    return length


def _throw_away(file: BinaryIO) -> None:
    file.truncate(0)
    file.seek(0)


def _write(file: BinaryIO, block: bytes) -> None:
    """Appends to the part.

    Raises:
        _DiskError: The disk is full, or fails.
    """
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise _DiskError(
            f"What arrives cannot be written ({error.strerror or error}). What has arrived is "
            "kept; run the same command again to continue."
        ) from error
