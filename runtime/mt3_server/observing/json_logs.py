"""Logs as one JSON object a line, on stderr.

Contract: a line says when, how serious, which event, and its facts.  No name of a file, no token
and nothing of the audio is in it, unless names were asked for.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

LOGGER = logging.getLogger("mt3_server")


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts: dict[str, Any] = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        facts |= getattr(record, "facts", {})
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, default=str)


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None,
        **facts: Any) -> None:  # fmt: skip
    """Says that something has happened.

    Args:
        event: A word.
        level: Of `logging`.
        error: Whose traceback is shown.
        facts: What is known of it.
    """
    LOGGER.log(level, event, extra={"facts": facts}, exc_info=error)


def to_stream(stream: TextIO | None = None) -> None:
    """Sends all logs of this process there, stderr by default."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    LOGGER.setLevel(logging.INFO)
    logging.captureWarnings(capture=False)
