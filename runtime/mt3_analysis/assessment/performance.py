"""A piano performance as arrays of notes and pedals, and what is known of it.

Contract: one `Performance` whatever it comes from (a MIDI file, a transcription, arrays).  Notes
are ordered by onset, then pitch; of two that overlap on one pitch the earlier ends where the later
begins, as on a piano.  What was left out or changed to get there is said in `remarks`; what cannot
be known of it (velocities that are all the same, pedals that a file has no word of) is not in
`known`, so that nothing is measured that was not played.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mt3_runtime.arguments.argument_checks import as_path, refused
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    import mido

    from mt3_runtime.notes.note import Note
    from mt3_runtime.transcription import Transcription

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Known = Literal["velocity", "pedal"]

SUSTAIN = 64
"""Controller of the sustain pedal."""

PEDAL_DOWN = 64
"""Value from which a pedal counts as pressed, by the MIDI standard."""

MAX_BYTES = 64 << 20
"""Largest MIDI file that is read; an hour of dense piano with continuous pedals has about 1 MB."""

MAX_SECONDS = 4 * 3600.0
"""Longest performance: longer than any recital, shorter than what a program wrote by mistake."""

MAX_NOTES = 200_000
"""Most notes of a performance: 14 a second for the longest one."""

COMMON_VELOCITY = 0.95
"""Share of notes with one velocity from which on velocities say nothing of dynamics."""

ON_GRID = 0.95
"""Share of onsets on a grid from which on they were written, not played."""

_GRID = 24  # steps of a quarter: holds demisemiquavers and semiquaver triplets
_LEAST_DIVISION = 96  # ticks of a quarter; of fewer a played onset is on the grid too often
_LEAST_STEP_S = 0.05  # steps of time that are tried; 1 ms either side is 4 % of them by chance
_FEWEST_ONSETS = 30  # to tell a grid


@dataclass(frozen=True, eq=False)
class PedalCurve:
    """Movements of a pedal.

    Attributes:
        time_s: Float64 [n], rising [s].
        value: Int64 [n], 0 (up) to 127 (down); it holds until the next movement.
    """

    time_s: Floats
    value: Integers

    def is_down(self, at_s: Floats) -> npt.NDArray[np.bool_]:
        """Whether the pedal is pressed at times in seconds; before the first movement it is up."""
        place = np.searchsorted(self.time_s, at_s, side="right") - 1
        return (place >= 0) & (self.value[np.maximum(place, 0)] >= PEDAL_DOWN)

    def presses(self, end_s: float) -> Floats:
        """When it is pressed and lifted, [presses, 2] seconds; the last at ``end_s`` if never."""
        down = np.concatenate(([False], self.value >= PEDAL_DOWN, [False])).astype(np.int64)
        change = np.diff(down)
        times = np.append(self.time_s, max(end_s, self.time_s[-1] if len(self.time_s) else 0.0))
        return np.stack((times[change == 1], times[change == -1]), axis=1)


@dataclass(frozen=True, eq=False)
class Performance:
    """Notes and pedals of one performance.

    Attributes:
        onset_s: Float64 [n], ordered by onset, then pitch [s].
        offset_s: Float64 [n], when the key is lifted, not before the onset [s].
        pitch: Int64 [n], MIDI pitch.
        velocity: Int64 [n], MIDI velocity 1..127.
        pedals: Movements by controller (64 sustain, 66 sostenuto, 67 soft); only pedals that move.
        known: What else than notes is known: ``velocity``, ``pedal``.
        on_grid: Whether the onsets lie on a grid, as written and not as played.
        name: For tables: the file, or what made it.
        remarks: What was left out or changed, a sentence each.
    """

    onset_s: Floats
    offset_s: Floats
    pitch: Integers
    velocity: Integers
    pedals: Mapping[int, PedalCurve] = field(default_factory=dict)
    known: frozenset[Known] = frozenset()
    on_grid: bool = False
    name: str = "performance"
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of notes."""
        return len(self.onset_s)

    @property
    def duration_s(self) -> float:
        """From the first onset to the last offset [s]."""
        return float(self.offset_s.max() - self.onset_s[0]) if len(self) else 0.0

    @property
    def sustain(self) -> PedalCurve | None:
        """The sustain pedal, if it is known."""
        return self.pedals.get(SUSTAIN) if "pedal" in self.known else None

    @classmethod
    def from_midi(cls, path: str | os.PathLike[str]) -> Performance:
        """Reads a performance from a MIDI file.

        Drums are left out, and where a piano plays, other instruments too; `remarks` says so.

        Raises:
            OptionError: The file cannot be read, is no MIDI file, or holds more than a performance.
        """
        from mt3_runtime.files.midi import from_midi, pedals_from_midi  # noqa: PLC0415  mido
        from mt3_runtime.files.midi_reader import read_midi  # noqa: PLC0415

        file = as_path("path", path)
        data = read_bounded(file, "a performance as a MIDI file")
        try:
            midi = read_midi(data)
            notes, changes = from_midi(midi), pedals_from_midi(midi)
        except OptionError as error:
            raise OptionError(f"{str(file)!r}: {error}") from error
        curves = {
            control: [
                (change.time, change.value) for change in changes if change.control == control
            ]
            for control in sorted({change.control for change in changes})
        }
        grid, changing = _ticks_on_grid(midi), _changes_tempo(midi)
        made = from_notes(notes, pedals=curves, name=file.name, on_grid=grid and not changing)
        if grid and changing:
            sentence = "Its timing is in its tempo changes alone; so is what is said of timing."
            made = replace(made, remarks=(*made.remarks, sentence), on_grid=False)
        return made

    @classmethod
    def from_transcription(cls, transcription: Transcription, *, name: str = "") -> Performance:
        """Takes the notes of a transcription; velocities are known if the model tells them apart.

        Raises:
            OptionError: It holds more than a performance.
        """
        return from_notes(transcription.notes, name=name or transcription.model)

    @classmethod
    def from_arrays(
        cls,
        onset_s: npt.ArrayLike,
        offset_s: npt.ArrayLike,
        *,
        pitch: npt.ArrayLike,
        velocity: npt.ArrayLike | None = None,
        pedals: Mapping[int, Sequence[tuple[float, int]]] | None = None,
        name: str = "performance",
    ) -> Performance:
        """Takes notes from arrays of one length, in any order.

        Args:
            onset_s: [n] in seconds.
            offset_s: [n] in seconds.
            pitch: [n] MIDI pitches 0..127.
            velocity: [n] MIDI velocities 1..127; None where they are not known.
            pedals: By controller, times in seconds and values 0..127.
            name: For tables.

        Raises:
            OptionError: Lengths differ, or a value is outside its range.
        """
        on, off = _column("onset_s", onset_s), _column("offset_s", offset_s)
        heights = _column("pitch", pitch)
        loud = np.full(len(on), 64.0) if velocity is None else _column("velocity", velocity)
        if not len(on) == len(off) == len(heights) == len(loud):
            lengths = f"{len(on)}, {len(off)}, {len(heights)} and {len(loud)}"
            raise OptionError(f"onset_s, offset_s, pitch, velocity have {lengths} values.")
        if len(on) and (on.min() < 0.0 or (off < on).any() or off.max() > 1e9):
            raise OptionError("a note does not span 0 <= onset <= offset <= 1e9 seconds.")
        for label, values, low in (("pitch", heights, 0), ("velocity", loud, 1)):
            if len(values) and not (low <= values.min() and values.max() <= 127):
                raise OptionError(f"{label} is outside {low}..127.")
        curves = {} if pedals is None else {int(c): list(curve) for c, curve in pedals.items()}
        return _performance(on, off, heights, loud, curves, name=name, remarks=[], on_grid=False)


def from_notes(
    notes: Sequence[Note],
    *,
    pedals: Mapping[int, Sequence[tuple[float, int]]] | None = None,
    name: str = "performance",
    on_grid: bool = False,
) -> Performance:
    """Makes a performance of notes, as `Performance.from_midi` does.

    Raises:
        OptionError: They are more than a performance.
    """
    pitched = [note for note in notes if not note.is_drum]
    piano = [note for note in pitched if note.program < 8]
    chosen = piano or pitched
    remarks = []
    if len(pitched) < len(notes):
        remarks.append(f"{len(notes) - len(pitched)} notes of drums are left out.")
    if piano and len(piano) < len(pitched):
        others = len({note.program for note in pitched if note.program >= 8})
        left = len(pitched) - len(piano)
        remarks.append(f"{left} notes of {others} other instruments than piano are left out.")
    elif pitched and not piano:
        remarks.append("No piano plays; what is measured here is meant for the piano.")
    columns = [(n.onset, n.offset, n.pitch, max(n.velocity, 1)) for n in chosen]
    on, off, pitch, loud = np.array(columns, np.float64).reshape(-1, 4).T
    curves = {} if pedals is None else pedals
    return _performance(on, off, pitch, loud, curves, name=name, remarks=remarks, on_grid=on_grid)


def _performance(
    on: Floats,
    off: Floats,
    pitch: Floats,
    loud: Floats,
    pedals: Mapping[int, Sequence[tuple[float, int]]],
    *,
    name: str,
    remarks: list[str],
    on_grid: bool,
) -> Performance:
    if len(on) > MAX_NOTES or (len(on) and off.max() - on.min() > MAX_SECONDS):
        span = (off.max() - on.min()) / 3600
        raise OptionError(
            f"{name} has {len(on):,} notes over {span:.1f} hours; expected at most {MAX_NOTES:,} "
            f"over {MAX_SECONDS / 3600:.0f} hours. Cut it into pieces first."
        )
    order = np.lexsort((off, pitch, on))
    on, off = on[order], off[order].copy()
    height, velocity = pitch[order].astype(np.int64), loud[order].astype(np.int64)
    if overlaps := _cut_overlaps(on, off, height):
        remarks.append(f"{overlaps} notes overlap the next one of their pitch; cut there.")
    if empty := int((off <= on).sum()):
        remarks.append(f"{empty} notes have no length; they are left out of what lengths say.")
    end = float(off.max()) if len(off) else 0.0
    curves = {control: _curve(control, curve) for control, curve in pedals.items() if len(curve)}
    curves = {control: curve for control, curve in curves.items() if np.ptp(curve.value)}
    known: set[Known] = set()
    if len(on) and np.bincount(velocity).max() < COMMON_VELOCITY * len(on):
        known.add("velocity")
    sustain = curves.get(SUSTAIN)
    if sustain is not None:
        known.add("pedal")
        if sustain.value[-1] >= PEDAL_DOWN:
            remarks.append(
                f"The pedal is never lifted at the end; it ends with the notes ({end:.1f} s)."
            )
    return Performance(
        on, off, height, velocity, curves, frozenset(known),
        on_grid or _times_on_grid(on), name, tuple(remarks),
    )  # fmt: skip


def _cut_overlaps(on: Floats, off: Floats, pitch: Integers) -> int:
    """Ends notes where the next of their pitch begins, in place; returns how many."""
    order = np.lexsort((on, pitch))
    here, following = order[:-1], order[1:]
    cut = (pitch[here] == pitch[following]) & (off[here] > on[following])
    off[here[cut]] = on[following[cut]]
    return int(cut.sum())


def _curve(control: int, curve: Sequence[tuple[float, int]]) -> PedalCurve:
    try:
        times, values = np.array(curve, np.float64).reshape(-1, 2).T
    except (TypeError, ValueError) as error:
        raise refused(f"pedal {control}", curve, "times and values") from error
    if not np.isfinite(times).all() or not ((values >= 0) & (values <= 127)).all():
        raise OptionError(f"pedal {control} has values outside 0..127, or times that are none.")
    order = np.argsort(times, kind="stable")
    return PedalCurve(times[order], values[order].astype(np.int64))


def _column(name: str, values: Any) -> Floats:
    try:
        column = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise refused(name, values, "numbers [n]") from error
    if column.ndim != 1 or not np.isfinite(column).all():
        raise refused(name, values, "finite numbers [n]")
    return column


def read_bounded(file: Path, what: str, most: int = MAX_BYTES) -> bytes:
    """The bytes of a file of at most so many.

    Args:
        file: The file.
        what: What is expected, for the message.
        most: Bytes.

    Raises:
        OptionError: It cannot be read, is no regular file, or larger.
    """
    try:
        status = file.stat()
        data = b""
        if stat.S_ISREG(status.st_mode) and status.st_size <= most:
            with file.open("rb") as stream:
                data = stream.read(most)
    except (OSError, ValueError) as error:  # such as a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"cannot read {str(file)!r}: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        raise OptionError(f"{str(file)!r} is no file; expected {what}.")
    if status.st_size > most:
        size = f"{status.st_size >> 20} MB; expected {what} of at most {most >> 20} MB"
        raise OptionError(f"{str(file)!r} has {size}.")
    return data


def _ticks_on_grid(midi: mido.MidiFile) -> bool:
    """Whether the ticks of nearly all onsets are those of written note values."""
    division = midi.ticks_per_beat
    if division < _LEAST_DIVISION:
        return False
    ticks = []
    for track in midi.tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "note_on" and message.velocity > 0:
                ticks.append(tick)
    steps = np.unique(ticks) * (_GRID / division)
    apart = np.abs(steps - np.round(steps)) * division / _GRID
    return len(steps) >= _FEWEST_ONSETS and float((apart <= 0.5).mean()) >= ON_GRID


def _changes_tempo(midi: mido.MidiFile) -> bool:
    tempi = {m.tempo for track in midi.tracks for m in track if m.type == "set_tempo"}
    return len(tempi) > 8  # a score with a few tempi is still none that was played


def _times_on_grid(on: Floats) -> bool:
    """Whether nearly all onsets are whole numbers of one step apart."""
    gaps = np.diff(np.unique(np.round(on, 3)))
    if len(gaps) < _FEWEST_ONSETS or gaps.max() < _LEAST_STEP_S:
        return False
    step = float(gaps[gaps >= _LEAST_STEP_S].min())
    for part in (1, 2, 3):
        size = step / part
        apart = np.abs(gaps - np.round(gaps / size) * size)
        if size >= _LEAST_STEP_S and float((apart <= 0.0015).mean()) >= ON_GRID:
            return True
    return False
