"""What TensorRT says during a build: errors become part of ours, expected warnings are dropped.

Polygraphy's logger is heard meanwhile, and nothing of it is printed: the last error is the reason
of a failed build, and a warning that nobody expects is passed on.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

log = logging.getLogger("mt3_engines")

#: Logger of polygraphy, which carries TensorRT's words.
POLYGRAPHY = logging.getLogger("Polygraphy")

#: Warnings that ask for nothing: our buffers for token ids have 64 bits (`HOST_TYPES` of the rows).
_EXPECTED = re.compile(
    r"Make sure (input|output) (token_ids|previous_ids|next_ids|top_ids) has Int64 binding"
)


class CompilerLog(logging.Handler):
    """Collects errors and unexpected warnings.

    Attributes:
        errors: In their order, without line breaks.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        said = " ".join(record.getMessage().split())
        if record.levelno >= logging.ERROR:
            self.errors.append(said)
        elif not _EXPECTED.search(said):
            log.warning("%s", said)

    def reason(self, otherwise: object) -> str:
        """The first error of the compiler, which says most; else what was raised."""
        return self.errors[0].removeprefix("[E] ") if self.errors else str(otherwise)


@contextlib.contextmanager
def heard() -> Iterator[CompilerLog]:
    """Collects what polygraphy and TensorRT say meanwhile."""
    collected, passed_on, level = CompilerLog(), POLYGRAPHY.propagate, POLYGRAPHY.level
    POLYGRAPHY.addHandler(collected)
    POLYGRAPHY.propagate = False
    POLYGRAPHY.setLevel(min(POLYGRAPHY.getEffectiveLevel(), logging.WARNING))
    try:
        yield collected
    finally:
        POLYGRAPHY.propagate = passed_on
        POLYGRAPHY.setLevel(level)
        POLYGRAPHY.removeHandler(collected)
