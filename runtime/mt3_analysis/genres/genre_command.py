"""`mt3 genre`: names the genre of audio files; the result goes to stdout.

A file that fails is reported and the others are still done.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import AudioError, OptionError

if TYPE_CHECKING:
    from mt3_analysis.genres.genre_results import Genre

#: Bytes of a file with lyrics' themes and vocabulary.
_MAX_LYRICS = 1 << 20


class GenreCommand:
    """Names the genre of audio files."""

    name = "genre"
    help = "name the genre, and what speaks for it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the files, the models and the rules."""
        add = parser.add_argument
        add("files", nargs="+", metavar="FILE", help="audio file, or folder of audio files")
        add(
            "--rules",
            default="evidence",
            metavar="RULES",
            help="evidence (default), published (the formula as published), or a TOML file",
        )
        add("--tagger", metavar="NAME", help="bundle or name (default: the only installed one)")
        add(
            "--classifier",
            metavar="NAME[=WEIGHT]",
            action="append",
            type=_weighed,
            help="bundle or name of a genre classifier (default: the only installed one); several "
            "are averaged",
        )
        add("--lyrics", metavar="FILE", help="JSON with themes and complexity of the lyrics")
        add("-m", "--model", help="what transcribes, as for `mt3 transcribe`")
        add("-f", "--format", choices=("text", "json"), default="text", help="default: text")
        add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")

    def run(self, args: argparse.Namespace) -> int:
        """Names the genre of every file."""
        from mt3_analysis.genres.genre_detection import PUBLISHED, genre  # noqa: PLC0415
        from mt3_runtime.commands.folder_inputs import find_inputs  # noqa: PLC0415
        from mt3_runtime.loading import load_model  # noqa: PLC0415  NumPy takes 0.1 s to import

        lyrics = None if args.lyrics is None else _lyrics(Path(args.lyrics))
        published = args.rules == PUBLISHED
        model = None if published else load_model(args.model, threads=args.threads)
        failed = 0
        try:
            for file in find_inputs(args.files):
                try:
                    found = genre(
                        file,
                        lyrics=lyrics,
                        rules=args.rules,
                        model=model,
                        tagger=args.tagger,
                        classifier=None if args.classifier is None else dict(args.classifier),
                        threads=args.threads,
                    )
                except AudioError as error:
                    talk(f"error: {error if file.name in str(error) else f'{file}: {error}'}")
                    failed += 1
                    continue
                for sentence in found.warnings:
                    talk(f"warning: {file}: {sentence}")
                print(_line(file, found, args.format), flush=True)
        finally:
            if model is not None:
                model.close()
        return ExitCode.FAILED if failed else ExitCode.OK


def _line(file: Path, found: Genre, form: str) -> str:
    if form == "json":
        return json.dumps({"file": str(file), **found.to_dict()})
    best = ", ".join(f"{each.genre} {each.share:.0%}" for each in found.predictions)
    return f"{file}: {best or found.primary_genre} ({found.method})"


def _weighed(text: str) -> tuple[str, float]:
    """A name, and its weight behind the last ``=``, if there is one."""
    name, sign, weight = text.rpartition("=")
    if not sign:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        return text, 1.0  # a path with such a sign


def _lyrics(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_LYRICS + 1)
        values = json.loads(data if len(data) <= _MAX_LYRICS else b"")
    except OSError as error:
        raise OptionError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not readable as JSON, of at most 1 MiB.") from error
    if not isinstance(values, dict):
        raise OptionError(f"{path} holds no JSON object with 'themes' and 'complexity'.")
    return values
