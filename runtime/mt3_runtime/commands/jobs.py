"""Which input becomes which output: decided, and checked, before any model is loaded.

An hour of work must not end in "file exists".  So every output name is known first, none is an
input or another job's output, and each can be written.

    -o absent          beside each input, NAME.mid
    -o FILE            that file, for one input and one format; an existing file is replaced
    -o FOLDER          FOLDER/NAME.mid; for several results, an existing folder, or "FOLDER/"
    -o -               standard output, for one input and one format

A file the user has named is replaced; a name made up here never replaces anything unless the user
says ``--overwrite``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mt3_runtime.errors import AudioError, OptionError, OutputError
from mt3_runtime.formats import SUFFIXES, check_format, format_from_suffix
from mt3_runtime.output import STDOUT, check_output

#: What a folder is searched for: the suffixes under which libsndfile's formats hold music.
# fmt: off
AUDIO_SUFFIXES = (
    ".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au",
    ".snd", ".caf", ".w64", ".rf64",
)
# fmt: on


@dataclass(frozen=True)
class Result:
    """One file to write: ``path`` (or ``-``) in ``format``."""

    format: str
    path: str


@dataclass(frozen=True)
class Job:
    """One input and what is to be made of it."""

    source: Path
    results: tuple[Result, ...]


def find_inputs(names: Sequence[str]) -> list[Path]:
    """Files as they are (existing or not), folders replaced by the audio files directly in them.

    Raises:
        AudioError: A folder holds no audio file.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        found += _audio_files(path) if path.is_dir() else [path]
    return found


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats of a comma-separated list, in its order, without repetition.

    Raises:
        OptionError: One of them is unknown.
    """
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in formats:
        check_format(name)
    return formats


def plan(
    sources: Sequence[Path],
    *,
    output: str | None = None,
    formats: tuple[str, ...] = (),
    folder: bool = False,
    overwrite: bool = False,
) -> list[Job]:
    """Gives every source its outputs.

    Args:
        sources: Input files.
        output: The argument of ``-o``, or None.
        formats: Chosen formats; empty for the one the output's suffix names, else MIDI.
        folder: The results belong into a folder even if there is only one.
        overwrite: Made-up names may replace existing files.

    Raises:
        OptionError: The choices contradict each other, or an output exists already.
        OutputError: An output cannot be written.
    """
    several = folder or len(sources) > 1 or len(formats) > 1
    if output == STDOUT:
        if several:
            raise OptionError("`-o -` takes one input file and one format.")
        return [Job(sources[0], (Result(formats[0] if formats else "midi", STDOUT),))]
    if output is not None and not several and not _is_folder(output):
        jobs = [Job(sources[0], (Result(_one_format(output, formats), output),))]
        overwrite = True
    else:
        target = None if output is None else _folder(output)
        jobs = [_derive(source, target, formats or ("midi",)) for source in sources]
    _check(jobs, overwrite=overwrite)
    return jobs


def _audio_files(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in AUDIO_SUFFIXES
        and not path.name.startswith(".")  # macOS leaves ._NAME.wav beside NAME.wav
        and path.is_file()
    )
    if not found:
        raise AudioError(
            f"There is no audio file directly in {folder} (looked for "
            f"{' '.join(AUDIO_SUFFIXES)}); name the files or another folder."
        )
    return found


def _is_folder(output: str) -> bool:
    separators = tuple(filter(None, (os.sep, os.altsep)))
    return output.endswith(separators) or Path(output).is_dir()


def _folder(output: str) -> Path:
    """The folder ``output`` means, checked: it can be used, or be made."""
    path = Path(output)
    if not _is_folder(output) and path.suffix.lower() in SUFFIXES:
        raise OptionError(
            f"Several results do not fit into the one file {output}; name a folder with -o, "
            f"such as {path.stem}{os.sep}."
        )
    nearest = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
    if not nearest.is_dir():
        raise OutputError(f"{nearest} is a file, and the results need a folder of that name.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"There is no permission to write in {nearest}; choose another folder.")
    return path


def _one_format(output: str, formats: tuple[str, ...]) -> str:
    if not formats:
        return format_from_suffix(output)
    meant = SUFFIXES.get(Path(output).suffix.lower(), formats[0])
    if meant != formats[0]:
        raise OptionError(f"{output} looks like {meant}, but --format says {formats[0]}.")
    return formats[0]


def _derive(source: Path, folder: Path | None, formats: tuple[str, ...]) -> Job:
    suffixes = {name: suffix for suffix, name in reversed(SUFFIXES.items())}  # the first one wins
    base = source.parent if folder is None else folder
    return Job(
        source, tuple(Result(name, str(base / (source.stem + suffixes[name]))) for name in formats)
    )


def _check(jobs: Sequence[Job], *, overwrite: bool) -> None:
    sources = [job.source for job in jobs]
    taken: dict[str, Path] = {}
    for source, result in _pairs(jobs):
        place = os.path.normcase(os.path.realpath(result.path))
        other = taken.setdefault(place, source)
        if other is not source:
            raise OptionError(
                f"{other} and {source} would both be written to {result.path}; transcribe them "
                "separately, each with its own -o."
            )
        if Path(result.path).parent.is_dir() or overwrite:  # else `_folder` has looked at it
            check_output(result.path, sources)
        if not overwrite and Path(result.path).exists():
            raise OptionError(f"{result.path} exists; pass --overwrite to replace it.")


def _pairs(jobs: Sequence[Job]) -> Iterator[tuple[Path, Result]]:
    return ((job.source, result) for job in jobs for result in job.results)
