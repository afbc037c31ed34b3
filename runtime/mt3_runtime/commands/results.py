"""Writes the results of `mt3 transcribe` and tells the person watching."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.cli import talk
from mt3_runtime.commands.jobs import Job, Result
from mt3_runtime.errors import AudioWarning, MidiWarning, OptionError, OutputError, ResultWarning
from mt3_runtime.files.formats import render
from mt3_runtime.files.midi import port_warning
from mt3_runtime.filesystem.atomic import (
    STDOUT,
    exists,
    is_folder,
    make_folder,
    real_path,
    write_output,
)
from mt3_runtime.filesystem.ownership import is_regular

if TYPE_CHECKING:
    from mt3_runtime.transcription import Transcription


REPEATED = AudioWarning, ResultWarning
"""Python warnings whose text results have as well; said once, by `tell_warnings`."""


def check_stdout(job: Job) -> None:
    """Refuses a standard output that cannot take a job's result.

    Raises:
        OptionError: It is a terminal, and the result is MIDI.
        OutputError: It is closed.
    """
    if any(result.path == STDOUT for result in job.results):
        if sys.stdout is None:
            raise OutputError("`-o -` needs a standard output, and this one is closed.")
        if job.results[0].format == "midi" and sys.stdout.isatty():
            raise OptionError("MIDI is binary; redirect stdout, or choose another --format.")


def check_tempo(jobs: Sequence[Job], tempo: float | None) -> None:
    """Refuses a tempo where no result has one.

    Raises:
        OptionError: None of them is MIDI.
    """
    formats = {result.format for job in jobs for result in job.results}
    if tempo is not None and formats and "midi" not in formats:
        raise OptionError("--tempo is that of MIDI files; leave it out, or add midi to --format.")


def keep_out(model: Path, jobs: Sequence[Job]) -> None:
    """Refuses results inside the model's folder, where one could replace a part of it.

    Raises:
        OutputError: One would lie there.
    """
    places = [Path(result.path) for job in jobs for result in job.results if result.path != STDOUT]
    for place in places:
        if is_folder(model) and real_path(place).is_relative_to(real_path(model)):
            raise OutputError(f"{place} is inside the model {model}; choose another folder.")


def write(result: Transcription, job: Job, tempo: float | None = None) -> list[str]:
    """Writes a job's files, and returns their names; a stem without notes gets none.

    Args:
        result: What is written.
        job: Where to.
        tempo: Quarters per minute of MIDI files; None for the usual one.

    Raises:
        OutputError: A file cannot be written, or has come in since the job was planned.
    """
    contents = contents_of(result, job, tempo)
    write_files(contents, job)
    return [*contents]


def contents_of(result: Transcription, job: Job, tempo: float | None = None) -> dict[str, bytes]:
    """The content of a job's files, by their paths; arguments as in `write`."""
    stems = result.stems() if any(target.stem for target in job.results) else {}
    wanted: list[tuple[Result, Transcription]] = []
    for target in job.results:
        if not target.stem:
            wanted.append((target, result))
        elif target.stem in stems:
            wanted.append((target, replace(result, notes=stems[target.stem])))
    rendered = render if tempo is None else partial(render, tempo=tempo)
    contents = {}
    for target, part in wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MidiWarning)  # said here, with the name
            contents[target.path] = rendered(part, target.format)
        if target.format == "midi" and (message := port_warning(part.notes)):
            talk(f"warning: {about(job.source, message)}")
    return contents


def write_files(
    contents: Mapping[str, bytes],
    job: Job,
    *,
    may_replace: Callable[[str], bool] | None = None,
    keep: bool = False,
) -> list[str]:
    """Writes files, each whole or not at all, and none if one is there that must not be replaced.

    Args:
        contents: By path.
        job: Whose they are.
        may_replace: Whether a file that has come in may be replaced.
        keep: Leave what is there as it is, and write the others.

    Returns:
        All that are there now, but for what was kept and is another one.

    Raises:
        OutputError: A file cannot be written, or another one is in its place.
    """
    wanted, same = dict(contents), list[str]()
    for path, content in contents.items() if not job.replaces else ():
        if not exists(path) or (may_replace is not None and may_replace(path)):
            continue
        if _holds(path, content):
            same.append(path)
            del wanted[path]
        elif keep:
            del wanted[path]
        else:
            raise OutputError(f"{path} exists by now; pass --overwrite to replace it.")
    for path, content in wanted.items():
        if path != STDOUT:
            make_folder(Path(path).parent)
        write_output(path, content)
    return [path for path in contents if path in wanted or path in same]


def _holds(path: str, content: bytes) -> bool:
    """Whether a file has this content: another run has made the same result."""
    try:
        return is_regular(path) and Path(path).read_bytes() == content
    except OSError:
        return False


def tell_warnings(
    result: Transcription, source: Path, written: Sequence[str] | None = None
) -> None:
    """Says what a user should know of a result, but for what `write` says of its files.

    Args:
        result: What was transcribed.
        source: From which file.
        written: What `write` returned; nothing, if no stem has notes.
    """
    ports = port_warning(result.notes)
    for message in result.warnings:
        if message != ports:
            talk(f"warning: {about(source, message)}")
    if written is not None and not written:
        talk(f"warning: {source}: there are no notes, so no stem was written")


def tell(result: Transcription, job: Job, written: Sequence[str], *, speed: float) -> None:
    """Says what a job came to; ``speed`` is in times of real time."""
    targets = ", ".join("stdout" if path == STDOUT else path for path in written)
    lineup = getattr(result, "lineup", None)  # results of several stems have none
    if lineup is not None:
        talk(f"{job.source}: {lineup.summary()}")
    talk(f"{job.source}: {result.summary()}, {speed:.1f} times real time -> {targets or 'nothing'}")


def tell_changes(result: Transcription, source: Path) -> None:
    """Says what filters did to which notes."""
    for report in (result.leakage, result.smoothing):
        for line in report.lines() if report.filter != "none" else ():
            talk(f"{source}: {line}")


def about(source: Path, message: str) -> str:
    """A message that names the file it is about."""
    return message if source.name in message else f"{source}: {message}"
