"""Makes the demonstration recording: a short piece for piano, bass, drums and strings.

Contract: `write_demo` renders `demo_notes`, a composition of our own, with the soundfont
FluidR3Mono (MIT) and writes ``demo.flac`` and ``demo.mid``, its true notes.  The files are part of
the repository, so that a first transcription needs no recording of anybody else's.

    python -m mt3_synthesis.demo FOLDER
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mt3_runtime.cli import guarded
from mt3_runtime.errors import MT3Error
from mt3_runtime.files.formats import render
from mt3_runtime.filesystem.atomic import make_folder, write_new
from mt3_runtime.imports.extras import require
from mt3_runtime.notes.note import Note
from mt3_synthesis.rendering import DRUM_KIT, Samples, play_notes
from mt3_synthesis.soundfonts import find, source_named

TEMPO = 112.0
"""Quarters per minute; six bars are 12.9 s."""

DEMO_RATE = 22050
"""[Hz] of the recording."""

PEAK = 0.5
"""Of the recording, of full scale."""

BARS = ("Am9", "Fmaj7", "Cmaj7", "G6", "Am9", "Fmaj7")
CHORDS = {  # pitches of the piano's broken chord, root of the bass, pitches of the strings
    "Am9": ((57, 64, 67, 71, 72, 76), 33, (57, 64, 72)),
    "Fmaj7": ((53, 60, 64, 69, 72, 76), 29, (57, 65, 69)),
    "Cmaj7": ((55, 60, 64, 67, 71, 76), 36, (55, 64, 67)),
    "G6": ((55, 59, 64, 67, 71, 74), 31, (55, 62, 71)),
}
MELODY = (  # beat, beats, pitch: the piano's right hand
    (0.0, 1.5, 76), (1.5, 0.5, 79), (2.0, 1.0, 83), (3.0, 1.0, 81),
    (4.0, 2.0, 84), (6.0, 0.5, 83), (6.5, 0.5, 81), (7.0, 1.0, 79),
    (8.0, 1.5, 79), (9.5, 0.5, 76), (10.0, 1.0, 83), (11.0, 1.0, 79),
    (12.0, 2.5, 74), (14.5, 0.5, 76), (15.0, 1.0, 79),
    (16.0, 1.5, 84), (17.5, 0.5, 83), (18.0, 1.0, 81), (19.0, 1.0, 76),
    (20.0, 3.5, 77),
)  # fmt: skip
PIANO, BASS, STRINGS = 0, 33, 48

LEVELS = {PIANO: 9.0, BASS: -8.0, STRINGS: -7.0, DRUM_KIT: -4.0}
"""dB by program: the soundfont's bass is 16 dB louder than its piano."""


def demo_notes() -> list[Note]:
    """The notes of the piece, by onset."""
    played = [*_piano(), *_bass(), *_strings()]
    beat = 60.0 / TEMPO
    pitched = [
        Note(start * beat, (start + length) * beat, pitch, velocity, program)
        for program, start, length, pitch, velocity in played
    ]
    hits = [
        Note(start * beat, start * beat + 0.05, key, velocity, is_drum=True)
        for start, key, velocity in _drums()
    ]
    return sorted(pitched + hits)


def _piano() -> Iterator[tuple[int, float, float, int, int]]:
    for bar, name in enumerate(BARS):
        broken = CHORDS[name][0]
        if bar < len(BARS) - 1:
            for count, place in enumerate((0, 1, 2, 3, 2, 1, 3, 2)):
                yield PIANO, 4 * bar + count / 2, 0.48, broken[place], 62 + 8 * (count == 0)
        else:
            for place, pitch in enumerate(broken[:4]):
                yield PIANO, 4 * bar + 0.04 * place, 3.4, pitch, 70
    for beat, length, pitch in MELODY:
        yield PIANO, beat, 0.96 * length, pitch, 88 + 6 * (beat % 4 == 0)


def _bass() -> Iterator[tuple[int, float, float, int, int]]:
    for bar, name in enumerate(BARS):
        root = CHORDS[name][1]
        steps: Sequence[tuple[float, float, int]] = (
            (0.0, 1.4, root),
            (1.5, 0.4, root + 12),
            (2.0, 0.9, root + 7),
            (3.0, 0.4, root),
            (3.5, 0.4, root + 7),
        )
        for beat, length, pitch in steps if bar < len(BARS) - 1 else ((0.0, 3.4, root),):
            yield BASS, 4 * bar + beat, length, pitch, 92


def _strings() -> Iterator[tuple[int, float, float, int, int]]:
    for bar, name in enumerate(BARS):
        if bar >= 2:
            for pitch in CHORDS[name][2]:
                yield STRINGS, 4 * bar, 3.8 if bar < len(BARS) - 1 else 3.4, pitch, 58


def _drums() -> Iterator[tuple[float, int, int]]:
    kick, snare, closed, open_hat, crash = 36, 38, 42, 46, 49
    for bar in range(1, len(BARS) - 1):
        start = 4.0 * bar
        for beat in (0.0, 1.5, 2.0):
            yield start + beat, kick, 100
        for beat in (1.0, 3.0):
            yield start + beat, snare, 96
        for count in range(8):
            key = open_hat if count == 7 and bar % 2 == 0 else closed
            yield start + count / 2, key, 74 if count % 2 == 0 else 56
    for beat, tom in zip((18.5, 18.75, 19.25, 19.5, 19.75), (48, 48, 45, 45, 41), strict=True):
        yield beat, tom, 98
    for beat in (4.0, 12.0, 20.0):
        yield beat, crash, 88
    yield 20.0, kick, 104


def write_demo(folder: Path) -> tuple[Path, Path]:
    """Render the piece.

    Args:
        folder: Where ``demo.flac`` and ``demo.mid`` go; made if it is not there.

    Raises:
        MissingDependencyError: The soundfont, tinysoundfont, soxr or soundfile is not installed.
        OutputError: A file cannot be written, or another one has its name.
    """
    notes = demo_notes()
    (font,) = find(source_named("fluidr3mono"))
    seconds = max(note.offset for note in notes) + 0.6
    audio = play_notes(font.read_bytes(), notes, seconds=seconds, rate=DEMO_RATE, levels=LEVELS)
    make_folder(folder)
    recording, truth = folder / "demo.flac", folder / "demo.mid"
    write_new(recording, _flac(audio))
    write_new(truth, render(notes, "midi", tempo=TEMPO))
    return recording, truth


def _flac(audio: Samples) -> bytes:
    soundfile = require("soundfile", "Making sounds", "cpu")
    fade = np.minimum(1.0, np.arange(len(audio))[::-1] / (0.4 * DEMO_RATE)).astype(np.float32)
    level = PEAK / float(np.abs(audio).max())
    buffer = io.BytesIO()
    soundfile.write(buffer, audio * fade * level, DEMO_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def main(arguments: Iterable[str]) -> int:
    """Write the recording into the folder that is named."""
    words = list(arguments)
    if len(words) != 1:
        print("usage: python -m mt3_synthesis.demo FOLDER", file=sys.stderr)  # noqa: T201
        return 2
    try:
        for path in write_demo(Path(words[0])):
            print(path)  # noqa: T201
    except MT3Error as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
