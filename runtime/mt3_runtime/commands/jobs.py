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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mt3_runtime.cli import talk
from mt3_runtime.commands.path_collisions import InputFiles, find_rivals, same_file
from mt3_runtime.errors import OptionError, OutputError
from mt3_runtime.files.formats import SUFFIXES, check_format, format_from_suffix
from mt3_runtime.filesystem.atomic import (
    STDOUT,
    check_links,
    check_output,
    exists,
    is_folder,
    real_path,
)

#: The first suffix of each format.
_SUFFIX_OF = {name: suffix for suffix, name in reversed(SUFFIXES.items())}

STDIN = Path("<stdin>")
"""Stands for standard input among the sources; its results are called ``stdin``."""


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


@dataclass(frozen=True)
class Draft:
    """All jobs of a call, with their names, before anything was looked at.

    Attributes:
        jobs: One for each source; those that are the same file are left out.
        named: The user has named the only output, so it replaces what is there.
        folder: The one folder of all results, if that was named.
        rivals: By source, the others that would write to one of its places, and that place.
    """

    jobs: tuple[Job, ...]
    named: bool = False
    folder: Path | None = None
    rivals: Mapping[Path, Mapping[Path, str]] = field(default_factory=dict)


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
    """Gives every source its outputs and checks them; see `draft` and `possible`."""
    drafted = draft(sources, output=output, formats=formats, folder=folder, stems=stems)
    told = None if refuse is None else lambda _, error: refuse(error)
    return possible(drafted, overwrite=overwrite, refuse=told)


def draft(
    sources: Sequence[Path],
    *,
    output: str | None = None,
    formats: tuple[str, ...] = (),
    folder: bool = False,
    stems: tuple[str, ...] = (),
    places: Mapping[Path, str] | None = None,
    longer: bool = True,
) -> Draft:
    """Gives every source its outputs.

    Args:
        sources: Input files, or `STDIN`.
        output: The argument of ``-o``, or None.
        formats: Chosen formats; empty for the one the output's suffix names, else MIDI.
        folder: The results belong into a folder even if there is only one.
        stems: Names of the stems that each result is split into; empty for one file of all notes.
        places: Folders below ``output`` into which the results of some sources belong.
        longer: Inputs that share a NAME get names with their suffix.

    Raises:
        OptionError: The choices contradict each other.
        OutputError: There can be no such folder.
    """
    if output == "":
        raise OptionError("The argument of -o is empty; name a file, a folder or -.")
    sources = list(dict.fromkeys(sources))
    several = folder or bool(stems) or len(sources) > 1 or len(formats) > 1
    if output is None and STDIN in sources:
        raise OptionError("The result of standard input needs a name: -o FILE, or -o - for stdout.")
    if output == STDOUT:
        if several and (formats != ("jsonl",) or stems):
            raise OptionError(
                "`-o -` takes one input file and one format, and no --split; or several files and "
                "-f jsonl."
            )
        result = Result(formats[0] if formats else "midi", STDOUT)
        return Draft(tuple(Job(source, (result,)) for source in sources))
    if output is not None and not several and not _is_folder(output):
        result = Result(_one_format(output, formats), output)
        return Draft((Job(sources[0], (result,)),), named=True)
    target = None if output is None else _folder(output)
    made = _derive(sources, target, formats or ("midi",), stems, places or {}, longer=longer)
    return Draft(tuple(made[0]), folder=target, rivals=made[1])


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
    check_links(path)
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
    sources: Sequence[Path],
    folder: Path | None,
    formats: tuple[str, ...],
    stems: tuple[str, ...],
    places: Mapping[Path, str],
    *,
    longer: bool,
) -> tuple[list[Job], dict[Path, dict[Path, str]]]:
    """Jobs with made-up names: NAME.mid, or NAME.wav.mid where several inputs share the NAME.

    With them their rivals, see `Draft`; to find those takes longer than anything else.
    """

    def make(source: Path, *, whole: bool = False) -> Job:
        base = source.parent if folder is None else folder / places.get(source, "")
        return _job(source, base, formats, stems, whole=whole)

    jobs = [make(source) for source in sources]
    rivals = _rivals(jobs)
    if rivals:
        jobs = _without_aliases(jobs, rivals)
        rivals = _rivals(jobs)
    if not (rivals and longer):
        return jobs, rivals
    whole = [make(job.source, whole=job.source in rivals) for job in jobs]
    told = rivals.keys() - _rivals(whole).keys()
    jobs = [new if new.source in told else old for new, old in zip(whole, jobs, strict=True)]
    if told:
        names = ", ".join(job.results[0].path for job in jobs if job.source in told)
        talk(f"warning: inputs share a name; their results have names with the suffix: {names}")
    return jobs, _rivals(jobs)


def _job(
    source: Path, base: Path, formats: tuple[str, ...], stems: tuple[str, ...], *, whole: bool
) -> Job:
    own = "stdin" if source is STDIN else source.name if whole else source.stem
    results: list[Result] = []
    place = "" if str(base) == "." else os.path.join(base, "")  # noqa: PTH118  see `Stamp.of`
    for stem in stems or ("",):
        name = f"{place}{own}.{stem}" if stem else f"{place}{own}"
        results += [Result(form, name + _SUFFIX_OF[form], stem) for form in formats]
    return Job(source, tuple(results))


def possible(
    drafted: Draft,
    *,
    overwrite: bool = False,
    refuse: Callable[[Job, OutputError], None] | None = None,
    skip: Callable[[Job], bool] | None = None,
    may_replace: Callable[[Job, str], bool] | None = None,
) -> list[Job]:
    """The jobs that are to be done and whose results can be written.

    Args:
        drafted: All jobs.
        overwrite: Made-up names may replace existing files.
        refuse: Is told why an output cannot be written; its source is left out of the result.
        skip: Whether a job need not be done.
        may_replace: Whether an existing file may be replaced all the same.

    Raises:
        OptionError: The output of the only source exists.
        OutputError: An output cannot be written, or exists already, or another source has the same
            one; and there is no ``refuse``.
    """
    jobs, replaces = drafted.jobs, drafted.named or overwrite
    if jobs and jobs[0].results[0].path == STDOUT:
        return list(jobs)
    inputs, kept = InputFiles(job.source for job in jobs), []
    for job in jobs:
        if skip is not None and skip(job):
            continue
        try:
            _check_places(job, drafted, inputs)
            for result in job.results:
                if replaces or not exists(result.path):
                    continue
                if may_replace is None or not may_replace(job, result.path):
                    kind = OptionError if len(jobs) == 1 else OutputError
                    raise kind(f"{result.path} exists; pass --overwrite to replace it.")
        except OutputError as error:
            (refuse or _raise)(job, error)
        else:
            kept.append(replace(job, replaces=replaces))
    return kept


def _check_places(job: Job, drafted: Draft, inputs: InputFiles) -> None:
    """Refuses results that cannot be written, or not without harm to other files of the call."""
    _check_name(job, drafted)
    for result in job.results:
        # A folder that is to be made was looked at by `_folder`; one in which a missing input
        # would lie is of no interest.
        if drafted.named or is_folder(Path(result.path).parent):
            check_output(result.path)
            inputs.check(result.path)


def _check_name(job: Job, drafted: Draft) -> None:
    """Refuses results that another input has as well, or that have the name of their own input."""
    for other, path in drafted.rivals.get(job.source, {}).items():
        raise OutputError(
            f"{job.source} and {other} would both be written to {path}; transcribe them "
            "separately, each with its own -o."
        )
    if not drafted.named and any(Path(result.path) == job.source for result in job.results):
        raise OutputError(
            f"{job.source} is named as notes are, and its result would replace this input; "
            "expected audio. If it is audio, name the result with -o."
            if exists(job.source)
            else f"{job.source}: there is no such file."
        )


def _without_aliases(jobs: Iterable[Job], rivals: Mapping[Path, Mapping[Path, str]]) -> list[Job]:
    """The jobs without those that would make the result of one before them again."""
    kept: list[Job] = []
    for job in jobs:
        others = rivals.get(job.source, {})
        if not any(k.source in others and same_file(k.source, job.source) for k in kept):
            kept.append(job)
    return kept


def _rivals(jobs: Iterable[Job]) -> dict[Path, dict[Path, str]]:
    return find_rivals((job.source, [result.path for result in job.results]) for job in jobs)


def _raise(_job: Job, error: OutputError) -> None:
    raise error
