"""HTTP connections that give up a slow server.

Contract: `open_address` answers as `urllib.request.urlopen` does, and every wait for bytes counts,
those of status line, headers and chunk sizes too: a server that falls silent for `SILENT` seconds,
or sends less than `SLOWEST` bytes per second over `WINDOW` seconds of waiting, is a `TimeoutError`.
A timeout of a socket alone would begin anew with every single byte.  Time that is spent on anything
else, such as a slow disk, does not count.

Redirections are followed between web addresses, but never from https to http.
"""

from __future__ import annotations

import http.client
import io
import time
import urllib.request
from typing import IO, Any

from mt3_runtime.errors import DownloadError

SILENT = 30.0
"""Seconds without a byte after which a server is given up."""

WINDOW = 30.0
"""Seconds of waiting over which the rate is taken."""

SLOWEST = 1024
"""Bytes per second: at this rate the smallest checkpoint would take two days."""


def open_address(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Sends a request and returns the response, its body unread.

    Args:
        url: http or https address.
        headers: Of the request.

    Raises:
        DownloadError: It redirects to an address that is less safe.
        OSError: The server cannot be reached, is too slow, or answers with an error
            (`urllib.error.HTTPError`).
        http.client.HTTPException: What it answers is not HTTP.
        ValueError: It is no URL.
    """
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  http or https
    opener = urllib.request.build_opener(Redirects, _PlainHandler, _SecureHandler)
    response: http.client.HTTPResponse = opener.open(request, timeout=SILENT)
    return response


class Redirects(urllib.request.HTTPRedirectHandler):
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
        """The request to send next, as urllib asks for it.

        Raises:
            DownloadError: The address is less safe.
        """
        safe = ("https://",) if req.full_url.startswith("https://") else ("https://", "http://")
        if not newurl.startswith(safe):
            fp.close()
            raise DownloadError(
                f"it redirects to {newurl!r:.200}, which is not as safe an address; that is not "
                "followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Timed(io.RawIOBase):
    """The bytes of a socket, with an eye on how fast they come."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._waited, self._received = 0.0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        begin = time.monotonic()
        received = self._raw.readinto(buffer)
        self._waited += time.monotonic() - begin
        self._received += received or 0
        if self._waited >= WINDOW:
            if self._received < SLOWEST * self._waited:
                raise TimeoutError(
                    f"it sends {self._received / self._waited:.1f} bytes per second, and "
                    f"{SLOWEST} are the least to wait for"
                )
            self._waited, self._received = 0.0, 0
        return received

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp = io.BufferedReader(_Timed(self.fp.detach()))


class _Plain(http.client.HTTPConnection):
    response_class = _Response


class _Secure(http.client.HTTPSConnection):
    response_class = _Response


class _PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Plain, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Secure, req)
