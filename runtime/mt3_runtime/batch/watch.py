"""Watches folders for recordings that come in, and says which of them have settled.

Contract: a file is taken when two looks, some seconds apart, have found it with the same size and
time of change, and not empty; so a copy under way is left alone.  It is taken again only when it
has changed since.  The pauses are measured by a clock that never jumps, and times of files are only
compared for being equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mt3_runtime.batch.records.ledger import Stamp
from mt3_runtime.batch.source_list import Source


class Watch:
    """See the module docstring.

    Args:
        find: Looks through the folders.
        settle: Seconds between two looks.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        find: Callable[[], list[Source]],
        settle: float,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._find, self._settle, self._sleep = find, settle, sleep
        self._seen: dict[Path, Stamp | None] = {}
        self._taken: dict[Path, Stamp | None] = {}

    def rounds(self) -> Iterator[tuple[list[Source], set[Path]]]:
        """Yields all sources that are there, and which of them have settled, for ever."""
        while True:
            sources = self._find()
            now = {source.path: Stamp.of(source.path) for source in sources}
            settled = {
                path
                for path, stamp in now.items()
                if stamp and stamp.size and self._seen.get(path) == stamp != self._taken.get(path)
            }
            self._seen = now
            self._taken = {path: stamp for path, stamp in self._taken.items() if path in now}
            if settled:
                self._taken |= {path: now[path] for path in settled}
                yield sources, settled
            self._sleep(self._settle)
