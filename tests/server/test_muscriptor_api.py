"""Speaks to the service as a client of MuScriptor's server does."""

from __future__ import annotations

import base64
import io

import pytest

from mt3_runtime.files.formats import render
from mt3_server.api.muscriptor_api import GROUPS
from tests.server.running import data_of_events


@pytest.fixture(scope="module")
def expected(model, upload):
    return model.transcribe_notes(io.BytesIO(upload))


def test_health_and_instruments(client):
    assert client.get("/health").json() == {"status": "ok"}
    names = client.get("/instruments").json()["instruments"]
    assert {"acoustic_piano", "electric_bass", "drums"} <= set(names)
    assert len(names) == 35


def test_every_program_has_one_group():
    programs = [program for group in GROUPS.values() for program in group]
    assert sorted(programs) == list(range(96))


def test_a_blocking_client_gets_a_midi_file(client, upload, expected):
    answer = client.post(
        "/transcribe/midi",
        files={"file": ("song.flac", upload, "audio/flac")},
        data={"detect_tempo": "best-effort"},
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/midi"
    assert answer.headers["content-disposition"] == 'attachment; filename="result.mid"'
    assert answer.content == render(expected, "midi")


def test_a_streaming_client_gets_every_note_begun_and_ended(client, upload, expected):
    form = {"file": ("song.flac", upload, "audio/flac")}
    with client.stream("POST", "/transcribe", files=form) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        items = data_of_events("".join(answer.iter_text()))
    begun: dict[int, dict] = {}
    ended, progress = [], []
    for item in items[:-1]:
        if item["type"] == "start":
            assert set(item) == {"type", "pitch", "start_time", "index", "instrument"}
            begun[item["index"]] = item
        elif item["type"] == "end":
            assert set(item) == {"type", "end_time", "start_event_index"}
            assert item["end_time"] >= begun[item["start_event_index"]]["start_time"]
            ended.append(item["start_event_index"])
        else:
            assert item["type"] == "progress"
            progress.append((item["completed"], item["total"]))
    assert sorted(ended) == sorted(begun)
    assert progress[0][0] == 0
    assert progress[-1][0] == progress[-1][1]
    assert progress == sorted(progress)
    last = items[-1]
    assert last["type"] == "transcription_complete"
    assert last["beat_grid"] is None
    assert base64.b64decode(last["data"]) == render(expected, "midi")


def test_instruments_are_a_choice(client, model, upload):
    form = [("file", ("s.flac", upload))] + [
        ("instruments", (None, name)) for name in ("electric_bass", "drums")
    ]
    answer = client.post("/transcribe/midi", files=form)
    chosen = [*map(str, GROUPS["electric_bass"]), "drums"]
    result = model.transcribe_notes(io.BytesIO(upload), instruments=",".join(chosen))
    assert answer.content == render(result, "midi")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"instruments": "kazoo"}, 400),
        ({"strict_instruments": "true"}, 400),
        ({"tempo_bpm": "5"}, 400),
        ({"tempo_bpm": "nan"}, 400),
        ({"detect_tempo": "true"}, 422),
        ({"remove_vocals": "true"}, 422),
        ({"remove_vocals": "maybe"}, 400),
        ({"url": "http://x"}, 400),
    ],
)
@pytest.mark.parametrize("path", ["/transcribe", "/transcribe/midi"])
def test_refusals_have_a_detail(client, upload, path, fields, status):
    answer = client.post(path, files={"file": ("a.wav", upload)}, data=fields)
    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize("content", [b"not audio", b"RIFF\x24\0\0\0WAVEfmt "])
def test_what_is_no_audio_is_the_client_s_fault(client, content):
    answer = client.post("/transcribe", files={"file": ("a.wav", content)})
    assert answer.status_code in (400, 415)
    assert answer.json()["detail"]
