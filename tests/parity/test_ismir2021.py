"""Magenta's piano model: notes with velocities against the original's event decoding.

Its weights are not here, so tokens are drawn at random: mostly what a piano model says (shifts,
velocities, pitches that come back), now and then what it should not.  Program tokens are left out.
The original takes them at their word, here they are read over (`NoteRules.flat_programs`): the
model was trained without.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.notes.base import SegmentReport
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.vocabulary import EOS, Event, EventKind, Vocabulary
from tests.parity.recordings import Oracle
from tests.parity.test_recordings import NOTE_ERROR, worst_error

VOCABULARY, RULES = Vocabulary.ismir2021(), NoteRules.ismir2021()
START = SegmentConfig(samples=65536).start
RECORDINGS, SEGMENTS, TOKENS = 20, 6, 120

#: Kind, highest value and how often: twelve pitches only, so that notes meet again.
SAYINGS = (
    (EventKind.SHIFT, 90, 0.4),
    (EventKind.VELOCITY, 127, 0.2),
    (EventKind.PITCH, 11, 0.33),
    (EventKind.DRUM, 127, 0.03),
    (EventKind.TIE, 0, 0.02),
    (None, 2, 0.02),  # special ids
)


def _recording(random: np.random.Generator) -> np.ndarray:
    """Token ids int32 [SEGMENTS, TOKENS]; the last one ends the segment."""
    rows = np.full((SEGMENTS, TOKENS), EOS, np.int32)
    for at in np.ndindex(SEGMENTS, TOKENS - 1):
        kind, highest, _ = SAYINGS[random.choice(len(SAYINGS), p=[often for *_, often in SAYINGS])]
        value = int(random.integers(highest + 1))
        if kind is EventKind.VELOCITY and random.random() < 0.5:
            value = 0  # half of all are note-offs
        if kind is None:
            rows[at] = (0, 2, 1663)[value]
        else:
            rows[at] = VOCABULARY.encode(Event(kind, value + 60 * (kind is EventKind.PITCH)))
    return rows


def _assemble(rows: np.ndarray) -> tuple[list[Note], list[SegmentReport]]:
    assembler = NoteAssembler(VOCABULARY, RULES)
    notes: list[Note] = []
    reports = []
    for index, row in enumerate(rows):
        following = START(index + 1) if index + 1 < len(rows) else None
        found, report = assembler.add(row, None, START(index), following)
        notes += found
        reports.append(report)
    return notes + assembler.finish(), reports


def test_notes_are_the_originals(oracle: Oracle, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    recordings = [_recording(random) for _ in range(RECORDINGS)]
    tokens = np.concatenate(recordings)
    lengths = np.full(len(tokens), TOKENS, np.int32)
    counts = [SEGMENTS] * RECORDINGS
    np.savez(tmp_path / "tokens.npz", tokens=tokens, lengths=lengths, counts=counts)
    paths = (tmp_path / "tokens.npz", tmp_path / "notes.json")
    done = oracle("magenta_notes.py", *paths, "ismir2021")
    assert done.returncode == 0, done.stderr
    answers = json.loads(paths[1].read_text())
    velocities = set()
    for rows, answer in zip(recordings, answers, strict=True):
        notes, reports = _assemble(rows)
        theirs = [Note(*note) for note in answer["notes"]]
        assert len(theirs) == len(notes) > 0
        assert worst_error(notes, theirs) <= NOTE_ERROR
        assert sum(report.invalid_events for report in reports) == answer["invalid"] > 0
        assert sum(report.dropped_events for report in reports) == answer["dropped"]
        velocities |= {note.velocity for note in notes}
    assert len(velocities) > 50
    assert sum(answer["dropped"] for answer in answers) > 0
