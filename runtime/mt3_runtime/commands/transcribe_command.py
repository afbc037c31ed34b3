"""`mt3 transcribe`: audio files in, note files out.

The model is loaded once, and all files go through it together.  A file that fails is reported and
the others are still done; a result is written whole or not at all.  What is said about each file,
and the progress bar, go to stderr, so that ``-o -`` can feed a pipe.  How batches are kept and
resumed: `mt3_runtime.batch`.
"""

from __future__ import annotations

import argparse

from mt3_runtime.batch.batch_report import check_report
from mt3_runtime.batch.session import Session
from mt3_runtime.batch.source_list import Source, find_sources, listed_names
from mt3_runtime.batch.watch import Watch
from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.commands.per_stem_command import run_per_stem
from mt3_runtime.commands.transcribe_options import BATCH_OPTIONS, add_options, given
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.extensions.auto_lineup import is_auto
from mt3_runtime.extensions.evidence import evidence_source
from mt3_runtime.filesystem.atomic import STDOUT, is_folder
from mt3_runtime.notes.instruments import choose

#: Options for many files that make sense for results on standard output, too.
_STREAMED = ("--recursive", "--files-from", "--null", "--fail-fast", "--no-journal")


class TranscribeCommand:
    """Transcribes audio files."""

    name = "transcribe"
    help = "turn audio files into MIDI, JSON or CSV notes"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the files, the model and the shape of the result."""
        add_options(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Plans, loads the model, does every file."""
        _check(args)
        if args.per_stem:
            return run_per_stem(args)
        auto = is_auto(args.instruments)
        choose(None if auto else args.instruments, args.exclude)  # complains about unknown names
        if auto:
            evidence_source()
        names = [*args.files]
        if args.files_from is not None:
            names += listed_names(args.files_from, null=args.null)
        with Session(args) as session:
            if args.watch:
                _watch(session, names, args)
            sources = find_sources(names, recursive=args.recursive, fail=session.fail, tell=_warn)
            if not sources:
                return ExitCode.FAILED
            if any(map(is_folder, names)) and not args.quiet:
                talk(f"found {len(sources)} file{'' if len(sources) == 1 else 's'}")
            session.run(sources)
            return session.code


def _watch(session: Session, names: list[str], args: argparse.Namespace) -> None:
    """Does what comes in, until somebody ends it."""
    last: list[str] = []

    def find() -> list[Source]:
        """Looks, and says what is wrong with the folders when that changes."""
        said: list[str] = []

        def fail(error: AudioError) -> None:
            said.append(str(error))

        found = find_sources(names, recursive=args.recursive, fail=fail, tell=_ignore)
        new = [line for line in said if line not in last and "no audio file" not in line]
        for line in new:
            talk(f"error: {line}")
        last[:] = said
        return found

    if not args.quiet:
        talk(f"watching {', '.join(names)}; Ctrl-C ends it")
    for sources, settled in Watch(find, args.settle).rounds():
        session.run(sources, settled)


def _check(args: argparse.Namespace) -> None:
    """Refuses options that contradict each other.

    Raises:
        OptionError: They do.
    """
    batch, folders = given(args, BATCH_OPTIONS), [*map(is_folder, args.files)]
    listed, piped = args.files_from is not None, args.output == STDOUT
    useless = [option for option in batch if option not in _STREAMED]
    faults = (
        (
            args.per_stem and batch,
            f"--per-stem makes one result of one song; leave {', '.join(batch)} out.",
        ),
        (
            args.lineup and not args.per_stem,
            "--lineup is about a separated song; add --per-stem, or choose with --instruments.",
        ),
        (
            not args.files and not listed,
            "There is no input: name files or folders, or a list with --files-from.",
        ),
        (
            args.null and not listed,
            "-0 says how --files-from is to be read; name a list with that.",
        ),
        (args.files_from == "", "The argument of --files-from is empty; name a file or -."),
        (
            args.files_from == STDOUT and STDOUT in args.files,
            "Standard input cannot be a list and a recording at once.",
        ),
        (
            args.restart and args.skip_existing,
            "--restart does again what --skip-existing passes over; choose one.",
        ),
        (
            args.restart and args.no_journal,
            "--restart is about the journal; leave --no-journal out.",
        ),
        (
            args.skip_existing and args.split,
            "--skip-existing cannot tell which stems a song has; leave it out with --split.",
        ),
        (
            args.watch and (listed or not all(folders)),
            "--watch takes folders, and no files or lists.",
        ),
        (
            piped and useless,
            f"{', '.join(useless)}: that is for results in files; leave it out with -o -.",
        ),
    )
    for wrong, message in faults:
        if wrong:
            raise OptionError(message)
    if args.report_to is not None:
        check_report(args.report_to)


def _warn(message: str) -> None:
    talk(f"warning: {message}")


def _ignore(_message: str) -> None:
    """Says nothing: a folder that is watched is looked at every few seconds."""
