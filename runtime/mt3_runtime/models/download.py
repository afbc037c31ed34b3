"""Downloads files, resumable and verified by size and SHA-256.

Contract: a file appears under its own name only after its size and SHA-256 are right.  Until then
it is ``NAME.part`` beside it, which a later call continues, and which is thrown away when it turns
out wrong.  An interrupted or concurrent download can therefore never be mistaken for a model.

Only files with a known digest are continued: of others nothing would tell that they had changed in
between.  Redirections are followed between web addresses, but never from https to http.
"""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO

from mt3_runtime.errors import DownloadError

#: Seconds without a byte after which the server is given up.
_TIMEOUT = 30.0

#: Bytes per read: 1 MiB keeps the progress lively and the system calls few.
_BLOCK = 1 << 20

Report = Callable[[int], None]


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None,
    sha256: str | None,
    offline: bool = False,
    progress: Report | None = None,
) -> int:
    """Makes ``target`` the file published at ``url``, unless it already is.

    Args:
        url: http or https address.
        target: Where the file goes; folders are made as needed.
        size: Expected length in bytes; None accepts any.
        sha256: Expected digest, lower-case hex; None accepts any.
        offline: Refuse to use the network (a file already in place still counts).
        progress: Called with the bytes of this file that are there.

    Returns:
        The file's length in bytes.

    Raises:
        DownloadError: With the reason, and whether running again will help.
    """
    report = progress or (lambda _: None)
    if target.is_file() and is_right(target, size=size, sha256=sha256):
        report(target.stat().st_size)
        return target.stat().st_size
    if offline:
        raise DownloadError(
            f"{target.name} is not in {target.parent}, and MT3_OFFLINE forbids to download it."
        )
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url} is not an http or https address.")
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part, size=size, continued=sha256 is not None, report=report)
        length = _verify(url, part, size=size, sha256=sha256)
        part.replace(target)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not a URL
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(
            f"{url} could not be fetched: {error}. What has arrived is kept; run the same command "
            "again to continue."
        ) from error
    return length


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to equally safe addresses only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        safe = ("https://",) if req.full_url.startswith("https://") else ("https://", "http://")
        if not newurl.startswith(safe):
            fp.close()
            raise DownloadError(
                f"{req.full_url} redirects to {newurl!r:.200}, which is not as safe an address; "
                "it is not followed."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(url: str, part: Path, *, size: int | None, continued: bool, report: Report) -> None:
    """Fetches into ``part`` what is missing of it; stops soon after ``size`` bytes."""
    start = part.stat().st_size if continued and part.exists() else 0
    if size is not None and start >= size:  # complete (or too long): for `_verify` to judge
        return
    headers = {"User-Agent": "mt3-runtime"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  (scheme checked above)
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing after `start`: `_verify` judges what is there
        raise DownloadError(
            f"{url} cannot be fetched: the server answers {error.code} {error.reason}."
        ) from error
    with response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        with part.open("ab" if resumed else "wb") as file:
            _copy(response, file, done=start if resumed else 0, size=size, report=report)


def _copy(
    source: http.client.HTTPResponse, file: BinaryIO, *, done: int, size: int | None, report: Report
) -> None:
    while block := source.read1(_BLOCK):  # what is there, so that a stall loses nothing
        file.write(block)
        done += len(block)
        report(done)
        if size is not None and done > size:
            return  # it cannot become right any more
    file.flush()
    os.fsync(file.fileno())
    if source.length:  # bytes the server announced and did not send
        raise DownloadError(
            f"The connection to {source.url} broke {source.length} bytes before the end. "
            "What has arrived is kept; run the same command again to continue."
        )


def _verify(url: str, part: Path, *, size: int | None, sha256: str | None) -> int:
    length = part.stat().st_size
    if size is not None and length < size:
        raise DownloadError(
            f"{url} ended after {length} of {size} bytes. Run the same command again to continue."
        )
    if not is_right(part, size=size, sha256=sha256):
        part.unlink()
        raise DownloadError(
            f"What {url} sent is not the file the catalogue describes "
            f"({size} bytes, SHA-256 {sha256}). It was thrown away; run the same command again, "
            "and if this repeats, do not use that source."
        )
    return length


def is_right(path: Path, *, size: int | None, sha256: str | None) -> bool:
    """Whether a file has this size and SHA-256, as far as they are known."""
    if size is not None and path.stat().st_size != size:
        return False
    if sha256 is None:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
