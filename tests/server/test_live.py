"""Live audio over a WebSocket: events, the protocol and its limits."""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from mt3_runtime.notes.note_events import NoteOff, NoteOn
from mt3_server.live_audio import live_socket
from mt3_server.settings import token_digest_of
from tests.pace import HANGS, until
from tests.server.running import running

START = {"type": "start", "rate": 16000, "format": "f32le"}


def opened(found, **options):
    return connect(f"ws://127.0.0.1:{found.port}/v1/live", proxy=None, open_timeout=HANGS,
                   ping_interval=None, max_size=None, **options)  # fmt: skip


@contextmanager
def started(found, **start):
    with opened(found) as socket:
        socket.send(json.dumps(START | start))
        ready = json.loads(socket.recv(HANGS))
        assert ready["type"] == "ready", ready
        yield socket


def received(socket) -> list[dict]:
    """Everything until the end."""
    found = []
    while True:
        try:
            found.append(json.loads(socket.recv(HANGS)))
        except ConnectionClosed as closed:
            numbers = [item["seq"] for item in found]
            assert numbers == [*range(numbers[0], numbers[0] + len(numbers))] if numbers else True
            return [*found, {"type": "closed", "code": closed.rcvd.code if closed.rcvd else 0}]


def play(socket, data: bytes, size: int = 16000) -> None:
    for at in range(0, len(data), size):
        socket.send(data[at : at + size])


@pytest.mark.parametrize(("form", "channels"), [("f32le", 1), ("f32le", 2), ("s16le", 1)])
def test_events_are_those_of_the_model(served, model, audio, form, channels):
    samples = np.repeat(audio[:, None], channels, axis=1)
    data = samples.astype("<f4").tobytes()
    if form == "s16le":
        whole = np.clip(np.round(audio * 32768), -32768, 32767).astype("<i2")
        data, samples = whole.tobytes(), (whole / np.float32(32768))[:, None]
    expected = [*model.stream_events(iter([samples]), 16000)]
    with started(served, format=form, channels=channels) as socket:
        play(socket, data)
        socket.send(json.dumps({"type": "end"}))
        *events, done, closed = received(socket)
    assert (done["type"], closed["code"]) == ("done", 1000)
    assert done["seconds"] == pytest.approx(9.0)
    ons = [event for event in events if event["type"] == "note_on"]
    assert [(e["number"], e["pitch"]) for e in ons] == [
        (e.number, e.pitch) for e in expected if isinstance(e, NoteOn)
    ]
    offs = [(e["number"], e["kept"]) for e in events if e["type"] == "note_off"]
    assert offs == [(e.number, e.note is not None) for e in expected if isinstance(e, NoteOff)]


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (b"\0" * 640, "protocol"),  # audio before the handshake
        ("nonsense", "protocol"),
        ("[]", "protocol"),
        ("[" * 50000, "protocol"),
        ('{"type": "end"}', "protocol"),
        ('{"type": "start"}', "option"),
        ('{"type": "start", "rate": 1e9}', "option"),
        ('{"type": "start", "rate": true}', "option"),
        ('{"type": "start", "rate": 16000, "format": "webm"}', "option"),
        ('{"type": "start", "rate": 16000, "format": "mp4"}', "option"),
        ('{"type": "start", "rate": 16000, "channels": 0}', "option"),
        ('{"type": "start", "rate": 16000, "smooth": true}', "option"),
        ('{"type": "start", "rate": 16000, "instruments": ["bass"]}', "option"),
        ('{"type": "start", "rate": 16000, "model": "../../x"}', "option"),
    ],
)
def test_a_first_message_that_is_no_start_ends_it(served, first, kind):
    with opened(served) as socket:
        socket.send(first)
        error, closed = received(socket)
    assert error["type"] == "error"
    assert error["error"] == kind
    assert closed["code"] == 1008


@pytest.mark.parametrize(
    "message",
    [
        b"\0" * 7,  # no whole frame
        b"\x1aE\xdf\xa3" + bytes(60),  # what a MediaRecorder makes
        json.dumps(START),  # twice
        "no json",
        np.full(8, np.nan, "<f4").tobytes(),
    ],
)
def test_what_does_not_fit_ends_it_and_nothing_else(served, audio, message):
    with started(served) as bad, started(served) as good:
        bad.send(message)
        *_, error, closed = received(bad)
        assert error["type"] == "error"
        assert closed["code"] == 1008
        play(good, audio.astype("<f4").tobytes())
        good.send(json.dumps({"type": "end"}))
        assert received(good)[-2]["type"] == "done"
    until(lambda: not served.service.keeper(None).health().live)


def test_audio_behind_the_end_is_not_waited_for(served, audio):
    with started(served) as socket:
        play(socket, audio.astype("<f4").tobytes())
        socket.send(json.dumps({"type": "end"}))
        socket.send(b"\0" * 64)
        assert received(socket)[-2]["type"] == "done"


def test_a_message_that_is_too_large_ends_it(served):
    with started(served) as socket:
        with suppress(ConnectionClosed):
            socket.send(bytes(3 << 20))
        assert received(socket)[-1]["code"] in (0, 1009)
    until(lambda: not served.service.keeper(None).health().live)


def test_a_client_that_leaves_frees_its_rows(served, audio):
    before = served.metric('mt3_cancelled_total{why="client"}')
    with started(served) as socket:
        play(socket, audio.astype("<f4").tobytes())
        socket.socket.close()
    until(lambda: not served.service.keeper(None).health().recordings)
    until(lambda: served.metric('mt3_cancelled_total{why="client"}') > before)


def test_a_flood_is_read_no_faster_than_it_is_played(served, monkeypatch):
    """Two minutes are sent at once; some seconds of them are read."""
    monkeypatch.setattr(live_socket, "AHEAD_SECONDS", 1.0)
    with started(served) as socket:
        socket.socket.settimeout(1.0)
        sent = 0
        try:
            for _ in range(120):
                socket.send(bytes(64000))
                sent += 1
        except (TimeoutError, ConnectionClosed):
            pass
        buffered = served.service.keeper(None).engine
        assert max((live.buffered for live in buffered._live), default=0.0) <= 11.0
        socket.socket.close()
    until(lambda: not served.service.keeper(None).health().live)


def test_live_inputs_are_bounded(model, tmp_path):
    few = {"max_live": 2, "live_per_client": 1}
    with running(model, tmp_path, **few) as found, started(found), opened(found) as second:
        second.send(json.dumps(START))
        error, closed = received(second)
        assert error["error"] == "concurrency"
        assert closed["code"] == 1013
    with running(model, tmp_path, max_live=0) as found, opened(found) as socket:
        socket.send(json.dumps(START))
        assert received(socket)[0]["error"] == "busy"


def test_silence_on_the_line_ends_it(model, tmp_path):
    with running(model, tmp_path, patience=0.5) as found, started(found) as socket:
        error, closed = received(socket)
        assert error["error"] == "idle"
        assert closed["code"] == 1008


def test_a_start_that_does_not_come_ends_it(served, monkeypatch):
    monkeypatch.setattr(live_socket, "START_SECONDS", 0.2)
    with opened(served) as socket:
        assert received(socket)[0]["error"] == "idle"


def test_a_length_is_bounded(model, tmp_path, audio):
    with running(model, tmp_path, live_seconds=2.0) as found, started(found) as socket:
        play(socket, audio.astype("<f4").tobytes())
        assert received(socket)[-2]["error"] == "too_large"


def test_a_token_comes_in_a_header_or_first_of_all(model, tmp_path, audio):
    token = "correct-horse-battery-staple"
    with running(model, tmp_path, tokens=frozenset({token_digest_of(token)})) as found:
        for extra in ({}, {"token": "wrong"}):
            with opened(found) as socket:
                socket.send(json.dumps(START | extra))
                assert received(socket)[0]["error"] == "token"
        with started(found, token=token):
            pass
        header = {"Authorization": f"Bearer {token}"}
        with opened(found, additional_headers=header) as socket:
            socket.send(json.dumps(START))
            assert json.loads(socket.recv(HANGS))["type"] == "ready"
        wrong = {"Authorization": "Bearer wrong"}
        with pytest.raises(InvalidStatus), opened(found, additional_headers=wrong):
            pass


@pytest.mark.parametrize("header", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
def test_pages_of_others_get_no_socket(served, header):
    url = f"ws://{header.get('Host', '127.0.0.1')}:{served.port}/v1/live"
    where = {"sock": served.connect(), "proxy": None, "origin": header.get("Origin")}
    with pytest.raises(InvalidStatus) as refused, connect(url, **where):
        pass
    assert refused.value.response.status_code in (403, 421)
