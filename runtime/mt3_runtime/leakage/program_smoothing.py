"""Smooths programs that change for one segment and back.

Segments are transcribed on their own, so a flute may be a violin for two seconds.  Contract:
`smooth` gives such notes the program of the segments around theirs and reports every change as a
leakage filter does; it changes nothing but programs of pitched notes.  It is off by default: it
repairs twice as many notes as it spoils, but a true change of instrument looks the same.

A segment's program is a slip if

* two notes or more begin with it there, and none in the two segments to either side;
* none of them sounds on into the next segment: what a model ties, it has confirmed;
* the model gave the program token less than 90 % (if that is known);
* exactly one program is missing in just that segment, with two notes or more in each of its
  neighbours, and has the register: its notes there reach to within a third of these.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from mt3_runtime.leakage.leakage_report import Change, Filtered, LeakageReport
from mt3_runtime.notes.note import Note

REACH = 2
"""Segments to either side in which a slip's program must not occur."""

FEWEST = 2
"""Notes from which an instrument counts as present."""

REGISTER = 4
"""Semitones by which notes may leave the range of the instrument they are given to."""

SURE = 0.9
"""Probability of a program token that is believed."""

HELD_SECONDS = 0.02
"""By which a note must outlast its segment to be tied; two steps of the models' clock."""

SLIP = "this program occurs in one segment only, and that of its neighbours is missing there"

_Places = Mapping[tuple[int, int], Sequence[int]]


def smooth(notes: Sequence[Note], starts: Sequence[float]) -> Filtered:
    """Repairs slips.

    Args:
        notes: Of a recording, in any order.
        starts: Start times of its segments, ascending.
    """
    places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for place, note in enumerate(notes):
        if not note.is_drum:
            places[bisect.bisect(starts, note.onset) - 1, note.program].append(place)
    renamed: dict[int, Change] = {}
    for (segment, program), own in places.items():
        end = starts[segment + 1] if segment + 1 < len(starts) else float("inf")
        slipped = [notes[place] for place in own]
        if _may_be_slip(slipped, end) and _is_alone(places, segment, program):
            true = _missing(places, segment, slipped, notes)
            if true is not None:
                changes = (Change(n, replace(n, program=true), SLIP) for n in slipped)
                renamed |= zip(own, changes, strict=True)
    after = [renamed[k].became if k in renamed else note for k, note in enumerate(notes)]
    by_onset = sorted(renamed.values(), key=lambda change: change.note)
    return Filtered(
        [note for note in after if note is not None],
        LeakageReport("smooth", len(notes), tuple(by_onset)),
    )


def _may_be_slip(own: Sequence[Note], end: float) -> bool:
    """Whether the notes that begin with a program in a segment leave it open what plays them."""
    known = [n.probabilities.program for n in own if n.probabilities.program is not None]
    return (
        len(own) >= FEWEST
        and all(note.offset <= end + HELD_SECONDS for note in own)
        and (not known or median(known) < SURE)
    )


def _is_alone(places: _Places, segment: int, program: int) -> bool:
    """Whether a program occurs in no segment near."""
    near = range(segment - REACH, segment + REACH + 1)
    return not any((other, program) in places for other in near if other != segment)


def _missing(
    places: _Places, segment: int, own: Sequence[Note], notes: Sequence[Note]
) -> int | None:
    """The program that is in both neighbours and not here, and could play these notes."""
    found = []
    for (other, program), before in places.items():
        after = places.get((segment + 1, program), ())
        if other != segment - 1 or (segment, program) in places:
            continue
        if min(len(before), len(after)) < FEWEST:
            continue
        pitches = [notes[place].pitch for place in (*before, *after)]
        low, high = min(pitches) - REGISTER, max(pitches) + REGISTER
        if all(low <= note.pitch <= high for note in own):
            found.append(program)
    return found[0] if len(found) == 1 else None
