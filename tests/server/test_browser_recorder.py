"""A browser that sends what its recorder makes: live notes are those of the sound as a whole."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import numpy as np

from mt3_runtime.audio.recorder_files.opus_packets import OPUS_RATE
from mt3_runtime.audio.recorder_files.opus_stream import OpusStream
from mt3_runtime.notes.note_events import NoteOn
from tests import needs
from tests.pace import HANGS
from tests.server.running import running

SECONDS = 4


def test_chromium_records_and_is_told_the_notes(model, tmp_path):
    browser, program = needs.tool("chromium"), needs.tool("node")
    needs.node_modules()
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<p>here</p>")
    script = Path(__file__).with_name("record.mjs")
    with running(model, tmp_path / "spool", page) as found:
        command = [program, script, browser, found.url, str(SECONDS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    answer = json.loads(done.stdout)
    ready, *events, last = answer["told"]
    assert (ready["type"], last["type"]) == ("ready", "done")
    stream, blocks = OpusStream("webm", "the recording"), []
    for sent in answer["sent"]:
        stream.feed(base64.b64decode(sent))
        while len(block := stream.decode()):
            blocks.append(block)
    samples = np.concatenate(blocks)
    assert abs(last["seconds"] - len(samples) / OPUS_RATE) < 1e-5
    assert abs(last["seconds"] - SECONDS) < 1.0
    assert np.abs(samples).max() > 0.1
    expected = [*model.stream_events(iter([samples]), OPUS_RATE)]
    assert [(e["number"], e["pitch"]) for e in events if e["type"] == "note_on"] == [
        (e.number, e.pitch) for e in expected if isinstance(e, NoteOn)
    ]
