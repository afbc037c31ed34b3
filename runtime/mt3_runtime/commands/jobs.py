"""Input and output files of `mt3 transcribe`: chosen and checked before any model is loaded.

An hour of work must not end in "file exists".  So every output name is known first, none is an
input or another job's output, and each can be written.

    -o absent          beside each input, NAME.mid
    -o FILE            that file, for one input and one format; an existing file is replaced
    -o FOLDER          FOLDER/NAME.mid; for several results, an existing folder, or "FOLDER/"
    -o -               standard output, for one input and one format

A result that is split into stems is several files, NAME.STEM.mid.  Inputs that share a NAME get
NAME.wav.mid and NAME.mp3.mid; where that does not tell them apart, none of them is done.

A file the user has named is replaced; a name made up here never replaces anything unless the user
says ``--overwrite``.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from mt3_runtime.cli import talk
from mt3_runtime.errors import OptionError, OutputError
from mt3_runtime.files.formats import SUFFIXES, check_format, format_from_suffix
from mt3_runtime.filesystem.atomic import STDOUT, check_output, exists, is_folder, real_path

STDIN = Path("<stdin>")
"""Stands for standard input among the sources; its results are called ``stdin``."""

_LOOKED_AT = 32
"""Entries of a folder, to find one whose name has letters."""


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
        sources: Input files, or `STDIN`.
        output: The argument of ``-o``, or None.
        formats: Chosen formats; empty for the one the output's suffix names, else MIDI.
        folder: The results belong into a folder even if there is only one.
        stems: Names of the stems that each result is split into; empty for one file of all notes.
        overwrite: Made-up names may replace existing files.
        refuse: Is told why an output cannot be written; its source is left out of the result.

    Raises:
        OptionError: The choices contradict each other, or the output of the only source exists.
        OutputError: An output cannot be written, or exists already, or another source has the same
            one; and there is no ``refuse``.
    """
    if output == "":
        raise OptionError("The argument of -o is empty; name a file, a folder or -.")
    sources = list(dict.fromkeys(sources))
    several = folder or bool(stems) or len(sources) > 1 or len(formats) > 1
    if output is None and STDIN in sources:
        raise OptionError("The result of standard input needs a name: -o FILE, or -o - for stdout.")
    if output == STDOUT:
        if several:
            raise OptionError("`-o -` takes one input file and one format, and no --split.")
        return [Job(sources[0], (Result(formats[0] if formats else "midi", STDOUT),))]
    if named := output is not None and not several and not _is_folder(output):
        jobs = [Job(sources[0], (Result(_one_format(output, formats), output),))]
    else:
        target = None if output is None else _folder(output)
        jobs = _derive(sources, target, formats or ("midi",), stems)
    return _possible(jobs, named=named, overwrite=overwrite, refuse=refuse or _raise)


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
    sources: Sequence[Path], folder: Path | None, formats: tuple[str, ...], stems: tuple[str, ...]
) -> list[Job]:
    """Jobs with made-up names: NAME.mid, or NAME.wav.mid where several inputs share the NAME."""
    make = partial(_job, folder=folder, formats=formats, stems=stems)
    jobs = _without_aliases([make(source) for source in sources])
    rivals = _rivals(jobs)
    longer = [make(job.source, whole=job.source in rivals) for job in jobs]
    told = rivals.keys() - _rivals(longer).keys()
    jobs = [new if new.source in told else old for new, old in zip(longer, jobs, strict=True)]
    if told:
        names = ", ".join(job.results[0].path for job in jobs if job.source in told)
        talk(f"warning: inputs share a name; their results have names with the suffix: {names}")
    return jobs


def _job(
    source: Path,
    *,
    folder: Path | None,
    formats: tuple[str, ...],
    stems: tuple[str, ...],
    whole: bool = False,
) -> Job:
    suffixes = {name: suffix for suffix, name in reversed(SUFFIXES.items())}  # the first one wins
    base = source.parent if folder is None else folder
    own = "stdin" if source == STDIN else source.name if whole else source.stem
    results = []
    for stem in stems or ("",):
        name = f"{own}.{stem}" if stem else own
        results += [Result(form, str(base / (name + suffixes[form])), stem) for form in formats]
    return Job(source, tuple(results))


def _possible(
    jobs: Sequence[Job], *, named: bool, overwrite: bool, refuse: Callable[[OutputError], None]
) -> list[Job]:
    """The jobs whose results can be written."""
    sources = [job.source for job in jobs]
    rivals = _rivals(jobs)
    possible = []
    for job in jobs:
        try:
            _check_alone(job, rivals)
            if not named:
                _check_kind(job)
            for result in job.results:
                # A folder that is to be made was looked at by `_folder`; one in which a missing
                # input would lie is of no interest.
                if named or is_folder(Path(result.path).parent):
                    check_output(result.path, sources)
                if not (named or overwrite) and exists(result.path):
                    kind = OptionError if len(jobs) == 1 else OutputError
                    raise kind(f"{result.path} exists; pass --overwrite to replace it.")
        except OutputError as error:
            refuse(error)
        else:
            possible.append(replace(job, replaces=named or overwrite))
    return possible


def _check_kind(job: Job) -> None:
    """Refuses an input whose made-up result has its own name: notes, or nothing at all."""
    for result in job.results:
        if Path(result.path) == job.source:
            raise OutputError(
                f"{job.source} is named as notes are, and its result would replace this input; "
                "expected audio. If it is audio, name the result with -o."
                if exists(job.source)
                else f"{job.source}: there is no such file."
            )


def _check_alone(job: Job, rivals: Mapping[Path, Mapping[Path, str]]) -> None:
    for other, path in rivals.get(job.source, {}).items():
        raise OutputError(
            f"{job.source} and {other} would both be written to {path}; transcribe them "
            "separately, each with its own -o."
        )


def _without_aliases(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without those that would make the result of one before them again."""
    rivals = _rivals(jobs)
    kept: list[Job] = []
    for job in jobs:
        others = rivals.get(job.source, {})
        if not any(k.source in others and _same_file(k.source, job.source) for k in kept):
            kept.append(job)
    return kept


def _rivals(jobs: Sequence[Job]) -> dict[Path, dict[Path, str]]:
    """By source, the others that would write to one of its places, and that place."""
    owners: dict[str, list[tuple[Path, str]]] = {}
    folders: dict[Path, bool] = {}
    for job in jobs:
        for result in job.results:
            folder = Path(result.path).parent
            if folder not in folders:
                folders[folder] = _ignores_case(folder)
            key = os.path.normcase(real_path(result.path))
            if folders[folder]:
                key = unicodedata.normalize("NFC", key).casefold()
            owners.setdefault(key, []).append((job.source, result.path))
    found: dict[Path, dict[Path, str]] = {}
    for several in owners.values():
        for source, path in several:
            others = {other: path for other, _ in several if other != source}
            if others:
                found.setdefault(source, {}).update(others)
    return found


def _ignores_case(folder: Path) -> bool:
    """Whether a folder, or the one in which it will be made, takes A and a for one name."""
    above = real_path(folder)
    nearest = next(place for place in (above, *above.parents) if exists(place))
    with suppress(OSError):
        for entry in chain(islice(nearest.iterdir(), _LOOKED_AT), (nearest, *nearest.parents)):
            other = entry.name.swapcase()
            if entry.name.isascii() and other != entry.name:
                return entry.samefile(entry.with_name(other))
    return False


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return real_path(one) == real_path(other)


def _raise(error: OutputError) -> None:
    raise error
