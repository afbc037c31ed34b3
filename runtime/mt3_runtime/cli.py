"""The command line `mt3`: finds and runs the sub-command, turns errors into one line and a code.

Contract: stdout is data, stderr is talk; an error raised on purpose is one line, never a traceback.
Commands are objects of the shape `Command`.  Those of the runtime are listed here, those of the
other packages come in through the entry-point group ``mt3_runtime.commands``; one whose package is
not installed still shows up and says how to install it.  Nothing heavy is imported before the
chosen command runs, so that ``mt3 --help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol, TextIO

from mt3_runtime.errors import (
    AudioError,
    MissingDependencyError,
    MT3Error,
    OptionError,
    OutputError,
)
from mt3_runtime.filesystem.atomic import exists
from mt3_runtime.imports import extras
from mt3_runtime.imports.interrupts import ENDING, Held
from mt3_runtime.imports.lazy import version

#: Entry-point group through which other packages add sub-commands.
COMMAND_GROUP = "mt3_runtime.commands"

#: Set to anything but an empty string, internal errors keep their traceback.
DEBUG_VARIABLE = "MT3_DEBUG"


#: What the system refuses us is no bug of ours: permission, a read-only or full file system.
_SURROUNDINGS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)


class ExitCode(IntEnum):
    """What every `mt3` command ends with; scripts may rely on it."""

    OK = 0
    FAILED = 1  # an input could not be read or an output not written; all others were done
    USAGE = 2  # the command line contradicts itself or names something out of range; nothing done
    UNUSABLE = 3  # a model, a device, a download or an optional package cannot be used
    INTERNAL = 70  # a bug of ours (EX_SOFTWARE of sysexits.h)
    INTERRUPTED = 130  # Ctrl-C (128 + SIGINT)
    BROKEN_PIPE = 141  # the reader of our stdout went away (128 + SIGPIPE)


class Command(Protocol):
    """One sub-command of `mt3`; packages register a class of this shape without arguments.

    Attributes:
        name: What the user types after `mt3`.
        help: One line for the list of commands.
    """

    name: str
    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's own arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Does the work and returns an `ExitCode`; may raise any `MT3Error`."""
        ...


@dataclass(frozen=True)
class Listing:
    """A command as the list of commands knows it, before anything of it is imported.

    Attributes:
        name: What the user types.
        help: One line; empty where only the command itself knows (third-party entry points).
        extra: The extra of `mt3-runtime` that brings what it needs; empty for third-party ones.
        source: Where its class is; None while its package is not installed.
    """

    name: str
    help: str
    extra: str = ""
    source: EntryPoint | None = None

    def load(self) -> Command:
        """Imports and makes the command.

        Raises:
            MissingDependencyError: Its package, or one that this needs, is not installed.
        """
        if self.source is None:
            raise MissingDependencyError(
                f"The command {self.name!r} is not part of this installation (mt3-runtime "
                f"{_version()}). Install mt3-runtime again, with the extra [{self.extra}]."
            )
        try:
            with self.needs(), Held():
                command: Command = self.source.load()()
        except ModuleNotFoundError as error:
            what = f"The command {self.name!r}"
            raise MissingDependencyError(extras.absent(what, error)) from error
        return command

    def needs(self) -> AbstractContextManager[None]:
        """Inside, an import that fails names the command, and the extra that mends it."""
        return extras.named(f"mt3 {self.name}", *filter(None, [self.extra]))


def _own(name: str, text: str) -> Listing:
    target = f"mt3_runtime.commands.{name}_command:{name.title()}Command"
    return Listing(name, text, "cpu", EntryPoint(name, target, COMMAND_GROUP))


#: Every command of this project, in the order of a user's day.
_LISTINGS = (
    _own("transcribe", "turn audio files into MIDI, JSON or CSV notes"),
    Listing("tag", "name the instruments that are heard, over time", "cpu"),
    Listing("genre", "name the genre, and what speaks for it", "cpu"),
    Listing("assess", "judge performances on the piano, against a score or each other", "cpu"),
    Listing("serve", "serve transcription over HTTP and WebSocket", "serve"),
    _own("models", "list the known models, fetch checkpoints"),
    Listing("export", "make an ONNX bundle from a checkpoint", "export"),
    Listing("web", "build the page that transcribes in a browser", "export"),
    Listing("build", "build a TensorRT engine from a bundle", "trt"),
    Listing("engines", "list, inspect and remove TensorRT engines", "trt"),
    _own("calibrate", "make bundles of other precision, train a small model"),
    Listing("evaluate", "score transcriptions against reference notes", "calibration"),
    Listing("plot", "draw transcriptions as piano rolls", "viz"),
    _own("bench", "measure speed and memory on this machine"),
    _own("doctor", "check this installation and say how to repair it"),
)


def listings() -> dict[str, Listing]:
    """All commands by name: those listed here, then what other distributions register."""
    found = {listing.name: listing for listing in _LISTINGS}
    for entry in entry_points(group=COMMAND_GROUP):
        known = found.get(entry.name, Listing(entry.name, ""))
        if known.source is None:  # others may fill its place, not take the runtime's
            found[entry.name] = Listing(entry.name, known.help, known.extra, entry)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `mt3` with ``argv`` (default: the process's arguments) and returns its exit code."""
    return guarded(partial(_run, list(sys.argv[1:] if argv is None else argv)))


def guarded(run: Callable[[], int]) -> int:
    """Runs a program of this project; whatever goes wrong is one line on stderr and an exit code.

    Args:
        run: The program: `mt3`, or what ``python -m`` runs.

    Returns:
        What it returned, or the `ExitCode` of what it raised.
    """
    try:
        _mend_streams()
        with _stoppable():
            code = _finished(run)
            _flush_stdout(code)
    except MT3Error as error:
        return _failed(error)
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except BrokenPipeError:
        return _unread()
    except Exception as error:  # the last line of defence: see MT3_DEBUG
        if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
            talk(f"error: {error}")
            return ExitCode.FAILED
        if os.environ.get(DEBUG_VARIABLE):
            raise
        talk(
            f"internal error ({type(error).__name__}: {error}). Please report it; "
            f"set {DEBUG_VARIABLE}=1 for the traceback."
        )
        return ExitCode.INTERNAL
    return code


def _finished(run: Callable[[], int]) -> int:
    with extras.named("This program"):
        try:
            return run()
        except SystemExit as stop:  # argparse has printed the help, the version or what is wrong
            return ExitCode.OK if not stop.code else ExitCode.USAGE


def talk(message: str) -> None:
    """Says something to the person watching: one line on stderr, whatever is in it.

    Control characters, which file names may hold, are shown as escapes.  That nobody can read it
    is no reason to stop working.
    """
    line = "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else ascii(char)[1:-1]
        for char in f"mt3: {message}"
    )
    try:
        sys.stderr.write(f"{line}\n")  # in one piece: other threads may talk, too
        sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)


def _run(arguments: list[str]) -> int:
    commands = listings()
    # No option of `mt3` itself takes a value, so the first bare word is the command.
    chosen = next((word for word in arguments if not word.startswith("-")), "")
    command = commands[chosen].load() if chosen in commands else None
    args = _parser(commands, command).parse_args(arguments)
    if command is None:
        raise OptionError("No command given; `mt3 --help` lists the commands.")
    with commands[chosen].needs():
        return command.run(args)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong, also where files were read as options."""

    def error(self, message: str) -> NoReturn:
        files = [word for word in sys.argv[1:] if word.startswith("-") and exists(word)]
        if files:
            message += f"; a name that begins with - is read as options: write .{os.sep}{files[0]}"
        super().error(message)


def _parser(commands: dict[str, Listing], chosen: Command | None) -> argparse.ArgumentParser:
    """The parser of `mt3`; of the commands, only the chosen one carries its arguments."""
    parser = _Parser(
        prog="mt3",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=16),
        description="Music transcription with the MT3 family of models.",
        epilog="`mt3 COMMAND --help` explains a command. Exit codes: "
        + ", ".join(f"{code} {code.name.lower().replace('_', ' ')}" for code in ExitCode)
        + ".",
    )
    parser.add_argument("--version", action="version", version=f"mt3-runtime {_version()}")
    rows = parser.add_subparsers(title="commands", metavar="COMMAND")
    for listing in commands.values():
        note = "" if listing.source else f" (not installed; extra: {listing.extra})"
        row = rows.add_parser(listing.name, help=(listing.help + note).replace("%", "%%"))
        if chosen is not None and listing.name == chosen.name:
            row.description = f"{chosen.help[:1].upper()}{chosen.help[1:]}."
            chosen.add_arguments(row)
    return parser


def _failed(error: MT3Error) -> ExitCode:
    if isinstance(error.__cause__, BrokenPipeError):
        return _unread()
    talk(f"error: {error}")
    code = ExitCode.UNUSABLE
    if isinstance(error, OptionError):
        code = ExitCode.USAGE
    elif isinstance(error, AudioError | OutputError):
        code = ExitCode.FAILED
    _flush_stdout(code)  # it may be what is full
    return code


def _interrupted(error: KeyboardInterrupt) -> int:
    if not isinstance(error, _Terminated):
        talk("interrupted")
        return ExitCode.INTERRUPTED
    talk("terminated")
    os.kill(os.getpid(), error.number)  # the handler is gone: we end as our parent expects
    return 128 + error.number  # the first process of a container survives even that


def _unread() -> ExitCode:
    _silence(sys.stdout)
    return ExitCode.BROKEN_PIPE


class _Terminated(KeyboardInterrupt):
    """A signal has arrived; the work is called off as by Ctrl-C, so nothing half-made stays."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turns `ENDING` into `_Terminated`, unless the caller has its own idea of such a signal."""
    main_thread = threading.current_thread() is threading.main_thread()  # others may not
    ours = [each for each in ENDING if main_thread and signal.getsignal(each) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise _Terminated(number)


def _mend_streams() -> None:
    """Makes up for standard streams that are closed or cannot show every file name."""
    # The next file to be opened would get the number of a closed stream, and with it whatever
    # libraries print there: half a MIDI file, half a warning.
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
    if sys.stderr is None:  # print(file=None) would talk on stdout
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  until we end
    if isinstance(sys.stdout, io.TextIOWrapper):
        unicode = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")


def _flush_stdout(code: int) -> None:
    """Notices here, not while Python ends, that the reader went away or the disk is full."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        _silence(sys.stdout)
        if code == ExitCode.OK:  # else it has been said
            raise


def _silence(stream: TextIO) -> None:
    """Points a stream at the null device: Python flushes it once more on its way out."""
    with contextlib.suppress(OSError, ValueError):  # a replaced stream may have no descriptor
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def _version() -> str:
    try:
        return version()
    except PackageNotFoundError:  # run from the source tree
        return "(not installed)"


if __name__ == "__main__":  # python -m mt3_runtime.cli
    sys.exit(main())
