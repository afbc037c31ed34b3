"""Bodies of requests: received into the spool, within bounds of size and time.

Contract: `receive_upload` takes a file as the body itself, or as the one file of a multipart form,
whose other parts are fields.  A body that is too large, too slow, cut off or malformed is refused
as soon as that shows, and nothing of it stays.  What a client calls its file is kept for logs only.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from mt3_server.protection.refusals import ClientGoneError, Refusal
from mt3_server.protection.upload_spool import SpooledFile, UploadSpool
from mt3_server.settings import Settings

MOST_FIELDS = 20
"""Of a form; there are fewer options."""

MOST_FIELD_BYTES = 4096
"""Of one field: longer than all instruments with commas between them."""

_MULTIPART = "multipart/form-data"


@dataclass
class Upload:
    """What a client has sent.

    Attributes:
        file: The upload, complete.
        fields: Of the form, in their order.
        name: What the client calls the file; for logs alone.
    """

    file: SpooledFile
    fields: list[tuple[str, str]] = field(default_factory=list)
    name: str = ""


async def receive_upload(request: Request, spool: UploadSpool, settings: Settings) -> Upload:
    """Receives a body; whoever calls removes its file.

    Raises:
        Refusal: 400, 408, 411, 413, 415 or 507, see the module docstring.
        ClientGoneError: The client has left in the middle.
    """
    check_length(request, settings.body_bytes)
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    name = kind.decode("latin-1").lower()
    file = spool.new()
    try:
        upload = Upload(file)
        parts = None
        if name == _MULTIPART:
            parts = _Parts(upload, options.get(b"boundary", b""))
        async for chunk in _chunks(request, settings):
            if parts is None:
                file.write(chunk)
            else:
                parts.write(chunk)
        if parts is not None:
            parts.finish()
        file.finish()
    except BaseException:
        file.remove()
        raise
    if not file.size:
        raise Refusal(400, "empty", "The upload is empty (0 bytes); expected an audio file.")
    return upload


def check_length(request: Request, most: int) -> None:
    """Refuses what says itself that it is too large, before any of it is read."""
    stated = request.headers.getlist("content-length")
    if stated and not re.fullmatch(r"[0-9]{1,18}", stated[0]):
        raise Refusal(400, "length", "Content-Length is no number of bytes.")
    if stated and int(stated[0]) > most:
        raise _too_large(most)


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"The body has more than {most} bytes, the most that is read.")


async def _chunks(request: Request, settings: Settings) -> AsyncIterator[bytes]:
    """The body as it comes."""
    begun, total = time.monotonic(), 0
    while True:
        try:
            async with asyncio.timeout(settings.patience):
                message = await request.receive()
        except TimeoutError:
            raise _too_slow() from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body = message.get("body", b"")
        total += len(body)
        if total > settings.body_bytes:
            raise _too_large(settings.body_bytes)
        passed = time.monotonic() - begun
        if passed > settings.patience and total < (passed - settings.patience) * settings.slowest:
            raise _too_slow()
        if body:
            yield body
        if not message.get("more_body", False):
            return


def _too_slow() -> Refusal:
    return Refusal(
        408, "slow", "The body came too slowly, or stopped coming.", headers={"connection": "close"}
    )


class _Parts:
    """The parts of a multipart form as they come: one file, and fields."""

    def __init__(self, upload: Upload, boundary: bytes) -> None:
        if not boundary:
            raise _malformed("its header names no boundary")
        self._upload = upload
        self._header: dict[str, bytes] = {}
        self._key, self._value = bytearray(), bytearray()
        self._field: str | None = None  # of the part that comes; None for the file
        self._text = bytearray()
        self._files = 0
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._take_key,
                    "on_header_value": self._take_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._take,
                    "on_part_end": self._end,
                    "on_end": self._complete,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from error

    def write(self, data: bytes) -> None:
        """Takes the next bytes."""
        if self._ended:
            return  # what follows the form means nothing
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(str(error)) from error

    def finish(self) -> None:
        """No more will come; refuses a form that is cut off or has no file."""
        if not self._ended:
            raise _malformed("it is cut off")
        if not self._files:
            raise Refusal(400, "no_file", "The form has no file; expected one part with a file.")

    def _begin(self) -> None:
        self._header = {}

    def _take_key(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._header[bytes(self._key).lower().decode("latin-1")] = bytes(self._value)
        self._key.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._header.get("content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise _malformed("a part has no name")
        if b"filename" in options:
            self._files += 1
            if self._files > 1:
                raise Refusal(400, "files", "The form has several files; send one at a time.")
            self._field = None
            self._upload.name = options[b"filename"].decode("utf-8", "replace")
        else:
            if len(self._upload.fields) >= MOST_FIELDS:
                raise Refusal(400, "fields", f"The form has more than {MOST_FIELDS} fields.")
            self._field = options[b"name"].decode("utf-8", "replace")
            self._text.clear()

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._upload.file.write(memoryview(data)[start:end])
        elif len(self._text) + end - start > MOST_FIELD_BYTES:
            raise Refusal(400, "fields", f"A field has more than {MOST_FIELD_BYTES} bytes.")
        else:
            self._text += data[start:end]

    def _end(self) -> None:
        if self._field is None:
            return
        try:
            text = self._text.decode("utf-8")
        except UnicodeDecodeError:
            raise _malformed("a field is no UTF-8") from None
        self._upload.fields.append((self._field, text))

    def _complete(self) -> None:
        self._ended = True


def _malformed(how: str) -> Refusal:
    return Refusal(400, "multipart", f"The multipart form is malformed: {how}.")
