"""The journal of a batch: which sources are done, so that a batch can be resumed at any moment.

Contract: a journal is a hidden file in the folder of the results, and is only ever appended to.  A
source's results are written first, each atomically, then its line, then the line is flushed to the
disk.  So a source that the journal calls done is done, whatever happened since; one that it does
not was lost in the middle, and is done again.  Before the first result a line says which files will
be written, with their SHA-256: what was written of a pair of files is then provably ours.

A last line that is torn is cut off.  While a journal is open it is locked, so a folder has one
writer; `Shard`s of a batch have a journal each.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

from mt3_runtime.batch.records.folder_lock import is_locked, take_lock
from mt3_runtime.batch.records.ledger import Entry, Ledger, Stamp
from mt3_runtime.batch.records.shard import Shard
from mt3_runtime.errors import OutputError
from mt3_runtime.filesystem.atomic import exists, make_folder, real_path
from mt3_runtime.filesystem.ownership import is_regular

FORMAT, VERSION = "mt3-runtime.batch", 1

#: What every journal begins with.
_HEAD = f'{{"format":"{FORMAT}"'.encode()

#: Bytes of lines that are read together.
_AT_ONCE = 1 << 18

_STEM, _SUFFIX = ".mt3-batch", ".jsonl"

NAME = _STEM + _SUFFIX
"""Of the journal of a batch that is no shard of one."""


class JournalError(OutputError):
    """A journal cannot be written."""


class Record(Protocol):
    """Where a batch finds and leaves what became of each source; `Journal` is one."""

    def key(self, source: Path) -> str:
        """The name of a source in the record."""
        ...

    def entry(self, key: str) -> Entry | None:
        """What is known of a source."""
        ...

    def owns(self, path: str, key: str) -> bool:
        """Whether a file is provably our result of this source, and nobody has changed it."""
        ...

    def results(self, entry: Entry) -> list[str]:
        """Paths of what was written for a source."""
        ...

    def begin(self, key: str, stamp: Stamp) -> None:
        """A source is handed out to be read."""
        ...

    def writing(self, key: str, outputs: Mapping[str, bytes]) -> None:
        """These files, with this content, are about to be written."""
        ...

    def finish(self, status: str, key: str, stamp: Stamp, **facts: Any) -> None:
        """A source is done or has failed; ``facts`` are those of `Entry`."""
        ...


class NoJournal:
    """A record that keeps nothing: for results that have no folder of their own."""

    def key(self, source: Path) -> str:
        return str(source)

    def entry(self, key: str) -> Entry | None:  # noqa: ARG002
        return None

    def owns(self, path: str, key: str) -> bool:  # noqa: ARG002
        return False

    def results(self, entry: Entry) -> list[str]:
        return [*entry.outputs]

    def begin(self, key: str, stamp: Stamp) -> None:
        """Nothing to write."""

    def writing(self, key: str, outputs: Mapping[str, bytes]) -> None:
        """Nothing to write."""

    def finish(self, status: str, key: str, stamp: Stamp, **facts: Any) -> None:
        """Nothing to write."""


class Journal:
    """An open journal; a context manager.  Its methods may be called from any thread.

    Attributes:
        path: Of the file.
        locked: False where the file system has no locks.
    """

    def __init__(self, folder: Path, shard: Shard | None = None) -> None:
        """Opens and locks the journal of a folder, which is made if it is not there.

        Raises:
            OutputError: Another process works there, the journal is not one of ours, or it cannot
                be written.
        """
        self._made = [above for above in (folder, *folder.parents) if not exists(above)]
        make_folder(folder)
        self._home = real_path(folder)
        self._folders: dict[str, str] = {}
        self._changing = threading.Lock()
        self._shard, self._file = shard, -1
        self._begun_at: int | None = None  # size of the file, once it is ours to write
        self._used = False
        self.path = folder / _name(shard)
        try:
            self._open()
            self._ledger = self._read_own()
            self._before = frozenset(self._ledger.processes)
            self._others = [_read(path) for path in self._rest()]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def damaged(self) -> int:
        """How many lines of it mean nothing."""
        return self._ledger.damaged

    @property
    def dead(self) -> set[int]:
        """Numbers of the processes of this machine that worked here before; none does any more."""
        return {pid for host, pid in self._before if host == socket.gethostname()}

    def start(self, options: Mapping[str, Any], *, restart: bool = False) -> None:
        """Says who works here, with which options; ``restart``: that nothing is done yet."""
        self._append({
            "format": FORMAT,
            "version": VERSION,
            "status": "run",
            "run": secrets.token_hex(8),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "shard": str(self._shard) if self._shard else None,
            "options": dict(options),
            "restart": restart,
        })  # fmt: skip
        self._used = restart

    def key(self, source: Path) -> str:
        """The name of a source: its path as seen from the journal, wherever both are moved to."""
        folder, name = os.path.split(str(source))  # see `Stamp.of`
        if folder not in self._folders:
            real = real_path(folder or ".")
            try:
                place = os.path.relpath(real, self._home)
            except ValueError:  # another drive, on Windows
                place = str(real)
            place = "" if place == "." else f"{place.replace(os.sep, '/')}/"
            self._folders[folder] = place
        return self._folders[folder] + name

    def entry(self, key: str) -> Entry | None:
        own = self._ledger.entries.get(key)
        if own is not None and (own.status or own.lost):
            return own
        if self._ledger.restarted:
            return own
        for other in self._others:
            entry = other.entries.get(key)
            if entry is not None and entry.status == "done":
                return entry
        return own

    def owns(self, path: str, key: str) -> bool:
        digests = self.digests(path, key)
        if not digests or not is_regular(path):
            return False
        try:
            with Path(path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() in digests
        except OSError:
            return False

    def results(self, entry: Entry) -> list[str]:
        return [os.path.join(self._home, name) for name in entry.outputs]  # noqa: PTH118  see Stamp

    def begin(self, key: str, stamp: Stamp) -> None:
        self._used = True
        self._append({"status": "begun", "source": key, **stamp._asdict()}, sync=False)

    def writing(self, key: str, outputs: Mapping[str, bytes]) -> None:
        self._append({"status": "writing", "source": key, "outputs": self._sums(outputs)})

    def finish(self, status: str, key: str, stamp: Stamp, **facts: Any) -> None:
        if "outputs" in facts:
            facts["outputs"] = self._sums(facts["outputs"])
        self._append({"status": status, "source": key, **stamp._asdict(), **facts})

    def end(self) -> None:
        """The work ends in an orderly way: what was begun and not finished is to be begun again."""
        if self._used:
            self._append({"status": "ended"})

    def close(self) -> None:
        """Lets the lock go; a journal in which nothing was begun is as it was before."""
        if self._file < 0:
            return
        if self._begun_at is not None and not self._used:
            with suppress(OSError):
                os.ftruncate(self._file, self._begun_at)
                if not self._begun_at:
                    self.path.unlink()
                    for folder in self._made:
                        folder.rmdir()  # fails if there is anything in it
        os.close(self._file)
        self._file = -1

    def _open(self) -> None:
        """Opens and locks the file; another one may have been put in its place meanwhile."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        while True:
            try:
                self._file = os.open(self.path, flags, 0o666)
            except OSError as error:
                if self.path.is_symlink() or self.path.is_dir():
                    raise self._no_file() from error
                raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
            found = os.fstat(self._file)
            if not stat.S_ISREG(found.st_mode):
                raise self._no_file()
            taken = take_lock(self._file)
            if taken is False:
                raise _in_use(self.path)
            self.locked = taken is not None
            with suppress(OSError):
                if os.path.samestat(found, self.path.stat()):
                    break
            os.close(self._file)
        self._begun_at = self._size = found.st_size
        for path in self._rivals():
            if is_locked(path):
                raise _in_use(path)

    def _no_file(self) -> OutputError:
        return OutputError(
            f"{self.path} is no regular file, and a batch keeps its journal there; move it away, "
            "or choose another folder."
        )

    def _read_own(self) -> Ledger:
        """Reads the journal, and cuts off a last line that is torn."""
        ledger, whole = Ledger(), 0
        for lines in _lines(self.path):
            torn = not lines[-1].endswith(b"\n") and lines.pop()
            ledger.add_all(lines)
            whole += sum(map(len, lines))
            if torn:
                os.ftruncate(self._file, whole)
        self._begun_at = self._size = whole
        if ledger.run.get("version", VERSION) != VERSION:
            raise OutputError(
                f"{self.path} is of another version of mt3-runtime; update it, or choose another "
                "folder."
            )
        return ledger

    def _rest(self) -> Iterator[Path]:
        """The other journals of the folder."""
        for path in sorted(self.path.parent.glob(f"{_STEM}*{_SUFFIX}")):
            if path.name != self.path.name and Shard.of_journal(path.name) is not False:
                yield path

    def _rivals(self) -> Iterator[Path]:
        """Those whose sources may be ours as well: all but the other shards of the same number."""
        for path in self._rest():
            other = Shard.of_journal(path.name)
            if not (self._shard and isinstance(other, Shard) and other.count == self._shard.count):
                yield path

    def _append(self, item: Mapping[str, Any], *, sync: bool = True) -> None:
        line = json.dumps(item, separators=(",", ":")).encode() + b"\n"
        with self._changing:
            try:
                _write(self._file, line)
                if sync:
                    _sync(self._file)
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(self._file, self._size)
                raise JournalError(
                    f"cannot write {self.path}: {error.strerror}. What is done is kept; the same "
                    "command goes on from there."
                ) from error
            self._size += len(line)
            self._ledger.add(line)

    def _sums(self, outputs: Mapping[str, bytes]) -> dict[str, str]:
        return {
            self.key(Path(path)): hashlib.sha256(data).hexdigest() for path, data in outputs.items()
        }

    def digests(self, path: str, key: str) -> str:
        """All SHA-256, joined, of what was written to a path for this source."""
        name = self.key(Path(path))
        found = (ledger.digests.get(name) for ledger in (self._ledger, *self._others))
        return "".join(digests for source, digests in filter(None, found) if source == key)


def _name(shard: Shard | None) -> str:
    return f"{_STEM}-{shard.number}of{shard.count}{_SUFFIX}" if shard else NAME


def _lines(path: Path) -> Iterator[list[bytes]]:
    """The lines of a journal, some hundreds at a time.

    Raises:
        OutputError: It is something else, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            lines = file.readlines(_AT_ONCE)
            if lines and not (lines[0].startswith(_HEAD) or _HEAD.startswith(lines[0])):
                raise OutputError(
                    f"{path} is no journal of a batch; move it away, or choose another folder."
                )
            while lines:
                yield lines
                lines = file.readlines(_AT_ONCE)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot read {path}: {error.strerror}") from error


def _read(path: Path) -> Ledger:
    """Reads a journal that another process may be writing."""
    ledger = Ledger()
    if is_regular(path):
        for lines in _lines(path):
            ledger.add_all(lines if lines[-1].endswith(b"\n") else lines[:-1])
    return ledger


def _in_use(path: Path) -> OutputError:
    """Says who holds a journal."""
    run: dict[str, Any] = {}
    with suppress(OutputError):
        run = _read(path).run
    who = f"process {run['pid']} on {run.get('host')}, since {run.get('time')}," if run.get("pid") \
        else "another process"  # fmt: skip
    return OutputError(
        f"{path.parent} is in use: {who} works there ({path.name}). Wait for it, choose another "
        "folder, or share the work: --shard 1/2 in one process, --shard 2/2 in the other."
    )


def _write(descriptor: int, line: bytes) -> None:
    if os.write(descriptor, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network folders cannot
            raise
