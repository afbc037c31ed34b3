"""The Ray adapters on a cluster of two workers: batches, an actor killed, a service."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from mt3_runtime.files.formats import render
from mt3_runtime.loading import load_model
from mt3_runtime.models.shipped import shipped_models
from tests import needs
from tests.server.triton_wheel import free_ports, source_paths

pytestmark = pytest.mark.nightly(part="ray")

AUDIO = (".wav", ".flac", ".mp3")


def ask(job: str, folder: Path, *arguments: str):
    """Runs a job of ray_recipe.py; returns what it found."""
    python = needs.python_of("ray")
    if "default" not in shipped_models():
        needs.missing("default-model", "there is no model in the package")
    paths = os.pathsep.join(source_paths())
    ended = subprocess.run(
        [python, Path(__file__).with_name("ray_recipe.py"), job, folder, *arguments],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def expected():
    """The recordings, with what a call gives for each."""
    files = sorted(p for p in (needs.shared_folder() / "audio").iterdir() if p.suffix in AUDIO)
    with load_model(threads=2) as model:
        return {file: model.transcribe_notes(file) for file in files}


def test_a_batch_has_the_notes_of_calls(expected, tmp_path, record_property):
    songs = needs.shared_folder().resolve() / "audio"
    found = ask("recordings", tmp_path, str(songs))
    count = len(expected)
    assert found["first"]["done"] == found["store"]["done"] == count >= 9
    assert found["again"]["skipped"] == count
    assert len(found["other"]["failed"]) == count
    for file, alone in expected.items():
        for folder in ("out", "store"):
            assert (tmp_path / folder / f"{file.stem}.json").read_bytes() == render(alone, "json")
        assert (tmp_path / "out" / f"{file.stem}.mid").read_bytes() == render(alone, "midi")
        assert (tmp_path / "out" / f"{file.stem}.parquet").read_bytes()[:4] == b"PAR1"
    record_property("ray recordings", f"{count} of {count} equal, from a folder and a store")
    record_property("ray memory", f"{found['memory'] / 1e6:.0f} MB of all processes")


def test_a_hundred_files_and_an_actor_killed(tmp_path, record_property):
    import soundfile

    songs = tmp_path / "songs"
    songs.mkdir()
    samples, rate = soundfile.read(needs.shared_folder() / "audio" / "band_reggae.flac")
    for index in range(100):
        begin = index * rate // 20
        soundfile.write(songs / f"clip{index:03}.wav", samples[begin : begin + 2 * rate], rate)
    found = ask("killed", tmp_path, str(songs))
    assert found["dead"] == 1
    assert found["failed"] == []
    assert found["done"] == 100
    assert found["lines"] == [1] * 100, "none twice"
    assert found["told"] == [1] * 100
    assert found["again"]["skipped"] == 100
    with load_model(threads=2) as model:
        for path in sorted(songs.iterdir())[::10]:
            alone = render(model.transcribe_notes(path), "midi")
            assert (tmp_path / "killed" / f"{path.stem}.mid").read_bytes() == alone
    record_property(
        "ray 100 files, 2 actors, 1 killed",
        f"{found['done']} done, none twice, {found['repeated']} rows dropped, {found['wall']} s",
    )


def test_a_service_has_the_notes_of_calls(expected, tmp_path, record_property):
    port = str(free_ports(1)[0])
    found = ask("served", tmp_path, port, *map(str, expected))
    for file, alone in expected.items():
        got = found[str(file)]
        assert got["notes"] == json.loads(render(alone, "json"))["notes"]
        assert got["summary"]["token_digest"] == alone.token_digest
        *told, last = got["events"]
        assert last["type"] == "done"
        assert last["token_digest"] == alone.token_digest
        assert last["result"]["notes"] == got["notes"]
        begun = [item["number"] for item in told if item["type"] == "note_on"]
        assert begun == sorted(begun)
        assert set(begun) == {item["number"] for item in told if item["type"] == "note_off"}
        progress = [item for item in told if item["type"] == "progress"]
        assert progress[-1]["seconds_done"] == pytest.approx(alone.duration)
        assert len(progress) >= len(alone.segments)
    one = expected[next(iter(expected))].token_digest
    assert found["killed"] == [one] * 4
    assert [found["wrong"][name][0] for name in ("empty", "text", "option", "number")] == [
        400, 400, 422, 422,
    ]  # fmt: skip
    longest = max(expected, key=lambda file: expected[file].duration)
    got = found[str(longest)]
    record_property("ray serve", f"{len(expected)} equal, whole and streamed; a replica killed")
    record_property("ray serve first event", f"{got['first']} of {got['whole']} s")
    record_property("ray serve memory", f"{found['memory'] / 1e6:.0f} MB; ready {found['ready']} s")
