"""Measures the evidence that the leakage filter's thresholds rest on, on a synthetic set.

Contract: prints three tables about a folder of recordings with exact labels, as
`mt3_evaluation.leakage_study.leakage_set` makes them: what each filter does to each kind of music;
how well each sign tells leaked notes from true ones; and what happens if a constant of the filter
is a fifth lower or higher.

    python -m mt3_evaluation.leakage_study.leakage_set tune FOLDER
    python -m mt3_evaluation.leakage_study.leakage_evidence FOLDER -m BUNDLE --notes FOLDER/notes

A melodic note is *true* if a label has its onset and pitch, or another octave of it, whatever the
instrument (one to one); it is *leaked* if the recording has no melodic labels at all, or if a drum
is hit where it begins and no melodic label begins or sounds there at any octave of its pitch.  All
others are mistakes of other kinds, and count for nothing here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_evaluation.score_report import aligned
from mt3_evaluation.scoring import Score, by_pitch, match, pitched, score_drums, score_instruments
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.cli import guarded
from mt3_runtime.errors import MT3Error
from mt3_runtime.files.formats import load_notes, render
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_runtime.leakage import drum_evidence
from mt3_runtime.leakage.drum_evidence import CONTEXT_SECONDS, DrumContext, Heard, together
from mt3_runtime.leakage.leakage_filter import filter_notes
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.leakage.salience import SalienceAnalyser
from mt3_runtime.notes.note import Note

TOLERANCE, NEAR = 0.05, 0.08
"""Seconds: between a leaked note and a drum; and to melodic labels that must not be there."""

TRUE, LEAKED, OTHER = 1, -1, 0

FILTERS = ("off", "on", "classic")

CONSTANTS = (
    "MELODY_TONES", "TONAL", "TONAL_WITH_DRUMS", "WITH_DRUMS", "CLEAR_SHARE",
    "REPEATED", "LOW_PITCH", "ALIKE", "HARMONIC",
)  # fmt: skip
"""Of `mt3_runtime.leakage.drum_evidence`; beside them, the prominence from which a pitch is
clear."""

HARD = "pedal"
"""Basses that stay on one pitch are shown apart: they are made to look like drums."""


class Judged(NamedTuple):
    """A melodic note, what was heard of it, how tonal the sound is there, and what it is."""

    heard: Heard
    tonal_share: float
    truth: int


@dataclass(frozen=True)
class Piece:
    """A recording of the set, transcribed without a filter.

    Attributes:
        kind: Of music.
        labels: True notes.
        notes: What the model found.
        judged: Its melodic notes, by onset.
        audio: float32 [n].
    """

    kind: str
    labels: Sequence[Note]
    notes: Sequence[Note]
    judged: Sequence[Judged]
    audio: npt.NDArray[np.float32]

    @property
    def is_stem(self) -> bool:
        """Whether there are nothing but drums."""
        return all(note.is_drum for note in self.labels)


def truths(labels: Sequence[Note], notes: Sequence[Note]) -> list[int]:
    """What melodic notes are: `TRUE`, `LEAKED` or `OTHER`."""
    melody = pitched(labels)
    pairs = [*match(melody, notes, by_pitch), *match(melody, notes, _pitch_class)]
    right = {place for _, place in pairs}
    hits = np.array([label.onset for label in labels if label.is_drum])
    found = []
    for place, note in enumerate(notes):
        if place in right:
            found.append(TRUE)
            continue
        alone = not any(
            abs(label.onset - note.onset) < NEAR
            or (
                _pitch_class(label) == _pitch_class(note)
                and label.onset - TOLERANCE <= note.onset <= label.offset + TOLERANCE
            )
            for label in melody
        )
        hit = bool(np.any(np.abs(hits - note.onset) < TOLERANCE))
        found.append(LEAKED if not melody or (alone and hit) else OTHER)
    return found


def read(folder: Path, transcribe: Callable[[Path], Sequence[Note]], *, rate: int) -> list[Piece]:
    """The pieces of a set.

    Args:
        folder: With ``KIND-NUMBER.wav`` and ``.mid``.
        transcribe: Gives the notes of a recording, unfiltered.
        rate: Of the model, in Hz.
    """
    pieces = []
    for path in sorted(folder.glob("*.wav")):
        labels, notes = load_notes(path.with_suffix(".mid")), transcribe(path)
        audio = load_audio(path, target_rate=rate)
        analyser = SalienceAnalyser(rate)
        analyser.hear(audio)
        melodic = sorted(pitched(notes))
        sounding = [(note, analyser.note(note), analyser.tones(note.onset)) for note in melodic]
        judged = [
            Judged(heard, analyser.tonal_share(*_context(heard.note)), truth)
            for heard, truth in zip(
                together(sounding, analyser.harmonics), truths(labels, melodic), strict=True
            )
        ]
        pieces.append(Piece(path.stem.rpartition("-")[0], labels, notes, judged, audio))
    return pieces


def filters_table(pieces: Sequence[Piece], *, rate: int) -> str:
    """What each filter does to each kind of music."""
    head = (
        "kind",
        "filter",
        "notes",
        "true lost",
        "leaked left",
        "on drums",
        "drum F1",
        "class F1",
    )
    lines: list[tuple[str, ...]] = [head]
    for kind in dict.fromkeys(piece.kind for piece in pieces):
        own = [piece for piece in pieces if piece.kind == kind]
        lines += [(kind, name, *_filtered(own, name, rate=rate)) for name in FILTERS]
    return aligned(lines)


def signs_table(pieces: Sequence[Piece]) -> str:
    """How well each sign tells true notes in music with drums from leaked ones.

    The first figure is the probability that of a true and a leaked note, the true one has more of
    it: 0.5 is a coin.  Then follow quantiles of both.
    """
    signs: dict[str, Callable[[Heard], float]] = {
        "clarity": lambda heard: heard.evidence.clarity,
        "harmonics": lambda heard: heard.harmonic,
        "duration": lambda heard: heard.note.offset - heard.note.onset,
        "confidence": lambda heard: heard.note.confidence,
        "program token": lambda heard: heard.note.probabilities.program or 0.0,
        "pitch": lambda heard: heard.note.pitch,
    }
    drummed = [piece for piece in pieces if any(label.is_drum for label in piece.labels)]
    sides = {
        truth: [one.heard for piece in drummed for one in piece.judged if one.truth == truth]
        for truth in (TRUE, LEAKED)
    }
    if not all(sides.values()):
        return (
            "no sign can be judged: there are no true notes in music with drums, or no leaked ones"
        )
    lines = [("sign", "tells", *(f"{w} {q} %" for w in ("true", "leaked") for q in (10, 50, 90)))]
    for name, sign in signs.items():
        true, leaked = (np.array([sign(h) for h in sides[t]], float) for t in (TRUE, LEAKED))
        quantiles = [f"{v:.2f}" for s in (true, leaked) for v in np.percentile(s, (10, 50, 90))]
        lines.append((name, f"{tells(true, leaked):.3f}", *quantiles))
    share = [f"{np.mean([h.evidence.clarity >= 1 for h in sides[t]]):.1%}" for t in sides]
    return f"{aligned(lines)}\n\nclear: {share[0]} of the true notes, {share[1]} of the leaked ones"


def constants_table(pieces: Sequence[Piece]) -> str:
    """True notes lost and leaked ones left, if a constant were a fifth lower or higher."""
    head = ("constant", "value", "lost", "left in stems", f"{HARD}: lost", "left")
    lines = [head, ("as they are", "", *_outcome(pieces))]
    for name in ("CLEAR", *CONSTANTS):
        value = 1.0 if name == "CLEAR" else getattr(drum_evidence, name)
        for factor in (0.8, 1.2):
            changed = value * factor
            if name == "CLEAR":
                outcome = _outcome(pieces, clear=factor)
            else:
                with _set(name, changed):
                    outcome = _outcome(pieces)
            lines.append((name, f"{changed:.3g}", *outcome))
    return aligned(lines)


def tells(true: npt.NDArray[np.float64], leaked: npt.NDArray[np.float64]) -> float:
    """Probability that a true value is larger than a leaked one; equal ones count half."""
    ordered = np.sort(leaked)
    below = np.searchsorted(ordered, true, "left") + np.searchsorted(ordered, true, "right")
    return float(below.mean() / 2 / len(leaked))


def _filtered(pieces: Sequence[Piece], name: str, *, rate: int) -> tuple[str, ...]:
    """Cells of `filters_table`."""
    counts = np.zeros(6, int)
    drums = classes = Score(0, 0, 0)
    for piece in pieces:
        kept = filter_notes(piece.notes, [piece.audio], AUTO_FILTERS[name], rate=rate).notes
        stays = {id(note) for note in kept}
        for truth, place in ((TRUE, 0), (LEAKED, 2)):
            own = [one.heard.note for one in piece.judged if one.truth == truth]
            left = sum(id(note) in stays for note in own)
            counts[place : place + 2] += (len(own) - left if truth == TRUE else left, len(own))
        counts[4:] += (sum(note.is_drum for note in kept), len(kept))
        drums += score_drums(piece.labels, kept)
        classes += score_instruments(piece.labels, kept, granularity="class", drum_keys=False)
    scores = ["-" if score.f1 is None else f"{score.f1:.3f}" for score in (drums, classes)]
    pairs = [f"{counts[k]} / {counts[k + 1]}" for k in (0, 2)]
    return (str(counts[5]), *pairs, f"{counts[4] / max(counts[5], 1):.1%}", *scores)


def _outcome(pieces: Sequence[Piece], *, clear: float = 1.0) -> tuple[str, ...]:
    """True notes lost, leaked notes of stems left; and both of the hard kind, all of all."""
    counts = np.zeros(8, int)
    for piece in pieces:
        scaled = [_scaled(one.heard, clear) for one in piece.judged]
        scene = DrumContext(scaled, sorted(n.onset for n in piece.notes if n.is_drum))
        hard = 4 * piece.kind.startswith(HARD)
        for one, heard in zip(piece.judged, scaled, strict=True):
            start, end = _context(heard.note)
            gone = scene.judge(heard, start, end, tonal_share=one.tonal_share).reason
            if one.truth == TRUE:
                counts[hard : hard + 2] += (bool(gone), 1)
            elif one.truth == LEAKED and (piece.is_stem or hard):
                counts[hard + 2 : hard + 4] += (not gone, 1)
    return tuple(f"{counts[k]} / {counts[k + 1]}" for k in range(0, 8, 2))


def _scaled(heard: Heard, factor: float) -> Heard:
    clarity = heard.evidence.clarity / factor
    return heard._replace(evidence=heard.evidence._replace(clarity=clarity))


def _context(note: Note) -> tuple[float, float]:
    return max(0.0, note.onset - CONTEXT_SECONDS), note.onset + CONTEXT_SECONDS


def _pitch_class(note: Note) -> int:
    return note.pitch % 12


@contextmanager
def _set(name: str, value: float) -> Iterator[None]:
    before = getattr(drum_evidence, name)
    setattr(drum_evidence, name, value)
    try:
        yield
    finally:
        setattr(drum_evidence, name, before)


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="measure what the leakage filter rests on")
    parser.add_argument(
        "folder", type=Path, help="a set of mt3_evaluation.leakage_study.leakage_set"
    )
    parser.add_argument("-m", "--model", help="bundle, or name of an installed model")
    parser.add_argument("--notes", type=Path, help="folder that keeps the notes for the next time")
    args = parser.parse_args()
    from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed for --help

    try:
        with load_model(args.model, auto_filter=False) as model:

            def transcribe(path: Path) -> Sequence[Note]:
                kept = args.notes / f"{path.stem}.json" if args.notes else None
                if kept and kept.is_file():
                    return load_notes(kept)
                result = model.transcribe_notes(path)
                if kept:
                    make_folder(kept.parent)
                    write_atomic(kept, render(result, "json"))
                return result.notes

            rate = model.sample_rate
            pieces = read(args.folder, transcribe, rate=rate)
        tables = (filters_table(pieces, rate=rate), signs_table(pieces), constants_table(pieces))
    except MT3Error as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("\n\n".join(tables) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
