"""What the files of a stem say: length of the audio, notes, programs, percussion keys, digest.

Contract: `read_facts` reads the labels and the header of the audio (all of it only where percussion
has to be told by its sound), and never fails: what cannot be read is a reason to leave the stem
out.  Facts are plain JSON values, so that they can be kept between runs.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mt3_evaluation.labels import read_labels
from mt3_runtime.audio.sources import open_audio
from mt3_runtime.errors import MissingDependencyError, MT3Error, OptionError
from mt3_runtime.notes.note import Note
from mt3_training.datasets.drum_sound import RATE, judge, loudest_blocks
from mt3_training.datasets.found_stem import FoundStem
from mt3_training.datasets.index_entry import IndexEntry

MOST_LABEL_BYTES = 1 << 24
"""Of a label file; an hour of piano has a fiftieth of it."""

_STEP = 1000
"""Times in a digest are multiples of 1/1000 s."""


@dataclass(frozen=True)
class Facts:
    """What is known of a stem's files.

    Attributes:
        seconds: Length of the audio.
        digest: Of all notes: times, pitches and whether they are drums.
        drum_keys: Percussion keys, and how many notes each has.
        programs: Programs of pitched notes, and how many notes each has.
        pitches: Pitches of pitched notes; only kept of stems that are said to be drums.
        high: Whether the sound is that of hi-hats and cymbals; None where it was not asked.
        low_db: As of `mt3_training.datasets.drum_sound.DrumSound`.
        unsure: The same.
        reason: Why the stem is left out; empty if it is not.
        detail: More about that.
    """

    seconds: float = 0.0
    digest: str = ""
    drum_keys: Mapping[int, int] = field(default_factory=dict)
    programs: Mapping[int, int] = field(default_factory=dict)
    pitches: Mapping[int, int] = field(default_factory=dict)
    high: bool | None = None
    low_db: float | None = None
    unsure: bool = False
    reason: str = ""
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Facts:
        """From plain values, whose names of numbers have become text."""
        counts = {
            name: {int(key): count for key, count in values[name].items()}
            for name in ("drum_keys", "programs", "pitches")
        }
        return cls(**{**values, **counts})


def read_facts(found: FoundStem) -> Facts:
    """The facts of a stem; see the module docstring."""
    try:
        notes = labels_of(found.labels)
    except MT3Error as error:
        return Facts(reason="labels cannot be read", detail=str(error))
    drums = Counter(note.pitch for note in notes if note.is_drum)
    pitched = [note for note in notes if not note.is_drum]
    # A drum kit whose labels are on no percussion channel: keys and name may not say which drums.
    mute = found.is_drum and found.stem is None and not drums
    try:
        seconds, sound = _listen(found.audio, whole=mute)
    except MissingDependencyError:
        raise  # nothing is wrong with the audio
    except MT3Error as error:
        return Facts(reason="audio cannot be read", detail=str(error))
    return Facts(
        seconds=seconds,
        digest=digest_of(notes),
        drum_keys=dict(sorted(drums.items())),
        programs=dict(sorted(Counter(note.program for note in pitched).items())),
        pitches=dict(sorted(Counter(n.pitch for n in pitched).items())) if found.is_drum else {},
        **sound,
    )


def labels_of(path: Path) -> Sequence[Note]:
    """The notes of a label file.

    Raises:
        OptionError: It cannot be read, or is larger than `MOST_LABEL_BYTES`.
    """
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        size = 0  # the reader says so
    if size > MOST_LABEL_BYTES:
        raise OptionError(f"{path} has {size} bytes, more than labels of a song have.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a set of thousands nobody reads them
        return read_labels((path,)).notes


def own_notes(entry: IndexEntry, notes: Iterable[Note] | None = None) -> list[Note]:
    """The labels that belong to an entry, in order: its percussion keys, or pitched notes.

    Args:
        entry: The entry.
        notes: Those of its labels file; None reads them.

    Raises:
        OptionError: The labels cannot be read.
    """
    every = labels_of(entry.labels) if notes is None else list(notes)
    if not entry.is_drum:
        return [note for note in every if not note.is_drum]
    keys = set(entry.keys)
    drums = [note for note in every if note.is_drum]
    chosen = drums or every  # kits whose labels are on no percussion channel
    return [replace(note, is_drum=True) for note in chosen if note.pitch in keys]


def digest_of(notes: Iterable[Note]) -> str:
    """SHA-256 of times, pitches and kinds of notes; not of instruments, velocities and names."""
    digest = hashlib.sha256()
    rows = sorted(
        (round(note.onset * _STEP), round(note.offset * _STEP), note.pitch, note.is_drum)
        for note in notes
    )
    for onset, offset, pitch, is_drum in rows:
        digest.update(b"%d %d %d %d\n" % (onset, offset, pitch, is_drum))
    return digest.hexdigest() if rows else ""


def _listen(path: Path, *, whole: bool) -> tuple[float, dict[str, Any]]:
    """Length of a recording [s], and what percussion in it sounds like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is cut off, the filter says
        with open_audio(path, target_rate=RATE) as stream:
            if not whole and stream.duration is not None:
                return stream.duration, {}
            count = 0

            def counted() -> Iterable[Any]:
                nonlocal count
                for block in stream:
                    count += len(block)
                    yield block

            loudest = loudest_blocks(counted())
    if not whole:
        return count / RATE, {}
    sound = judge(loudest)
    return count / RATE, {"high": sound.high, "low_db": sound.low_db, "unsure": sound.unsure}
