"""Rates and numbers of requests, for each client.

Contract: `RequestRates.begin` takes a request in, or refuses it at once with 429 (this client has
too many) or 503 (all have); `end` must follow.  It is used on the thread of the event loop alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from mt3_server.protection.refusals import Refusal, busy
from mt3_server.settings import Settings

_MOST_KNOWN = 10_000
"""Clients whose rate is remembered; those that asked longest ago are forgotten first."""


class RequestRates:
    """See the module docstring.

    Args:
        settings: How many are allowed.
        now: Seconds, growing.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._now = settings, now
        self._allowance: dict[str, tuple[float, float]] = {}  # requests left, at that time
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Requests at work."""
        return self._open.total()

    def count(self, client: str) -> None:
        """Counts a request of a client; refuses it if there were too many of late."""
        settings, now = self._settings, self._now()
        left, since = self._allowance.pop(client, (float(settings.burst), now))
        left = min(float(settings.burst), left + (now - since) * settings.rate / 60.0)
        refused = left < 1.0
        self._allowance[client] = (left if refused else left - 1.0, now)  # now the latest
        if len(self._allowance) > _MOST_KNOWN:
            del self._allowance[next(iter(self._allowance))]
        if refused:
            wait = max(1, math.ceil((1.0 - left) * 60.0 / settings.rate))
            raise Refusal(
                429,
                "rate",
                f"More than {settings.rate:g} requests a minute; wait {wait} s.",
                retry_after=wait,
            )

    def begin(self, client: str) -> None:
        """A request of a client begins its work."""
        settings = self._settings
        if self._open[client] >= settings.requests_per_client:
            raise Refusal(
                429,
                "concurrency",
                f"{self._open[client]} requests of yours are at work, as many as there may be.",
                retry_after=2,
            )
        if self.open >= settings.requests:
            raise busy(f"{self.open} requests are at work, as many as there may be.")
        self._open[client] += 1

    def end(self, client: str) -> None:
        """It is answered, or its client has left."""
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]
