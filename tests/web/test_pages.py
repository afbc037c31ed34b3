"""The notebook and the page of Gradio run, and say what the library says."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import mt3_evaluation
import mt3_runtime
from mt3_runtime.loading import load_model
from tests import needs

pytestmark = pytest.mark.nightly(part="web")

EXAMPLES = needs.ROOT / "examples"
DEMO = needs.ROOT / "calibration" / "demo" / "demo.flac"


def _ask(*arguments: object) -> dict[str, Any]:
    """Runs a job of pages_recipe.py; returns what it found."""
    python = needs.python_of("pages")
    places = [str(Path(p.__file__).parents[1]) for p in (mt3_runtime, mt3_evaluation)]
    ended = subprocess.run(
        [python, Path(__file__).with_name("pages_recipe.py"), *map(str, arguments)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(places), "GRADIO_ANALYTICS_ENABLED": "False"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_the_notebook(tmp_path: Path) -> None:
    """Pictures and sounds, of a copy: it writes a file beside itself."""
    place = tmp_path / "examples"
    place.mkdir()
    (tmp_path / "calibration" / "demo").mkdir(parents=True)
    shutil.copy(DEMO, tmp_path / "calibration" / "demo")
    shutil.copy(EXAMPLES / "notes_and_sounds.ipynb", place)
    found = _ask("notebook", place / "notes_and_sounds.ipynb")
    assert found["pictures"] == found["audio"] == 2
    assert "the same, F1" in found["text"]
    with load_model() as model:
        result = model.transcribe_notes(DEMO)
    assert result.summary() in found["text"]
    assert (place / "demo.mid").is_file()


def test_the_page_of_gradio(default_bundle: Path) -> None:
    found = _ask("gradio", EXAMPLES / "gradio_page.py", DEMO, default_bundle)
    with load_model(default_bundle) as model:
        result = model.transcribe_notes(DEMO)
    expected = io.BytesIO()
    result.to_midi().save(file=expected)
    assert bytes.fromhex(found["midi"]) == expected.getvalue()
    assert sum(count for _, count in found["table"]) == len(result.notes)
    assert found["plot"] == "matplotlib"
    assert "kazoo" in found["refused"]
