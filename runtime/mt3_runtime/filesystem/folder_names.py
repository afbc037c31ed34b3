"""The names in folders, to look for many files without asking for each.

Contract: answers are those of `os.path`.  A folder is listed when a number of its files was asked
for, and only a name that the list has is answered from it: what is missing there, or a link, or may
have its letters in another case, is asked for.
"""

from __future__ import annotations

import os
from contextlib import suppress

#: Files of a folder that are asked for before it is listed.
_FEW = 32


class FolderNames:
    """The names in some folders, as they were when each was listed."""

    def __init__(self) -> None:
        self._asked: dict[str, int] = {}
        self._links: dict[str, dict[str, bool]] = {}

    def exists(self, path: str) -> bool:
        """Whether there is anything, behind links."""
        return self._is_link(path) is False or os.path.exists(path)  # noqa: PTH110  as told above

    def is_link(self, path: str) -> bool:
        """Whether it is a link."""
        link = self._is_link(path)
        return os.path.islink(path) if link is None else link  # noqa: PTH114

    def _is_link(self, path: str) -> bool | None:
        """The same; None if the list does not say."""
        folder, name = os.path.split(path)
        links = self._links.get(folder)
        if links is not None:
            return links.get(name)
        self._asked[folder] = self._asked.get(folder, 0) + 1
        if self._asked[folder] > _FEW:
            links = self._links[folder] = {}
            with suppress(OSError, ValueError), os.scandir(folder or ".") as entries:
                links.update((entry.name, entry.is_symlink()) for entry in entries)
        return None
