"""Settings of the service, and the limits that hold unless somebody raises them.

Contract: `Settings` is checked when it is made: an address that others can reach asks for a token,
or for the explicit wish to have none.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mt3_runtime.errors import OptionError
from mt3_runtime.reading.reader_limits import MIB, MOST_READERS, ReaderLimits

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8765

MOST_TOKEN = 1024
"""Characters of a token; a header line has room for no more than a few thousand."""

LEAST_TOKEN = 16
"""Characters of a token: 16 of 64 letters are 96 bits, which nobody guesses."""


@dataclass(frozen=True)
class Settings:
    """How the service runs.

    Attributes:
        spool: Folder of uploads and jobs; nothing is written elsewhere.
        host: Address it listens on.
        port: The same; 0 for any that is free.
        tokens: SHA-256 of each token that clients may show; empty if none is asked for.
        open_to_all: Whether others may ask without a token, too.
        hosts: Names under which it may be asked for, beside its address.
        origins: Pages of other servers that browsers may let use it, ``https://example.org``.
        readers: Processes that decode uploads.
        body_bytes: Of an upload.
        audio_seconds: Of a recording.
        spool_bytes: Of all uploads and results together.
        free_bytes: Which the disk must keep free.
        slowest: Bytes a second that an upload must bring, once it took `patience`.
        patience: Seconds until a client that sends or takes nothing is given up.
        connections: At once.
        requests: At work at once ...
        requests_per_client: ... and of one client.
        rate: Requests that a client may begin a minute, over time ...
        burst: ... and at once.
        max_recordings: Recordings under way in an engine.
        max_live: Live inputs at once ...
        live_per_client: ... and of one client.
        live_seconds: Of a live input.
        deadline: Seconds until a request is given up.
        drain: Seconds that requests under way are given when the service ends.
        keep: Seconds that the result of a job is kept.
        jobs_per_client: Jobs of a client that are not forgotten.
        log_names: Whether logs may hold the names of uploads.
    """

    spool: Path
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    tokens: frozenset[bytes] = frozenset()
    open_to_all: bool = False
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    readers: int = 1
    body_bytes: int = 200 * MIB
    audio_seconds: float = 3600.0
    spool_bytes: int = 4096 * MIB
    free_bytes: int = 256 * MIB
    slowest: float = 16_000.0
    patience: float = 30.0
    connections: int = 512
    requests: int = 256
    requests_per_client: int = 128
    rate: float = 1200.0
    burst: int = 400
    max_recordings: int = 256
    max_live: int = 8
    live_per_client: int = 4
    live_seconds: float = 4 * 3600.0
    deadline: float = 3600.0
    drain: float = 30.0
    keep: float = 24 * 3600.0
    jobs_per_client: int = 256
    log_names: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            least = 0 if name in ("port", "drain", "free_bytes", "max_live") else 1e-3
            if not least <= value < math.inf:
                raise OptionError(f"{name}={value!r} is out of range; expected {least:g} or more.")
        if self.port > 65535:
            raise OptionError(f"port={self.port} is out of range; expected 0 to 65535.")
        if self.readers > MOST_READERS:
            raise OptionError(f"readers={self.readers} is out of range; most are {MOST_READERS}.")
        if not (self.tokens or self.open_to_all or is_loopback(self.host)):
            raise OptionError(
                f"{self.host} can be reached by others: name a file with a token (--token-file), "
                "or say that everybody may use the service (--no-auth)."
            )
        for origin in self.origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise OptionError(f"{origin!r} is no origin; expected such as https://example.org.")

    @property
    def limits(self) -> ReaderLimits:
        """Under which uploads are decoded."""
        limits = ReaderLimits.untrusted()
        return replace(limits, file_bytes=self.body_bytes, audio_seconds=self.audio_seconds)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_digest_of(token: str) -> bytes:
    """What is kept of a token in memory."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def read_tokens(path: Path) -> frozenset[bytes]:
    """The tokens of a file, one a line; lines that begin with # are remarks.

    Raises:
        OptionError: The file cannot be read, or holds none, or one that is easily guessed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read {path}: {error}") from error
    found = [line.strip() for line in lines]
    tokens = [line for line in found if line and not line.startswith("#")]
    for token in tokens:
        if not (LEAST_TOKEN <= len(token) <= MOST_TOKEN and token.isascii() and " " not in token):
            raise OptionError(
                f"{path} holds a token that is no {LEAST_TOKEN} to {MOST_TOKEN} letters and digits "
                "without spaces. Make one with: "
                'python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    if not tokens:
        raise OptionError(f"{path} holds no token; expected one a line.")
    return frozenset(map(token_digest_of, tokens))
