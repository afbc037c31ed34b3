"""Evidence of a transcription: how much of what sounds is played by whom.

Contract: the weight of a note is its length times its confidence; a share is a family's weight of
all.  Drum hits have no length, so each counts as a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mt3_analysis.tagging.instrument_families import family_of_note
from mt3_analysis.tagging.tag_results import Evidence, Scored, TagWindow, ranked
from mt3_runtime.notes.instruments import instrument_name
from mt3_runtime.notes.note import Note

HIT_SECONDS = 0.1
"""The least a note counts for."""

WINDOW_SECONDS = 5.0
"""Length of the stretches over time: long enough for a few notes of a slow piece."""


def note_evidence(notes: Sequence[Note], duration: float, model: str) -> Evidence:
    """What notes say of the instruments.

    Args:
        notes: Of a transcription, in any order.
        duration: Length of the recording [s].
        model: Name of the model.
    """
    windows = []
    start = 0.0
    while start < duration:
        end = min(start + WINDOW_SECONDS, duration)
        windows.append(TagWindow(start, end, _shares(notes, _family, start, end)))
        start += WINDOW_SECONDS
    whole = max([duration, *(note.offset for note in notes)], default=0.0) + HIT_SECONDS
    return Evidence(
        "transcription",
        model,
        _shares(notes, _family, 0.0, whole),
        _shares(notes, _instrument, 0.0, whole),
        tuple(windows),
    )


def _family(note: Note) -> str | None:
    return family_of_note(note.program, is_drum=note.is_drum)


def _instrument(note: Note) -> str | None:
    return instrument_name(note.program, is_drum=note.is_drum)


def _shares(
    notes: Iterable[Note], name_of: Callable[[Note], str | None], start: float, end: float
) -> tuple[Scored, ...]:
    """Shares by name of what sounds from ``start`` to ``end``."""
    weights: dict[str, float] = {}
    total = 0.0
    for note in notes:
        last = max(note.offset, note.onset + HIT_SECONDS)
        length = min(last, end) - max(note.onset, start)
        if length > 0:
            weight = length * note.confidence
            total += weight
            if (name := name_of(note)) is not None:
                weights[name] = weights.get(name, 0.0) + weight
    return ranked({name: weight / total for name, weight in weights.items()}) if total else ()
