"""`mt3 transcribe`: audio files in, note files out.

The model is loaded once, and all files go through it together; results are written in the order of
the files.  A file that fails is reported and the others are still done; a result is written whole
or not at all.  What is said about each file, and the progress bar, go to stderr, so that ``-o -``
can feed a pipe.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.commands.folder_inputs import find_inputs
from mt3_runtime.commands.jobs import STDIN, Job, parse_formats, plan
from mt3_runtime.commands.per_stem_command import run_per_stem
from mt3_runtime.commands.results import (
    REPEATED,
    about,
    check_stdout,
    check_tempo,
    keep_out,
    tell,
    tell_changes,
    tell_warnings,
    write,
)
from mt3_runtime.decoding.search import SearchName
from mt3_runtime.errors import AudioError, OutputError
from mt3_runtime.files.formats import FORMATS
from mt3_runtime.files.midi import MAX_TEMPO, MIN_TEMPO
from mt3_runtime.filesystem.atomic import STDOUT, is_folder
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.models.installed import resolve_model
from mt3_runtime.models.shipped import shipped_models
from mt3_runtime.notes.instruments import choose
from mt3_runtime.notes.stems import STEMS
from mt3_runtime.progress import Meter

if TYPE_CHECKING:
    from mt3_runtime.model import Model
    from mt3_runtime.transcription import Progress

#: More threads than any machine this runs on has cores; each costs memory.
_MAX_THREADS = 1024


class TranscribeCommand:
    """Transcribes audio files."""

    name = "transcribe"
    help = "turn audio files into MIDI, JSON or CSV notes"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the files, the model and the shape of the result."""
        add = parser.add_argument
        add("files", nargs="+", metavar="FILE", help="audio file, folder of audio files, or -")
        add("-m", "--model", help="bundle, or name of a model (default: $MT3_MODEL, else the only "
            "installed one, else default)")  # fmt: skip
        add("-o", "--output", metavar="OUT", help="file, folder or - (default: beside each input)")
        add(
            "-f",
            "--format",
            metavar="LIST",
            help=f"one or more of {', '.join(FORMATS)} (default: by the suffix of OUT, else midi)",
        )
        add("--tempo", type=_tempo, metavar="BPM", help="of MIDI files (default: 120)")
        add("--split", choices=("stems",), help="write a file per stem, NAME.STEM.mid")
        add(
            "--per-stem",
            action="store_true",
            help="the files are stems of one song, told by their names: one result of all",
        )
        add("--overwrite", action="store_true", help="replace files not named with -o, too")
        add("-q", "--quiet", action="store_true", help="only warnings and errors on stderr")
        model = parser.add_argument_group("model")
        add = model.add_argument
        add("--device", default="auto", help="auto (default), cpu, cuda[:N], tensorrt[:N], rtx[:N]")
        add("--threads", type=_count, metavar="N", help="CPU threads (default: chosen for you)")
        add("--profile", metavar="NAME", help="graph profile (default: the device's best)")
        add(
            "--decoding",
            choices=get_args(SearchName),
            default="greedy",
            help="greedy (default), or t5x: the search of Magenta's own notebook",
        )
        add(
            "--instruments",
            metavar="LIST",
            help="only these may occur: names, families, program numbers, drums; with commas",
        )
        add("--exclude", metavar="LIST", help="these may not occur")
        add("--grammar", action="store_true", help="the model may only say what means something")
        add(
            "--min-confidence",
            type=_share,
            default=0.0,
            metavar="P",
            help="leave out notes that are right with a lower probability, 0 to 1",
        )
        add(
            "--auto-filter",
            choices=AUTO_FILTERS,
            default="on",
            help="repair drum hits on melodic instruments: on (default), classic: mt3-infer's "
            "rules, or off",
        )
        add("--no-auto-filter", dest="auto_filter", action="store_const", const="off", help="off")
        add("--smooth", action="store_true", help="repair programs that slip for one segment")
        add("--report", action="store_true", help="say which notes were changed, and why")
        add(
            "--upstream-quirks",
            action="store_true",
            help="imitate the original implementation's slips, for comparisons",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Plans, loads the model, does every file."""
        if args.per_stem:
            return run_per_stem(args)
        choose(args.instruments, args.exclude)  # complains now about unknown names
        sources, failed = _find(args)
        jobs, refused = _plan(sources, args) if sources else ([], 0)
        ready = [job for job in jobs if _exists(job.source)]
        failed += refused + len(jobs) - len(ready)
        if not ready:
            return ExitCode.FAILED
        model_path = resolve_model(args.model)
        keep_out(model_path, ready)
        from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed for --help

        with load_model(
            model_path,
            device=args.device,
            threads=args.threads,
            auto_filter=AUTO_FILTERS[args.auto_filter],
            decoding=args.decoding,
            profile=args.profile,
        ) as model:
            if not args.quiet:
                talk(
                    f"{model_path.name}{_small(model_path)} on {model.device}, {_files(len(ready))}"
                )
            failed += _transcribe(model, ready, args)
        return ExitCode.FAILED if failed else ExitCode.OK


def _small(model: Path) -> str:
    """What to know about the model that nobody had to choose."""
    own = model in shipped_models().values()
    return " (the package's small model; mt3 models lists better ones)" if own else ""


def _find(args: argparse.Namespace) -> tuple[list[Path], int]:
    """All inputs, each once, and how many folders turned out to be no input."""
    found: dict[Path, None] = {}
    failed = 0
    for name in args.files:
        if name == STDOUT:  # the same word for both
            found[STDIN] = None
            continue
        try:
            paths = find_inputs([name])
            found |= dict.fromkeys(path.absolute() if path == STDIN else path for path in paths)
        except AudioError as error:
            talk(f"error: {error}")
            failed += 1
    if found and _names_folder(args) and not args.quiet:
        talk(f"found {_files(len(found))}")
    return list(found), failed


def _plan(sources: list[Path], args: argparse.Namespace) -> tuple[list[Job], int]:
    """What is to be done, and how many of the inputs cannot be, with the reasons on stderr."""
    refused: list[OutputError] = []
    formats = () if args.format is None else parse_formats(args.format)
    folder = _names_folder(args)
    jobs = plan(
        sources,
        output=args.output,
        formats=formats,
        folder=folder,
        stems=tuple(stem.name for stem in STEMS) if args.split else (),
        overwrite=args.overwrite,
        refuse=refused.append,
    )
    for error in refused:
        talk(f"error: {error}")
    for job in jobs:
        check_stdout(job)
    check_tempo(jobs, args.tempo)
    return jobs, len(refused)


def _names_folder(args: argparse.Namespace) -> bool:
    return any(is_folder(name) for name in args.files)


def _exists(source: Path) -> bool:
    """Whether an input is there; one that is not is reported before the model is loaded."""
    if source == STDIN:
        return _is_piped()
    try:
        source.stat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        talk(f"error: {source}: {'there is no such file' if missing else error.strerror}.")
        return False
    return True


def _is_piped() -> bool:
    """Whether there may be audio on standard input."""
    if sys.stdin is None or sys.stdin.closed:
        talk("error: there is no standard input to read audio from.")
    elif sys.stdin.isatty():
        talk("error: standard input is a terminal; expected audio from a pipe or a file.")
    else:
        return True
    return False


def _transcribe(model: Model, jobs: list[Job], args: argparse.Namespace) -> int:
    """Does all files; returns how many failed, with the reasons on stderr."""
    bars, failed, seconds, begin = _Bars(quiet=args.quiet), 0, 0.0, time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind in REPEATED:
            warnings.simplefilter("ignore", kind)
        outcomes = model.transcribe_many(
            [sys.stdin.buffer if job.source == STDIN else job.source for job in jobs],
            instruments=args.instruments,
            exclude=args.exclude,
            grammar=args.grammar,
            min_confidence=args.min_confidence,
            smooth=args.smooth,
            upstream_quirks=args.upstream_quirks,
            return_exceptions=True,
            progress=bars.update,
        )
        for number, job in enumerate(jobs):
            with bars.showing(number, job.source.name):
                outcome = next(outcomes)
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                written = write(outcome, job, args.tempo)
            except (AudioError, OutputError) as error:
                if isinstance(error.__cause__, BrokenPipeError):
                    raise
                talk(f"error: {about(job.source, str(error))}")
                failed += 1
                continue
            finally:
                while caught:
                    talk(f"warning: {caught.pop(0).message}")
            tell_warnings(outcome, job.source, written)
            seconds += outcome.duration
            if not args.quiet:  # files share the machine: the speed is that of all so far
                tell(outcome, job, written, speed=seconds / (time.perf_counter() - begin))
            if args.report:
                tell_changes(outcome, job.source)
    return failed


class _Bars:
    """One progress bar at a time: that of the file whose result comes next."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._number = quiet, 0
        self._meter: Meter | None = None

    @contextmanager
    def showing(self, number: int, label: str) -> Iterator[None]:
        """Shows the bar of a file, by its number."""
        with Meter(label, unit="s", quiet=self._quiet) as self._meter:
            self._number = number
            yield

    def update(self, number: int, now: Progress) -> None:
        """Takes the progress of any file."""
        if self._meter and number == self._number:
            self._meter.update(now.seconds_done, now.seconds_total, f"{now.notes} notes")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_THREADS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of threads, 1 or more (at most {_MAX_THREADS})"
        )
    return int(text)


def _tempo(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not MIN_TEMPO <= value <= MAX_TEMPO:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of quarters per minute, {MIN_TEMPO:g} to {MAX_TEMPO:g}"
        )
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"
