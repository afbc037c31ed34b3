#!/usr/bin/env python3
"""A stage of a music-production pipeline: a drum stem in, onset lists and a clean drum track out.

The stage was written for mt3-infer.  To run it on mt3-runtime, one line changed:

    -from mt3_infer import load_model
    +from mt3_runtime import load_model

It uses what both packages offer: ``load_model(name, device=..., auto_filter=...)`` and
``model.transcribe(samples, sr=...)``, which returns a ``mido.MidiFile``.  The model's name is the
other thing to look at: here it is an installed bundle or the path of one (see docs/MIGRATION.md).

    python examples/rhythm_kit_stage.py MODEL drums.wav drums.mid
"""

from __future__ import annotations

import sys
from pathlib import Path

import mido
import soundfile

from mt3_runtime import load_model

#: General MIDI keeps percussion on channel 10, which is 9 counted from zero.
DRUM_CHANNEL = 9

#: General MIDI percussion keys of each part of the kit; every other key is "other".
KIT = {
    "kick": {35, 36},
    "snare": {37, 38, 40},
    "hi-hat": {42, 44, 46},
    "tom": {41, 43, 45, 47, 48, 50},
    "cymbal": {49, 51, 52, 53, 55, 57, 59},
}


class RhythmKitStage:
    """Finds the hits of a drum kit; load it once, run it on many files."""

    def __init__(self, model: str, *, device: str = "auto") -> None:
        # The filter guesses from note counts what is a drum loop.  This stage knows.
        self._model = load_model(model, device=device, auto_filter=False)

    def run(self, audio: str | Path, midi: str | Path) -> dict[str, list[float]]:
        """Transcribes one file.

        Args:
            audio: A file that libsndfile reads.
            midi: Where the drum track goes; an existing file is replaced.

        Returns:
            Ascending onsets in seconds for every part of the kit, empty lists included.
        """
        samples, rate = soundfile.read(audio, dtype="float32")
        drums = keep_drums(self._model.transcribe(samples, sr=rate))
        drums.save(midi)
        return onsets(drums)


def keep_drums(song: mido.MidiFile) -> mido.MidiFile:
    """A copy without melodic notes; the times of what stays do not change."""
    result = mido.MidiFile(type=song.type, ticks_per_beat=song.ticks_per_beat)
    for track in song.tracks:
        kept, waited = mido.MidiTrack(), 0
        for message in track:
            waited += message.time
            if message.is_meta or getattr(message, "channel", DRUM_CHANNEL) == DRUM_CHANNEL:
                kept.append(message.copy(time=waited))
                waited = 0
        # A track of a melodic instrument has nothing but its name left.
        if any(message.type in ("note_on", "set_tempo") for message in kept):
            result.tracks.append(kept)
    return result


def onsets(drums: mido.MidiFile) -> dict[str, list[float]]:
    """Onsets in seconds by part of the kit; hits of one part at one time count once."""
    found: dict[str, set[float]] = {part: set() for part in (*KIT, "other")}
    seconds = 0.0
    for message in drums:  # mido merges the tracks and turns ticks into seconds
        seconds += message.time
        if message.type == "note_on" and message.velocity > 0:
            part = next((name for name, keys in KIT.items() if message.note in keys), "other")
            found[part].add(round(seconds, 4))
    return {part: sorted(times) for part, times in found.items()}


def main() -> int:
    """Runs the stage on the files of the command line."""
    if len(sys.argv) != 4:
        sys.stderr.write("usage: rhythm_kit_stage.py MODEL AUDIO MIDI\n")
        return 2
    model, audio, midi = sys.argv[1:]
    for part, times in RhythmKitStage(model).run(audio, midi).items():
        sys.stdout.write(f"{part:<7} {len(times):>4}  {' '.join(map(str, times[:8]))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
