"""`mt3 tag`: names the instruments of audio files; what is heard goes to stdout.

A file that fails is reported and the others are still done.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import AudioError, OptionError

if TYPE_CHECKING:
    from mt3_analysis.tagging.tag_results import Tags

FORMATS = ("text", "json", "csv")
_COLUMNS = ("file", "source", "start", "end", "family", "score")


class TagCommand:
    """Names the instruments of audio files."""

    name = "tag"
    help = "name the instruments that are heard, over time"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the files, the models and the shape of the result."""
        add = parser.add_argument
        add("files", nargs="+", metavar="FILE", help="audio file, or folder of audio files")
        add(
            "--tagger",
            metavar="NAME",
            help="bundle, name of an installed tagger, or none (default: the only installed one)",
        )
        add("-m", "--model", help="what transcribes, as for `mt3 transcribe`")
        add("--top", type=_count, default=5, metavar="N", help="families shown (default: 5)")
        add(
            "-f",
            "--format",
            choices=FORMATS,
            default="text",
            help="text (default); json: all there is, an object a line; csv: families over time",
        )
        add("-o", "--output", default="-", metavar="OUT", help="file; or folder, for a result a "
            "recording and a journal to go on with (default: standard output)")  # fmt: skip
        add("--restart", action="store_true", help="do again what the journal says is done")
        add("--device", default="auto", help="of the transcription, as for `mt3 transcribe`")
        add("--threads", type=_count, metavar="N", help="CPU threads (default: all cores)")
        add("-q", "--quiet", action="store_true", help="only warnings and errors on stderr")

    def run(self, args: argparse.Namespace) -> int:
        """Loads the models once, tags every file."""
        from mt3_runtime.commands.folder_inputs import find_inputs  # noqa: PLC0415
        from mt3_runtime.filesystem.atomic import STDOUT, check_output, is_folder  # noqa: PLC0415

        if not args.output:
            raise OptionError("The argument of -o is empty; name a file, a folder or -.")
        files = find_inputs(args.files)
        folder = args.output.endswith(os.sep) or is_folder(args.output)
        if args.restart and not folder:
            raise OptionError("--restart is about the journal of a folder; name one with -o.")
        if folder:
            return _into_folder(files, args)
        if args.output != STDOUT:
            check_output(args.output, files)
        results: list[tuple[Path, Tags]] = []
        with _tagging(args) as tagged:
            failed = 0
            for file in files:
                tags = tagged(file)
                if tags is None:
                    failed += 1
                    continue
                results.append((file, tags))
                if args.output == STDOUT:
                    text = render([(file, tags)], args.format, args.top, head=len(results) == 1)
                    print(text, end="", flush=True)
        if args.output != STDOUT and results:
            from mt3_runtime.filesystem.atomic import write_output  # noqa: PLC0415

            write_output(args.output, render(results, args.format, args.top).encode())
            if not args.quiet:
                talk(f"{len(results)} of {len(files)} files -> {args.output}")
        return ExitCode.FAILED if failed else ExitCode.OK


@contextmanager
def _tagging(
    args: argparse.Namespace, *, raising: bool = False
) -> Iterator[Callable[[Path], Tags | None]]:
    """Loads the models; gives what tags a file, and says why it could not.

    Args:
        args: Of the command.
        raising: Raise that as well.
    """
    from mt3_analysis.tagging.instrument_tagging import load_tagger, tag  # noqa: PLC0415
    from mt3_runtime.loading import load_model  # noqa: PLC0415  NumPy takes 0.1 s to import

    unwanted = args.tagger == "none"
    tagger = None if unwanted else load_tagger(args.tagger, threads=args.threads)
    with load_model(args.model, device=args.device, threads=args.threads) as model:

        def tagged(file: Path) -> Tags | None:
            try:
                chosen = False if unwanted else tagger
                tags = tag(file, model=model, tagger=chosen, threads=args.threads)
            except AudioError as error:
                talk(f"error: {error if file.name in str(error) else f'{file}: {error}'}")
                if raising:
                    raise
                return None
            for sentence in tags.warnings:
                talk(f"warning: {file}: {sentence}")
            return tags

        yield tagged


def _into_folder(files: list[Path], args: argparse.Namespace) -> int:
    """Writes a result a recording, and goes on where the folder was left."""
    from mt3_analysis.tagging.instrument_tagging import load_tagger  # noqa: PLC0415
    from mt3_analysis.tagging.tag_folder import TagFolder  # noqa: PLC0415
    from mt3_runtime.bundles.bundle import Bundle  # noqa: PLC0415
    from mt3_runtime.models.installed import resolve_model  # noqa: PLC0415

    tagger = None if args.tagger == "none" else load_tagger(args.tagger, threads=args.threads)
    options = {
        "model": Bundle(resolve_model(args.model)).manifest.export_id,
        "tagger": None if tagger is None else tagger.manifest.export_id,
        "top": args.top if args.format == "text" else None,
    }
    failed = 0
    with TagFolder(Path(args.output), args.format, options, restart=args.restart) as folder:
        to_do = folder.to_do(files)
        if len(to_do) < len(files) and not args.quiet:
            talk(f"{len(files) - len(to_do)} of {len(files)} files done before")
        if not to_do:
            return ExitCode.OK
        with _tagging(args, raising=True) as tagged:
            for file in to_do:
                try:
                    folder.begin(file)
                    tags = tagged(file)
                except AudioError as error:
                    folder.fail(file, error)
                    failed += 1
                    continue
                if tags is not None:
                    text = render([(file, tags)], args.format, args.top)
                    path = folder.write(file, text, tags.duration)
                    if not args.quiet:
                        talk(f"{file} -> {path}")
    return ExitCode.FAILED if failed else ExitCode.OK


def render(results: list[tuple[Path, Tags]], form: str, top: int = 5, *, head: bool = True) -> str:
    """Results as text, JSON lines or a CSV table.

    Args:
        results: Files and what was heard in them.
        form: One of `FORMATS`.
        top: Families a source in text.
        head: Whether a table begins with the names of its columns.
    """
    if form == "json":
        rows = [json.dumps({"file": str(file), **tags.to_dict()}) for file, tags in results]
        return "".join(f"{row}\n" for row in rows)
    if form == "csv":
        return _table(results, head=head)
    lines = [f"{file}: {line}" for file, tags in results for line in tags.lines(top)]
    return "".join(f"{line}\n" for line in lines)


def _table(results: list[tuple[Path, Tags]], *, head: bool) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if head:
        writer.writerow(_COLUMNS)
    for file, tags in results:
        for evidence in filter(None, (tags.tagger, tags.transcription)):
            for window in evidence.windows:
                for item in window.families:
                    row = (evidence.source, window.start, window.end, item.name, item.score)
                    writer.writerow((file, *row))
    return text.getvalue()


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1024")
    return int(text)
