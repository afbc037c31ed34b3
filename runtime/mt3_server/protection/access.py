"""Access: which host, origin and token a request must show.

Contract: `Access.check` refuses a request whose ``Host`` is none of ours (a page whose name was
made to point here), whose ``Origin`` is another server's, or which shows a wrong token, or none
where one is asked for.  Tokens are compared by their digests, in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from mt3_server.protection.refusals import Refusal
from mt3_server.settings import Settings, token_digest_of

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
"""What is answered without a token."""


class Access:
    """See the module docstring."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        names = {"localhost", settings.host.lower(), socket.gethostname().lower(), *settings.hosts}
        self._names = {name.lower() for name in names}

    def check_host(self, headers: Headers) -> None:
        """Refuses a request for another host."""
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else ""
        if name not in self._names and not _is_address(name):
            raise Refusal(
                421,
                "host",
                "This service does not answer for that host; it was started without that name "
                "(--allow-host).",
            )

    def check_origin(self, headers: Headers) -> None:
        """Refuses what a page of another server sends."""
        origins = headers.getlist("origin")
        if not origins:
            return
        host = headers.get("host", "").lower()
        same = {f"http://{host}", f"https://{host}"}
        if len(origins) != 1 or origins[0].lower() not in same | self._settings.origins:
            raise Refusal(
                403,
                "origin",
                "Pages of other servers may not use this service; it was started without that "
                "origin (--allow-origin).",
            )

    def client(self, headers: Headers, address: str) -> str | None:
        """On whose account a request goes; None if a token is asked for and none is shown.

        Args:
            headers: Of the request.
            address: Where it comes from.
        """
        shown = headers.getlist("authorization")
        if not self._settings.tokens:
            return address
        if not shown:
            return None
        scheme, _, token = shown[0].partition(" ")
        if len(shown) != 1 or scheme.lower() != "bearer":
            raise _unauthorised()
        return self.of_token(token.strip())

    def of_token(self, token: str) -> str:
        """The client with that token."""
        digest = token_digest_of(token)
        known = [hmac.compare_digest(digest, each) for each in self._settings.tokens]
        if not any(known):
            raise _unauthorised()
        return "token-" + digest.hex()[:12]

    def check_token(self, client: str | None, path: str) -> str:
        """The client; refuses one without a token where it takes one."""
        if client is None:
            if path in OPEN_PATHS:
                return "anybody"
            raise _unauthorised()
        return client


def _unauthorised() -> Refusal:
    return Refusal(
        401,
        "token",
        "This service asks for a token: send the header `Authorization: Bearer TOKEN`.",
        headers={"www-authenticate": "Bearer"},
    )


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; empty if it is none."""
    try:
        split = urlsplit(f"//{host}")
        if split.path or split.query or split.fragment or split.username is not None:
            return ""
        _ = split.port  # raises if it is none
        return (split.hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """Whether it is an address: no name service can make one point here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
