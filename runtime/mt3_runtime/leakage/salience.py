"""Pitch salience and onset evidence from the audio: is a pitch sounding, what kind of hit is there.

Contract: `SalienceAnalyser.hear` is given a recording's samples, block by block, while they are
read; afterwards `SalienceAnalyser.note` says of a note what was heard where it starts,
`SalienceAnalyser.tones` what set in there, and `SalienceAnalyser.tonal_share` how much of a stretch
was made of tones.  Nothing here knows a model; nothing depends on how the audio came in blocks.

The evidence is the spectrum's *prominence*: how far a frequency stands out from the mean level (in
dB) of its surroundings, 94 Hz to either side.  Partials of a tone stand out by 20 dB and more for
as long as it sounds; the noise of a drum does so by chance only, and a drum that rings has few
frequencies, always the same ones.

Of every 32 ms a row of 1 KB is kept until it is no longer needed, and 16 bytes for good.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.leakage.harmonics import Harmonics, setting_in
from mt3_runtime.leakage.partials import PIANO
from mt3_runtime.leakage.salience_frames import (
    FLOOR,
    FRAMES_PER_WINDOW,
    MOST_FRAMES,
    FrameGrid,
    SalienceFrames,
    SalienceSpectra,
)

if TYPE_CHECKING:
    from mt3_runtime.notes.note import Note

SETTLED_SECONDS = 0.08
"""A note is judged by the frames that begin within this time from its onset."""

HELD_SECONDS = 1.0
"""And, if it is held, by what follows up to this time: there, the drums have faded."""

KICK_SHARE, DRUM_SHARE = 0.5, 0.6
"""A hit with half of its energy below 100 Hz is a kick; with three fifths below 400 Hz, a tom;
above 3 kHz, a hi-hat; anything else is a snare."""

KICK, SNARE, CLOSED_HAT, LOW_TOM = 36, 38, 42, 45
"""General MIDI percussion keys."""


class OnsetEvidence(NamedTuple):
    """What is heard where a note starts.

    Attributes:
        clarity: How clearly its pitch is heard; from 1 on it counts as clear (see
            `PitchClarity`).
        rise: By how many dB the level rises there.
        drum_key: The percussion key that the new sound is most like.
    """

    clarity: float
    rise: float
    drum_key: int


class SalienceAnalyser:
    """Hears a recording.  One thread may hear while another asks.

    Args:
        rate: Samples per second.

    Attributes:
        harmonics: Of all pitches, in what `tones` gives.
    """

    def __init__(self, rate: int) -> None:
        self._spectra: SalienceSpectra | None = None
        self._grid = grid = FrameGrid(rate)
        self.harmonics = Harmonics(rate / grid.size, grid.low)
        self._lock = threading.Lock()
        self._heard = self._samples = 0
        self._chunks: deque[_Chunk] = deque()
        # Cumulative sums, and the frame ahead of which they begin.
        self._tones, self._amplitudes, self._first_sum = array("d", [0.0]), array("d", [0.0]), 0

    def hear(self, block: npt.NDArray[np.float32]) -> None:
        """Takes the next samples, float32 [n]."""
        if self._spectra is None:
            self._spectra = SalienceSpectra(self._grid.rate)
        self.take(self._spectra.hear(block))

    def take(self, frames: SalienceFrames) -> None:
        """Takes what another `SalienceSpectra` has heard next, in place of the samples."""
        with self._lock:
            if len(frames.clarity):
                self._chunks.append(_Chunk(self._heard, frames.clarity, frames.power, frames.level))
            _accumulate(self._tones, frames.tones)
            _accumulate(self._amplitudes, frames.amplitudes)
            self._heard += len(frames.clarity)
            self._samples = frames.samples

    def forget(self, seconds: float, *, shares: bool = False) -> None:
        """Frees what is only needed for notes that start before this time.

        Args:
            seconds: The time.
            shares: `tonal_share` is not asked for earlier times either.
        """
        with self._lock:
            frame = int(seconds / self._seconds)
            if shares and frame - self._first_sum > MOST_FRAMES:
                del self._tones[: frame - self._first_sum]
                del self._amplitudes[: frame - self._first_sum]
                self._first_sum = frame
            while self._chunks and self._chunks[0].end <= frame - FRAMES_PER_WINDOW - 1:
                self._chunks.popleft()

    def note(self, note: Note, *, until: float = math.inf) -> OnsetEvidence:
        """What was heard where a note starts, in the audio up to a time.

        A note whose beginning is forgotten is clear: no drum rings as long.
        """
        last = self._last(until)
        at = note.onset / self._seconds
        first = min(math.ceil(at), last)
        settled = self._settled(note.onset, last)
        if settled is None:
            forgotten = bool(self._chunks) and first < self._chunks[0].first
            return OnsetEvidence(math.inf if forgotten else 0.0, 0.0, SNARE)
        pitch = min(max(note.pitch, PIANO[0]), PIANO[1]) - PIANO[0]
        now = self._row(min(round(at), last))
        before = self._row(min(math.floor(at) - FRAMES_PER_WINDOW, last))
        ratio = (float(now.sum()) + FLOOR) / (float(before.sum()) + FLOOR)
        new = np.maximum(now - before, 0.0)
        clarity = float(settled.clarity[:, pitch].mean(dtype=np.float64))
        until = min(note.offset, note.onset + HELD_SECONDS) / self._seconds - FRAMES_PER_WINDOW
        held = self._rows(
            math.ceil(at + SETTLED_SECONDS / self._seconds), min(math.floor(until), last)
        )
        if held is not None:
            clarity = max(clarity, float(held.clarity[:, pitch].mean(dtype=np.float64)))
        return OnsetEvidence(
            clarity=clarity,
            rise=10.0 * math.log10(ratio),
            drum_key=_drum_key(new / max(float(new.sum()), FLOOR)),
        )

    def tones(self, onset: float, *, until: float = math.inf) -> npt.NDArray[np.float16]:
        """Tones that set in at a time, in the audio up to another, see `harmonics`."""
        last = self._last(until)
        settled = self._settled(onset, last)
        if settled is None:
            return np.zeros(self._grid.low, np.float16)
        frame = min(math.floor(onset / self._seconds) - FRAMES_PER_WINDOW, last)
        past = self._rows(frame, frame)
        silence = np.full(self._grid.low, math.log10(FLOOR), np.float32)
        before = silence if past is None else past.level[0].astype(np.float32)
        return setting_in(settled.level.mean(axis=0, dtype=np.float32), before).astype(np.float16)

    def tonal_share(self, start: float, end: float) -> float:
        """Share of the amplitudes from one time to another that belongs to tones, 0..1."""
        with self._lock:
            last = max(0, self._last(end) + 1)
            first = min(max(0, int(start / self._seconds)), last)
            last, first = last - self._first_sum, max(0, first - self._first_sum)
            whole = self._amplitudes[last] - self._amplitudes[first]
            return (self._tones[last] - self._tones[first]) / whole if whole > 0.0 else 0.0

    @property
    def seconds(self) -> float:
        """How much was heard."""
        return self._samples / self._grid.rate

    @property
    def _seconds(self) -> float:
        """From frame to frame."""
        return self._grid.hop / self._grid.rate

    def _last(self, until: float) -> int:
        """The last frame that was heard and ends before a time; -1 if there is none."""
        if math.isinf(until):
            return self._heard - 1
        grid = self._grid
        return min(self._heard, int((until * grid.rate - grid.size) // grid.hop) + 1) - 1

    def _row(self, frame: int) -> npt.NDArray[np.float32]:
        """The power of a frame in each band; zeros ahead of the beginning."""
        row = self._rows(frame, frame)
        return np.zeros(len(self._grid.bands) - 1, np.float32) if row is None else row.power[0]

    def _settled(self, onset: float, last: int) -> _Chunk | None:
        """The frames by which a note is judged, of those up to ``last``."""
        at = onset / self._seconds
        first = min(math.ceil(at), last)
        return self._rows(first, min(int(at + SETTLED_SECONDS / self._seconds), last))

    def _rows(self, first: int, last: int) -> _Chunk | None:
        """What is kept of frames ``first`` to ``last``; None if that is nothing."""
        with self._lock:
            parts = [c for c in self._chunks if c.first <= last and c.end > first <= last]
        cut = [slice(max(0, first - c.first), last + 1 - c.first) for c in parts]
        if not parts:
            return None
        return _Chunk(
            first,
            np.concatenate([c.clarity[rows] for c, rows in zip(parts, cut, strict=True)]),
            np.concatenate([c.power[rows] for c, rows in zip(parts, cut, strict=True)]),
            np.concatenate([c.level[rows] for c, rows in zip(parts, cut, strict=True)]),
        )


class _Chunk(NamedTuple):
    """What is kept of consecutive frames.

    Attributes:
        first: Number of the first one.
        clarity: float16 [k, pitches].
        power: float32 [k, bands].
        level: float16 [k, low frequencies], log10 of their amplitudes.
    """

    first: int
    clarity: npt.NDArray[np.float16]
    power: npt.NDArray[np.float32]
    level: npt.NDArray[np.float16]

    @property
    def end(self) -> int:
        """Number of the frame behind the last one."""
        return self.first + len(self.clarity)


def _accumulate(sums: array[float], values: npt.NDArray[np.float64]) -> None:
    """Continues cumulative sums."""
    for value in values.tolist():  # one by one, so that blocks do not matter
        sums.append(sums[-1] + value)


def _drum_key(shares: npt.NDArray[np.floating[Any]]) -> int:
    """The percussion key whose sound has these shares of its energy in the bands."""
    if shares[0] > KICK_SHARE:
        return KICK
    if shares[:3].sum() > DRUM_SHARE:
        return LOW_TOM
    return CLOSED_HAT if shares[5:].sum() > DRUM_SHARE else SNARE
