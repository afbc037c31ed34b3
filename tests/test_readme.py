"""The first command of the README, as a stranger types it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from mt3_evaluation.labels import find_labels, read_labels
from mt3_evaluation.scoring import score_notes
from mt3_runtime.files.formats import load_notes

ROOT = Path(__file__).parents[1]
DEMO = "calibration/demo/demo.flac"
RUN = "import sys; from mt3_runtime.cli import main; sys.exit(main())"


def first_commands() -> list[list[str]]:
    """The commands of the first shell block."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block
    return [shlex.split(command, comments=True) for command in block[1].split("&&")]


def test_install_then_transcribe_with_the_default_model(default_bundle, tmp_path):
    install, transcribe = first_commands()
    assert install[:2] == ["pip", "install"]
    assert transcribe[:3] == ["mt3", "transcribe", DEMO]
    assert not {"-m", "--model"} & set(transcribe)
    variables = {name: value for name, value in os.environ.items() if name != "MT3_MODEL"}
    output = tmp_path / transcribe[transcribe.index("-o") + 1]
    words = [*transcribe[1:-1], str(output)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        cwd=ROOT,
        env=variables | {"MT3_CACHE": str(tmp_path / "cache"), "MT3_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "default" in done.stderr
    labels = read_labels(find_labels("demo", ROOT / "calibration" / "demo")).notes
    notes = load_notes(output)
    assert (score_notes(labels, notes).f1 or 0.0) > 0.4
    last = max(label.offset for label in labels)
    assert max(note.onset for note in notes) < last  # nothing where only the room rings, or behind
    assert any(note.is_drum for note in notes)
