#!/usr/bin/env python3
"""A song to MIDI: one audio file in, one MIDI file out.

    python examples/song_to_midi.py song.wav song.mid [MODEL]

MODEL is an installed name or a bundle's path; without it the installed model, or the small one that
is part of the package.
"""

from __future__ import annotations

import sys

from mt3_runtime import load_model


def main() -> int:
    """Transcribes the file of the command line."""
    if len(sys.argv) not in (3, 4):
        sys.stderr.write("usage: song_to_midi.py AUDIO MIDI [MODEL]\n")
        return 2
    audio, midi, *named = sys.argv[1:]
    with load_model(*named) as model:
        result = model.transcribe_notes(audio)
    result.save(midi)
    sys.stdout.write(f"{result.summary()}\n")
    for warning in result.warnings:  # quiet audio, a damaged file, segments without an end ...
        sys.stderr.write(f"warning: {warning}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
