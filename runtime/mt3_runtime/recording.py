"""One recording on its way from audio to notes: what lies on both sides of the decoder.

Contract: `Recording.jobs` reads the audio and cuts it into segments, on the thread that feeds the
decoder; `Recording.add` takes what was decoded of them, in their order, on the thread that wants
the result, and `Recording.result` is that result once the last one was added.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from mt3_runtime.errors import ResultWarning
from mt3_runtime.notes.base import ChannelTokens
from mt3_runtime.transcription import Progress, Transcription, by_onset

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioStream
    from mt3_runtime.backends.base import FloatArray
    from mt3_runtime.decoding.types import Decoded, Jobs, Sequence, Span
    from mt3_runtime.notes.base import Assembler, SegmentReport
    from mt3_runtime.notes.note import Note
    from mt3_runtime.request import Request


class Recording:
    """Collects the segments of one recording.

    Args:
        request: What is asked for.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._assembler = request.assembler()
        self._leakage = request.leakage()
        self._reports: list[SegmentReport] = []
        self._digest = hashlib.sha256()
        self._stream: AudioStream | None = None
        self._samples = 0

    def jobs(
        self, opened: Callable[[], AudioStream], cut_up: Callable[[Iterable[FloatArray]], Jobs]
    ) -> Jobs:
        """The segments; opens the audio at the first one and closes it behind the last.

        Args:
            opened: Opens the audio.
            cut_up: Makes segments of its blocks.
        """
        with opened() as stream:
            self._stream = stream
            yield from cut_up(self._counted(stream))

    def add(self, decoded: Decoded) -> Progress:
        """Takes in the next segment and returns how far the recording is."""
        notes, report = assemble(self._assembler, decoded.span, decoded.sequences)
        self._leakage.add(notes, decoded.span.next_start)
        self._reports.append(report)
        for sequence in decoded.sequences:
            update_digest(self._digest, sequence)
        begun = sum(report.notes for report in self._reports)
        total = self._stream.duration if self._stream else None
        return Progress(decoded.span.next_start or self._seconds, total, begun)

    def result(self, model: str) -> Transcription:
        """Ends the recording; ``model`` is the name of the model."""
        self._leakage.add(self._assembler.finish(), None)
        kept, leakage = self._leakage.finish()
        starts = [report.start for report in self._reports]
        notes, smoothing = self._request.smoothed(kept, starts)
        selection = self._request.selection()
        sure = selection.keep(notes)
        level = self._stream.level_warnings if self._stream else ()
        remarks = selection.sentences(leakage.notes)
        for remark in remarks:
            warnings.warn(remark, ResultWarning, stacklevel=2)
        return Transcription(
            notes=by_onset(sure),
            segments=tuple(self._reports),
            duration=self._seconds,
            model=model,
            token_digest=self._digest.hexdigest(),
            removed_notes=selection.removed,
            audio_warning=self._stream.warning if self._stream else None,
            leakage=leakage,
            smoothing=smoothing,
            remarks=(*level, *remarks),
        )

    def _counted(self, stream: AudioStream) -> Iterator[FloatArray]:
        for block in self._leakage.listen(stream.with_warnings()):
            self._samples += len(block)
            yield block

    @property
    def _seconds(self) -> float:
        """How much was read."""
        return self._samples / self._stream.target_rate if self._stream else 0.0


def assemble(
    assembler: Assembler, span: Span, sequences: Iterable[Sequence]
) -> tuple[list[Note], SegmentReport]:
    """Hands a segment to the assembler; returns the notes that are settled now, and its report."""
    channels = [ChannelTokens(s.tokens, np.exp(s.log_probs), s.truncated) for s in sequences]
    return assembler.add_channels(channels, span.start, span.next_start)


def token_digest(sequences: Iterable[Sequence]) -> str:
    """SHA-256 over the tokens of all segments, each as little-endian int32 behind its length."""
    digest = hashlib.sha256()
    for sequence in sequences:
        update_digest(digest, sequence)
    return digest.hexdigest()


def update_digest(digest: hashlib._Hash, sequence: Sequence) -> None:
    """Adds one sequence to a digest as `token_digest` does."""
    digest.update(len(sequence.tokens).to_bytes(4, "little"))
    digest.update(sequence.tokens.astype("<i4").tobytes())
