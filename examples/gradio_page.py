#!/usr/bin/env python3
"""A page of Gradio: a recording in, a piano roll, a table of instruments and a MIDI file out.

    pip install gradio matplotlib        (where this project is installed)
    python examples/gradio_page.py [MODEL]

Gradio's pages ask other hosts for fonts; `mt3 serve` has a page that asks nobody.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import gradio

from mt3_evaluation.pianoroll import View, draw
from mt3_runtime import Model, MT3Error, load_model
from mt3_runtime.notes.instruments import instrument_name


def transcribe(model: Model, audio: str | None, instruments: str) -> tuple[Any, list[Any], str]:
    """A picture, rows of instruments and counts, and the path of a MIDI file."""
    if not audio:
        raise gradio.Error("Choose a recording, or make one.")
    try:
        result = model.transcribe_notes(audio, instruments=instruments.strip() or None)
        figure = draw(result.notes, View(0.0, result.duration), title=Path(audio).stem)
    except MT3Error as error:  # says what to do
        raise gradio.Error(str(error)) from error
    names = [instrument_name(note.program, is_drum=note.is_drum) for note in result.notes]
    midi = Path(tempfile.mkdtemp()) / f"{Path(audio).stem}.mid"
    result.save(midi)
    return figure, [list(row) for row in Counter(names).most_common()], str(midi)


def build(model: Model) -> Any:
    """The page."""
    return gradio.Interface(
        fn=partial(transcribe, model),
        inputs=[
            gradio.Audio(type="filepath", label="Recording"),
            gradio.Textbox(label="Instruments that may occur", placeholder="all"),
        ],
        outputs=[
            gradio.Plot(label="Notes"),
            gradio.Dataframe(headers=["Instrument", "Notes"], label="Instruments"),
            gradio.File(label="MIDI file"),
        ],
        title="Music to notes",
        api_name="transcribe",
        flagging_mode="never",
        analytics_enabled=False,
    )


if __name__ == "__main__":
    with load_model(*sys.argv[1:]) as opened:
        build(opened).launch()
