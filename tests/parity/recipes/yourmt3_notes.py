"""YourMT3's own code from tokens to notes; runs in the environment of oracle-requirements.txt.

    python yourmt3_notes.py TOKENS.json NOTES.json

reads a list of recordings, each a list of segments, each a list of channels, each a list of token
ids without start token, and writes them again as `recordings`, and as `notes` for each recording
what the original hands to its MIDI writer: [onset, offset, pitch, program, is_drum].  The golden is
its answer to what `python -m tests.parity.yourmt3_streams` prints.

The code is that of the `yourmt3` package 0.1.4 (PyPI), which mt3-infer 0.2.0 carries along
unchanged but for the names of its imports.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from mt3_infer.models.yourmt3.utils.event2note import merge_zipped_note_events_and_ties_to_notes
from mt3_infer.models.yourmt3.utils.note2event import mix_notes
from mt3_infer.models.yourmt3.utils.task_manager import TaskManager

SEGMENT_SAMPLES, SAMPLE_RATE = 32767, 16000


def notes_of(
    recording: list[list[list[int]]], task: TaskManager
) -> list[tuple[float, float, int, int, bool]]:
    """As the original's inference script and mt3-infer's adapter go from tokens to notes."""
    starts = [SEGMENT_SAMPLES * i / SAMPLE_RATE for i in range(len(recording))]
    by_channel = []
    for channel in zip(*recording, strict=True):
        longest = max(len(tokens) for tokens in channel)
        rows = np.zeros((len(channel), longest), np.int64)  # padded as the original's output is
        for row, tokens in zip(rows, channel, strict=True):
            row[: len(tokens)] = tokens
        # The list of events changes nothing; without it the original fails to unpack its result.
        zipped, _, _ = task.detokenize_list_batches([rows], starts, return_events=True)
        by_channel.append(merge_zipped_note_events_and_ties_to_notes(zipped)[0])
    return [
        (note.onset, note.offset, int(note.pitch), int(note.program), bool(note.is_drum))
        for note in mix_notes(tuple(by_channel))
    ]


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    warnings.simplefilter("ignore")
    tasks = {1: TaskManager("mt3_full_plus"), 13: TaskManager("mc13_full_plus_256")}
    recordings = json.loads(source.read_text())
    notes = [notes_of(recording, tasks[len(recording[0])]) for recording in recordings]
    answer = {"recordings": recordings, "notes": notes}
    target.write_text(json.dumps(answer, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
