"""Keeps an engine of a model going: opens it, looks how it is, opens another one if it failed.

Contract: `EngineKeeper.engine` is the one to submit to.  An engine whose device failed is replaced
by `revive`, after a tone went through the new one; until then the service is not ready.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mt3_runtime.errors import MT3Error
from mt3_server.observing.json_logs import log

if TYPE_CHECKING:
    from mt3_runtime.diagnostics.engine_health import Health
    from mt3_runtime.engine import Engine
    from mt3_runtime.model import Model
    from mt3_server.settings import Settings

_PROBE_SECONDS = 60.0
"""A segment takes some tenths of a second; a device that needs longer does not work."""

_PROBE_HZ = 440.0

MOST_FAILURES = 3
"""Engines in a row that failed before anything was done; then the process should be replaced."""


class EngineKeeper:
    """See the module docstring.

    Args:
        name: Of the model in this service.
        model: It is closed with this.
        settings: Of the service.

    Attributes:
        failures: Engines that failed in a row.
    """

    def __init__(self, name: str, model: Model, settings: Settings) -> None:
        self.name, self.model, self._settings = name, model, settings
        self.failures = 0
        self._changing = threading.Lock()
        self._draining = False
        self.engine = self._open()

    def health(self) -> Health:
        """How the engine is; it is not ready while it is replaced or drained."""
        health = self.engine.health()
        return replace(health, ready=health.ready and not (self.failures or self._draining))

    def probe(self) -> None:
        """Lets a quiet tone through the engine.

        Raises:
            MT3Error: It does not work.
        """
        rate = self.model.sample_rate
        tone = 0.1 * np.sin(np.arange(rate // 4) * (2.0 * np.pi * _PROBE_HZ / rate))
        audio = tone.astype(np.float32)
        self.engine.submit(audio, deadline=_PROBE_SECONDS, auto_filter=False).result()

    def revive(self) -> bool:
        """Replaces the engine if it has failed; returns whether it works."""
        with self._changing:
            if self._draining or self.engine.health().healthy:
                return True
            self.failures += 1
            log("engine_failed", model=self.name, why=self.engine.health().error)
            with suppress(MT3Error):
                self.engine.close()
            try:
                self.engine = self._open()
                self.probe()
            except Exception as error:  # noqa: BLE001  a device fails in any way it likes
                log("engine_not_revived", model=self.name, why=str(error))
                return False
            self.failures = 0
            log("engine_revived", model=self.name)
            return True

    def drain(self, seconds: float) -> bool:
        """Takes nothing more; waits so long for what is under way."""
        self._draining = True
        return self.engine.drain(seconds)

    def stop_taking(self) -> None:
        """Takes nothing more."""
        self._draining = True

    @property
    def draining(self) -> bool:
        """Whether nothing more is taken."""
        return self._draining

    def close(self) -> None:
        """Ends the engine and frees the model."""
        self._draining = True
        self.engine.close()
        self.model.close()

    def _open(self) -> Engine:
        settings = self._settings
        return self.model.engine(
            max_recordings=settings.max_recordings,
            max_live=settings.max_live,
            readers=settings.readers,
            limits=settings.limits,
        )
