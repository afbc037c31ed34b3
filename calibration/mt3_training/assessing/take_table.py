"""Makes examples of a table of takes: frames by the exported audio encoder, notes, labels.

::

    name,piece,condition,audio,midi,timing,pedal
    0001,Schubert D960 ii,none,0001.wav,0001.mid,100,100

Contract: columns after the first five are dimensions, from 0 to 100.  Files are beside the table or
named by their whole path; the first clip of each is taken.  The ``set.json`` of degraded
performances is a table, too, once each of its MIDI files was rendered to a ``.wav`` of its name:
dimensions are the kinds of degradation, the label of a take's own kind falls with its level, all
others are 100.  No framework is needed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from mt3_analysis.assessment_networks.artefact_probe import nuisances
from mt3_analysis.assessment_networks.network_session import AssessorNetworks
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.files.formats import load_notes
from mt3_runtime.notes.note import Note
from mt3_runtime.schema import Between, read_document, read_fields
from mt3_training.assessing.assessor_examples import Entry, Example, write_examples

SET_FORMAT = "mt3-runtime.degraded-performances"
WHOLE = "none"
"""Kind of what was not degraded."""
HEAD = ("name", "piece", "condition", "audio", "midi")
_MOST_BYTES = 1 << 26
#: Samples that `nuisances` needs.
_SHORTEST = 2048


@dataclass(frozen=True)
class Take:
    """A row of the table.

    Attributes:
        entry: What goes into the index.
        audio: A recording.
        midi: Its notes.
    """

    entry: Entry
    audio: Path
    midi: Path


def read_takes(path: Path) -> tuple[tuple[str, ...], tuple[Take, ...]]:
    """Names of the dimensions, and the rows, of a table or of a set of degraded performances.

    Raises:
        OptionError: It cannot be read, has other columns, or a label is no number from 0 to 100.
    """
    if path.suffix == ".json":
        return _degraded(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise OptionError(f"{path} is too large for a table of takes.")
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionError(f"{path} cannot be read as a table: {error}.") from error
    if not rows or tuple(rows[0][:5]) != HEAD or len(rows[0]) < 6:
        raise OptionError(
            f"{path} must begin with the columns {', '.join(HEAD)}, and have a dimension more."
        )
    found = [_take(path, rows[0], row, line) for line, row in enumerate(rows[1:], 2) if row]
    if not found:
        raise OptionError(f"{path} has no takes.")
    return tuple(rows[0][5:]), tuple(found)


def _take(path: Path, head: list[str], row: list[str], line: int) -> Take:
    try:
        labels = tuple(float(value) for value in row[5:])
    except ValueError:
        labels = ()
    if len(row) != len(head) or not labels or not all(0.0 <= label <= 100.0 for label in labels):
        raise OptionError(
            f"{path}, line {line}: expected {len(head)} values, the labels from 0 to 100."
        )
    name, piece, condition, audio, midi = row[:5]
    return Take(Entry(name, piece, condition, labels), path.parent / audio, path.parent / midi)


@dataclass(frozen=True)
class _Version:
    """What ``set.json`` says of a file."""

    file: str
    source: str
    group: str
    kind: str
    level: Annotated[float, Between(0.0, 1.0)]
    sha256: str


@dataclass(frozen=True)
class _Set:
    """The content of ``set.json``."""

    seed: int
    files: tuple[_Version, ...]


def _degraded(path: Path) -> tuple[tuple[str, ...], tuple[Take, ...]]:
    try:
        body = read_document(
            path,
            SET_FORMAT,
            1,
            most=_MOST_BYTES,
            otherwise="is no set of degraded performances",
            remedy="Make it again.",
        )
        versions = read_fields(_Set, body, str(path)).files
    except BundleError as error:
        raise OptionError(str(error)) from error
    kinds = tuple(dict.fromkeys(each.kind for each in versions if each.kind != WHOLE))
    if not kinds:
        raise OptionError(f"{path} has no degraded performances.")
    takes = []
    for each in versions:
        labels = tuple(100.0 * (1.0 - each.level * (each.kind == kind)) for kind in kinds)
        midi = path.parent / each.file
        entry = Entry(midi.stem, each.group, each.kind, labels)
        takes.append(Take(entry, midi.with_suffix(".wav"), midi))
    return tuple(kind.replace("-", "_") for kind in kinds), tuple(takes)


def make_examples(table: Path, networks: AssessorNetworks, folder: Path) -> int:
    """Writes the examples of a table; gives how many.

    Args:
        table: The file.
        networks: With an audio encoder.
        folder: To write to.

    Raises:
        OptionError: The table is wrong, or a take has no notes.
        AudioError: A recording cannot be read.
        BundleError: There is no audio encoder.
        OutputError: The folder cannot be written.
    """
    dimensions, takes = read_takes(table)
    spec = networks.manifest.audio
    if spec is None:
        raise BundleError(f"{networks.bundle.path} holds no audio encoder; export one of a MERT.")

    def items() -> Iterator[Example]:
        for take in takes:
            samples = load_audio(take.audio, target_rate=spec.sample_rate)[: spec.samples]
            if len(samples) < max(spec.shortest, _SHORTEST):
                raise OptionError(f"{take.audio} is too short to be assessed.")
            seconds = len(samples) / spec.sample_rate
            notes = [note for note in load_notes(take.midi) if note.onset < seconds]
            if not notes:
                raise OptionError(f"{take.midi} has no notes in the first {seconds:.1f} s.")
            about = nuisances(samples, spec.sample_rate, notes=len(notes))
            yield Example(take.entry, networks.frames(samples), note_array(notes), about)

    frame_seconds = spec.hop / spec.sample_rate
    return write_examples(folder, dimensions, items(), frame_seconds=frame_seconds)


def note_array(notes: list[Note]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Notes as float64 [n, 4]: onset, offset, pitch, velocity; drums are left out."""
    rows = [(n.onset, n.offset, n.pitch, n.velocity) for n in notes if not n.is_drum]
    return np.array(rows, np.float64).reshape(-1, 4)
