"""The examples of docs/serving.md, as they stand there, against a service."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile

import pytest
import soundfile

from mt3_server.settings import token_digest_of
from tests import needs
from tests.pace import HANGS
from tests.pages import TEXTS, blocks
from tests.server.running import running

PAGE = "docs/serving.md"
TOKEN = "correct-horse-battery-staple"


def here(text: str, url: str) -> str:
    """An example that asks this service."""
    text = text.replace("https://music.example.org", url).replace("$TOKEN", TOKEN)
    return text.replace("http://127.0.0.1:8765", url).replace("ws://127.0.0.1:8765", url)


@pytest.fixture(scope="module")
def asked(model, audio, tmp_path_factory):
    """A service that knows a token, and a folder with a recording."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("song.flac", "song.wav"):
        soundfile.write(folder / name, audio, 16000)
    tokens = frozenset({token_digest_of(TOKEN)})
    with (
        running(model, folder / "spool") as found,
        running(model, folder / "guarded", tokens=tokens) as guarded,
    ):
        yield folder, found, guarded


def test_what_curl_sends_is_answered(asked):
    curl = needs.tool("curl")
    folder, found, guarded = asked
    lines = [line for body in blocks(TEXTS[PAGE], "text") for line in body.splitlines()]
    commands = [line for line in lines if line.startswith("curl ")]
    assert len(commands) >= 5
    said = []
    for line in commands:
        url = guarded.url if "$TOKEN" in line else found.url
        words = shlex.split(here(line, url))
        command = [curl, "-sS", "--fail-with-body", *words[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=HANGS, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        said.append(done.stdout)
    assert (folder / "song.mid").read_bytes().startswith(b"MThd")
    assert said[1].startswith(b"onset,")
    assert all(name.endswith(".mid") for name in zipfile.ZipFile(folder / "stems.zip").namelist())
    assert json.loads(said[3].splitlines()[-1])["type"] == "done"
    assert json.loads(said[4])["status"] in ("queued", "running", "done")


def test_the_client_of_the_page_is_told_notes(asked):
    folder, found, _ = asked
    (body,) = (text for text in blocks(TEXTS[PAGE], "python") if "/v1/live" in text)
    code = here(body, found.url).replace("http://", "ws://")
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    ready, *events, last = map(json.loads, done.stdout.splitlines())
    assert (ready["type"], last["type"]) == ("ready", "done")
    assert {event["type"] for event in events} == {"note_on", "note_off"}
