"""Refusals: the HTTP status of everything that goes wrong, and its answer.

Contract: every error is one JSON object, ``type``, ``message``, ``detail`` and ``request_id``; the
message says what happened, what was expected and what to do.  `refusal_of` is the one table from
exceptions to status codes.  What nobody expected is 500, and its text stays in the log.
"""

from __future__ import annotations

import errno
import json
import re
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from mt3_runtime.errors import (
    AudioError,
    AudioFormatError,
    AudioLimitError,
    DeadlineError,
    EngineBusyError,
    EngineError,
    MissingDependencyError,
    MT3Error,
    OptionError,
    OutputError,
)

_SPOOLED = re.compile(
    r"\S*[/\\](?:uploads[/\\][0-9a-f]{32}\.upload|jobs[/\\][0-9a-f]{32}[/\\]upload)"
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk that takes no more."""

RETRY_SECONDS = 2
"""After which a client that was refused for want of room is told to try again: a clip of ten
seconds takes less."""


class Refusal(Exception):  # noqa: N818  it is an answer, not a failure
    """An answer that is not what was asked for.

    Args:
        status: Of HTTP.
        kind: A word for programs.
        message: A sentence for people.
        retry_after: Seconds after which it is worth another try.
        headers: Further ones.

    Attributes:
        why: The word, for metrics.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.why, self.message = status, kind, message
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)

    def body(self, request_id: str) -> dict[str, Any]:
        """What is sent."""
        return {
            "type": self.why,
            "message": self.message,
            "detail": self.message,  # where clients of other servers look
            "request_id": request_id,
        }

    def response(self, request_id: str) -> Response:
        """The answer."""
        content = json.dumps(self.body(request_id)).encode()
        headers = {"content-type": "application/json", "cache-control": "no-store", **self.headers}
        return Response(content, self.status, headers)


class ClientGoneError(Exception):
    """The client has left; there is nobody to answer."""


def busy(message: str) -> Refusal:
    """There is no room at the moment."""
    return Refusal(503, "busy", message, retry_after=RETRY_SECONDS)


def disk_full(what: str) -> Refusal:
    """The disk, or what the service may have of it, is full."""
    return Refusal(507, "storage", f"There is no room for {what}; try again later, or send less.")


_STATUS: tuple[tuple[type[Exception], int, str, int | None], ...] = (
    (AudioLimitError, 413, "too_large", None),
    (AudioFormatError, 415, "format", None),
    (AudioError, 400, "audio", None),
    (OptionError, 422, "option", None),
    (DeadlineError, 408, "deadline", None),
    (EngineBusyError, 503, "busy", RETRY_SECONDS),
    (EngineError, 503, "engine", 5 * RETRY_SECONDS),
    (MissingDependencyError, 404, "not_installed", None),
    (MT3Error, 400, "refused", None),
)
"""Status, word and time to wait, by class; the first that fits."""


def without_path(text: str) -> str:
    """A sentence that says "the upload" where it names a file of the spool."""
    found = _SPOOLED.sub("the upload", text)
    return f"The{found[3:]}" if found.startswith("the upload") else found


def refusal_of(error: Exception) -> Refusal:
    """What an exception is answered with."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        said = _SAID.get(error.status_code, f"{phrase}.")
        word = phrase.lower().replace(" ", "_")
        return Refusal(error.status_code, word, said, headers=dict(error.headers or {}))
    if isinstance(error, OutputError | OSError) and _errno(error) in FULL:
        return disk_full("it")
    for kind, status, word, wait in _STATUS:
        if isinstance(error, kind):
            return Refusal(status, word, without_path(str(error)), retry_after=wait)
    return Refusal(500, "internal", "Something unexpected happened; the log has it under this id.")


def not_installed(message: str) -> Refusal:
    """A part of the project that this installation lacks."""
    return Refusal(404, "not_installed", message)


_SAID = {
    404: "There is nothing at this path; GET /openapi.json lists what there is.",
    405: "This path has no such method; GET /openapi.json lists what there is.",
}


def _errno(error: BaseException) -> int | None:
    """The number of a system error, or of the one behind it."""
    number = getattr(error, "errno", None)
    if number is None and error.__cause__ is not None:
        return _errno(error.__cause__)
    return number
