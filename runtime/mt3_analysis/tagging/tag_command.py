"""`mt3 tag`: names the instruments of audio files; what is heard goes to stdout.

A file that fails is reported and the others are still done.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
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
        add("-o", "--output", default="-", metavar="OUT", help="file (default: standard output)")
        add("--device", default="auto", help="of the transcription, as for `mt3 transcribe`")
        add("--threads", type=_count, metavar="N", help="CPU threads (default: all cores)")
        add("-q", "--quiet", action="store_true", help="only warnings and errors on stderr")

    def run(self, args: argparse.Namespace) -> int:
        """Loads the models once, tags every file."""
        from mt3_analysis.tagging.instrument_tagging import load_tagger, tag  # noqa: PLC0415
        from mt3_runtime.commands.folder_inputs import find_inputs  # noqa: PLC0415
        from mt3_runtime.filesystem.atomic import (  # noqa: PLC0415
            STDOUT,
            check_output,
            write_output,
        )
        from mt3_runtime.loading import load_model  # noqa: PLC0415  NumPy takes 0.1 s to import

        if not args.output:
            raise OptionError("The argument of -o is empty; name a file or -.")
        files = find_inputs(args.files)
        if args.output != STDOUT:
            check_output(args.output, files)
        unwanted = args.tagger == "none"
        tagger = None if unwanted else load_tagger(args.tagger, threads=args.threads)
        results, failed = [], 0
        with load_model(args.model, device=args.device, threads=args.threads) as model:
            for file in files:
                try:
                    chosen = False if unwanted else tagger
                    tags = tag(file, model=model, tagger=chosen, threads=args.threads)
                except AudioError as error:
                    talk(f"error: {error if file.name in str(error) else f'{file}: {error}'}")
                    failed += 1
                    continue
                for sentence in tags.warnings:
                    talk(f"warning: {file}: {sentence}")
                results.append((file, tags))
                if args.output == STDOUT:
                    text = render([(file, tags)], args.format, args.top, head=len(results) == 1)
                    print(text, end="", flush=True)
        if args.output != STDOUT and results:
            write_output(args.output, render(results, args.format, args.top).encode())
            if not args.quiet:
                talk(f"{len(results)} of {len(files)} files -> {args.output}")
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
