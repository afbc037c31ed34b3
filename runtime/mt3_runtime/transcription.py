"""The result of a transcription: notes, segment reports, warnings, and how to save them.

`Progress` tells how far one is, and a `Handle` stands for one that is not done.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_runtime.arguments.argument_checks import as_list_of, as_path
from mt3_runtime.decoding.types import Sequence as TokenSequence
from mt3_runtime.extensions.evidence import LineupReport
from mt3_runtime.leakage.leakage_report import LeakageReport

if TYPE_CHECKING:
    import os

    import mido

    from mt3_runtime.notes.base import SegmentReport
    from mt3_runtime.notes.note import Note
    from mt3_runtime.notes.note_events import NoteEvent


@dataclass(frozen=True)
class Progress:
    """How far a transcription is; handed to a ``progress`` callback after every segment.

    Attributes:
        seconds_done: Audio transcribed so far.
        seconds_total: Length of the recording; None for live input.
        notes: Notes found so far, counted by their onsets.
    """

    seconds_done: float
    seconds_total: float | None
    notes: int


@dataclass(frozen=True)
class Transcription:
    """The result for one recording.

    Attributes:
        notes: Ordered by onset, then program and pitch.
        segments: One report per segment, in order; none is ever missing.
        duration: Length of the recording in seconds.
        model: Name of the model.
        token_digest: SHA-256 over all segments' tokens: two runs with equal digests decoded the
            same; see `mt3_runtime.model.token_digest`.
        removed_notes: Notes left out because of ``min_confidence``.
        audio_warning: What of the audio could not be read; None if nothing is missing.
        leakage: What the leakage filter did to the notes.
        smoothing: What `mt3_runtime.leakage.program_smoothing` did to those that remained.
        remarks: What makes the result doubtful, or why it lacks notes: a sentence each, of the
            level of the audio (`mt3_runtime.audio.levels`) and of what options left.
        lineup: Who may occur and why, of ``instruments="auto"``; None otherwise.
        stem_files: Of a separated song, an object of JSON per file: what it holds, which model it
            got and why; empty otherwise.
    """

    notes: tuple[Note, ...]
    segments: tuple[SegmentReport, ...]
    duration: float
    model: str
    token_digest: str
    removed_notes: int = 0
    audio_warning: str | None = None
    leakage: LeakageReport = field(default=LeakageReport())
    smoothing: LeakageReport = field(default=LeakageReport())
    remarks: tuple[str, ...] = ()
    lineup: LineupReport | None = None
    stem_files: tuple[Mapping[str, Any], ...] = ()

    @property
    def warnings(self) -> list[str]:
        """One sentence for everything a user should act on; empty for a clean run.

        Tokens without meaning are not among them: a few occur in almost every recording, and
        `segments` counts them.
        """
        from mt3_runtime.files.midi import port_warning  # noqa: PLC0415  keeps mido out of the import

        truncated = sum(report.truncated for report in self.segments)
        discarded = sum(report.discarded_tokens for report in self.segments)
        sentences = (
            (truncated, f"segments that reached the token limit before they ended: {truncated}"),
            (discarded, f"tokens discarded to imitate the original: {discarded}"),
        )
        audio = [self.audio_warning] if self.audio_warning else []
        counted = [sentence for count, sentence in sentences if count]
        ports = port_warning(self.notes)
        return [*audio, *self.remarks, *counted, *([ports] if ports else [])]

    def summary(self) -> str:
        """One line for a log."""
        programs = {(note.program, note.is_drum) for note in self.notes}
        removed = f" (less {self.removed_notes} unsure ones)" if self.removed_notes else ""
        return (
            f"{self.duration:.1f} s of audio, notes: {len(self.notes)}{removed}, "
            f"instruments: {len(programs)}"
        )

    def stems(self) -> dict[str, tuple[Note, ...]]:
        """The notes by stem (`mt3_runtime.notes.stems.STEMS`); stems without notes are left out."""
        from mt3_runtime.notes.stems import split  # noqa: PLC0415  not needed without the call

        return split(self.notes)

    def to_midi(self, *, tempo: float = 120.0) -> mido.MidiFile:
        """The notes as a MIDI file; see `mt3_runtime.files.midi.to_midi`."""
        from mt3_runtime.files.midi import to_midi  # noqa: PLC0415  keeps mido out of the import

        return to_midi(self.notes, tempo=tempo)

    def save(
        self,
        path: str | os.PathLike[str],
        format: str | None = None,  # noqa: A002  the word that users type
        *,
        tempo: float = 120.0,
    ) -> Path:
        """Writes the result, whole or not at all.

        Args:
            path: Where to; an existing file is replaced.
            format: One of `mt3_runtime.files.formats.FORMATS`; told by the suffix if None.
            tempo: Quarters per minute of a MIDI file, 20 to 400; no other format has one.

        Raises:
            OptionError: The format is unknown, or the tempo is out of range.
            OutputError: The file cannot be written; nothing is left behind.
        """
        from mt3_runtime.files.formats import format_from_suffix, render  # noqa: PLC0415
        from mt3_runtime.filesystem.atomic import write_atomic  # noqa: PLC0415

        target = as_path("path", path)
        name = format_from_suffix(target) if format is None else format
        write_atomic(target, render(self, name, tempo=tempo))
        return target


Tell = Callable[[list["NoteEvent"], Progress], None]
"""Is told of each segment which notes begin and end in it, as the model says it, and how far the
recording is.  The result is what the leakage filter, smoothing and the selection make of that."""

UNKNOWN = 60.0
"""Seconds of audio that a recording counts as while its length is not known: that of a pipe never
is, and that of a file that a process reads is from its first segment on."""


class Handle(Future[Transcription]):
    """A recording that was submitted to an engine: a future, which can also be awaited.

    ``result`` raises what went wrong with the recording, `DeadlineError`, or `EngineError`.

    Args:
        length: Tells the length of the recording in seconds, if it is known.
        deadline: Seconds from now until it is given up.
        stop: Stops the work.

    Attributes:
        progress: How far it is; None before the first segment.
    """

    def __init__(
        self,
        length: Callable[[], float | None],
        deadline: float | None,
        *,
        stop: Callable[[Handle], None],
    ) -> None:
        super().__init__()
        self._length, self._deadline, self._stop = length, deadline, stop
        self._submitted = time.monotonic()
        self._settling = threading.Lock()
        self.progress: Progress | None = None

    def __await__(self) -> Generator[Any, None, Transcription]:
        import asyncio  # noqa: PLC0415  half as long to import as everything else

        return asyncio.wrap_future(self).__await__()

    def cancel(self) -> bool:
        """Stops the work: its slots are free after the step, or the encoder run, that is under way.

        Returns:
            False if it was done before.
        """
        with self._settling:
            if self.done():
                return self.cancelled()
            super().cancel()
            self.set_running_or_notify_cancel()  # wakes those who wait for several
        self._stop(self)
        return True

    def finish(self, outcome: Transcription | BaseException) -> None:
        """Sets the result, unless it was cancelled; for the engine."""
        with self._settling:
            if self.done():
                return
            self.set_running_or_notify_cancel()
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    @property
    def counted(self) -> float:
        """Seconds of audio that it counts as where these are bounded: `left`, or `UNKNOWN`."""
        return self.left if self.length_known else UNKNOWN

    @property
    def length_known(self) -> bool:
        """Whether its length is known by now."""
        return self._length() is not None

    @property
    def left(self) -> float:
        """Seconds of audio that are not transcribed, 0 if the length is not known."""
        done = self.progress.seconds_done if self.progress else 0.0
        return max(0.0, (self._length() or 0.0) - done)

    def age(self, now: float) -> float:
        """Seconds since it was submitted."""
        return now - self._submitted

    def time_left(self, now: float) -> float:
        """Seconds until its deadline, 0 or less behind it; infinite if it has none."""
        return math.inf if self._deadline is None else self._deadline - self.age(now)


def by_onset(notes: Sequence[Note]) -> tuple[Note, ...]:
    """Notes in the order of a score: onset, then program and pitch, drums last."""
    return tuple(sorted(notes, key=lambda n: (n.onset, n.is_drum, n.program, n.pitch, n.offset)))


def as_sequences(tokens: Iterable[TokenSequence]) -> list[TokenSequence]:
    """The sequences of segments; raises `OptionError` if they are something else."""
    expected = "what forward() returns, a list of sequences"
    return as_list_of(TokenSequence, "tokens", tokens, expected)


def token_digest(sequences: Iterable[TokenSequence]) -> str:
    """SHA-256 over the tokens of all segments, each as little-endian int32 behind its length."""
    digest = hashlib.sha256()
    for sequence in as_sequences(sequences):
        update_digest(digest, sequence)
    return digest.hexdigest()


def update_digest(digest: hashlib._Hash, sequence: TokenSequence) -> None:
    """Adds one sequence to a digest as `token_digest` does."""
    digest.update(len(sequence.tokens).to_bytes(4, "little"))
    digest.update(sequence.tokens.astype("<i4").tobytes())
