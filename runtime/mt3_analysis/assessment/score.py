"""A score as arrays of written notes, from MIDI or MusicXML.

Contract: positions are in quarters, so that tempo marks play no part.  A MusicXML score that has
repeats comes in two readings, with and without them; which one was played, the alignment tells.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment.musicxml import XmlNote, XmlScore, read_musicxml
from mt3_analysis.assessment.performance import MAX_NOTES, Floats, Integers, read_bounded
from mt3_runtime.arguments.argument_checks import as_path
from mt3_runtime.errors import OptionError

XML_SUFFIXES = (".musicxml", ".mxl", ".xml")
MIDI_SUFFIXES = (".mid", ".midi")

_SAME_Q = 1e-3  # positions nearer than this are one


@dataclass(frozen=True, eq=False)
class Score:
    """Written notes, ordered by position, then pitch.

    Attributes:
        onset_q: Float64 [n], position in quarters.
        length_q: Float64 [n], written length in quarters; 0 for grace notes.
        pitch: Int64 [n], MIDI pitch.
        ornament: Bool [n], whether a trill, mordent or turn stands over the note.
        name: The file.
        repeats: Whether repeats are written out in it; None if it has none.
    """

    onset_q: Floats
    length_q: Floats
    pitch: Integers
    ornament: npt.NDArray[np.bool_]
    name: str = "score"
    repeats: bool | None = None

    def __len__(self) -> int:
        """The number of notes."""
        return len(self.onset_q)

    def chord_of(self) -> Integers:
        """Index of each note's chord, int64 [n]: the notes of one position."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.append(0, np.cumsum(np.diff(self.onset_q) > _SAME_Q)).astype(np.int64)


def read_scores(path: str | os.PathLike[str]) -> tuple[Score, ...]:
    """Reads a score: one reading, or two where repeats may be played or not.

    Raises:
        OptionError: It cannot be read, is of another format, or has no notes.
    """
    file = as_path("score", path)
    suffix = file.suffix.lower()
    if suffix in XML_SUFFIXES:
        written = read_musicxml(file)
        plain, repeated = list(range(len(written.lengths))), written.repeated_order()
        orders = [plain] if plain == repeated else [plain, repeated]
        marks = [None] if len(orders) == 1 else [False, True]
        found = tuple(
            _from_xml(written, order, file.name, mark)
            for order, mark in zip(orders, marks, strict=True)
        )
    elif suffix in MIDI_SUFFIXES:
        found = (_from_midi(file),)
    else:
        kinds = ", ".join((*MIDI_SUFFIXES, *XML_SUFFIXES))
        raise OptionError(f"the score {str(file)!r} has the suffix {suffix!r}; expected {kinds}.")
    for score in found:
        if not 1 <= len(score) <= MAX_NOTES:
            raise OptionError(
                f"the score {str(file)!r} has {len(score):,} notes; expected 1 to {MAX_NOTES:,}."
            )
    return found


def make_score(
    onset_q: npt.ArrayLike,
    length_q: npt.ArrayLike,
    pitch: npt.ArrayLike,
    *,
    ornament: npt.ArrayLike | None = None,
    name: str = "score",
    repeats: bool | None = None,
) -> Score:
    """Makes a score of columns [n] in any order; see `Score`."""
    on, long = np.asarray(onset_q, np.float64), np.asarray(length_q, np.float64)
    height = np.asarray(pitch, np.int64)
    marks = np.zeros(len(on), bool) if ornament is None else np.asarray(ornament, bool)
    order = np.lexsort((height, on))
    return Score(on[order], long[order], height[order], marks[order], name, repeats)


def _from_midi(file: os.PathLike[str]) -> Score:
    import mido  # noqa: PLC0415

    from mt3_runtime.files.midi import from_midi  # noqa: PLC0415
    from mt3_runtime.files.midi_reader import read_midi  # noqa: PLC0415

    path = as_path("score", file)
    data = read_bounded(path, "a score as MIDI")
    try:
        midi = read_midi(data)
        for track in midi.tracks:
            for message in track:
                if message.type == "set_tempo":
                    message.tempo = 1_000_000
        # A quarter a second: seconds are quarters.
        midi.tracks.insert(0, mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=1_000_000)]))
        notes = [note for note in from_midi(midi) if not note.is_drum]
    except OptionError as error:
        raise OptionError(f"the score {str(path)!r}: {error}") from error
    columns = [(note.onset, note.offset - note.onset, note.pitch) for note in notes]
    on, length, pitch = np.array(columns, np.float64).reshape(-1, 3).T
    return make_score(on, length, pitch, name=path.name)


def _from_xml(written: XmlScore, order: list[int], name: str, repeats: bool | None) -> Score:  # noqa: FBT001
    by_measure: dict[int, list[XmlNote]] = {}
    for note in written.notes:
        by_measure.setdefault(note.measure, []).append(note)
    rows: list[list[float]] = []  # onset, length, pitch, ornament
    sounding: dict[int, list[float]] = {}
    position = 0.0
    for index in order:
        for note in sorted(by_measure.get(index, []), key=lambda n: (n.start, not n.tied)):
            onset = position + note.start
            before = sounding.get(note.pitch)
            joins = before is not None and abs(before[0] + before[1] - onset) < _SAME_Q
            if note.tied and joins and before is not None:
                before[1] += note.length
                continue
            row = [onset, note.length, note.pitch, note.ornament]
            same = before is not None and abs(before[0] - onset) < _SAME_Q and before[1] > 0.0
            if same and before is not None and note.length > 0.0:
                before[1] = max(before[1], note.length)  # one key, written in two voices
                continue
            rows.append(row)
            sounding[note.pitch] = row
        position += written.lengths[index]
    columns = np.array(rows, np.float64).reshape(-1, 4).T
    marks = columns[3] > 0
    return make_score(*columns[:3], ornament=marks, name=name, repeats=repeats)
