"""Reads a recording on the thread that asks for it: what a reader process does, without one.

Contract: a :class:`LocalReading` is an iterator over the :class:`ReadPart` of one recording and has
the face of `mt3_runtime.reading.pooled_reading.PooledReading`; limits do not apply.
"""

from __future__ import annotations

from typing import Self

from mt3_runtime.audio.sources import AudioSource, AudioStream, open_audio
from mt3_runtime.reading.reading_plan import ReadingPlan, ReadPart, read_parts


class LocalReading:
    """One recording that is read in this process.

    Args:
        source: As of `open_audio`, which says what is raised.
        plan: What is wanted; blocks of samples if None.
        sr: Sample rate of an array.

    Attributes:
        name: Of the recording, for messages.
        target_rate: Sample rate of what is read [Hz].
    """

    def __init__(
        self, source: AudioSource, plan: ReadingPlan | None = None, *, sr: float | None = None
    ) -> None:
        plan = plan or ReadingPlan()
        self._stream: AudioStream = open_audio(source, sr=sr, target_rate=plan.rate)
        self.name, self.target_rate = self._stream.name, plan.rate
        self._parts = read_parts(self._stream.with_warnings(), plan)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ReadPart:
        return next(self._parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reading and closes the file; may be called twice."""
        self._parts = iter(())
        self._stream.close()

    @property
    def source_rate(self) -> float:
        """Sample rate of the source [Hz]."""
        return self._stream.source_rate

    @property
    def duration(self) -> float | None:
        """Length of the source [s], None where it is not known beforehand."""
        return self._stream.duration

    @property
    def warning(self) -> str | None:
        """What could not be read, known once the rest was; None if nothing."""
        return self._stream.warning

    @property
    def level_warnings(self) -> tuple[str, ...]:
        """What of the level of the audio so far makes notes doubtful."""
        return self._stream.level_warnings
