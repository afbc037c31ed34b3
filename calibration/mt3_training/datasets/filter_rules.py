"""Says of an index's entry whether it teaches anything: silent, empty, damaged, noise, misaligned.

Contract: `examine` decodes the audio of an entry once, block by block, reads its labels, and gives
a reason to leave it out, or none.  What it measures, and why:

* silence by the loudest moments and not by the mean of the file: a part that plays five seconds of
  a song is no silent one;
* noise by the flatness of the mean spectrum: 1 for white noise, 0.1 for notes, 0.6 for cymbals;
* agreement of labels and sound by the rise of energy at each label's own pitch.  Labels that are
  shifted in time meet other notes' onsets, so the share of labels that begin with a rise is also
  compared with what it would be with the labels moved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.sources import open_audio
from mt3_runtime.errors import AudioWarning, MissingDependencyError, MT3Error
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import HIGH_KEYS
from mt3_training.datasets.index_entry import IndexEntry
from mt3_training.datasets.stem_facts import own_notes

Samples = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]

RATE = 16_000
"""Audio is looked at with this rate [Hz]."""

HOP = 160
"""Samples between frames: 10 ms."""

SILENCE = -40.0
"""Level of the loudest 5 s below which a part may be silent [dB of full scale]."""

MOMENT_BELOW = 10.0
"""And of its loudest half second, so much lower [dB]: short sounds are heard, too."""

SHORTEST = 1.0
"""Seconds of audio that teach anything."""

FLATTEST = 0.8
"""Flatness of the mean spectrum from which a stem is noise."""

LEAST_AGREEMENT, LEAST_DRUMS = 0.3, 0.15
"""Shares of labels, of pitches and of drums, that begin with a rise of energy.  Made-up stems have
at least 0.32 and 0.25 (hi-hats drown in cymbals), with noise in their place 0.16 and 0.03."""

SHIFT_GAIN, SHIFT_DRUMS = 0.1, 0.25
"""By which these shares may grow if all labels are moved: by 0.07 and 0.18 at most where they are
right, and mostly by 0.2 to 0.5 where they are half a second late.  A beat that repeats after half a
second tells nothing."""

DENSEST = 15.0
"""Pitched notes a second from which few rise: the next begins before this one is up.  Then only
moving the labels tells."""

EXCERPT = 60.0
"""Seconds from the first label on that are compared with the labels."""

_FRAME = 1024
_RISE = 2.0  # dB
_BEFORE, _AFTER = (-9, -2), (2, 9)  # frames around an onset, 20 to 90 ms
_FARTHEST, _STEP = 100, 5  # frames that labels are moved by
_LATE = 30  # frames
_HARMONICS = 6
_DRUM_BANDS = ((40, 150), (150, 3000), (3000, 8000))  # Hz: kicks, other skins, metal
KICKS = frozenset({35, 36})
_FEWEST_LABELS = 8
"""With fewer, no share is a share."""


@dataclass(frozen=True)
class Verdict:
    """What to do with an entry.

    Attributes:
        reason: Why it is left out, the same words for all of a kind; empty if it is kept.
        detail: What was measured.
    """

    reason: str = ""
    detail: str = ""


def examine(entry: IndexEntry, *, silence: float = SILENCE) -> Verdict:
    """The verdict on an entry; what cannot be read is left out, too.

    Args:
        entry: The entry.
        silence: See `SILENCE` [dB].
    """
    try:
        notes = own_notes(entry)
    except MT3Error as error:
        return Verdict("labels cannot be read", str(error))
    if not notes:
        return Verdict("no notes", "none of the labels belongs to the stem")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            heard = _read(entry, notes[0].onset)
    except MissingDependencyError:
        raise  # nothing is wrong with the audio
    except MT3Error as error:
        return Verdict("audio cannot be read", str(error))
    cut = [str(found.message) for found in caught if issubclass(found.category, AudioWarning)]
    return Verdict("audio is damaged", cut[0]) if cut else _judge(heard, notes, silence)


@dataclass(frozen=True)
class _Heard:
    """What is kept of a recording.

    Attributes:
        levels: Mean squares of all frames [frames].
        excerpt: Samples from a second before the first label on [n].
        start: When these begin [s].
    """

    levels: Levels
    excerpt: Samples
    start: float


def _judge(heard: _Heard, notes: Sequence[Note], silence: float) -> Verdict:
    seconds = len(heard.levels) * HOP / RATE
    if seconds < SHORTEST:
        return Verdict("too short", f"{seconds:.2f} s")
    inside = [note for note in notes if note.onset < seconds]
    if not inside:
        return Verdict("no notes within the audio", f"{seconds:.2f} s of audio")
    moment, longer = loudest(heard.levels, 0.5), loudest(heard.levels, 5.0)
    if moment < silence - MOMENT_BELOW and longer < silence:
        return Verdict("silent", f"{longer:.1f} dB in the loudest 5 s")
    return _compare(heard.excerpt, heard.start, inside)


def loudest(levels: Levels, seconds: float) -> float:
    """Level of the loudest stretch of so many seconds [dB], from mean squares [frames]."""
    count = min(len(levels), round(seconds * RATE / HOP))
    sums = np.cumsum(np.concatenate([[0.0], levels]))
    return float(10 * np.log10(max((sums[count:] - sums[:-count]).max() / count, 1e-12)))


def flatness(samples: Samples) -> float:
    """Flatness 0..1 of the mean spectrum of the louder half of the frames, 100 Hz to 7 kHz.

    Silence has none.
    """
    power = _spectra(samples)
    sums = power.sum(1)
    mean = power[sums >= np.median(sums)].mean(0)
    bins = np.arange(len(mean)) * RATE / _FRAME
    mean = mean[(bins >= 100) & (bins <= 7000)] + 1e-12
    if mean.max() < 1e-9:
        return 0.0  # nothing sounds
    return float(np.exp(np.log(mean).mean()) / mean.mean())


def agreement(
    samples: Samples, notes: Sequence[Note], *, start: float = 0.0
) -> tuple[float, float]:
    """Shares of notes that begin with a rise of energy: as they are, and moved to where most do.

    Pads and bowed strings rise late: pitched notes may lag behind their labels by `_LATE` frames.

    Args:
        samples: Mono [n] at `RATE`.
        notes: The notes in them.
        start: When the samples begin [s].
    """
    rises, row_of = _rises(_spectra(samples), notes)
    rows = np.array([row_of[_key(note)] for note in notes])
    frames = np.array([round((note.onset - start) * RATE / HOP) for note in notes])

    def share(lag: int) -> float:
        places = frames + lag
        fits = (places >= 0) & (places < rises.shape[1])
        # Moved out of the excerpt they are no evidence, and too few are none either.
        enough = fits.sum() >= max(_FEWEST_LABELS, len(notes) // 2)
        return float(rises[rows[fits], places[fits]].mean()) if enough else 0.0

    late = 0 if notes[0].is_drum else _LATE
    shares = {lag: share(lag) for lag in range(-_FARTHEST, _FARTHEST + 1, _STEP)}
    return max(shares[lag] for lag in range(0, late + 1, _STEP)), max(shares.values())


def _compare(excerpt: Samples, start: float, notes: Iterable[Note]) -> Verdict:
    end = start + len(excerpt) / RATE
    near = [note for note in notes if note.onset < end]
    drums = near[0].is_drum
    # Drums may be noise; noise in their place does not agree with their labels.
    if not drums and (flat := flatness(excerpt)) > FLATTEST:
        return Verdict("noise", f"flatness {flat:.2f}")
    if len(near) < _FEWEST_LABELS:
        return Verdict("", "too few labels to compare with the sound")
    as_is, moved = agreement(excerpt, near, start=start)
    detail = f"{as_is:.0%} of the labels begin with a rise; {moved:.0%} if they are moved"
    least, gain = (LEAST_DRUMS, SHIFT_DRUMS) if drums else (LEAST_AGREEMENT, SHIFT_GAIN)
    if not drums and len(near) > DENSEST * (end - near[0].onset):
        least = 0.0
    if as_is < least or moved - as_is > gain:
        return Verdict("labels disagree with the sound", detail)
    return Verdict("", detail)


def _read(entry: IndexEntry, first: float) -> _Heard:
    start = max(0, round((first - 1.0) * RATE) // HOP * HOP)
    levels: list[Levels] = []
    kept: list[Samples] = []
    rest = np.zeros(0, np.float32)
    place = 0
    with open_audio(entry.audio, target_rate=RATE) as stream:
        for block in stream:
            low = max(0, start - place)
            high = start + round(EXCERPT * RATE) - place
            if low < len(block) and high > low:
                kept.append(block[low:high])
            place += len(block)
            rest = np.concatenate([rest, block])
            whole = len(rest) // HOP * HOP
            frames = rest[:whole].reshape(-1, HOP).astype(np.float64)
            levels.append(np.square(frames).mean(1))
            rest = rest[whole:]
    excerpt = np.concatenate(kept) if kept else np.zeros(0, np.float32)
    return _Heard(np.concatenate(levels), excerpt, start / RATE)


def _spectra(samples: Samples) -> npt.NDArray[np.float32]:
    """Power [frames, bins]; frame i is centred on sample i * `HOP`."""
    padded = np.pad(samples, (_FRAME // 2, _FRAME // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::HOP]
    window = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
    found = np.empty((len(frames), _FRAME // 2 + 1), np.float32)
    for place in range(0, len(frames), 1000):  # ten seconds at a time: 40 MB less
        part = slice(place, place + 1000)
        found[part] = np.square(np.abs(np.fft.rfft(frames[part] * window)))
    return found


def _key(note: Note) -> int:
    """What rises with a note: its pitch, or one of `_DRUM_BANDS`, counted from -1 down."""
    if not note.is_drum:
        return note.pitch
    if note.pitch in KICKS:
        return -1
    return -3 if note.pitch in HIGH_KEYS else -2


def _rises(
    power: npt.NDArray[np.float32], notes: Iterable[Note]
) -> tuple[npt.NDArray[np.bool_], dict[int, int]]:
    """Whether energy rises [rows, frames], a row for each pitch or band of drums."""
    row_of = {key: row for row, key in enumerate(sorted({_key(note) for note in notes}))}
    found = np.zeros((len(row_of), len(power)), np.bool_)
    for key, row in row_of.items():
        energy = power[:, _bins(key)].sum(1)
        level = 10 * np.log10(energy + energy.max() * 1e-6 + 1e-12)
        sums = np.concatenate([[0.0], np.cumsum(level)])
        place = np.arange(-_BEFORE[0], len(level) - _AFTER[1])
        before, after = (
            (sums[place + high] - sums[place + low]) / (high - low)
            for low, high in (_BEFORE, _AFTER)
        )
        found[row, place] = after - before >= _RISE
    return found, row_of


def _bins(key: int) -> list[int]:
    """Bins of a pitch and its harmonics, or of a band of drums."""
    if key < 0:
        low, high = (round(hertz * _FRAME / RATE) for hertz in _DRUM_BANDS[-1 - key])
        return [*range(low, high)]
    fundamental = 440.0 * 2 ** ((key - 69) / 12)
    bins = [round(n * fundamental * _FRAME / RATE) for n in range(1, _HARMONICS + 1)]
    return sorted({place for place in bins if 0 < place <= _FRAME // 2}) or [_FRAME // 2]
