"""Tokens and files through the service are those of the command, in three formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from mt3_runtime.cli import main
from mt3_runtime.loading import load_model
from tests.server.running import running

FORMATS = {"midi": "mid", "json": "json", "csv": "csv"}


def check(recordings: list[Path], bundle: Path, folder: Path) -> int:
    """Compares what the service and the command make of recordings; returns how many there were."""
    out = folder / "out"
    code = main(["transcribe", *map(str, recordings), "-o", f"{out}/", "-m", str(bundle), "-q",
                 "-f", ",".join(FORMATS)])  # fmt: skip
    assert code == 0
    with load_model(bundle) as model, running(model, folder / "spool") as found, \
            found.client() as client:  # fmt: skip
        for path in recordings:
            data = path.read_bytes()
            digests = set()
            for form, suffix in FORMATS.items():
                answer = client.post("/v1/transcriptions", params={"format": form}, content=data)
                assert answer.content == (out / f"{path.stem}.{suffix}").read_bytes(), (path, form)
                digests.add(answer.headers["x-mt3-token-digest"])
            assert digests == {model.transcribe_notes(path).token_digest}
    return len(recordings)


def visible(shared: Path) -> list[Path]:
    found = sorted(
        path for path in (shared / "audio").iterdir() if path.suffix in (".wav", ".flac")
    )
    return [path for path in found if soundfile.info(path).duration]


def test_the_shortest_recording(shared, default_bundle, tmp_path):
    shortest = min(visible(shared), key=lambda path: soundfile.info(path).duration)
    assert check([shortest], default_bundle, tmp_path) == 1


@pytest.mark.nightly(part="serve")
def test_all_visible_recordings(shared, default_bundle, tmp_path, record_property):
    record_property("recordings_served", check(visible(shared), default_bundle, tmp_path))
