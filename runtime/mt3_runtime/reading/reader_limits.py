"""Limits under which a file is read, and how a reader process holds itself to them.

Contract: `ReaderLimits` says what a recording may cost.  A process reads several by turns; an
`Account` for each has the system enforce what is left of its limits while it has its turn.
Whatever a limit ends is one `AudioError`, with a sentence from here.  Windows enforces neither
memory nor processor time.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mt3_runtime.arguments.argument_checks import as_flag, as_list_of
from mt3_runtime.audio.accepted_formats import SAFE_FORMATS
from mt3_runtime.errors import OptionError

MIB = 1 << 20

MOST_READERS = 256
"""Processes of a pool; a machine with more cores has several memories, and wants several pools."""


@dataclass(frozen=True)
class ReaderLimits:
    """What reading one recording may cost; None is no limit.

    Attributes:
        memory_bytes: Beyond what a reader process has without it, and beyond the file itself where
            that is a file object.
        cpu_seconds: Of processor time, whatever the length ...
        cpu_seconds_per_minute: ... and in addition for each minute of audio that was read.
        wait_seconds: For the next part, while a process is at it.
        open_files: At once, by a process, without those of other recordings.
        file_bytes: Of the file.
        audio_seconds: Of the recording, whatever its header states.
        formats: Those that may be decoded, see `mt3_runtime.audio.accepted_formats`.
        containers: Whether FFmpeg may read what libsndfile does not.

    Raises:
        OptionError: A limit is not a positive number, or formats are no names.
    """

    memory_bytes: int | None = 1024 * MIB
    cpu_seconds: float | None = 120.0
    cpu_seconds_per_minute: float = 20.0
    wait_seconds: float | None = 300.0
    open_files: int | None = 64
    file_bytes: int | None = None
    audio_seconds: float | None = None
    formats: frozenset[str] | None = None
    containers: bool = True

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("formats", "containers") or value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise OptionError(f"{name}={value!r} is no limit; expected a positive number.")
        as_flag("containers", self.containers)
        if self.formats is not None:
            known = as_list_of(str, "formats", self.formats, "a set of names, such as SAFE_FORMATS")
            object.__setattr__(self, "formats", frozenset(known))

    @classmethod
    def untrusted(cls) -> ReaderLimits:
        """For files of strangers: the formats of music files, up to an hour and 200 MiB."""
        return cls(
            memory_bytes=256 * MIB,
            cpu_seconds=10.0,
            cpu_seconds_per_minute=3.0,
            wait_seconds=30.0,
            open_files=16,
            file_bytes=200 * MIB,
            audio_seconds=3600.0,
            formats=SAFE_FORMATS,
            containers=False,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"formats": None if self.formats is None else sorted(self.formats)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReaderLimits:
        """Inverse of :meth:`to_dict`."""
        formats = data["formats"]
        return cls(**{**data, "formats": None if formats is None else frozenset(formats)})

    @property
    def room_for_file(self) -> int:
        """Bytes that a file may take which is handed over as a file object."""
        return self.file_bytes or self.memory_bytes or 0


def too_large(limits: ReaderLimits, name: str) -> str:
    """What is said of a file of too many bytes."""
    return (
        f"{name} is larger than {(limits.file_bytes or 0) / MIB:g} MiB, the most that is read "
        "here (file_bytes)."
    )


def too_long(limits: ReaderLimits, name: str) -> str:
    """What is said of a recording of too many seconds."""
    return (
        f"{name} is longer than {limits.audio_seconds:g} s, the most that is read here "
        "(audio_seconds). Cut it into pieces."
    )


def too_much_memory(limits: ReaderLimits, name: str) -> str:
    """What is said where memory ran out."""
    return (
        f"Reading {name} needs more than {(limits.memory_bytes or 0) / MIB:g} MiB of memory "
        "(memory_bytes); its header is probably damaged, or made to do harm."
    )


def too_much_time(limits: ReaderLimits, name: str) -> str:
    """What is said where processor time ran out."""
    return (
        f"Reading {name} took more than {limits.cpu_seconds:g} s of processor time and "
        f"{limits.cpu_seconds_per_minute:g} s for each minute of audio (cpu_seconds); it is "
        "probably damaged, or made to do harm."
    )


def too_slow(limits: ReaderLimits, name: str) -> str:
    """What is said where nothing came."""
    return (
        f"Nothing more of {name} could be read within {limits.wait_seconds:g} s (wait_seconds); "
        "check the disk or the network that it is on."
    )


def confine() -> None:
    """Forbids this process to write files, for good."""
    resource = _resource()
    if resource is not None:
        for name in ("RLIMIT_CORE", "RLIMIT_FSIZE"):
            with contextlib.suppress(ValueError, OSError):  # not on this system
                resource.setrlimit(getattr(resource, name), (0, 0))


class Account:
    """What one of the recordings that a process reads by turns has used of it.

    Args:
        limits: Of the recording.
    """

    def __init__(self, limits: ReaderLimits) -> None:
        self._limits = limits
        self._cpu = self._since = self._audio = 0.0
        self._memory = self._present = 0

    @contextlib.contextmanager
    def turn(self, others: int) -> Iterator[None]:
        """Lets the process use for the recording what is left, and counts it.

        Args:
            others: How many files it holds open for other recordings.
        """
        limits = self._limits
        self._since, self._present = time.process_time(), _memory()
        if limits.memory_bytes is not None and self._present:
            _allow("RLIMIT_AS", self._present + max(0, limits.memory_bytes - self._memory))
        if limits.open_files is not None:
            _allow("RLIMIT_NOFILE", limits.open_files + others)
        self._allow_cpu()
        try:
            yield
        finally:
            _allow("RLIMIT_AS", None)
            self._memory = max(0, self._memory + _memory() - self._present)
            self._cpu += time.process_time() - self._since

    def read(self, audio_seconds: float) -> None:
        """So much of it was read, which makes processor time for more."""
        self._audio = audio_seconds
        self._allow_cpu()

    def _allow_cpu(self) -> None:
        limits = self._limits
        if limits.cpu_seconds is not None:
            more = limits.cpu_seconds + limits.cpu_seconds_per_minute * self._audio / 60.0
            _allow("RLIMIT_CPU", math.ceil(self._since - self._cpu + more))


def _allow(name: str, bound: int | None) -> None:
    """Sets what the system lets this process have now; as much as possible if None."""
    resource = _resource()
    if resource is None:
        return
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    endless = hard == resource.RLIM_INFINITY
    with contextlib.suppress(ValueError, OSError):  # not on this system
        soft = hard if bound is None else bound if endless else min(bound, hard)
        resource.setrlimit(kind, (soft, hard))


def _resource() -> Any:
    """The module of that name; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415  not on Windows

    return resource


def _memory() -> int:
    """Address space of this process in bytes; 0 where it is not told."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0
