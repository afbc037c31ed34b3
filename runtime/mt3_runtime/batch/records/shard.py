"""Shards of a batch: which of several processes or machines does which source.

Contract: a source belongs to exactly one of ``count`` shards, by a hash of its name alone: the path
below the folder in which it was found, or as it was given.  So processes that know nothing of each
other share the work, as long as they are given the same inputs.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

MOST = 10_000
"""More processes than that share no folder."""


@dataclass(frozen=True)
class Shard:
    """One of several parts of a batch: ``number`` from 1 to ``count``."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads ``2/8``.

        Raises:
            ValueError: It says no shard.
        """
        found = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.count <= MOST:
            raise ValueError(f"{text!r} is no shard; expected K/N with 1 <= K <= N <= {MOST}")
        return shard

    @classmethod
    def of_journal(cls, name: str) -> Shard | Literal[False] | None:
        """The shard whose journal has this name; None for a whole batch's, False for no journal."""
        found = re.fullmatch(r"\.mt3-batch(?:-([0-9]{1,5})of([0-9]{1,5}))?\.jsonl", name)
        if not found:
            return False
        return cls(int(found[1]), int(found[2])) if found[1] else None

    def has(self, name: str) -> bool:
        """Whether a source belongs to it."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1
