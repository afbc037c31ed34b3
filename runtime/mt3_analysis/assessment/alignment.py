"""Aligns the notes of a performance to those of a score.

Contract: `align` says of every note of both what became of it: matched, wrong (another pitch in its
place), missing, or extra.  Onsets of the performance that lie close together are aligned with the
chords of the score by dynamic programming on their pitches, first without and then with the time
that the tempo around lets one expect; notes are matched, pitch by pitch, to the nearest in time.

The libraries that do this (partitura with parangonar) need SciPy and, for the more accurate of
their aligners, PyTorch; this takes NumPy alone and a second for ten thousand notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment.performance import Floats, Integers, Performance
from mt3_analysis.assessment.score import Score
from mt3_runtime.errors import OptionError

LEAST_MATCHED = 0.6
"""Share of matched notes below which a score is of another piece."""

CHORD_GAP_S = 0.035
"""Onsets of a performance that are no farther apart are aligned as one chord."""

SUBSTITUTED_BY = 4
"""Semitones by which a wrong note may miss the written one."""

_SPREAD_COST = 0.2  # of a note that belongs to a chord which sounds already: a rolled chord
_END_COST = 0.5  # of a chord that is not played before the first or behind the last note
_TIME_COST = 1.0  # most that the time of an onset may cost, in notes
_MOST_CELLS = 6_000_000  # of the dynamic programme; longer pieces keep to a band
_NARROW = 512  # played chords around those of the first pass, in the second
_ROWS = 64  # written chords whose pitches are compared at once
_AROUND = 8  # chords on either side that say which tempo to expect
_UNPLAYED = 8  # chords without a played note at an end, from which on that end was not played


@dataclass(frozen=True, eq=False)
class Alignment:
    """What became of the notes of a score and of a performance.

    Attributes:
        score: The reading of the score that fits.
        matched: Int64 [m, 2], indices of written and played notes of one pitch, by position.
        wrong: Int64 [w, 2], written notes and what was played instead of them.
        missing: Int64 [k], written notes that were not played.
        extra: Int64 [e], played notes that are not written.
        unplayed: Notes of the score before the first and behind the last one that was played.
        remarks: What a user should know, a sentence each.
    """

    score: Score
    matched: Integers
    wrong: Integers
    missing: Integers
    extra: Integers
    unplayed: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def written(self) -> int:
        """Written notes of the part that was played."""
        return len(self.matched) + len(self.wrong) + len(self.missing)

    @property
    def share(self) -> float:
        """Matched notes among all that are written or played, whichever are fewer."""
        played = len(self.matched) + len(self.wrong) + len(self.extra)
        return len(self.matched) / max(min(self.written, played), 1)


def align_best(performance: Performance, scores: Sequence[Score]) -> Alignment:
    """Aligns to the reading of a score that fits best: repeats played, or not.

    Raises:
        OptionError: Fewer than `LEAST_MATCHED` of the notes match: it is another piece.
    """
    found = [align(performance, score) for score in scores]
    best = max(found, key=lambda a: len(a.matched) - len(a.missing) - len(a.extra))
    if best.share < LEAST_MATCHED:
        raise OptionError(
            f"{best.share:.0%} of the notes of {performance.name} match {best.score.name}; "
            f"expected {LEAST_MATCHED:.0%} or more. Is it the score of another piece?"
        )
    return best


def align(performance: Performance, score: Score) -> Alignment:
    """Aligns a performance to one reading of a score, whatever comes of it."""
    if not len(performance) or not len(score):
        empty = np.zeros((0, 2), np.int64)
        missing, extra = np.arange(len(score)), np.arange(len(performance))
        return Alignment(score, empty, empty, missing, extra)
    chord = score.chord_of()
    position = score.onset_q[np.flatnonzero(np.diff(chord, prepend=-1))]
    group = np.append(0, np.cumsum(np.diff(performance.onset_s) > CHORD_GAP_S)).astype(np.int64)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    time = performance.onset_s[starts]
    written = _roll(chord, score.pitch)
    played = _roll(group, performance.pitch)
    even = np.linspace(0.0, len(played), len(written))
    first = _chord_path(written, played, even)
    expected = _expected_times(position, first, time)
    near = np.searchsorted(time, expected).astype(np.float64)
    second = _chord_path(written, played, near, (expected, time, _gaps(expected)))
    at = _interpolated(position, second, time)
    matched = _match(score, performance, at, chord)
    for _ in range(2):  # chords now begin where their notes do
        at = _refined(position, at, chord[matched[:, 0]], performance.onset_s[matched[:, 1]])
        matched = _match(score, performance, at, chord)
    return _outcome(performance, score, at[chord], matched)


def _roll(index: Integers, pitch: Integers) -> npt.NDArray[np.float32]:
    """Pitches of chords, float32 [chords, 128], 1 where there is one."""
    roll = np.zeros((int(index[-1]) + 1, 128), np.float32)
    roll[index, pitch] = 1.0
    return roll


def _chord_path(
    written: npt.NDArray[np.float32],
    played: npt.NDArray[np.float32],
    centre: Floats,
    timing: tuple[Floats, Floats, Floats] | None = None,
) -> Integers:
    """Which played chord each written one begins with, int64 [chords]; -1 if none.

    Args:
        written: [s, 128].
        played: [p, 128].
        centre: Float64 [s], played chord around which each written one is looked for.
        timing: Expected time of each written chord, time of each played one, and by how much the
            former may be off at all; None: not to be looked at.
    """
    rows, columns = len(written), len(played)
    sizes, counts = written.sum(1).astype(np.float64), played.sum(1).astype(np.float64)
    width = int(min(columns, max(_MOST_CELLS // rows, 256 if timing is None else _NARROW)))
    width = min(width, _NARROW) if timing is not None else width
    lows = np.clip(np.round(centre).astype(np.int64) - width // 2, 0, columns - width)
    above = np.concatenate(([0.0], np.cumsum(counts)))  # cost so far, by played chords
    came = np.zeros((rows, width + 1), np.int8)  # 0 chord skipped, 1 begun here, 2 goes on
    best, row_of_best, rest = np.inf, -1, float(sizes.sum()) * _END_COST
    skipped = 0.0
    for row in range(rows):
        low = int(lows[row])
        part = slice(low, low + width)
        if row % _ROWS == 0:
            block = slice(row, row + _ROWS)
            left, right = int(lows[block].min()), int(lows[block].max()) + width
            overlaps = written[block] @ played[left:right].T
        shared = overlaps[row % _ROWS, low - left : low - left + width]
        extra = counts[part] - shared
        begun = extra + (sizes[row] - shared)
        if timing is not None:
            off = np.abs(timing[1][part] - timing[0][row]) / timing[2][row]
            begun += _TIME_COST * np.minimum(off, 1.0)
        diagonal, over = (
            above[low : low + width] + begun,
            above[low + 1 : low + width + 1] + sizes[row],
        )
        skipped += sizes[row] * _END_COST
        start = skipped if low == 0 else above[low] + sizes[row]
        along = np.concatenate(([0.0], np.cumsum(extra + _SPREAD_COST * shared)))
        line = np.concatenate(([start], np.minimum(diagonal, over))) - along
        lowest = np.minimum.accumulate(line)
        came[row, 1:] = np.where(line[1:] > lowest[1:] + 1e-6, 2, diagonal <= over)
        above = np.full(columns + 1, np.inf)
        above[low : low + width + 1] = lowest + along
        rest -= float(sizes[row]) * _END_COST
        if above[columns] + rest < best:
            best, row_of_best = float(above[columns]) + rest, row
    return _traced(came, lows, row_of_best, columns)


def _traced(came: npt.NDArray[np.int8], lows: Integers, row: int, column: int) -> Integers:
    found = np.full(len(came), -1, np.int64)
    while row >= 0 and column > lows[row]:
        step = came[row, column - lows[row]]
        if step == 2:
            column -= 1
        elif step == 1:
            found[row] = column - 1
            row, column = row - 1, column - 1
        else:
            row -= 1
    return found


def _interpolated(position: Floats, path: Integers, time: Floats) -> Floats:
    """Time of each written chord, [s]; of those that were not played, between their neighbours."""
    there = path >= 0
    if not there.any():
        ends = np.array([position[0], position[-1] + 1e-9])
        return _extended(position, ends, np.array([time[0], time[-1]]))
    return _extended(position, position[there], time[path[there]])


def _extended(position: Floats, known: Floats, at: Floats) -> Floats:
    """Linear between known points, and on either side with the tempo of the whole."""
    result: Floats = np.interp(position, known, at)
    pace = (at[-1] - at[0]) / (known[-1] - known[0]) if known[-1] > known[0] else 0.5
    early, late = position < known[0], position > known[-1]
    result[early] = at[0] - pace * (known[0] - position[early])
    result[late] = at[-1] + pace * (position[late] - known[-1])
    return result


def _expected_times(position: Floats, path: Integers, time: Floats) -> Floats:
    """Time of each chord by the tempo around it, [s]: medians, which no single slip moves."""
    there = np.flatnonzero(path >= 0)
    if len(there) < 2 * _AROUND + 1:
        return _interpolated(position, path, time)
    known, at = position[there], time[path[there]]
    pace = np.diff(at) / np.maximum(np.diff(known), 1e-3)
    around = np.lib.stride_tricks.sliding_window_view
    padded = np.pad(pace, (_AROUND, _AROUND), mode="edge")
    tempo = np.median(around(padded, 2 * _AROUND + 1), axis=1)
    tempo = np.append(tempo, tempo[-1])
    where = np.clip(np.arange(len(there)), _AROUND, len(there) - 1 - _AROUND)
    near = where[:, None] + np.arange(-_AROUND, _AROUND + 1)
    guesses = at[near] + tempo[:, None] * (known[:, None] - known[near])
    smooth = np.maximum.accumulate(np.median(guesses, axis=1))
    return _extended(position, known, smooth)


def _gaps(at: Floats) -> Floats:
    """How far a chord is from the next ones, [s], at least 0.1."""
    gaps = np.diff(at) if len(at) > 1 else np.array([0.5])
    wider: Floats = np.maximum(np.append(gaps, gaps[-1]), np.append(gaps[0], gaps))
    return np.maximum(wider, 0.1)


def _match(score: Score, performance: Performance, at: Floats, chord: Integers) -> Integers:
    """Pairs of notes of one pitch that are nearest to each other in time, int64 [m, 2]."""
    window = np.clip(0.75 * _gaps(at), 0.15, 0.8)[chord]
    due = at[chord]
    left, right = np.arange(len(score)), np.arange(len(performance))
    pairs: list[Integers] = []
    for _ in range(4):
        a = _nearest(
            score.pitch[left], due[left], performance.pitch[right], performance.onset_s[right]
        )
        b = _nearest(
            performance.pitch[right], performance.onset_s[right], score.pitch[left], due[left]
        )
        ok = a >= 0
        ok[ok] = b[a[ok]] == np.flatnonzero(ok)
        one, two = left[ok], right[a[ok]]
        near = np.abs(due[one] - performance.onset_s[two]) <= window[one]
        if not near.any():
            break
        pairs.append(np.stack((one[near], two[near]), 1))
        left = np.setdiff1d(left, one[near], assume_unique=True)
        right = np.setdiff1d(right, two[near], assume_unique=True)
    found = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    return found[np.argsort(found[:, 0])]


def _nearest(pitch: Integers, time: Floats, others: Integers, at: Floats) -> Integers:
    """For each note, the nearest other of its pitch; -1 if there is none."""
    if not len(others) or not len(pitch):
        return np.full(len(pitch), -1, np.int64)
    far = 1e6  # seconds: pitches lie one behind the other
    order = np.lexsort((at, others))
    keys = others[order] * far + at[order]
    place = np.searchsorted(keys, pitch * far + time)
    best, distance = np.full(len(pitch), -1, np.int64), np.full(len(pitch), np.inf)
    for shift in (-1, 0):
        index = np.clip(place + shift, 0, len(order) - 1)
        other = order[index]
        apart = np.where(others[other] == pitch, np.abs(at[other] - time), np.inf)
        closer = apart < distance
        best[closer], distance[closer] = other[closer], apart[closer]
    return best


def _refined(position: Floats, at: Floats, chord: Integers, onset: Floats) -> Floats:
    """Times of chords as the medians of the onsets of their matched notes, [s]."""
    if len(chord) < 2:
        return at
    order = np.lexsort((onset, chord))
    chords, starts, counts = np.unique(chord[order], return_index=True, return_counts=True)
    sorted_onsets = onset[order]
    middle = sorted_onsets[starts + (counts - 1) // 2] + sorted_onsets[starts + counts // 2]
    return _extended(position, position[chords], np.maximum.accumulate(middle / 2))


def _outcome(performance: Performance, score: Score, due: Floats, matched: Integers) -> Alignment:
    missing = np.setdiff1d(np.arange(len(score)), matched[:, 0])
    extra = np.setdiff1d(np.arange(len(performance)), matched[:, 1])
    wrong = _substitutions(performance, score, due, missing, extra)
    missing, extra = np.setdiff1d(missing, wrong[:, 0]), np.setdiff1d(extra, wrong[:, 1])
    remarks = []
    chord = score.chord_of()
    struck = np.unique(chord[np.concatenate((matched[:, 0], wrong[:, 0]))])
    unplayed = np.zeros(len(score), bool)
    if len(struck):
        if struck[0] >= _UNPLAYED:
            unplayed |= chord < struck[0]
        if chord[-1] - struck[-1] >= _UNPLAYED:
            unplayed |= chord > struck[-1]
    if unplayed.any():
        missing = np.setdiff1d(missing, np.flatnonzero(unplayed))
        part = f"{int(unplayed.sum())} of {len(score)} notes of the score"
        remarks.append(f"{part} lie before or behind what was played; they are not counted.")
    ornaments = _ornaments(performance, score, due, extra)
    if len(ornaments):
        extra = np.setdiff1d(extra, ornaments)
        remarks.append(f"{len(ornaments)} notes of ornaments are not counted as extra notes.")
    if score.repeats is not None:
        remarks.append("Repeats are played." if score.repeats else "Repeats are not played.")
    return Alignment(score, matched, wrong, missing, extra, int(unplayed.sum()), tuple(remarks))


def _substitutions(
    performance: Performance, score: Score, due: Floats, missing: Integers, extra: Integers
) -> Integers:
    """Missing and extra notes that are one mistake: near in time and pitch; int64 [w, 2]."""
    if not len(missing) or not len(extra):
        return np.zeros((0, 2), np.int64)
    order = extra[np.argsort(performance.onset_s[extra], kind="stable")]
    times = performance.onset_s[order]
    lows, highs = (
        np.searchsorted(times, due[missing] - 0.15),
        np.searchsorted(times, due[missing] + 0.15),
    )
    found: list[tuple[float, int, int]] = []
    for note, low, high in zip(missing.tolist(), lows.tolist(), highs.tolist(), strict=True):
        for other in order[low : min(high, low + 64)].tolist():
            semitones = abs(int(performance.pitch[other] - score.pitch[note]))
            if semitones <= SUBSTITUTED_BY:
                apart = abs(float(performance.onset_s[other] - due[note]))
                found.append((semitones / SUBSTITUTED_BY + apart / 0.15, note, other))
    used: set[tuple[str, int]] = set()
    pairs = []
    for _, note, other in sorted(found):
        if ("written", note) not in used and ("played", other) not in used:
            used |= {("written", note), ("played", other)}
            pairs.append((note, other))
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _ornaments(performance: Performance, score: Score, due: Floats, extra: Integers) -> Integers:
    """Extra notes that lie within a note with a trill, mordent or turn, at most a tone away."""
    marked = np.flatnonzero(score.ornament)
    if not len(marked) or not len(extra):
        return np.zeros(0, np.int64)
    ends = np.interp(score.onset_q[marked] + score.length_q[marked], score.onset_q, due)
    time, pitch = performance.onset_s[extra][:, None], performance.pitch[extra][:, None]
    within = (time >= due[marked] - 0.2) & (time <= ends + 0.05)
    return np.asarray(extra[(within & (np.abs(pitch - score.pitch[marked]) <= 2)).any(1)])
