"""The models for Triton in a real server, which is started from a wheel: what clients get.

The server and its client live in an environment of their own; the packages under test are put on
its path.  Figures of a run are in benchmarks/results.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from mt3_runtime.files.formats import render
from mt3_runtime.loading import load_model
from mt3_runtime.models.shipped import shipped_models
from mt3_server.triton_models.repository import Settings, write_repository
from tests import needs
from tests.server.triton_wheel import packages, source_paths

pytestmark = pytest.mark.nightly(part="triton")

#: Requests of one file at once.
CROWD = 64

AUDIO = (".wav", ".flac", ".mp3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    if "default" not in shipped_models():
        needs.missing("default-model", "there is no model in the package")
    folder = tmp_path_factory.mktemp("triton")
    write_repository(shipped_models()["default"], folder / "repository", Settings(threads=2))
    return folder


def ask(place: Path, job: str, *arguments: str, tested: bool = True):
    """Runs a job of triton_recipe.py; returns what it found."""
    ended = subprocess.run(
        [needs.python_of("triton"), Path(__file__).with_name("triton_recipe.py"), job, place,
         *arguments],
        env=os.environ | {"MT3_TESTED": os.pathsep.join(source_paths()) if tested else ""},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    return json.loads(ended.stdout)


def from_lines(text: str):
    return [json.loads(line) for line in text.splitlines() if line]


def test_recordings_have_the_notes_of_a_call(place, record_property):
    files = sorted(p for p in (needs.shared_folder() / "audio").iterdir() if p.suffix in AUDIO)
    assert len(files) >= 9
    found = ask(place, "recordings", *map(str, files))
    assert found["exit"] == 0
    with load_model(threads=2) as model:
        for file in files:
            alone, got = model.transcribe_notes(file), found[str(file)]
            expected = json.loads(render(alone, "json"))["notes"]
            assert json.loads(got["grpc"]["file"])["notes"] == expected, file
            assert from_lines(got["http"]["file"]) == expected, file
            assert len(got["stream"]) == 1
            assert json.loads(got["stream"][0]["notes"])["notes"] == expected, file
            digests = {got["grpc"]["token_digest"], got["http"]["token_digest"],
                       got["stream"][0]["told"]["token_digest"]}  # fmt: skip
            assert digests == {alone.token_digest}
            *told, last = from_lines("".join(part["notes"] for part in got["events"]))
            assert len(got["events"]) >= len(alone.segments), "a response for each segment"
            assert last["type"] == "done"
            assert last["result"]["notes"] == expected
            begun = {item["number"] for item in told if item["type"] == "note_on"}
            assert begun == {item["number"] for item in told if item["type"] == "note_off"}
    record_property("triton recordings", f"{len(files)} of {len(files)} equal, four ways")
    record_property("triton memory", f"{found['rss'] / 1e6:.0f} MB with two models loaded")


def test_a_crowd_gets_one_digest(place, record_property, tmp_path):
    import numpy as np
    import soundfile

    samples, rate = soundfile.read(needs.shared_folder() / "audio" / "guitar_loop.wav")
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.asarray(samples[: 2 * rate], np.float32), rate)
    with load_model(threads=2) as model:
        expected = model.transcribe_notes(clip).token_digest
    found = ask(place, "crowd", str(clip), str(CROWD))
    for name in ("mt3", "mt3_stream"):
        assert found[name]["digests"] == [expected] * CROWD
        record_property(f"triton {CROWD} at once, {name}", f"{found[name]['seconds']} s")


def test_whoever_goes_is_cancelled(place, record_property, tmp_path):
    """Three recordings of minutes are under way; what is left of them is not decoded."""
    import numpy as np
    import soundfile

    samples, rate = soundfile.read(needs.shared_folder() / "audio" / "piano_bach.mp3")
    long = tmp_path / "long.flac"
    soundfile.write(long, np.tile(samples, (8,) + (1,) * (samples.ndim - 1)), rate)
    found = ask(place, "cancelled", str(long))
    for way in ("once", "json", "events"):
        assert found[way]["before"] > 1.0, "they were not under way"
        assert found[way]["after"] < 0.5 * found[way]["before"]
    record_property("triton cancelled", json.dumps(found))


def test_what_is_wrong_is_said(place):
    found = ask(place, "refused")
    for way in ("", " decoupled"):
        assert "AUDIO is empty" in found[f"empty{way}"]
        assert "is text" in found[f"text{way}"]
        assert "not audio that can be decoded" in found[f"zeros{way}"]
        assert "no option 'formats'" in found[f"option{way}"]
    assert "format is 'events'" in found["events"]
    assert "one recording a request" in found["two"]
    assert found["exit"] == 0


def test_a_broken_environment_is_refused_by_name(place, record_property):
    site, _, _ = packages(needs.python_of("numpy1"))
    found = ask(place, "broken", str(site))
    assert not found["alive"]
    assert "NumPy is 1.26.4, and mt3-runtime needs 2 or later. It is /" in found["log"]
    record_property("triton refuses", "NumPy 1.26.4, by name")


def test_an_environment_without_the_package_is_refused_by_name(place, tmp_path):
    import shutil

    shutil.copytree(place / "repository", tmp_path / "repository")
    found = ask(tmp_path, "broken", tested=False)
    assert not found["alive"]
    assert "No module named 'mt3_server'. This model needs mt3-runtime in /" in found["log"]
