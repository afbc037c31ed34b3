"""Input and output files of `mt3 transcribe`: chosen and checked before any model is loaded.

An hour of work must not end in "file exists".  So every output name is known first, none is an
input or another job's output, and each can be written.

    -o absent          beside each input, NAME.mid
    -o FILE            that file, for one input and one format; an existing file is replaced
    -o FOLDER          FOLDER/NAME.mid; for several results, an existing folder, or "FOLDER/"
    -o -               standard output, for one input and one format

A result that is split into stems is several files, NAME.STEM.mid.

A file the user has named is replaced; a name made up here never replaces anything unless the user
says ``--overwrite``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mt3_runtime.errors import AudioError, OptionError, OutputError
from mt3_runtime.files.atomic import STDOUT, check_output, exists, is_folder, real_path
from mt3_runtime.files.formats import SUFFIXES, check_format, format_from_suffix

#: What a folder is searched for: the suffixes under which libsndfile's formats hold music.
# fmt: off
AUDIO_SUFFIXES = (
    ".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au",
    ".snd", ".caf", ".w64", ".rf64",
)
# fmt: on


@dataclass(frozen=True)
class Result:
    """One file to write: ``path`` (or ``-``) in ``format``, with the notes of a stem or all."""

    format: str
    path: str
    stem: str = ""


@dataclass(frozen=True)
class Job:
    """One input and what is to be made of it.

    Attributes:
        source: The input.
        results: What is written.
        replaces: Existing files may be replaced, also those that come in until then.
    """

    source: Path
    results: tuple[Result, ...]
    replaces: bool = True


def find_inputs(names: Sequence[str]) -> list[Path]:
    """Files as they are (existing or not), folders replaced by the audio files directly in them.

    Raises:
        AudioError: A folder holds no audio file, or cannot be read.
        OptionError: A name is empty.
    """
    found: list[Path] = []
    for name in names:
        if not name:
            raise OptionError("The name of an input file is empty.")  # to Path: all files here
        path = Path(name)
        found += _audio_files(path) if is_folder(path) else [path]
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
    stems: tuple[str, ...] = (),
    overwrite: bool = False,
    refuse: Callable[[OutputError], None] | None = None,
) -> list[Job]:
    """Gives every source its outputs.

    Args:
        sources: Input files.
        output: The argument of ``-o``, or None.
        formats: Chosen formats; empty for the one the output's suffix names, else MIDI.
        folder: The results belong into a folder even if there is only one.
        stems: Names of the stems that each result is split into; empty for one file of all notes.
        overwrite: Made-up names may replace existing files.
        refuse: Is told why an output cannot be written; its source is left out of the result.

    Raises:
        OptionError: The choices contradict each other, or an output exists already.
        OutputError: An output cannot be written, and there is no ``refuse``.
    """
    if output == "":
        raise OptionError("The argument of -o is empty; name a file, a folder or -.")
    several = folder or bool(stems) or len(sources) > 1 or len(formats) > 1
    if output == STDOUT:
        if several:
            raise OptionError("`-o -` takes one input file and one format, and no --split.")
        return [Job(sources[0], (Result(formats[0] if formats else "midi", STDOUT),))]
    if named := output is not None and not several and not _is_folder(output):
        jobs = [Job(sources[0], (Result(_one_format(output, formats), output),))]
    else:
        target = None if output is None else _folder(output)
        jobs = [_derive(source, target, formats or ("midi",), stems) for source in sources]
    return _possible(jobs, named=named, overwrite=overwrite, refuse=refuse or _raise)


def _audio_files(folder: Path) -> list[Path]:
    try:
        found = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in AUDIO_SUFFIXES
            and not path.name.startswith(".")  # macOS leaves ._NAME.wav beside NAME.wav
            and path.is_file()
        )
    except OSError as error:
        raise AudioError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    if not found:
        raise AudioError(
            f"There is no audio file directly in {folder} (looked for "
            f"{' '.join(AUDIO_SUFFIXES)}); name the files or another folder."
        )
    return found


def _is_folder(output: str) -> bool:
    separators = tuple(filter(None, (os.sep, os.altsep)))
    return output.endswith(separators) or is_folder(output)


def _folder(output: str) -> Path:
    """The folder ``output`` means, checked: it can be used, or be made."""
    path = Path(output)
    if not _is_folder(output) and path.suffix.lower() in SUFFIXES:
        raise OptionError(
            f"Several results do not fit into the one file {output}; name a folder with -o, "
            f"such as {path.stem}{os.sep}."
        )
    above = real_path(path).parents
    nearest = next(folder for folder in (path, *above) if exists(folder))
    if not is_folder(nearest):
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


def _derive(
    source: Path, folder: Path | None, formats: tuple[str, ...], stems: tuple[str, ...]
) -> Job:
    suffixes = {name: suffix for suffix, name in reversed(SUFFIXES.items())}  # the first one wins
    base = source.parent if folder is None else folder
    results = []
    for stem in stems or ("",):
        name = f"{source.stem}.{stem}" if stem else source.stem
        results += [Result(form, str(base / (name + suffixes[form])), stem) for form in formats]
    return Job(source, tuple(results))


def _possible(
    jobs: Sequence[Job], *, named: bool, overwrite: bool, refuse: Callable[[OutputError], None]
) -> list[Job]:
    """The jobs whose results can be written."""
    sources = [job.source for job in jobs]
    taken: dict[str, Path] = {}
    possible = []
    for job in jobs:
        try:
            for result in job.results:
                _claim(taken, result.path, job.source)
                # A folder that is to be made was looked at by `_folder`; one in which a missing
                # input would lie is of no interest.
                if named or is_folder(Path(result.path).parent):
                    check_output(result.path, sources)
                if not (named or overwrite) and exists(result.path):
                    raise OptionError(f"{result.path} exists; pass --overwrite to replace it.")
        except OutputError as error:
            refuse(error)
        else:
            possible.append(replace(job, replaces=named or overwrite))
    return possible


def _claim(taken: dict[str, Path], path: str, source: Path) -> None:
    """Notes that ``path`` will come from ``source``, unless it comes from another one."""
    other = taken.setdefault(os.path.normcase(real_path(path)), source)
    if other is not source:
        raise OptionError(
            f"{other} and {source} would both be written to {path}; transcribe them "
            "separately, each with its own -o."
        )


def _raise(error: OutputError) -> None:
    raise error
