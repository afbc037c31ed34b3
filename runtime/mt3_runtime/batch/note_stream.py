"""Streams notes to standard output while recordings are transcribed: `-f jsonl -o -`.

Contract: one JSON object a line, flushed as it comes; of several recordings each line says of which
it is.  They are done one after another, as notes of two would be mixed otherwise.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mt3_runtime.batch.task import Task
from mt3_runtime.cli import talk
from mt3_runtime.commands.jobs import STDIN
from mt3_runtime.commands.results import about
from mt3_runtime.errors import AudioError, OutputError
from mt3_runtime.files.formats import note_to_json_line
from mt3_runtime.filesystem.atomic import STDOUT, write_output

if TYPE_CHECKING:
    from mt3_runtime.model import Model


def stream_notes(
    model: Model,
    tasks: Iterable[Task],
    *,
    named: bool,
    quiet: bool,
    fail_fast: bool,
    options: dict[str, Any],
) -> int:
    """Writes the notes of recordings, and returns how many of those failed.

    Args:
        model: What transcribes.
        tasks: The recordings.
        named: Whether each line says of which it is, as ``source``.
        quiet: Whether nothing but errors and warnings is said.
        fail_fast: Whether the first failure ends it.
        options: Of `Model.stream`.

    Raises:
        OutputError: Nobody reads the notes, or the disk is full.
    """
    failed = 0
    for task in tasks:
        source = task.job.source
        prefix = f'{{"source": {json.dumps(str(source))}, ' if named else "{"
        count = 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                for note in model.stream(task.audio, **options):
                    line = prefix + note_to_json_line(note)[1:] + "\n"
                    write_output(STDOUT, line.encode("utf-8", "surrogateescape"))
                    count += 1
            except AudioError as error:
                talk(f"error: {about(source, str(error))}")
                failed += 1
            except OutputError as error:
                if isinstance(error.__cause__, BrokenPipeError):
                    raise
                raise OutputError(about(source, str(error))) from error
            else:
                if not quiet:
                    talk(f"{'stdin' if source == STDIN else source}: {count} notes -> stdout")
            for warning in caught:
                talk(f"warning: {about(source, str(warning.message))}")
        if failed and fail_fast:
            break
    return failed
