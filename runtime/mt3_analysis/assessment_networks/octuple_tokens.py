"""Octuple tokens of notes as published, and the frames that each note is heard in.

A token has eight fields: type, beat, position, pitch, duration, velocity, instrument, bar.  Beats
come from a tempo; MIDI of performances says 120 for everything, so beat, position and bar are a
grid of 31 ms that means nothing musically, type and instrument are constant, and pedals are not
there at all.  That is what the published networks read, and it is kept for them.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import OptionError

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]

FIELDS = ("type", "beat", "position", "pitch", "duration", "velocity", "instrument", "bar")
LOWEST_PITCH, HIGHEST_PITCH = 21, 108
"""A piano's."""
POSITIONS = 16
"""A beat."""
BEATS_PER_BAR = 4
"""Assumed as published, whatever the file says."""
LONGEST = 127
"""Of the field duration, in hundredths of a second: what sounds longer looks like 1.27 s."""
MOST_BARS = 512
USUAL_TEMPO = 120.0
"""[quarter notes a minute] of a file that says nothing."""
HEARD_SECONDS = 0.3
"""From its onset on, a note is paired with the frames of this time."""


def check_notes(notes: object) -> Floats:
    """Notes as float64 [n, 4]: onset [s], offset [s], pitch, velocity.

    Raises:
        OptionError: They have another shape, are not finite, or a pitch or velocity is no MIDI
            number; a note ends before it begins.
    """
    try:
        found = np.asarray(notes, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(1)
    if found.ndim != 2 or found.shape[1] != 4:
        raise OptionError(
            "notes must be an array [n, 4] of onset and offset in seconds, pitch and velocity."
        )
    if not np.isfinite(found).all():
        raise OptionError("notes hold values that are no numbers.")
    bad = (found[:, 2:] < 0).any(axis=1) | (found[:, 2:] > 127).any(axis=1)
    bad |= found[:, 1] < found[:, 0]
    if bad.any():
        row = int(np.argmax(bad))
        raise OptionError(
            f"note {row} is {', '.join(f'{v:g}' for v in found[row])}; expected an offset that is "
            "not before the onset, and pitch and velocity from 0 to 127."
        )
    return found


def octuple_tokens(
    notes: object, *, most: int = 512, tempo: float = USUAL_TEMPO, fill: bool = False
) -> Tokens:
    """Tokens int64 [n, 8] of notes, by onset; equal onsets by pitch.

    Args:
        notes: As in `check_notes`; onsets before 0 count as 0.
        most: Later notes are left out.
        tempo: Quarter notes a minute.
        fill: Whether fewer notes are filled up to ``most`` with zeros.

    Raises:
        OptionError: The notes are none, or the tempo is not positive.
    """
    found = in_order(notes)[:most]
    if not (math.isfinite(tempo) and tempo > 0):
        raise OptionError(f"tempo is {tempo}; expected a positive number of beats a minute.")
    beats = np.maximum(found[:, 0], 0.0) * (tempo / 60.0)
    whole = np.floor(beats).astype(np.int64)
    pitch = np.clip(found[:, 2], LOWEST_PITCH, HIGHEST_PITCH).astype(np.int64) - LOWEST_PITCH
    hundredths = (100.0 * (found[:, 1] - found[:, 0])).astype(np.int64)
    made = np.zeros((most if fill else len(found), len(FIELDS)), np.int64)
    made[: len(found)] = np.stack(
        [
            np.zeros(len(found), np.int64),
            whole % BEATS_PER_BAR,
            np.minimum((beats - whole) * POSITIONS, POSITIONS - 1).astype(np.int64),
            pitch,
            np.minimum(hundredths, LONGEST),
            found[:, 3].astype(np.int64),
            np.zeros(len(found), np.int64),
            np.minimum(whole // BEATS_PER_BAR, MOST_BARS - 1),
        ],
        axis=1,
    )
    return made


def in_order(notes: object) -> Floats:
    """Notes by onset, equal onsets by pitch; raises as `check_notes`."""
    found = check_notes(notes)
    return found[np.lexsort((found[:, 2], found[:, 0]))]


def note_spans(
    onsets: npt.ArrayLike, frames: int, *, frame_seconds: float, heard: float = HEARD_SECONDS
) -> Tokens:
    """First frame of each note and the one after the last it is paired with: int64 [n, 2].

    A note within the clip has at least one frame; one that begins outside has the nearest.

    Args:
        onsets: [s] from the beginning of the clip, [n].
        frames: In the clip; at least one.
        frame_seconds: From one frame to the next [s].
        heard: How long a note is listened to [s].

    Raises:
        OptionError: There is no frame.
    """
    if frames < 1:
        raise OptionError("notes cannot be paired with a clip that has no frame.")
    begins = np.asarray(onsets, np.float64)
    first = np.clip(np.floor(begins / frame_seconds), 0, frames - 1).astype(np.int64)
    last = np.ceil((begins + heard) / frame_seconds).astype(np.int64)
    return np.stack([first, np.clip(last, first + 1, frames)], axis=1)
