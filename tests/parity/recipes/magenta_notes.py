"""Asks the original code (mt3-infer's copy of Magenta's) what notes a recording's tokens make.

Contract: a stand-alone program for the environment of tests/parity/oracle-requirements.txt; it
imports nothing of this project.  Vocabulary, event decoding and tie handling are executed as
published, with start times made as in Magenta's notebook: the time of a segment's first frame,
rounded down to the grid of 10 ms.

    python magenta_notes.py TOKENS.npz NOTES.json [MODEL]

MODEL: `mt3` (default) or `ismir2021` (512 frames, 127 velocity bins, no ties).
TOKENS.npz: `tokens` int32 [S, L] (zero behind the end), `lengths` int32 [S], end-of-sequence
included, and `counts` [R], the numbers of segments of the recordings, which follow one another.
NOTES.json: one object per recording with `notes` (onset, offset [s], pitch, velocity, program,
is_drum), `invalid` and `dropped` (numbers of events).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mt3_infer.models.mt3_pytorch.contrib import metrics_utils, note_sequences, vocabularies

HOP, SAMPLE_RATE = 128, 16000
#: Frames of a segment, velocity bins, encoding: as in Magenta's notebook.
MODELS = {
    "mt3": (256, 1, note_sequences.NoteEncodingWithTiesSpec),
    "ismir2021": (512, 127, note_sequences.NoteEncodingSpec),
}


def predictions(codec: Any, tokens: Any, lengths: Any, frames: int) -> list[dict[str, Any]]:
    """One recording in the form the original expects."""
    vocabulary = vocabularies.vocabulary_from_codec(codec)
    found = []
    for index, (row, length) in enumerate(zip(tokens, lengths, strict=True)):
        decoded = np.array(vocabulary.decode(row[:length].tolist()), np.int32)
        ends = np.flatnonzero(decoded == vocabularies.DECODED_EOS_ID)
        start = index * frames / (SAMPLE_RATE / HOP)
        start -= start % (1 / codec.steps_per_second)
        found.append(
            {
                "est_tokens": decoded[: ends[0]] if len(ends) else decoded,
                "start_time": start,
                "raw_inputs": np.zeros((1,)),
            }
        )
    return found


def main(source: str, target: str, model: str = "mt3") -> None:
    frames, bins, encoding = MODELS[model]
    codec = vocabularies.build_codec(vocabularies.VocabularyConfig(num_velocity_bins=bins))
    with np.load(source) as file:
        tokens, lengths, segments = file["tokens"], file["lengths"], file["counts"]
    ends = np.cumsum(segments).tolist()
    answers = []
    for begin, end in zip([0, *ends], ends, strict=False):
        result = metrics_utils.event_predictions_to_ns(
            predictions(codec, tokens[begin:end], lengths[begin:end], frames),
            codec=codec,
            encoding_spec=encoding,
        )
        notes = [
            (n.start_time, n.end_time, *map(int, (n.pitch, n.velocity, n.program)), bool(n.is_drum))
            for n in result["est_ns"].notes
        ]
        counts = {what: int(result[f"est_{what}_events"]) for what in ("invalid", "dropped")}
        answers.append({"notes": notes, **counts})
    Path(target).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
